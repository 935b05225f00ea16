"""Exports to a disk that writes slowly: rounds, joins, pings and /healthz go on. At full size:

  SIGNVOTE_BIN=build/dev/bin SLOW_DISK_COORDINATES=134000000 SLOW_DISK_RATE=5000000 python3 tests/e2e/slow_disk_test.py
"""

import os
import pathlib
import signal
import time
import unittest

import harness
from harness import BIN, FOREVER, OK

COORDINATES = int(os.environ.get("SLOW_DISK_COORDINATES", 2_000_000))
RATE = int(os.environ.get("SLOW_DISK_RATE", 1_000_000))  # bytes a second
SECONDS = 4 * COORDINATES / RATE  # that an export takes at least
HEALTH_SECONDS_MAX = 1


class SlowDisk(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        self.certify("a", "b", "c", "d")
        self.slow = self.folder / "slow"
        self.slow.mkdir()
        self.disk = {"LD_PRELOAD": str(BIN / "slow_disk.so"), "SLOW_DISK_FOLDER": str(self.slow), "SLOW_DISK_RATE": str(RATE)}
        self.under = ["env", *(f"{name}={value}" for name, value in self.disk.items())]

    def start_worker(self, name):
        return super().start_worker(name, "--coordinates", COORDINATES, "--random-ballots", "--compute-ms", 20)

    def half_written(self):
        return [f for f in self.slow.iterdir() if f.name.endswith(".tmp") or ".tmp" in f.name]

    def everything_goes_on(self, newcomer, still_writes):
        """Rounds, a join, pings and /healthz, while still_writes() holds."""
        before = len(self.rounds())
        longest = 0
        worker = self.start_worker(newcomer)
        self.wait_until("a newcomer is a member", lambda: (self.worker_status(newcomer) or {}).get("role") == "member",
                        timeout=60 + SECONDS)
        for _ in range(5):
            begin = time.monotonic()
            self.assertEqual(harness.http_get(self.server.http, "/healthz")[0], 200)
            longest = max(longest, time.monotonic() - begin)
        self.wait_round(before + 10, timeout=60 + SECONDS)
        self.assertTrue(still_writes(), "the export was over before anything could be seen")
        rounds = self.rounds()[before:]
        gaps = [b["unix_time"] - a["unix_time"] for a, b in zip(rounds, rounds[1:])]
        self.assertLess(longest, HEALTH_SECONDS_MAX)
        self.assertEqual(self.events("lost"), [])
        print(f"{SECONDS:.0f} s of writing: {len(rounds)} rounds, the longest of {max(gaps):.2f} s; "
              f"/healthz within {longest:.2f} s", flush=True)
        return worker

    def all_leave(self, workers):
        self.pause()
        for worker in workers:
            self.assertEqual(self.ctl("drain", worker.name)[0], OK)
            self.assert_exit(worker, OK)

    def test_copies_and_the_last_export_hold_nothing_up(self):
        self.start_server("--export-every", "1s", "--export", self.slow / "model.safetensors", rounds=FOREVER, workers_min=2,
                          prefix=self.under)
        workers = [self.start_worker(name) for name in "ab"]
        self.wait_until("a copy is being written", self.half_written, timeout=60 + SECONDS)
        workers.append(self.everything_goes_on("c", self.half_written))
        self.all_leave(workers)
        self.server.signal(signal.SIGTERM)
        self.wait_end(timeout=60 + 3 * SECONDS)  # the copy that is being written, then the model as it is
        self.assertGreaterEqual((self.slow / "model.safetensors").stat().st_size, 4 * COORDINATES)

    def test_an_operators_export_holds_nothing_up(self):
        self.start_server(rounds=FOREVER, workers_min=2)
        workers = [self.start_worker(name) for name in "ab"]
        self.wait_round(5, timeout=60 + SECONDS)
        target = pathlib.Path(self.slow, "now.safetensors")
        export = self.start("export", [*self.under, BIN / "signvote", "--server", self.server.address, "--tls-dir", self.tls,
                                       "export", target])
        self.wait_until("it is being written", self.half_written)
        workers.append(self.everything_goes_on("d", lambda: export.alive))
        self.assert_exit(export, OK, timeout=60 + 3 * SECONDS)
        self.assertGreaterEqual(target.stat().st_size, 4 * COORDINATES)
        self.end_run(*workers)


if __name__ == "__main__":
    unittest.main(verbosity=2)
