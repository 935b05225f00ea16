"""A run of real processes equals, vote for vote, a simulation of the same seeds in one process (reference_simulation)."""

import json
import struct
import unittest

import harness


def tensors(path):
    """The fp32 bytes of a safetensors file, without its header."""
    data = path.read_bytes()
    (header_bytes,) = struct.unpack("<Q", data[:8])
    names = json.loads(data[8:8 + header_bytes])
    names.pop("__metadata__", None)
    return sorted((name, tuple(t["shape"]), tuple(t["data_offsets"])) for name, t in names.items()), data[8 + header_bytes:]


@unittest.skipUnless(harness.has_torch(), "needs LibTorch")
class Reference(harness.ProcessTest):
    ROUNDS = 50

    def setUp(self):
        super().setUp()
        self.certify("a", "b", "c")
        self.corpus = self.folder / "corpus.txt"
        self.corpus.write_text("".join(f"the sum of {a} and {b} is {a + b}.\n" for a in range(100) for b in range(20)))

    def compare(self, server_flags, worker_flags, simulation_flags):
        self.start_server("--deadline", "off", *server_flags, rounds=self.ROUNDS, workers_min=3)
        shared = ["--model", "micro", "--data", self.corpus, "--batch", 2, "--sequence", 32, "--threads", 1,
                  *worker_flags]
        for name in "abc":
            (self.folder / name).mkdir()
        workers = [self.start_worker(name, *shared, "--save", self.folder / name / "model.safetensors",
                                     "--round-log", self.folder / f"{name}.rounds.jsonl",
                                     program="signvote-worker") for name in "abc"]
        digest = self.assert_all_end_well(workers, timeout=180)

        code, out, err = self.command(
            "reference_simulation", *shared, "--rounds", self.ROUNDS, "--shares", 3, "--seed", 7,
            "--save", self.folder / "reference.safetensors", *simulation_flags, timeout=180)
        self.assertEqual(code, harness.OK, err)
        reference = json.loads(out)
        # The stepsizes first: they say in which round two runs parted.
        rounds = self.lines(self.folder / "a.rounds.jsonl")
        self.assertEqual([line["stepsize"] for line in rounds], reference["stepsizes"])
        # Every worker's losses, by share.
        by_share = {}
        for name in "abc":
            for line in self.lines(self.folder / f"{name}.rounds.jsonl"):
                by_share.setdefault(line["share"], []).append(line["loss"])
        self.assertEqual([list(losses) for losses in zip(*(by_share[s] for s in range(3)))], reference["losses"])
        self.assertEqual(digest, reference["digest"])
        layout, bits = tensors(self.folder / "reference.safetensors")
        for name in "abc":
            self.assertEqual(tensors(self.folder / name / "model.safetensors"), (layout, bits), name)
        # And training has happened.
        self.assertLess(reference["held_out_last"], reference["held_out_first"] - 0.5)

    def test_the_defaults_are_equal_bit_for_bit_after_50_rounds(self):
        self.compare([], [], [])

    def test_lion_with_decay_accumulation_and_a_fixed_stepsize_is_equal_too(self):
        chosen = ["--direction", "lion", "--beta", 0.9, "--beta2", 0.99, "--rule", "fixed", "--stepsize", 0.001,
                  "--schedule", "cosine", "--weight-decay", 0.1]
        self.compare(chosen, ["--accumulate", 2], chosen)

    def test_adams_update_under_noise_of_clipped_gradients_is_equal_too(self):
        chosen = ["--direction", "adam", "--beta", 0.9, "--beta2", 0.999, "--rule", "fixed", "--stepsize", 0.003]
        self.compare([*chosen, "--clip", "norm", "--clip-norm", 0.5], [], [*chosen, "--clip-norm", 0.5])

    def test_muons_signs_of_scaled_plain_and_decaying_tensors_are_equal_too(self):
        chosen = ["--direction", "muon", "--beta", 0.95, "--state-dtype", "bf16", "--rule", "fixed", "--stepsize", 0.003,
                  "--tensor-scale", "*norm.weight=0.5,lm_head.weight=0.25", "--tensor-decay", "*mlp*=0.1",
                  "--tensor-treatment", "*embed_tokens.weight=plain,lm_head.weight=sparse"]
        self.compare(chosen, [], chosen)

    def test_what_error_feedback_commits_is_equal_too(self):
        chosen = ["--direction", "signsgd", "--error-feedback", "--feedback-keep", 0.9, "--rule", "fixed", "--stepsize", 0.3,
                  "--schedule", "linear", "--weight-decay", 0.1, "--tensor-scale", "lm_head.weight=0.5"]
        self.compare([*chosen, "--clip", "norm", "--clip-norm", 2], [], [*chosen, "--clip-norm", 2])


if __name__ == "__main__":
    unittest.main(verbosity=2)
