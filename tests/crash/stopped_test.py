"""Processes that stand still for longer than a round and go on: SIGSTOP of the server, of a worker that rounds wait for, and of
both. Nobody is taken for dead, nothing is lost, and with the deadline off the run ends as an undisturbed one.

What a deadline makes of a worker that stands still shows e2e_membership_test.
"""

import time

from crashes import CHUNK, COORDINATES, NAMES, CrashRun, harness

STANDS_SECONDS = 2  # rounds take some milliseconds


class Stopped(CrashRun):
    ROUNDS = 400
    RUN = ("--direction", "signum", "--deadline", "off")

    def test_a_run_that_stood_still_ends_as_an_undisturbed_one(self):
        server = self.life_of_server(*self.RUN, rounds=self.ROUNDS)
        workers = {name: self.life_of_worker(name, "--compute-ms", 10) for name in NAMES}
        for stopped in ([server], [workers["w2"]], [workers["w3"], server]):
            self.wait_round(len(self.rounds()) + 5)
            for process in stopped:
                harness.stop(process)
            self.wait_until("no round is committed", self.stands_still)
            if stopped == [workers["w2"]]:
                at = self.status()["round"]
                self.assertEqual(harness.http_get(server.http, "/healthz")[0], 200)
                self.assertEqual(self.status()["round"], at)
            for process in stopped:
                harness.cont(process)
            self.wait_round(len(self.rounds()) + 2)
        digest = self.assert_all_end_well(workers.values())
        self.assertEqual([e for e in self.events() if e["kind"] in ("lost", "observer", "abstained")], [])
        self.server_died()
        self.assertEqual(f"{self.replay().replica.digest():016x}", digest)
        lines = self.losses()

        self.start_server(*self.RUN, "--init", self.folder / "x0.safetensors", "--chunk-coordinates", CHUNK, rounds=self.ROUNDS,
                          workers_min=len(NAMES), name="undisturbed")
        workers = self.start_workers(NAMES, "--coordinates", COORDINATES)
        self.assertEqual(self.assert_all_end_well(workers.values()), digest)
        self.assertEqual(self.losses(), lines)

    def stands_still(self):
        committed = len(self.rounds())
        time.sleep(STANDS_SECONDS)
        return len(self.rounds()) == committed

    def losses(self):
        return [(line["round"], line["loss"], line["stepsize_bits"], line["payload_hash"]) for line in self.rounds()]


if __name__ == "__main__":
    harness.run_tests()
