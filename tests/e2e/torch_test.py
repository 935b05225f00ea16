"""The reference worker: the pipeline is real, and a run trains."""

import math
import unittest

import harness


@unittest.skipUnless(harness.has_torch(), "needs LibTorch")
class ReferenceWorker(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        self.certify("a", "b", "c")

    def corpus(self):
        path = self.folder / "corpus.txt"
        sentence = "the quick brown fox jumps over the lazy dog and runs away from the slow grey wolf. "
        path.write_text("".join(sentence[k % 40:] + sentence[:k % 23] for k in range(3000)))
        return path

    def test_a_run_on_text_lowers_the_held_out_loss(self):
        self.start_server("--deadline", "off", "--eval-every", 10, rounds=30, workers_min=2)
        workers = self.start_workers("ab", "--model", "nano", "--data", self.corpus(), "--threads", 1, "--batch", 2,
                                     "--sequence", 32, program="signvote-worker")
        self.assert_all_end_well(workers.values(), timeout=240)
        # One at a time measured for both, the quicker one of then, and the server has what it said.
        reports = {name: self.report(name)["held_out"] for name in "ab"}
        logged = [held_out for line in self.rounds() for held_out in line["held_out"]]
        self.assertEqual([held_out["round"] for held_out in logged], [0, 10, 20])
        self.assertEqual(len({held_out["windows"] for held_out in logged}), 1)
        for held_out in logged:
            self.assertFalse(held_out["own"])
            self.assertGreater(held_out["error"], 0)
        self.assertEqual(logged[0]["loss"], reports[logged[0]["worker"]]["first"]["loss"])
        last = reports[logged[-1]["worker"]]["last"]
        self.assertEqual(last["windows"], logged[-1]["windows"])
        self.assertAlmostEqual(last["perplexity"], math.exp(last["loss"]))
        self.assertLess(last["loss"], logged[0]["loss"] - 0.5)

    @harness.timed
    def test_the_first_chunk_leaves_before_backward_ends(self):
        """With at least 20 M coordinates, in at least 90 % of the rounds."""
        rounds = 10
        log = self.folder / "a.rounds.jsonl"
        log.unlink(missing_ok=True)
        self.start_server(rounds=rounds, workers_min=1)
        worker = self.start_worker("a", "--model", "tiny", "--data", self.corpus(), "--batch", 1, "--sequence", 16,
                                   "--eval", "off", "--round-log", log, program="signvote-worker")
        self.wait_round(1, timeout=200)
        self.assertGreaterEqual(self.status()["coordinates"], 20_000_000)
        self.assert_all_end_well([worker], timeout=240)
        lines = self.lines(log)
        early = [line for line in lines if line["first_chunk_overlapped"]]
        self.assertEqual(len(lines), rounds)
        self.assert_in_time(len(early) >= 0.9 * rounds, f"in {len(early)} rounds of {rounds}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
