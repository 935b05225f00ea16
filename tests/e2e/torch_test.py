"""The reference worker: the pipeline is real, and a run trains."""

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
        self.start_server(rounds=30, workers_min=2)
        workers = self.start_workers("ab", "--model", "nano", "--data", self.corpus(), "--threads", 1, "--batch", 2,
                                     "--sequence", 32, program="signvote-worker")
        self.assert_all_end_well(workers.values(), timeout=240)
        loss = self.report("a")["loss"]
        self.assertLess(loss["held_out_last"], loss["held_out_first"] - 0.5)

    @harness.timed
    def test_the_first_chunk_leaves_before_backward_ends(self):
        """With at least 20 M coordinates, in at least 90 % of the rounds."""
        rounds = 10
        log = self.folder / "a.rounds.jsonl"
        log.unlink(missing_ok=True)
        self.start_server(rounds=rounds, workers_min=1)
        worker = self.start_worker("a", "--model", "tiny", "--data", self.corpus(), "--batch", 1, "--sequence", 16,
                                   "--round-log", log, program="signvote-worker")
        self.wait_round(1, timeout=200)
        self.assertGreaterEqual(self.status()["coordinates"], 20_000_000)
        self.assert_all_end_well([worker], timeout=240)
        lines = self.lines(log)
        early = [line for line in lines if line["first_chunk_overlapped"]]
        self.assertEqual(len(lines), rounds)
        self.assert_in_time(len(early) >= 0.9 * rounds, f"in {len(early)} rounds of {rounds}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
