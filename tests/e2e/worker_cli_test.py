#!/usr/bin/env python3
"""What signvote-worker says and how it exits when its input is wrong. The program comes from $SIGNVOTE_BIN. Every case
ends by itself within seconds, prints one error line that names culprit and remedy, and needs no server.
"""

import os
import pathlib
import signal
import socket
import subprocess
import tempfile
import time
import unittest

WORKER = pathlib.Path(os.environ.get("SIGNVOTE_BIN", "build/dev/bin")).resolve() / "signvote-worker"


def run(*flags, timeout=120):
    return subprocess.run([WORKER, *flags], capture_output=True, text=True, timeout=timeout)


class WorkerCliTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        self.corpus = self.folder / "corpus.txt"
        self.corpus.write_text("to vote is to count, to count is to vote. " * 500)
        # Nobody listens there, and nobody else can meanwhile.
        nobody = socket.socket()
        self.addCleanup(nobody.close)
        nobody.bind(("127.0.0.1", 0))
        self.flags = ["--server", f"127.0.0.1:{nobody.getsockname()[1]}", "--name", "w0", "--insecure", "--model", "micro",
                      "--data", str(self.corpus), "--threads", "1"]

    def expect(self, code, *needles, flags):
        done = run(*flags)
        self.assertEqual(done.returncode, code, done.stderr)
        errors = [line for line in done.stderr.splitlines() if " error " in line or "error" in line.split()[:2]]
        text = errors[-1] if errors else done.stderr
        for needle in needles:
            self.assertIn(needle, text)
        self.assertLessEqual(len(errors), 1, done.stderr)

    def test_wrong_flags_are_usage_errors(self):
        self.expect(2, "--server is missing", flags=self.flags[2:])
        self.expect(2, "--name is missing", flags=self.flags[:2] + self.flags[4:])
        self.expect(2, "no such model", "nano, micro, tiny", flags=self.flags + ["--model", "giant"])
        self.expect(2, "text, nanogpt, llmc or synthetic", flags=self.flags + ["--data-format", "csv"])
        self.expect(2, "does not fit --model", flags=self.flags + ["--data-format", "synthetic"])
        self.expect(2, "choose cpu, cuda or cuda:N", flags=self.flags + ["--device", "tpu"])
        self.expect(2, "HOST:PORT", flags=self.flags + ["--http", "8080"])
        for flag in ("--sequence", "--eval-sequence"):
            self.expect(2, f"{flag} 4096: the model has 2048 positions", flags=self.flags + [flag, "4096"])
        self.expect(2, "--run-id", flags=self.flags + ["--run-id", "42"])
        self.assertEqual(run("--no-such-flag").returncode, 2)
        self.assertEqual(run("--batch", "0").returncode, 2)

    def test_missing_and_unusable_files_are_bad_input(self):
        self.expect(3, str(self.folder / "nowhere"), "No such file", flags=self.flags + ["--data", str(self.folder / "nowhere")])
        self.expect(3, "No such file", flags=self.flags + ["--model", str(self.folder / "config.json")])
        small = self.folder / "small.txt"
        small.write_text("too short")
        self.expect(3, "too small: 9 bytes", "a shorter --sequence", flags=self.flags + ["--data", str(small)])
        shard = self.folder / "shard.bin"
        shard.write_bytes(b"\x01" * 2048)
        self.expect(3, "is no llm.c shard", flags=self.flags + ["--data", str(shard), "--data-format", "llmc"])
        config = self.folder / "config.json"
        config.write_text('{"model_type": "llama", "rope_scaling": 1}')
        self.expect(3, "\"vocab_size\" is missing", flags=self.flags + ["--model", str(config)])
        self.expect(3, "No such file", flags=self.flags + ["--round-log", str(self.folder / "missing" / "log.jsonl")])

    def test_what_comes_at_the_end_is_checked_at_the_beginning(self):
        """Before the model, the data and the server, which may take minutes."""
        for flag in ("--save", "--report"):
            nowhere = self.folder / "missing" / "file"
            done = run(*self.flags, flag, str(nowhere))
            self.assertEqual(done.returncode, 3, done.stderr)
            self.assertIn(f"{flag}: {nowhere}", done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
            self.expect(3, f"{flag}: {self.folder}: is a folder", flags=self.flags + [flag, str(self.folder)])
        for flags, code, text in ((["--server", "127.0.0.1"], 2, "--server '127.0.0.1' is not HOST:PORT"),
                                  (["--name", "a b"], 2, "the worker name is invalid at character 2"),
                                  (["--token-file", str(self.folder / "none")], 3, "No such file"),
                                  (["--tls-ca", "x"], 2, "together with --insecure")):
            done = run(*self.flags, *flags)
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertIn(text, done.stderr)
            self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        self.assertEqual(sorted(p.name for p in self.folder.iterdir()), ["corpus.txt"])

    def test_values_that_are_no_numbers_are_usage_errors(self):
        for flag in ("--connect-timeout", "--server-timeout", "--wait-timeout", "--parameter-divisor", "--progress-every"):
            self.expect(2, f"{flag}: 'nan' is not a number from", flags=self.flags + [flag, "nan"])
        self.expect(2, "give signvote-server --weight-decay", flags=self.flags + ["--weight-decay", "0.1"])
        for flag in ("--init-seed", "--eval-every", "--eval-tokens", "--eval-sequence", "--batch"):
            self.expect(2, f"{flag}: '-1' is not a whole number from", flags=self.flags + [flag, "-1"])
        self.expect(2, "--threads 4096: this machine has", flags=self.flags + ["--threads", "4096"])
        self.expect(2, "leave --data away", flags=self.flags + ["--model", "mlp"])
        config = self.folder / "worker.toml"
        config.write_text("tls_dir = 'x'\n")
        self.expect(2, f"--config: {config}: 'tls_dir' is no flag", flags=["--config", str(config)])
        self.expect(3, "none.toml: cannot open: No such file", flags=["--config", str(self.folder / "none.toml")])

    def test_a_port_in_use_is_told(self):
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            address = f"127.0.0.1:{listener.getsockname()[1]}"
            self.expect(6, address, "in use", flags=self.flags + ["--http", address])

    def test_a_missing_gpu_is_told(self):
        if pathlib.Path("/dev/nvidiactl").exists():
            self.skipTest("this machine has an NVIDIA driver")
        self.expect(7, "no CUDA device 0", "--device cpu", flags=self.flags + ["--device", "cuda"])
        self.expect(7, "no CUDA device 1", "--device cpu", flags=["--selftest", "--device", "cuda:1"])

    def test_the_selftest_needs_no_server(self):
        done = run("--selftest")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertRegex(done.stdout, r"self-test of cpu \(.*\)\n.* equal to the definitions in \d+ models")
        for rate in ("copy", "pack", "apply"):
            self.assertRegex(done.stdout, rate + r" +[0-9.]+ GB/s")
        self.expect(2, "choose cpu, cuda or cuda:N", flags=["--selftest", "--device", "tpu"])

    def test_a_server_that_is_not_there_is_unavailable(self):
        start = time.monotonic()
        report = self.folder / "report.json"
        self.expect(5, self.flags[1], flags=self.flags + ["--connect-timeout", "1", "--report", str(report)])
        self.assertLess(time.monotonic() - start, 30)
        self.assertIn("UNAVAILABLE", report.read_text())

    def test_the_runs_own_failure_outranks_a_report_that_cannot_be_written(self):
        folder = self.folder / "gone"
        folder.mkdir()
        worker = subprocess.Popen([WORKER, *self.flags, "--connect-timeout", "2", "--report", str(folder / "report.json")],
                                  stderr=subprocess.PIPE, text=True)
        for line in worker.stderr:
            if " info data " in line:  # what is to be written has been tried
                folder.rmdir()
                break
        _, err = worker.communicate(timeout=60)
        self.assertEqual(worker.returncode, 5, err)
        self.assertIn("the report is not written", err)

    def test_tls_is_the_default_and_asks_for_its_files(self):
        flags = [flag for flag in self.flags if flag != "--insecure"]
        done = run(*flags)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("--tls-", done.stderr)

    def test_the_printed_config_is_a_config(self):
        first = run(*self.flags, "--print-config")
        self.assertEqual(first.returncode, 0, first.stderr)
        config = self.folder / "worker.toml"
        config.write_text(first.stdout)
        second = run("--config", str(config), "--print-config")
        self.assertEqual(second.returncode, 0, second.stderr)
        self.assertEqual(second.stdout, first.stdout)
        self.assertIn('model="micro"', second.stdout)

    def test_an_unknown_key_of_a_config_is_refused_and_named(self):
        config = self.folder / "worker.toml"
        config.write_text("accumulated = 4\n")
        done = run(*self.flags, "--config", str(config), "--print-config")
        self.assertEqual(done.returncode, 2, done.stdout)
        self.assertIn("accumulated", done.stderr)

    def test_sigterm_while_joining_ends_the_worker(self):
        worker = subprocess.Popen([WORKER, *self.flags, "--connect-timeout", "60"], stderr=subprocess.PIPE, text=True)
        try:
            for line in worker.stderr:
                if " data " in line:
                    break
            time.sleep(0.5)
            worker.send_signal(signal.SIGTERM)
            self.assertEqual(worker.wait(timeout=60), 0)
        finally:
            worker.kill()
            worker.stderr.close()
            worker.wait()

    def test_workers_that_take_every_processor_each_are_told_what_to_give(self):
        processors = len(os.sched_getaffinity(0))
        if processors < 2:
            self.skipTest("one processor: there is nothing to share")
        neighbour = subprocess.Popen([WORKER, *self.flags, "--connect-timeout", "600"], stderr=subprocess.PIPE, text=True)
        try:
            for line in neighbour.stderr:
                if " info data " in line:
                    break
            said = {threads: [line for line in run(*self.flags, "--connect-timeout", "1", "--threads", str(threads)).stderr.splitlines()
                              if "give each of them --threads" in line] for threads in (1, processors)}
        finally:
            neighbour.kill()
            neighbour.stderr.close()
            neighbour.wait()
        self.assertEqual(said[1], [], "it leaves processors to others")
        self.assertEqual(len(said[processors]), 1)
        self.assertRegex(said[processors][0], rf" warning .*--threads \d+ workers=\d+ processors={processors}$")

    def test_version_and_help_succeed(self):
        self.assertRegex(run("--version").stdout, r"^signvote-worker \d+\.\d+\.\d+\n$")
        self.assertIn("--accumulate", run("--help").stdout)


if __name__ == "__main__":
    unittest.main(verbosity=2)
