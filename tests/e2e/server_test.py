"""What a server shows and gives: status, HTTP, health, reflection, exports; and an applier that nobody waits for."""

import json
import pathlib
import shutil
import statistics
import struct
import subprocess
import unittest

import harness
from harness import OK


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
        self.start_server(rounds=400, workers_min=2)
        workers = self.start_workers("ab", "--compute-ms", 10)
        self.wait_round(20)
        self.assertEqual(self.ctl("pause")[0], OK)
        self.wait_until("the run is paused", lambda: self.status()["phase"] == "paused")
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
        self.assertEqual(self.ctl("resume")[0], OK)
        self.assert_all_end_well(workers.values())

    def test_http_answers(self):
        self.start_server(rounds=300)
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
        self.assert_all_end_well([worker])

    def test_a_state_transfer_is_counted_whole(self):
        self.start_server(rounds=300, workers_min=2)
        workers = self.start_workers("ab", "--compute-ms", 10)
        self.wait_round(5)
        wire = {w["name"]: w["wire"] for w in self.status()["workers"]}
        self.assert_all_end_well(workers.values())
        # One uploaded the initial parameters, the other one fetched them.
        replica = 4 * 100_000
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
        self.start_server("--export", export, rounds=200)
        worker = self.start_worker("a", "--compute-ms", 10)
        self.wait_round(5)
        now = self.folder / "now" / "model.safetensors"
        now.parent.mkdir()
        code, out, err = self.ctl("export", now)
        self.assertEqual(code, OK, err)
        self.assertEqual(len(read_safetensors(now)["x"]), 100_000)
        digest = self.assert_all_end_well([worker])
        final = read_safetensors(export)["x"]
        self.assertEqual(len(final), 100_000)
        self.assertNotEqual(final, read_safetensors(now)["x"])
        # Another run, started from that file, ends after its first round one step away from it.
        self.start_server("--init", export, "--rule", "fixed", "--stepsize", 0.25, rounds=1)
        worker = self.start_worker("a")
        self.assertNotEqual(self.assert_all_end_well([worker]), digest)
        self.assertEqual(self.report("a")["state_transfers"], 1)

    def test_a_slow_applier_slows_no_commit(self):
        def median_gap(*flags):
            self.start_server(*flags, rounds=60, workers_min=2)
            workers = self.start_workers("ab", "--compute-ms", 20)
            self.wait_round(60)
            times = [r["unix_time"] for r in self.rounds()]
            for process in [self.server, *workers.values()]:
                process.kill()
            gaps = [b - a for a, b in zip(times, times[1:])]
            return statistics.median(gaps), max(gaps)
        normal, _ = median_gap()
        slow, slowest = median_gap("--test-applier-delay-ms", 1000)
        self.assertLess(slow, normal + 0.1)
        self.assertLess(slowest, 0.9, "no commit waited for the applier's second")


class Plaintext(harness.ProcessTest):
    insecure = True

    def test_a_plaintext_run_with_health_and_reflection(self):
        self.certify("a", "b", "raw")
        self.start_server(rounds=300, workers_min=2)
        workers = self.start_workers("ab", "--compute-ms", 10)
        self.wait_round(5)
        status, message, out = self.raw("health")
        self.assertEqual(status, "OK", message)
        self.assertIn("HEALTH SERVING", out)
        status, message, out = self.raw("reflection")
        self.assertEqual(status, "OK", message)
        self.assertIn("signvote.v1.Training", out)
        self.assertEqual(self.status()["phase"], "round_open")
        self.assert_all_end_well(workers.values())


if __name__ == "__main__":
    unittest.main(verbosity=2)
