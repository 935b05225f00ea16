"""scripts/demo when things go wrong: it says what, leaves nothing running, and removes nothing that is not its own."""

import argparse
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import unittest.mock

import harness

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts/lib"))

import demo  # noqa: E402


def processes_about(text):
    """Process ids whose command line names `text`."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text in (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                    found.append(int(entry.name))
            except OSError:
                pass  # it just ended
    return found


@unittest.skipUnless(harness.has_torch(), "needs LibTorch")
class Demo(unittest.TestCase):
    def setUp(self):
        self._folder = tempfile.TemporaryDirectory(prefix="signvote-demo.")
        self.addCleanup(self._folder.cleanup)
        self.out = pathlib.Path(self._folder.name) / "out"

    def start(self, *options):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "scripts/lib/demo.py"), "--bin", str(harness.BIN), "--out", str(self.out),
             *[str(o) for o in options]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # A shell's background jobs, and what they start, ignore Ctrl-C otherwise.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait, 60)
        self.addCleanup(process.kill)
        return process

    def finish(self, *options, timeout=120):
        out, err = (process := self.start(*options)).communicate(timeout=timeout)
        return process.returncode, out, err

    def test_wrong_options_are_named(self):
        for options, text in ((("--rounds", 5), "at least 12"), (("--workers", "none"), "'none' is not a positive number"),
                              (("--stepsize", 1), "--stepsize needs --rule fixed"), (("--rule", "bogus"), "bogus"),
                              (("--data", "/none"), "/none: no such file"), (("--bogus", 1), "--bogus"),
                              (("--workers", 64), "at most 63"), (("--rule", "fixed", "--stepsize", "nan"), "a finite number"),
                              (("--seed", "x"), "'x' is not a whole number"),
                              (("--rounds", "\u00b2"), "'\u00b2' is not a positive number")):
            code, _, err = self.finish(*options)
            self.assertEqual(code, 2, err)
            self.assertIn(text, err)

    def test_a_folder_with_other_things_in_it_is_left_alone(self):
        keep = self.out / "tls" / "precious.txt"
        keep.parent.mkdir(parents=True)
        keep.write_text("mine")
        code, _, err = self.finish()
        self.assertEqual(code, 1)
        self.assertIn("choose another", err)
        self.assertEqual(keep.read_text(), "mine")

    def test_a_folder_that_cannot_be_made_is_named(self):
        (pathlib.Path(self._folder.name) / "file").write_text("")
        code, _, err = self.finish("--out", pathlib.Path(self._folder.name) / "file" / "out")
        self.assertEqual(code, 1, err)
        self.assertRegex(err, "file/out.*: Not a directory")
        self.assertNotIn("Traceback", err)

    def test_a_preset_that_builds_no_worker_is_refused_before_anything_is_built(self):
        done = subprocess.run([ROOT / "scripts/demo", "--preset", "asan"], capture_output=True, text=True, timeout=30)
        self.assertEqual(done.returncode, 2, done.stderr)
        self.assertIn("choose dev or release", done.stderr)

    def test_a_process_that_fails_is_named_with_the_end_of_its_log(self):
        corpus = pathlib.Path(self._folder.name) / "small.txt"
        corpus.write_text("too small")
        code, _, err = self.finish("--data", corpus)
        self.assertEqual(code, 1)
        self.assertRegex(err, r"worker-\d \(pid \d+\) ended with exit code 3")
        self.assertIn("too small: 9 bytes", err)
        self.assertEqual(processes_about(str(self.out)), [])

    def test_ctrl_c_leaves_nothing_running(self):
        process = self.start("--rounds", 100000)
        deadline = time.monotonic() + 120
        while len(processes_about(str(self.out / "tls"))) < 4:
            self.assertLess(time.monotonic(), deadline, "a server and three workers run")
            self.assertIsNone(process.poll())
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 130)
        self.assertIn("interrupted", err)
        self.assertEqual(processes_about(str(self.out)), [])
        self.assertFalse((self.out / "tls").exists(), "keys are removed")

    def test_ctrl_c_while_a_process_starts_finds_it_among_those_to_stop(self):
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.addCleanup(signal.signal, signal.SIGINT, before)

        class Interrupted(demo.Process):
            def __init__(self, *arguments):
                super().__init__(*arguments)
                os.kill(os.getpid(), signal.SIGINT)

        run = demo.Demo(argparse.Namespace(bin=harness.BIN, out=self.out))
        run.logs.mkdir(parents=True)
        with unittest.mock.patch.object(demo, "Process", Interrupted), self.assertRaises(KeyboardInterrupt):
            run.spawn("sleeper", ["sleep", "60"])
        self.assertEqual([p.name for p in run.processes], ["sleeper"])
        status = pathlib.Path(f"/proc/{run.processes[0].pid}/status").read_text()
        self.assertRegex(status, r"SigBlk:\s0+\n", "the program itself can be interrupted")
        run.stop_everything()
        self.assertIsNotNone(run.processes[0].code())


if __name__ == "__main__":
    unittest.main(verbosity=2)
