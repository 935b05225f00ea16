"""signvote-worker in a real run: what it serves, how it leaves, what it leaves behind."""

import json
import re
import shutil
import signal
import subprocess
import unittest

import harness
from harness import http_get


@unittest.skipUnless(harness.has_torch(), "needs LibTorch")
class WorkerRun(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        self.certify("a", "b")
        self.corpus = self.folder / "corpus.txt"
        self.corpus.write_text("".join(f"the sum of {a} and {b} is {a + b}.\n" for a in range(100) for b in range(20)))
        self.flags = ["--model", "micro", "--data", self.corpus, "--batch", 2, "--sequence", 32, "--threads", 1]

    def worker(self, name, *flags):
        return self.start_worker(name, *self.flags, *flags, program="signvote-worker")

    def metrics_address(self, worker):
        found = self.wait_until("the worker names its HTTP port",
                                lambda: re.search(r"serving metrics address=(\S+)", worker.log()))
        return found.group(1)

    def test_it_serves_its_metrics_while_it_trains(self):
        self.start_server(rounds=100000, workers_min=1)
        worker = self.worker("a")
        address = self.metrics_address(worker)
        self.wait_round(5)
        self.assertEqual(http_get(address, "/healthz")[0], 200)
        self.assertEqual(http_get(address, "/readyz")[0], 200)
        status, text = http_get(address, "/metrics")
        self.assertEqual(status, 200)
        if shutil.which("promtool"):
            checked = subprocess.run(["promtool", "check", "metrics"], input=text, text=True, capture_output=True)
            self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)
        values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
        value = {name: float(number) for name, number in values.items()}
        rounds, d = value["signvote_worker_rounds_voted_total"], value["signvote_worker_coordinates"]
        self.assertGreaterEqual(rounds, 4)
        self.assertEqual(value["signvote_worker_connected"], 1)
        # Measured on the socket, and 32 times less than fp32 but for headers and the round in progress.
        sent = value["signvote_worker_wire_sent_bytes_total"]
        self.assertGreater(sent, rounds * d / 8)
        self.assertLess(sent, (rounds + 2) * d / 8 * 1.1)
        self.assertEqual(self.worker_status("a")["metrics_address"], address)
        worker.signal(signal.SIGTERM)
        self.assert_exit(worker, harness.OK)

    def test_sigterm_finishes_the_round_and_leaves_in_good_order(self):
        self.start_server(rounds=60, workers_min=2)
        stays, goes = self.worker("a"), self.worker("b", "--save", self.folder / "b.safetensors")
        self.wait_round(5)
        goes.signal(signal.SIGTERM)
        self.assert_exit(goes, harness.OK)
        report = self.report("b")
        self.assertEqual(report["outcome"], "drained")
        self.assertGreaterEqual(report["rounds_voted"], 5)
        self.assertTrue((self.folder / "b.safetensors").exists())
        self.assertEqual(json.loads((self.folder / "config.json").read_text())["model_type"], "llama")
        self.assert_all_end_well([stays])
        self.assertEqual(self.report("a")["outcome"], "finished")

    def test_an_exported_model_starts_another_run(self):
        exported, saved = (self.folder / name / "model.safetensors" for name in ("exported", "saved"))
        exported.parent.mkdir()
        saved.parent.mkdir()
        self.start_server("--export", exported, rounds=40, workers_min=1)
        self.assert_all_end_well([self.worker("a", "--save", saved)])
        first = self.report("a")["held_out"]
        # Both say where the stepsize stood, and that is where the next run goes on.
        stepsize = f"{self.stepsize(self.rounds()[-1]):.9g}"
        for path in (exported, saved):
            self.assertEqual(harness.metadata(path)["signvote.stepsize"], stepsize)
        # The config that was exported beside it describes the same model.
        self.start_server("--init", exported, rounds=2, workers_min=1, name="second")
        worker = self.worker("a", "--model", exported.parent / "config.json")
        self.assert_all_end_well([worker])
        self.assertIn("the stepsize goes on from that of the run", self.server.log())
        self.assertLessEqual(self.stepsize(self.rounds()[-1]), float(stepsize))
        second = self.report("a")["held_out"]
        self.assertAlmostEqual(second["first"]["loss"], first["last"]["loss"], places=5)
        self.assertLess(first["last"]["loss"], first["first"]["loss"] - 0.5)

    def test_gradients_that_are_not_finite_are_said_and_end_a_run_of_one_after_the_wait_timeout(self):
        # Finite losses: the model may recover with another minibatch, so rounds without a step go on, at growing intervals.
        config = self.folder / "wild.json"
        config.write_text(json.dumps({
            "model_type": "llama", "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 2, "intermediate_size": 64, "initializer_range": 1e30}))
        self.start_server("--wait-timeout", 5, rounds=5, workers_min=1)
        worker = self.worker("a", "--model", config)
        self.wait_end(expected=harness.WAIT_TIMEOUT)
        self.assertIn("no step for 5 s (--wait-timeout): every round up to 2 closed without one", self.server.log())
        # The server has said that the run is over: nobody looks for it, --server-timeout or not.
        self.assert_exit(worker, harness.WAIT_TIMEOUT)
        self.assertIn("abstained: gradient is not finite", worker.log())
        self.assertIn("no step for 5 s", worker.log())
        rounds = self.rounds()
        self.assertEqual([(r["kind"], r["data_step"], r["main_rounds"]) for r in rounds],
                         [("none", t, 0) for t in range(len(rounds))])
        gaps = [b["unix_time"] - a["unix_time"] for a, b in zip(rounds, rounds[1:])]
        self.assertEqual(len(gaps), 2, gaps)
        self.assertGreater(gaps[0], 0.9)
        self.assertGreater(gaps[1], 1.9)


if __name__ == "__main__":
    unittest.main(verbosity=2)
