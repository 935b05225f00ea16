"""The report of a sweep's folder, over figures made by hand: which runs count, what is said of them, and what becomes of names and of
files that cannot be written."""

import importlib.util
import unittest

import harness
from harness import BAD_INPUT, BIN, OK

COLUMNS = ("task,direction,rule,aggregate,local_steps,n,stepsize,seed,rounds,main_rounds,held_out_loss,held_out_error,held_out_first,"
           "seconds,bytes_up,bytes_down,minibatches,up_bits,down_bits,targets,last_stepsize,outcome,digest,id,program").split(",")
CELL_COLUMNS = "id,task,direction,rule,aggregate,local_steps,n,stepsize,seed,tuned".split(",")
CURVE = "round,main_round,seconds,bytes_up,bytes_down,loss,stepsize,held_out_loss\n1,1,0.1,10,10,2.5,0.1,\n2,2,0.2,20,20,2.25,0.1,2.3\n"
MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None


@unittest.skipUnless((BIN / "signvote-lab-report").exists(), "signvote-lab-report lies beside signvote-lab, which needs LibTorch")
class Report(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        self.out = self.folder / "out"
        (self.out / "curves").mkdir(parents=True)
        self.cells, self.rows = [], []

    def run_of(self, rule, stepsize, seed, loss, *, tuned=False, planned=True, task="mlp", **other):
        """One run; without a loss it is not done."""
        row = dict(task=task, direction="signum", rule=rule, aggregate="vote", local_steps=1, n=4, stepsize=stepsize, seed=seed, rounds=12,
                   main_rounds=10, held_out_loss=loss, held_out_error=0.1, held_out_first=3, seconds=1, bytes_up=1, bytes_down=1,
                   minibatches=40, up_bits=1.5, down_bits=0.25, targets=1, last_stepsize=0.1, outcome="finished", digest="0", program="0-0",
                   tuned=int(tuned)) | other
        row["id"] = f"{len(self.rows) + len(self.cells):016x}"
        if planned:
            self.cells.append(row)
        if loss is not None:
            self.rows.append(row)
            (self.out / "curves" / f"{row['id']}.csv").write_text(CURVE)

    def report(self):
        for name, columns, rows in (("results.csv", COLUMNS, self.rows), ("cells.csv", CELL_COLUMNS, self.cells)):
            lines = [",".join(columns)] + [",".join(str(row[c]) for c in columns) for row in rows]
            (self.out / name).write_text("\n".join(lines) + "\n")
        return self.command("signvote-lab-report", self.out)

    def table(self):
        """Rows of results.md by method, each by column."""
        self.assertEqual(self.report(), (OK, "", ""))
        lines = [line for line in (self.out / "results.md").read_text().splitlines() if line.startswith("|")]
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
        return {row[head.index("method")]: dict(zip(head, row)) for row in rows}

    def grid(self, *losses):
        """The best grid run, of as many seeds."""
        for seed, loss in enumerate(losses, 1):
            self.run_of("fixed", 0.1, seed, loss, tuned=True)
            self.run_of("fixed", 0.3, seed, 2 * loss, tuned=True)

    def test_runs_that_the_file_asks_for_no_longer_do_not_count(self):
        self.grid(1.0, 1.0)
        for seed in (1, 2):
            self.run_of("alias2", "", seed, 5.0, planned=False)
            self.run_of("alias2", "", seed, 1.1)
            self.run_of("fixed", 0.2, seed, 0.5, planned=False)
        table = self.table()
        self.assertEqual(table["signum fixed"]["stepsize"], "0.1")
        self.assertEqual(table["signum alias2"]["held-out loss"], "1.1000 (1.1000 to 1.1000)")
        self.assertEqual(table["signum alias2"]["seeds"], "2")

    def test_a_stepsize_that_not_all_seeds_have_tried_is_no_best_one(self):
        self.grid(1.2, 1.2, 1.2)
        self.run_of("fixed", 0.056, 1, 1.05, tuned=True)
        for seed in (2, 3):
            self.run_of("fixed", 0.056, seed, None, tuned=True)
        for seed in (1, 2, 3):
            self.run_of("lever", "", seed, 1.2)
        self.run_of("sos", "", 1, 0.1)
        self.run_of("sos", "", 2, None)
        table = self.table()
        self.assertEqual((table["signum fixed"]["stepsize"], table["signum fixed"]["seeds"]), ("0.1", "3"))
        self.assertEqual(table["signum lever"]["excess over the best grid run"], "+0.00 % ± 0.00")
        self.assertNotIn("signum sos", table)
        for name in ("results.md", "report.html"):
            self.assertIn("11 of 14 runs are done; what is not done with all its seeds is left out.", (self.out / name).read_text())

    def test_whether_an_excess_is_at_most_one_percent_is_a_one_sided_test(self):
        self.grid(1.0, 1.0, 1.0)
        # t = 2.920 at two degrees of freedom: 2.920 / sqrt(3) = 1.686 deviations above 1 % are not significant, 1.7 are.
        for name, excesses, expected in (("below", (0.9, 1.0, 1.1), "yes"), ("near", (2.67, 3.67, 1.67), "not significantly above"),
                                         ("above", (2.70, 3.70, 1.70), "no"), ("far", (0.0, 4.1, 8.2), "no")):
            for seed, percent in enumerate(excesses, 1):
                self.run_of(name, "", seed, 1 + percent / 100)
        self.run_of("wild", "", 1, "inf")
        table = self.table()
        for name, expected in (("below", "yes"), ("near", "not significantly above"), ("above", "no"), ("far", "no"), ("wild", "no"),
                               ("fixed", "")):
            self.assertEqual(table[f"signum {name}"]["at most 1 %?"], expected, name)
        self.assertEqual(table["signum fixed"]["excess over the best grid run"], "the best grid run")
        # 4.303 / sqrt(3) = 2.484 deviations.
        self.assertEqual(table["signum near"]["excess over the best grid run"], "+2.67 % ± 2.48")

    def test_one_setting_over_all_tasks_is_ranked_by_the_geometric_mean(self):
        # Tuned for a task alone, "fixed" is best at 0.1 on one and at 0.3 on the other; 0.2 is best for both, and 0.7 was tried on one only.
        for task, losses in (("mlp", {0.1: 1.0, 0.2: 1.2, 0.3: 4.0, 0.7: 0.9}), ("text", {0.1: 4.0, 0.2: 1.2, 0.3: 1.0})):
            for stepsize, loss in losses.items():
                self.run_of("fixed", stepsize, 1, loss, tuned=True, task=task)
        for task, lever, flat in (("mlp", 1.0, 0.04), ("text", 1.1, 2.2)):
            self.run_of("lever", "", 1, lever, task=task)
            self.run_of("flat", 0.25, 1, flat, task=task)
        self.run_of("alias2", "", 1, 0.1, task="mlp")
        self.assertEqual(self.report(), (OK, "", ""))
        heading = "One setting over all tasks, n = 4"
        text, page = (self.out / "results.md").read_text(), (self.out / "report.html").read_text()
        self.assertIn(f"<h2>{heading}</h2>", page)
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text[text.index(heading):].splitlines() if line.startswith("|")]
        self.assertEqual(rows[0], ["method", "stepsize", "geometric mean", "mlp", "text"])
        # The least of mlp is 0.04, which counts as 0.05.
        self.assertEqual(rows[2:], [["signum flat", "0.25", "1.414", "1.000", "2.000"], ["signum lever", "the rule's", "4.472", "20.000", "1.000"],
                                    ["signum fixed", "0.2", "5.117", "24.000", "1.091"]])

    def test_fewer_meetings_are_compared_with_every_minibatch_and_with_full_precision(self):
        self.grid(1.0, 1.0)
        for seed, (vote, dense) in enumerate(((1.02, 1.01), (1.04, 1.03)), 1):
            self.run_of("lever", "", seed, vote, direction="lion", local_steps=16, up_bits=0.0625)
            self.run_of("fixed", 0.1, seed, dense, direction="diloco", local_steps=16, up_bits=2.0, tuned=True)
        self.assertEqual(self.report(), (OK, "", ""))
        heading = "Fewer meetings: mlp, n = 4"
        text, page = (self.out / "results.md").read_text(), (self.out / "report.html").read_text()
        self.assertIn(f"<h2>{heading}</h2>", page)
        rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text[text.index(heading):].splitlines() if line.startswith("|")]
        at = {row[1]: dict(zip(rows[0], row)) for row in rows[2:]}
        self.assertEqual(at["signum fixed"]["excess over H = 1"], "the least")
        self.assertEqual(at["signum fixed"]["excess over full precision"], "")
        self.assertTrue(at["lion lever H=16"]["excess over H = 1"].startswith("+3.00 % ±"))
        self.assertTrue(at["lion lever H=16"]["excess over full precision"].startswith("+0.98 % ±"))
        self.assertEqual(at["diloco fixed H=16"]["excess over full precision"], "the least")

    def test_one_task_is_ranked_by_its_own_table_alone(self):
        self.grid(1.0)
        self.run_of("lever", "", 1, 1.0)
        self.assertEqual(self.report(), (OK, "", ""))
        self.assertNotIn("One setting", (self.out / "results.md").read_text())

    def test_one_seed_is_no_test(self):
        self.grid(1.0)
        for name, loss in (("below", 1.01), ("above", 1.02), ("far", 1.05)):
            self.run_of(name, "", 1, loss - 1e-9)
        table = self.table()
        self.assertEqual([table[f"signum {name}"]["at most 1 %?"] for name in ("below", "above", "far")], ["yes", "no test: one seed", "no"])
        self.assertEqual(table["signum far"]["excess over the best grid run"], "+5.00 %")

    def test_rounds_of_a_race_are_told_apart(self):
        self.grid(1.0)
        row = self.table()["signum fixed"]
        self.assertEqual((row["main rounds"], row["race rounds"]), ("10", "2"))

    def test_names_are_shown_as_they_are(self):
        for rule in ("cost$_{$", "$a$", "a|b", "<b>"):
            self.run_of(rule, 0.1, 1, 1.5, tuned=True)
        self.run_of("_x", "", 1, 1.4)
        self.assertEqual(self.report(), (OK, "", ""))
        table, page = (self.out / "results.md").read_text(), (self.out / "report.html").read_text()
        self.assertIn("| signum a\\|b |", table)
        self.assertIn("| signum cost$_{$ |", table)
        self.assertIn("<td>signum &lt;b&gt;</td>", page)
        self.assertEqual("<svg" in page, MATPLOTLIB)

    @unittest.skipUnless(MATPLOTLIB, "matplotlib is not installed")
    def test_a_report_of_equal_figures_has_equal_bytes(self):
        self.grid(1.0, 1.1)
        pages = []
        for _ in (1, 2):
            self.assertEqual(self.report(), (OK, "", ""))
            pages.append((self.out / "report.html").read_text())
        self.assertEqual(*pages)

    def test_what_cannot_be_read_or_written_is_one_line_and_leaves_the_last_report(self):
        self.grid(1.0)
        (self.out / "results.md").write_text("old")
        (self.out / "report.html").mkdir()
        code, out, err = self.report()
        self.assertEqual((code, out, err.count("\n")), (BAD_INPUT, "", 1), err)
        self.assertIn("report.html", err)
        self.assertEqual((self.out / "results.md").read_text(), "old")
        self.assertEqual(list(self.out.glob("*.tmp")), [])
        (self.out / "cells.csv").unlink()
        code, out, err = self.command("signvote-lab-report", self.out)
        self.assertEqual((code, out, err.count("\n")), (BAD_INPUT, "", 1), err)
        self.assertIn("cells.csv", err)

    def test_a_last_line_that_was_cut_short_is_none(self):
        self.grid(1.0)
        self.assertEqual(self.report()[0], OK)
        before = (self.out / "results.md").read_text()
        with open(self.out / "results.csv", "a", encoding="utf-8") as file:
            file.write("mlp,signum,fix")
        self.assertEqual(self.command("signvote-lab-report", self.out), (OK, "", ""))
        self.assertEqual((self.out / "results.md").read_text(), before)


if __name__ == "__main__":
    harness.run_tests()
