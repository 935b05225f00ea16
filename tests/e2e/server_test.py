"""What a server shows and gives: status, HTTP, health, reflection, exports; and an applier that nobody waits for."""

import fcntl
import json
import os
import pathlib
import select
import shutil
import statistics
import struct
import subprocess
import termios
import unittest

import harness
from harness import FOREVER, OK, timed


def read_safetensors(path):
    """{name: floats} of a file of F32 tensors, by the format's own words."""
    data = pathlib.Path(path).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        assert entry["dtype"] == "F32"
        tensors[name] = struct.unpack(f"<{(end - begin) // 4}f", data[8 + size + begin:8 + size + end])
    return tensors


class ServerShows(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        self.certify("a", "b", "raw")

    def get(self, path):
        return harness.http_get(self.server.http, path)

    def test_status_agrees_with_the_round_log(self):
        self.start_server("--deadline", "off", rounds=FOREVER, workers_min=2)
        workers = self.start_workers("ab", "--compute-ms", 10)
        self.wait_round(20)
        self.pause()
        status, log = self.status(), self.rounds()
        self.assertEqual(status["round"], len(log))
        self.assertEqual(status["stepsize"], self.stepsize(log[-1]))
        self.assertEqual(status["coordinates"], 100_000)
        self.assertEqual(status["rule"], "alias")
        self.assertEqual(sorted(w["name"] for w in status["workers"]), ["a", "b"])
        self.assertEqual({w["ballots"] for w in status["workers"]}, {len(log)})
        code, table, err = self.ctl("status")
        self.assertEqual(code, OK, err)
        self.assertLessEqual(max(len(line) for line in table.splitlines()), 80)
        self.assertNotIn("\x1b", table)
        # Measured bytes: at least the packed bits, at most what 3 % of framing and one round in flight allow.
        packed = status["coordinates"] / 8
        for worker in status["workers"]:
            self.assertGreaterEqual(worker["wire"]["up_rounds_bytes"], packed * len(log))
            self.assertLessEqual(worker["wire"]["up_rounds_bytes"], 1.03 * packed * (len(log) + 1) + 2000)
        self.end_run(*workers.values())

    def test_http_answers(self):
        self.start_server(rounds=FOREVER)
        self.assertEqual(self.get("/healthz")[0], 200)
        worker = self.start_worker("a", "--compute-ms", 10)
        self.wait_round(5)
        self.assertEqual(self.get("/readyz")[0], 200)
        code, text = self.get("/metrics")
        self.assertEqual(code, 200)
        self.assertIn("signvote_", text)
        self.assertEqual(self.get("/none-such")[0], 404)
        code, body = self.get("/api/v1/status")
        self.assertEqual(code, 200)
        self.assertIsInstance(json.loads(body), dict)
        promtool = shutil.which("promtool")
        if promtool:
            done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=30)
            self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.end_run(worker)

    def test_a_state_transfer_is_counted_whole(self):
        self.start_server(rounds=FOREVER, workers_min=2)
        workers = self.start_workers("ab", "--compute-ms", 10)
        replica = 4 * 100_000

        def wire():
            return {w["name"]: w["wire"] for w in self.status()["workers"]}
        # gRPC ends a transfer's call, whose bytes are then counted, behind its reply.
        self.wait_until("both transfers are counted", lambda: len(wire()) == 2 and all(
            max(w["up_setup_bytes"], w["down_setup_bytes"]) >= replica for w in wire().values()))
        self.wait_round(5)
        wire = wire()
        self.end_run(*workers.values())
        # One uploaded the initial parameters, the other one fetched them.
        moved = sorted((w["up_setup_bytes"], w["down_setup_bytes"]) for w in wire.values())
        self.assertLess(moved[0][0], 0.1 * replica)
        self.assertGreaterEqual(moved[0][1], replica)
        self.assertGreaterEqual(moved[1][0], replica)
        for name, mine in wire.items():
            own = self.report(name)["wire"]
            self.assertLess(abs(mine["down_setup_bytes"] - own["setup_received_bytes"]), 0.05 * replica, name)
            self.assertLess(abs(mine["up_setup_bytes"] - own["setup_sent_bytes"]), 0.05 * replica, name)

    def test_health_and_reflection_answer(self):
        self.start_server()
        status, message, out = self.raw("health")
        self.assertEqual(status, "OK", message)
        self.assertIn("HEALTH SERVING", out)
        status, message, out = self.raw("reflection")
        self.assertEqual(status, "OK", message)
        for service in ("signvote.v1.Training", "signvote.v1.Admin", "grpc.health.v1.Health"):
            self.assertIn(service, out)
        self.assert_all_end_well([self.start_worker("a")])

    def test_exports_hold_the_replica(self):
        export = self.folder / "end" / "model.safetensors"
        export.parent.mkdir()
        self.start_server("--export", export, rounds=FOREVER)
        worker = self.start_worker("a", "--compute-ms", 10)
        self.wait_round(5)
        now = self.folder / "now" / "model.safetensors"
        now.parent.mkdir()
        code, out, err = self.ctl("export", now)
        self.assertEqual(code, OK, err)
        self.assertEqual(len(read_safetensors(now)["x"]), 100_000)
        self.wait_round(len(self.rounds()) + 5)
        digest = self.end_run(worker)
        final = read_safetensors(export)["x"]
        self.assertEqual(len(final), 100_000)
        self.assertNotEqual(final, read_safetensors(now)["x"])
        # Another run, started from that file, ends after its first round one step away from it.
        self.start_server("--init", export, "--rule", "fixed", "--stepsize", 0.25, rounds=1)
        worker = self.start_worker("a")
        self.assertNotEqual(self.assert_all_end_well([worker]), digest)
        self.assertEqual(self.report("a")["state_transfers"], 1)

    @timed
    def test_a_slow_applier_slows_no_commit(self):
        def median_gap(*flags):
            self.start_server(*flags, rounds=FOREVER, workers_min=2)
            workers = self.start_workers("ab", "--compute-ms", 20)
            self.wait_round(60)
            times = [r["unix_time"] for r in self.rounds()]
            for process in [self.server, *workers.values()]:
                process.kill()
            gaps = [b - a for a, b in zip(times, times[1:])]
            return statistics.median(gaps), max(gaps)
        normal, _ = median_gap()
        slow, slowest = median_gap("--test-applier-delay-ms", 1000)
        self.assert_in_time(slow < normal + 0.1, f"a round took {slow} s with and {normal} s without the applier's second")
        self.assert_in_time(slowest < 0.9, f"a commit took {slowest} s: it waited for the applier's second")


    def test_a_stderr_that_nobody_reads_holds_nothing_up(self):
        # The place of the server's log is a pipe of one page with a reader that does not read.
        log = self.folder / f"server.{len(self.processes)}.log"
        os.mkfifo(log)
        reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
        fcntl.fcntl(reader, fcntl.F_SETPIPE_SZ, select.PIPE_BUF)

        def waiting():
            return struct.unpack("i", fcntl.ioctl(reader, termios.FIONREAD, b"\0" * 4))[0]
        try:
            self.certify("a", "b", "c")
            self.start_server(rounds=FOREVER)
            workers = self.start_workers("ab", "--compute-ms", 20)
            self.wait_round(5)
            full = 0
            for _ in range(100):  # lines about what people do, until the last finds no room
                self.pause()
                self.assertEqual(self.ctl("resume")[0], OK)
                if waiting() == full and full > select.PIPE_BUF // 2:
                    break
                full = waiting()
            self.assertGreater(full, select.PIPE_BUF // 2, "the pipe was never full")
            rounds = len(self.rounds())
            self.wait_round(rounds + 20)
            self.assertEqual(self.get("/healthz")[0], 200)
            workers["c"] = self.start_worker("c", "--compute-ms", 20)
            self.wait_until("a worker joins", lambda: self.worker_status("c") is not None)
            self.wait_round(len(self.rounds()) + 10)
            self.assertGreaterEqual(waiting(), full, "somebody read")
            self.end_run(*workers.values())
        finally:
            self.server.kill()
            text = os.read(reader, 1 << 20)
            os.close(reader)
            log.unlink()
            log.write_bytes(text)


class SyntheticBallots(harness.ProcessTest):
    def test_random_signs_are_not_sent_to_a_run_with_dense_tensors(self):
        self.certify("a")
        self.start_server("--rule", "fixed", "--stepsize", 0.01, "--dense", "*", rounds=harness.FOREVER)
        worker = self.start_worker("a", "--random-ballots")
        self.assert_exit(worker, harness.REFUSED)
        self.assertIn("--random-ballots are signs, and this run has dense tensors", worker.log())


class Plaintext(harness.ProcessTest):
    insecure = True

    def test_a_plaintext_run_with_health_and_reflection(self):
        self.certify("a", "b", "raw")
        self.start_server(rounds=FOREVER, workers_min=2)
        workers = self.start_workers("ab", "--compute-ms", 10)
        self.wait_round(5)
        status, message, out = self.raw("health")
        self.assertEqual(status, "OK", message)
        self.assertIn("HEALTH SERVING", out)
        status, message, out = self.raw("reflection")
        self.assertEqual(status, "OK", message)
        self.assertIn("signvote.v1.Training", out)
        self.assertEqual(self.status()["phase"], "round_open")
        self.end_run(*workers.values())


if __name__ == "__main__":
    unittest.main(verbosity=2)
