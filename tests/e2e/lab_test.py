"""The lab as a person uses it: one run, a sweep that is stopped and goes on, what is wrong in its file, its report; and its page,
which names what the program has."""

import csv
import html.parser
import json
import pathlib
import re
import signal
import struct
import types
import unittest

import harness
from harness import BAD_INPUT, BIN, OK, USAGE

SOURCE = pathlib.Path(__file__).resolve().parents[2]
PAGE = SOURCE / "docs" / "lab.md"
NEEDED_COLUMNS = ("task", "direction", "rule", "stepsize", "n", "seed", "rounds", "held_out_loss", "seconds", "bytes_up", "bytes_down")
COORDINATES_MAX = 200_000
ENDLESS = 1_000_000_000

SWEEP = """
tasks = ["quick", "logistic"]
directions = ["lion"]
rules = ["alias2", "fixed-cosine"]
workers = [2]
seeds = [1]
[task.quick]
task = "logistic"
max-rounds = 40
[task.logistic]
max-rounds = {rounds}
"""


class Resources(html.parser.HTMLParser):
    """What a page would load, and how many rows its tables have."""

    def __init__(self):
        super().__init__()
        self.loads, self.rows, self.style, self._in_style = [], 0, "", False

    def handle_starttag(self, tag, attrs):
        self.rows += tag == "tr"
        self._in_style = tag == "style"
        for name, value in attrs:
            if name in ("src", "srcset", "data", "poster", "action") or name.split(":")[-1] == "href":
                self.loads.append(value)
            if name == "style":
                self.style += value or ""

    def handle_endtag(self, tag):
        self._in_style = self._in_style and tag != "style"

    def handle_data(self, data):
        if self._in_style:
            self.style += data

    def outside(self):
        urls = re.findall(r"url\(\s*['\"]?([^'\")]+)", self.style) + re.findall(r"@import[^;]*", self.style)
        return [where for where in self.loads + urls if not where.startswith(("#", "data:"))]


def tables(text, head):
    """First two cells of the rows of the table that begins with the cell `head`."""
    table = re.search(rf"(?m)^\| {re.escape(head)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text)
    return [[cell.strip().strip("`") for cell in row.strip("|").split("|")][:2] for row in table.group(1).splitlines()]


@unittest.skipUnless((BIN / "signvote-lab").exists(), "signvote-lab needs LibTorch")
class Lab(harness.ProcessTest):
    def lab(self, *arguments, timeout=120):
        code, out, err = self.command("signvote", "lab", *arguments, timeout=timeout)
        return types.SimpleNamespace(returncode=code, stdout=out, stderr=err)

    def table(self, folder):
        """Rows of its results.md, without what differs from run to run: the seconds at their end."""
        lines = (folder / "results.md").read_text().splitlines()
        return sorted(line.rstrip("| ").rsplit("|", 1)[0] for line in lines)

    def results(self):
        with open(self.folder / "out" / "results.csv", newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def test_a_sweep_that_was_stopped_goes_on_with_what_is_missing(self):
        file, out = self.folder / "sweep.toml", self.folder / "out"
        command = [BIN / "signvote", "lab", "sweep", file, "--output", out, "--jobs", "1"]
        file.write_text(SWEEP.format(rounds=ENDLESS))
        first = self.start("first", command)
        csv_path = out / "results.csv"
        # One run of ALIAS, at least seven of the grid.
        self.wait_until("the quick runs", lambda: csv_path.exists() and csv_path.read_text().count("\n") >= 1 + 8)
        first.signal(signal.SIGINT)
        self.assert_exit(first, OK)
        self.assertIn("the same command goes on from here", first.log())
        self.assertFalse((out / "report.html").exists())
        before = csv_path.read_text()

        file.write_text(SWEEP.format(rounds=60))
        second = self.start("second", command)
        self.assert_exit(second, OK)
        self.assertTrue(csv_path.read_text().startswith(before))
        rows = self.results()
        self.assertEqual(len({row["id"] for row in rows}), len(rows), "a run was made twice")
        for column in NEEDED_COLUMNS:
            self.assertIn(column, rows[0])
        for row in rows:
            self.assertEqual(row["outcome"], "finished")
            self.assertGreater(float(row["held_out_loss"]), 0)
            self.assertEqual(int(row["rounds"]), {"quick": 40, "logistic": 60}[row["task"]])
            self.assertEqual(row["stepsize"] == "", row["rule"] == "alias2")
            # Two ballots of 130 bits a round, in whole chunks, and two verdicts.
            self.assertGreaterEqual(int(row["bytes_up"]), 2 * 17 * int(row["rounds"]))
            self.assertTrue((out / "curves" / f"{row['id']}.csv").exists())
        self.assertEqual({row["task"] for row in rows}, {"quick", "logistic"})

        page = Resources()
        page.feed((out / "report.html").read_text(encoding="utf-8"))
        self.assertEqual(page.outside(), [])
        # A head, and a method on each task; and both methods over the two tasks.
        self.assertEqual(page.rows, 1 + 4 + 1 + 2)
        runs, overall = (out / "results.md").read_text().split("\n\n", 1)
        self.assertEqual(len(runs.splitlines()), 2 + 4)
        self.assertIn("One setting over all tasks, n = 2", overall)

        # Nothing is left to do.
        self.assert_exit(self.start("third", command), OK)
        self.assertEqual(len(self.results()), len(rows))

    def test_a_file_that_was_edited_has_the_report_of_a_fresh_folder(self):
        file, old, fresh = (self.folder / name for name in ("sweep.toml", "old", "fresh"))
        text = ("tasks = [\"logistic\"]\nrules = [\"alias2\", \"mine\", \"fixed-cosine\"]\nworkers = [1]\n{lists}[run]\nmax-rounds = {rounds}\n"
                "eval-every = 0\n[rule.mine]\nrule = \"fixed\"\nstepsize = {stepsize}\n")
        for folder, rounds, stepsize, lists in ((old, 20, 0.01, ""), (old, 40, 0.02, "seeds = [2, 3]\n"), (fresh, 40, 0.02, "seeds = [2, 3]\n")):
            file.write_text(text.format(rounds=rounds, stepsize=stepsize, lists=lists))
            done = self.lab("sweep", file, "--output", folder)
            self.assertEqual(done.returncode, OK, done.stderr)
        self.assertEqual(self.table(old), self.table(fresh))
        self.assertEqual(len(self.table(old)), 2 + 3)

    def test_a_second_sweep_of_a_folder_is_refused_while_the_first_is_at_work(self):
        file, out = self.folder / "sweep.toml", self.folder / "out"
        file.write_text(f"tasks = [\"logistic\"]\nrules = [\"alias2\"]\n[run]\nmax-rounds = {ENDLESS}\n")
        first = self.start("first", [BIN / "signvote", "lab", "sweep", file, "--output", out])
        self.wait_until("its results", lambda: (out / "results.csv").exists())
        done = self.lab("sweep", file, "--output", out)
        self.assertEqual((done.returncode, done.stdout, done.stderr.count("\n")), (BAD_INPUT, "", 1), done.stderr)
        self.assertIn("another sweep fills this folder", done.stderr)
        first.signal(signal.SIGINT)
        self.assert_exit(first, OK)
        file.write_text("tasks = [\"logistic\"]\nrules = [\"alias2\"]\n[run]\nmax-rounds = 5\n")
        self.assertEqual(self.lab("sweep", file, "--output", out).returncode, OK)

    def test_a_run_that_fails_is_a_result_and_ends_no_sweep(self):
        file = self.folder / "sweep.toml"
        file.write_text("""
            tasks = ["mlp"]
            rules = ["wild", "fixed-linear"]
            workers = [1]
            [run]
            max-rounds = 30
            eval-every = 0
            [rule.wild]
            rule = "fixed"
            stepsize = 1e30
            nonfinite-rounds = 3
        """)
        done = self.lab("sweep", file, "--output", self.folder / "out")
        self.assertEqual((done.returncode, done.stderr), (OK, ""))
        rows = self.results()
        self.assertGreaterEqual(len(rows), 1 + 7)
        for row in rows:
            expected = ("diverged", "inf", "1e+30") if row["rule"] == "wild" else ("finished", row["held_out_loss"], row["stepsize"])
            self.assertEqual((row["outcome"], row["held_out_loss"], row["stepsize"]), expected)
        self.assertRegex((self.folder / "out" / "results.md").read_text(), r"(?m)^\| mlp \| 1 \| signum wild \|.*\| diverged \|")

    def test_what_is_wrong_in_a_sweeps_file_is_one_line_that_says_where(self):
        file = self.folder / "sweep.toml"
        for text, told in (("tasks = [\"mlp\"]\nrules = lever\n", "line 2: "),
                           ("tasks = [\"mlp\"]\nrules = [\"alias2\"]\nrounds = 3\n", "line 3: \"rounds\" is not known"),
                           ("tasks = [\"chess\"]\nrules = [\"alias2\"]\n[run]\nmax-rounds = 3\n", "choose one of logistic, mlp, "),
                           ("tasks = [\"mlp\"]\nrules = [\"alias3\"]\n[run]\nmax-rounds = 3\n", "'alias3' is unknown"),
                           ("tasks = [\"mlp\"]\nrules = [\"alias2\"]\n[run]\nmax-rounds = 3\nlisten = \"a:1\"\n", "--listen is for a server"),
                           ("tasks = [\"mlp\"]\nrules = [\"alias2\"]\n[run]\nmax-rounds = 3\nlisten = false\n", "--listen is for a server"),
                           ("tasks = [\"mlp\"]\nrules = [\"alias2\"]\n[run]\nmax-rounds = 3\nnonsense = false\n", "--nonsense"),
                           ("tasks = [\"mlp\"]\nrules = [\"fixed-cosine\"]\n[run]\nmax-rounds = 3\nschedule = false\n", "schedule 'false' is unknown"),
                           ("tasks = [\"mlp\"]\nrules = [\"alias2\"]\nworkers = [1024]\n[run]\nmax-rounds = 3\n", "1024 workers are more than"),
                           ("tasks = [\"mlp\"]\nrules = [\"alias2\"]\n[run]\nmax-rounds = 3\nbatch = 65537\n", "--batch 65537 is above 65536"),
                           ("tasks = [\"mlp\"]\nrules = [\"lever\"]\n", "--max-rounds N is required")):
            file.write_text(text)
            done = self.lab("sweep", file)
            self.assertEqual(done.returncode, USAGE, text)
            self.assertEqual(done.stdout, "", text)
            self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
            self.assertIn(str(file), done.stderr)
            self.assertIn(told, done.stderr)
            self.assertFalse((self.folder / "sweep").exists())

    def test_a_dry_run_lists_what_is_missing_and_writes_nothing(self):
        file, out = self.folder / "sweep.toml", self.folder / "out"
        file.write_text(SWEEP.format(rounds=20))
        command = ("sweep", file, "--output", out)
        done = self.lab(*command, "--dry-run")
        self.assertEqual(done.returncode, OK, done.stderr)
        *runs, count = done.stdout.splitlines()
        self.assertEqual(len(set(runs)), 2 * (1 + 5))
        self.assertIn("quick lion alias2 n=2 seed 1", runs)
        self.assertEqual(count, "12 runs, and 0 are done; each grid then goes on about its best")
        self.assertEqual([path.name for path in self.folder.iterdir() if path.name in ("out", "sweep")], [])

        self.assertEqual(self.lab(*command).returncode, OK)
        before = (out / "results.csv").read_bytes()
        done = self.lab(*command, "--dry-run")
        self.assertEqual(done.stdout, f"0 runs, and {len(self.results())} are done\n")
        self.assertEqual((out / "results.csv").read_bytes(), before)

    def test_every_sweep_that_ships_is_accepted(self):
        files = sorted((SOURCE / "deploy" / "lab").glob("sweep*.toml"))
        self.assertIn("sweep_quick.toml", [file.name for file in files])
        for file in files:
            with self.subTest(file.name):
                done = self.lab("sweep", file, "--output", self.folder / "out", "--dry-run")
                self.assertEqual(done.returncode, OK, done.stderr)
                count = re.search(r"(\d+) runs, and 0 are done", done.stdout)
                self.assertGreater(int(count.group(1)), 10)

    def test_pictures_of_a_folder_and_digits_are_trained_on(self):
        for k, name in enumerate(("dark", "light")):
            for part, count in (("train", 30), ("val", 4)):
                folder = self.folder / "pictures" / part / name
                folder.mkdir(parents=True)
                for i in range(count):
                    grey = bytes([(40 + 140 * k + 7 * i) % 256]) * 400
                    (folder / f"{i}.pgm").write_bytes(b"P5 20 20 255\n" + grey)
        digits = self.folder / "digits"
        digits.mkdir()
        labels = bytes(i % 3 for i in range(60))
        (digits / "train-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(labels)) + labels)
        (digits / "train-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, len(labels), 28, 28) + b"".join(bytes([80 * label]) * 784 for label in labels))
        report = self.folder / "report.json"
        for folder, classes, held_out in ((self.folder / "pictures", 2, 8), (digits, 3, 6)):
            for task in ("cnn", "vit"):
                done = self.lab("train", "--task", task, "--data", folder, "--max-rounds", "30", "--rule", "fixed", "--report", report)
                self.assertEqual(done.returncode, OK, done.stderr)
                found = json.loads(report.read_text())
                self.assertIn(f" pictures of {classes} classes, {held_out} held out", found["data"])
                self.assertLess(found["held_out_last"]["loss"], found["held_out_first"]["loss"], (folder, task))
        (self.folder / "pictures" / "train" / "dark" / "0.pgm").write_bytes(b"P5 20 20 255\n")
        done = self.lab("train", "--task", "cnn", "--data", self.folder / "pictures", "--max-rounds", "30")
        self.assertEqual(done.returncode, BAD_INPUT, done.stderr)
        self.assertEqual(done.stderr.count("\n"), 1, done.stderr)
        self.assertIn("pictures/train/dark/0.pgm: a picture that cannot be read", done.stderr)

    def test_results_of_another_program_are_left_alone(self):
        file, out = self.folder / "sweep.toml", self.folder / "out"
        file.write_text("tasks = [\"logistic\"]\nrules = [\"alias2\"]\n[run]\nmax-rounds = 3\n")
        out.mkdir()
        for text in ("a,b\n1,2\n", "my precious data"):
            (out / "results.csv").write_text(text)
            done = self.lab("sweep", file, "--output", out)
            self.assertEqual(done.returncode, BAD_INPUT, done.stderr)
            self.assertIn("line 1 is none of results.csv", done.stderr)
            self.assertEqual((out / "results.csv").read_text(), text)

    def test_a_run_reports_exports_and_repeats_its_bits(self):
        digests = []
        for k in (1, 2):
            done = self.lab("train", "--task", "logistic", "--workers", "3", "--max-rounds", "30", "--rule", "alias",
                            "--report", self.folder / f"{k}.json", "--export", self.folder / f"{k}.safetensors")
            self.assertEqual(done.returncode, OK, done.stderr)
            report = json.loads((self.folder / f"{k}.json").read_text())
            self.assertEqual((report["outcome"], report["rounds"], report["workers"]), ("finished", 30, 3))
            self.assertLess(report["held_out_last"]["loss"], report["held_out_first"]["loss"])
            digests.append(report["digest"])
        self.assertEqual(*digests)
        done = self.lab("train", "--task", "logistic", "--max-rounds", "30", "--report", self.folder / "m", "--export", self.folder / "m")
        self.assertEqual(done.returncode, USAGE, done.stderr)
        self.assertIn("is the file of --export too", done.stderr)
        self.assertEqual(*(harness.values(self.folder / f"{k}.safetensors") for k in (1, 2)))

    def test_a_run_that_is_stopped_ends_in_good_order(self):
        report = self.folder / "report.json"
        log = self.folder / "rounds.jsonl"
        run = self.start("run", [BIN / "signvote-lab", "train", "--task", "logistic", "--max-rounds", ENDLESS, "--report", report,
                                 "--round-log", log])
        self.wait_until("a round", lambda: log.exists() and log.stat().st_size > 0)
        run.signal(signal.SIGTERM)
        self.assert_exit(run, OK)
        found = json.loads(report.read_text())
        self.assertGreater(found["rounds"], 0)
        self.assertLess(found["rounds"], ENDLESS)
        self.assertEqual(found["outcome"], "stopped")
        self.assertIsNotNone(found["digest"])

    def test_the_page_names_the_tasks_and_methods_that_there_are(self):
        page = PAGE.read_text()
        told = self.lab("tasks")
        self.assertEqual(told.returncode, OK, told.stderr)
        # Names of tasks to their coordinates.
        tasks = dict(re.findall(r"(?m)^(\w+) .*; (\d+) coordinates, [\d.]+ ms a gradient$", told.stdout))
        self.assertEqual(list(tasks), [row[0] for row in tables(page, "task")])
        for name, coordinates in tasks.items():
            self.assertLessEqual(int(coordinates), COORDINATES_MAX, name)
        told = self.lab("methods")
        self.assertEqual(told.returncode, OK, told.stderr)
        methods = re.findall(r"(?m)^  (\S+) +(--.*)$", told.stdout)
        self.assertEqual([list(row) for row in methods], tables(page, "direction") + tables(page, "rule"))


if __name__ == "__main__":
    harness.run_tests()
