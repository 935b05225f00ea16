"""The quick sweep that ships, whole: every run of it comes to its end, and Lever, to which nothing was told, ends near the best of
its grids. Few seeds: this finds what is broken, and measures nothing (docs/algorithms/results.md does)."""

import collections
import csv
import pathlib
import statistics
import unittest

import harness
from harness import BIN, OK

SOURCE = pathlib.Path(__file__).resolve().parents[2]
SWEEP = SOURCE / "deploy" / "lab" / "sweep_quick.toml"
# Of the best grid run's held-out loss. The small networks' ends differ by some percent from seed to seed.
LEVER_MOST = 1.3
SEEDS = {"logistic": 3, "mlp": 3}  # of others one


@unittest.skipUnless((BIN / "signvote-lab").exists(), "signvote-lab needs LibTorch")
class QuickSweep(harness.ProcessTest):
    def test_every_run_ends_and_lever_is_near_the_best_of_the_grid(self):
        out = self.folder / "out"
        sweep = self.start("sweep", [BIN / "signvote", "lab", "sweep", SWEEP, "--output", out])
        self.assert_exit(sweep, OK, timeout=1200)
        with open(out / "results.csv", newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        losses = collections.defaultdict(lambda: collections.defaultdict(list))  # by method, by stepsize
        for row in rows:
            losses[row["task"], row["direction"], row["rule"]][row["stepsize"]].append(float(row["held_out_loss"]))
            if row["rule"] != "fixed-cosine":  # a grid may go too far
                self.assertEqual(row["outcome"], "finished", row)
                self.assertLess(float(row["held_out_loss"]), float(row["held_out_first"]), row)
        methods = {(task, direction) for task, direction, _ in losses}
        self.assertEqual(len(methods), 3 * 2 + 1)
        for task, direction in methods:
            grid = [statistics.mean(seeds) for seeds in losses[task, direction, "fixed-cosine"].values()]
            self.assertGreaterEqual(len(grid), 7)
            (lever,) = losses[task, direction, "lever"].values()
            self.assertEqual(len(lever), SEEDS.get(task, 1))
            self.assertLess(statistics.mean(lever), LEVER_MOST * min(grid), (task, direction))
        runs, overall = (out / "results.md").read_text().split("\n\n", 1)
        self.assertEqual(len(runs.splitlines()), 2 + 3 * len(methods))
        self.assertIn("One setting over all tasks", overall)


if __name__ == "__main__":
    harness.run_tests()
