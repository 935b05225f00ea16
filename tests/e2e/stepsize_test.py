"""The stepsize is what algorithms.md says: every γ of a run recomputed from the logged scalars, by other code."""

import math
import struct
import unittest

import harness


def fp32(value):
    return struct.unpack("<f", struct.pack("<f", value))[0]


def median(values):
    values = sorted(values)
    half = len(values) // 2
    return values[half] if len(values) % 2 else (values[half - 1] + values[half]) / 2


def robust_mean(values):
    """docs/algorithms.md, "Stepsize": clip to median ± 3·1.48·MAD, then the mean; with one or two values the plain mean."""
    values = [v for v in values if v is not None and math.isfinite(v)]
    if not values:
        return None
    if len(values) > 2:
        middle = median(values)
        width = 3 * 1.48 * median([abs(v - middle) for v in values])
        values = [min(max(v, middle - width), middle + width) for v in values]
    return math.fsum(values) / len(values)


def alias(rounds, x0_max_abs):
    """Yields γ_t of ALIAS, Option II with f̃ = 0 and the same-minibatch probe (arXiv 2506.03725, Algorithm 2)."""
    eta, f0, gamma = 0.0, None, None
    for line in rounds:
        scalars = line["workers"]
        if f0 is None:
            f0 = robust_mean([s["loss"] for s in scalars])
        if gamma is None:
            gamma = fp32(1e-5 * max(1.0, x0_max_abs))
        else:
            change = robust_mean([s.get("probe_l1") for s in scalars])
            if change is not None:
                eta += change / gamma        # ‖x_t − x_{t−1}‖_∞ = γ_{t−1}, as every step_scale is 1
            if eta > 0:
                gamma = fp32(math.sqrt(f0 / eta))
        yield gamma


class Stepsize(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        self.certify("a", "b", "c")

    def run_once(self, *worker_flags, rounds=60, scale=1):
        self.start_server("--deadline", "off", rounds=rounds, workers_min=3)
        workers = self.start_workers("abc", "--scale", scale, *worker_flags)
        self.assert_all_end_well(workers.values())
        return self.rounds()

    def test_every_stepsize_of_a_run_can_be_recomputed_from_its_log(self):
        rounds = self.run_once()
        self.assertEqual(len(rounds), 60)
        expected = list(alias(rounds, self.report("a")["x0_max_abs"]))
        for line, gamma in zip(rounds, expected):
            # One rounding to fp32 of a double computed in another order of additions: one unit in the last place.
            self.assertLessEqual(abs(self.stepsize(line) - gamma), 2 ** -23 * gamma, f"round {line['round']}")
        self.assertGreater(len({self.stepsize(line) for line in rounds}), 50, "the rule adapts")

    def test_stretching_the_problem_by_128_stretches_every_stepsize_by_exactly_128(self):
        plain = [self.stepsize(line) for line in self.run_once(scale=1)]
        stretched = [self.stepsize(line) for line in self.run_once(scale=128)]
        self.assertEqual(stretched, [128 * gamma for gamma in plain])

    def test_the_same_seeds_give_the_same_run(self):
        first = self.run_once(rounds=20)
        digest = self.report("a")["digest"]
        second = self.run_once(rounds=20)
        self.assertEqual([self.stepsize(r) for r in first], [self.stepsize(r) for r in second])
        self.assertEqual(self.report("a")["digest"], digest)

    def test_a_fixed_rule_follows_its_schedule(self):
        self.start_server("--rule", "fixed", "--stepsize", 0.5, "--schedule", "linear", rounds=10, workers_min=1)
        self.assert_all_end_well([self.start_worker("a")])
        gammas = [self.stepsize(line) for line in self.rounds()]
        self.assertEqual(gammas, [fp32(0.5 * (1 - t / 10)) for t in range(10)])


if __name__ == "__main__":
    unittest.main(verbosity=2)
