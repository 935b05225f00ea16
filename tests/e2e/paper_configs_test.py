"""The configurations of the papers' experiments that ship (deploy/lab/paper_*.toml, docs/papers.md): the programs take every line
of them, LLaMA 130M trains two rounds on a CPU, and the sweeps run with fewer rounds."""

import array
import csv
import pathlib
import random
import re
import tomllib
import unittest

import harness
from harness import BIN, OK

LAB = pathlib.Path(__file__).resolve().parents[2] / "deploy" / "lab"
PAGE = LAB.parents[1] / "docs" / "papers.md"
SERVERS = sorted(LAB.glob("paper_*_server.toml"))
WORKERS = sorted(LAB.glob("paper_*_worker.toml"))
SWEEPS = sorted(set(LAB.glob("paper_*.toml")) - set(SERVERS) - set(WORKERS))
VOCABULARY = 32000
TARGETS = 64  # of a minibatch and of all held-out windows, where a GPU has millions


class Configurations(harness.ProcessTest):
    def printed(self, program, path, *flags):
        code, out, err = self.command(program, "--config", path, *flags, "--print-config")
        self.assertEqual(code, OK, err)
        return tomllib.loads(out)

    def test_every_line_of_a_server_or_worker_is_taken(self):
        self.assertEqual((len(SERVERS), len(WORKERS)), (4, 2))
        for files, program, flags in ((SERVERS, "signvote-server", ["--insecure"]), (WORKERS, "signvote-worker", [])):
            if not (BIN / program).exists():
                continue  # the worker, without LibTorch
            for path in files:
                printed = self.printed(program, path, *flags)
                for key, value in tomllib.loads(path.read_text()).items():
                    shown = printed[key]
                    self.assertEqual(shown if isinstance(shown, type(value)) else type(value)(shown), value, f"{path.name}: {key}")

    def test_the_page_names_every_one(self):
        page = PAGE.read_text()
        for path in SERVERS + WORKERS + SWEEPS:
            self.assertIn(f"`{path.name}`", page)

    @unittest.skipUnless(harness.has_torch(), "needs LibTorch")
    def test_llama_130m_trains_two_rounds_on_a_cpu(self):
        data = self.folder / "c4"
        data.mkdir()
        rng = random.Random(1)
        for name, count in (("train_000.bin", 4000), ("val_000.bin", 1000)):
            tokens = array.array("H", (rng.randrange(VOCABULARY) for _ in range(count)))
            (data / name).write_bytes(tokens.tobytes())
        self.certify("a")
        self.start_server("--config", LAB / "paper_c4_alias_server.toml", "--deadline", "off", rounds=2)
        worker = self.start_worker(
            "a", "--config", LAB / "paper_c4_130m_worker.toml", "--data", data, "--device", "cpu", "--threads", 2, "--batch", 1,
            "--accumulate", 1, "--sequence", TARGETS, "--eval-sequence", TARGETS, "--eval-tokens", TARGETS, program="signvote-worker")
        self.wait_end(timeout=600)
        self.assert_exit(worker, OK, timeout=300)
        report = self.report("a")
        self.assertEqual((report["outcome"], report["rounds_voted"]), ("finished", 2))
        # That of uniform tokens at the start: log 32,000 = 10.4.
        self.assertAlmostEqual(report["held_out"]["first"]["loss"], 10.4, delta=0.5)
        self.assertGreater(self.stepsize(self.rounds()[-1]), self.stepsize(self.rounds()[0]))

    @unittest.skipUnless((BIN / "signvote-lab").exists(), "signvote-lab needs LibTorch")
    def test_the_sweeps_run_with_fewer_rounds(self):
        self.assertGreaterEqual(len(SWEEPS), 4)
        for path in SWEEPS:
            text = path.read_text()
            # SOS and the race of Lever want a few hundred; a transformer's are not so cheap.
            rounds = 2 if "vit" in text else 320
            for pattern, small in ((r"(?m)^\[task\.mlp\]\n(.+\n)*", ""), (r'(?m)^tasks = \["logistic", "mlp"\]$', 'tasks = ["logistic"]'),
                                   (r"(?m)^max-rounds = \d+$", f"max-rounds = {rounds}"), (r"(?m)^seeds = .*$", "seeds = [1]"),
                                   (r"(?m)^workers = .*$", "workers = [1]")):
                text, times = re.subn(pattern, small, text)
                self.assertTrue(times == 1 or "vit" in text, (path.name, pattern))
            file, out = self.folder / path.name, self.folder / path.stem
            file.write_text(text)
            self.assert_exit(self.start(path.stem, [BIN / "signvote", "lab", "sweep", file, "--output", out]), OK, timeout=300)
            with open(out / "results.csv", newline="", encoding="utf-8") as results:
                rows = list(csv.DictReader(results))
            said = tomllib.loads(text)
            methods = len(said["directions"]) * len(said["rules"]) * len(said.get("aggregate", ["vote"]))
            self.assertEqual(len({(r["direction"], r["rule"], r["aggregate"]) for r in rows if r["outcome"] == "finished"}), methods)


if __name__ == "__main__":
    harness.run_tests()
