"""`signvote lab run`: real servers and workers that a scenario kills, starts and slows down; what it reports of them; and how it ends
when something is wrong. Torch-free."""

import csv
import json
import math
import os
import pathlib
import re
import signal
import statistics
import tomllib
import unittest
import xml.etree.ElementTree

import harness
import hosts
from harness import BAD_INPUT, BIN, OK, REFUSED, USAGE

LAB = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "lab"
SHIPPED = ("spot_churn.toml", "spot_churn_model.toml", "straggler.toml", "server_loss.toml", "scale_up_down.toml", "slow_links.toml")

HEAD = """
[server]
rule = "fixed"
stepsize = 1e-3
eval-every = 0
[workers]
count = 3
coordinates = 20000
compute-ms = 20
"""
STORM = "rounds = 160\n" + HEAD + """
[[events]]
round = 20
kind = "kill"
worker = "w2"
[[events]]
round = 40
kind = "join"
count = 1
[[events]]
round = 60
kind = "server_kill"
[[events]]
round = 90
kind = "join"
worker = "w2"
[[events]]
round = 100
kind = "leave"
worker = "w3"
[[events]]
round = 110
kind = "slow"
worker = "w1"
compute_ms = 30
"""


class LabRun(harness.ProcessTest):
    def scenario(self, text):
        path = self.folder / "experiment.toml"
        path.write_text(text)
        return path

    def lab_run(self, *arguments, timeout=60):
        return self.command("signvote", "lab", "run", *arguments, timeout=timeout)

    def test_whatever_happens_no_commit_is_lost_and_replicas_are_equal(self):
        out = self.folder / "out"
        code, text, err = self.lab_run(self.scenario(STORM), "--out", out)
        self.assertEqual(code, OK, text + err)
        report = json.loads((out / "report.json").read_text())
        self.assertEqual((report["outcome"], report["rounds"], report["lost_commits"]), ("finished", 160, 0))
        self.assertIs(report["replicas_equal"], True)
        # w3 left before the end.
        self.assertEqual(set(report["digests"]), {"server", "w1", "w2", "w4"})
        self.assertEqual([(e["kind"], e.get("worker")) for e in report["events"]],
                         [("worker_killed", "w2"), ("joined", "w4"), ("server_killed", None), ("joined", "w2"), ("left", "w3"),
                          ("slowed", "w1")])
        for event, round_number in zip(report["events"], (20, 40, 60, 90, 100, 110)):
            self.assertGreaterEqual(event["round"], round_number)
            self.assertGreater(event["seconds_to_next_commit"], 0)
        # Counted beside the report, from the server's own log.
        rounds = {line["round"]: line for line in self.lines(out / "rounds.jsonl")}
        self.assertEqual(report["minibatches_counted"], sum(min([len(r["voters"]), *r["counted"]]) for r in rounds.values()))
        # The ballot that a killed worker was at, one of each for lines that a killed server did not write, no more than that.
        self.assertGreaterEqual(report["minibatches_counted"], report["minibatches_computed"] - 6)
        self.assertGreater(report["work_kept"], 0.9)
        self.assertTrue(0 < report["goodput"] < 1, report["goodput"])
        after = [r for number, r in rounds.items() if number > 130 and "w1" in r["voters"]]
        self.assertTrue(after and all(w["compute_seconds"] > 0.028 for r in after for w in r["workers"] if w["name"] == "w1"))
        page = (out / "report.html").read_text()
        drawn = [xml.etree.ElementTree.fromstring(svg) for svg in re.findall(r"(?s)<svg.*?</svg>", page)]
        self.assertEqual([svg.get("aria-label") for svg in drawn],
                         ["loss against rounds", "loss against seconds", "loss against bytes", "loss against minibatches that counted",
                          "members", "wait share", "from an event to the next commit"])
        self.assertTrue(all("d" in path.attrib for svg in drawn for path in svg.iter("{http://www.w3.org/2000/svg}path")))
        self.assertEqual(re.findall(r"(?:src|href)=|url\(|@import|<script", page), [])
        with open(out / "rounds.csv", newline="") as file:
            self.assertEqual(int(list(csv.DictReader(file))[-1]["round"]), 159)
        # Logs are not mixed with those of another run.
        code, _, err = self.lab_run(self.scenario(STORM), "--out", out)
        self.assertEqual(code, BAD_INPUT)
        self.assertIn("is not empty", err)

    def test_a_matrix_is_several_runs_and_one_report(self):
        out = self.folder / "out"
        text = "seconds = 1\n" + HEAD + "[matrix]\nworkers.count = [1, 2]\n"
        code, said, err = self.lab_run(self.scenario(text), "--out", out, "--set", "workers.compute-ms=10", "--progress", "off")
        self.assertEqual(code, OK, said + err)
        runs = json.loads((out / "report.json").read_text())["runs"]
        self.assertEqual([r["name"] for r in runs], ["workers.count=1", "workers.count=2"])
        for run, workers in zip(runs, (1, 2)):
            self.assertEqual((run["outcome"], run["replicas_equal"], len(run["digests"])), ("ended", True, workers + 1))
            self.assertEqual(run["work_kept"], 1)
            self.assertTrue((out / run["name"] / "rounds.csv").exists())
        self.assertIn("workers.count=2", (out / "report.html").read_text())

    def test_links_are_shaped_and_cut(self):
        if hosts.SKIP:
            self.skipTest("SIGNVOTE_TEST_NAMESPACES=skip: network namespaces are left out on request")
        out = self.folder / "out"
        text = "rounds = 120\n" + HEAD.replace("count = 3\ncoordinates = 20000\ncompute-ms = 20", "count = 2\ncoordinates = 400000") + """
[links]
rate_mbit = 500
[link.w2]
rate_mbit = 5
[[events]]
round = 10
kind = "link"
worker = "w2"
[[events]]
round = 20
kind = "link"
worker = "w1"
cut = true
[[events]]
round = 100
kind = "link"
worker = "w1"
"""
        as_root = [] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net", "--mount"]
        lab = self.start("lab", [*as_root, BIN / "signvote-lab-run", self.scenario(text), "--out", out])
        self.assert_exit(lab, OK)
        report = json.loads((out / "report.json").read_text())
        self.assertEqual([e["kind"] for e in report["events"]], ["link_changed"] * 3)
        self.assertEqual((report["replicas_equal"], report["lost_commits"]), (True, 0))
        rounds = self.lines(out / "rounds.jsonl")

        def median(first, last):
            return statistics.median(r["seconds"] for r in rounds[first:last])
        # 50 kB each way at 5 Mbit/s, less what a link passes at once.
        self.assertGreater(median(1, 9), 0.05)
        self.assertLess(median(12, 19), median(1, 9) / 2)
        # It takes a moment to cut a link, and the rounds go on meanwhile: 80 of them are more than a busy machine needs.
        self.assertTrue(any(r["voters"] == ["w2"] for r in rounds[20:]), "w1 was cut off")

    def test_a_stop_ends_everything_in_good_order_and_is_reported(self):
        out = self.folder / "out"
        lab = self.start("lab", [BIN / "signvote-lab-run", self.scenario("seconds = 600\n" + HEAD), "--out", out])
        self.wait_until("ten rounds", lambda: len(self.lines(out / "rounds.jsonl")) >= 10)
        lab.signal(signal.SIGINT)
        self.assert_exit(lab, OK)
        report = json.loads((out / "report.json").read_text())
        self.assertEqual((report["outcome"], report["replicas_equal"]), ("stopped", True))

    def test_a_stop_before_the_first_commit_ends_with_0(self):
        out = self.folder / "out"
        text = "rounds = 10\n" + HEAD.replace("[workers]", "workers-min = 4\n[workers]")
        lab = self.start("lab", [BIN / "signvote-lab-run", self.scenario(text), "--out", out])
        self.wait_until("three workers have joined", lambda: sum(e["kind"] == "joined" for e in self.lines(out / "server_events.jsonl")) == 3)
        lab.signal(signal.SIGTERM)
        self.assert_exit(lab, OK)
        self.assertIn("stopped before the first commit", lab.log())

    def test_a_lab_that_is_killed_leaves_nobody_behind(self):
        out = self.folder / "out"
        lab = self.start("lab", [BIN / "signvote-lab-run", self.scenario("seconds = 600\n" + HEAD), "--out", out])
        self.wait_until("ten rounds", lambda: len(self.lines(out / "rounds.jsonl")) >= 10)
        lab.kill()

        def gone():
            for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    if str(out).encode() in path.read_bytes():
                        return False
                except OSError:
                    pass  # it has ended meanwhile
            return True
        self.wait_until("server and workers are gone", gone, timeout=10)

    def test_what_a_program_refuses_ends_the_run_with_its_words(self):
        out = self.folder / "out"
        text = "rounds = 10\n" + HEAD + '[worker.w2]\ntensor = "y"\n'
        code, _, err = self.lab_run(self.scenario(text), "--out", out)
        self.assertEqual(code, REFUSED, err)
        self.assertRegex(err, r"w2\.1 ended by itself with exit code 4|w[13]\.1 ended by itself")
        code, _, err = self.lab_run(self.scenario("rounds = 10\n" + HEAD.replace("eval-every", "eval-evry")), "--out", self.folder / "b")
        self.assertEqual(code, USAGE, err)
        self.assertIn("server.1 ended by itself with exit code 2", err)
        self.assertIn("eval-evry", err)

    def test_a_wrong_file_is_told_before_anything_runs(self):
        out = self.folder / "out"
        code, _, err = self.lab_run(self.scenario("rounds = 10\n" + HEAD + "[chrn]\n"), "--out", out)
        self.assertEqual(code, USAGE)
        self.assertIn('experiment.toml: line 11: "chrn" is not known', err)
        code, _, err = self.lab_run(self.scenario("rounds = 10\n" + HEAD), "--out", out, "--set", "workers.count=none")
        self.assertEqual(code, USAGE)
        self.assertIn("--set workers.count=none", err)
        code, _, err = self.lab_run(self.folder / "nothing.toml")
        self.assertEqual(code, BAD_INPUT)
        self.assertFalse(out.exists())

    def test_what_ships_is_taken_and_a_dry_run_prints_commands_that_programs_take(self):
        for name in SHIPPED:
            code, text, err = self.lab_run(LAB / name, "--dry-run")
            self.assertEqual(code, OK, err)
            scenario = tomllib.loads((LAB / name).read_text())
            axes = [values for part in scenario.get("matrix", {}).values() for values in (part.values() if isinstance(part, dict) else [part])]
            runs = math.prod(map(len, axes))
            self.assertEqual(text.count("\n# on the server\n"), runs)
            self.assertIn(f"--name w{scenario['workers']['count']} ", text)
            server = next(line for line in text.splitlines() if line.startswith("signvote-server "))
            flags = server.split()[1:]
            tls = flags.index("--tls-ca")
            code, _, err = self.command("signvote-server", *flags[:tls], *flags[flags.index("--max-rounds"):], "--insecure",
                                        "--insecure-bind", "0.0.0.0", "--print-config")
            self.assertEqual(code, OK, err)


if __name__ == "__main__":
    harness.run_tests()
