"""Real processes for tests: starts servers and workers, waits with bounds, shows their logs when a test fails.

Hermetic: every port is 0 and read back from the server's port file, every file lies in a temporary folder that is
removed with the test. Binaries come from $SIGNVOTE_BIN.
"""

import functools
import json
import os
import pathlib
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

BIN = pathlib.Path(os.environ.get("SIGNVOTE_BIN", "build/dev/bin")).resolve()
# Sanitizers make everything slower; waits (never measurements) are stretched by this.
SLOWNESS = float(os.environ.get("SIGNVOTE_TEST_SLOWNESS", "1"))
LOG_TAIL_BYTES = 6000
OWN_MOUNTS = "SIGNVOTE_TEST_OWN_MOUNTS"  # in the environment of a program that has asked for some
SKIPPED_STATUS = 77  # ctest's SKIP_RETURN_CODE
FOREVER = 1_000_000  # rounds of a run that the test ends, however long programs take to start (end_run)

# common/exit_codes.h
OK, INTERNAL, USAGE, BAD_INPUT, REFUSED, UNAVAILABLE, PORT_IN_USE, NO_DEVICE, DIVERGED, MISMATCH, WAIT_TIMEOUT, NO_MEMORY = range(12)


class Disturbed(AssertionError):
    """Something took too long: the fault of the product, or of a machine that was busy with something else."""


def timed(test):
    """For tests that hold times against a gate, with assert_in_time(). A busy machine makes a good product miss it, a product
    that misses it does so every time: so the test fails when three runs out of three do. Whatever else it asserts must hold in
    each run, so that comes before the times."""
    @functools.wraps(test)
    def up_to_three_times(self):
        for last in (False, False, True):
            try:
                return test(self)
            except Disturbed as missed:
                if last:
                    raise
                print(f"{self.id()}: {missed}; measured again", flush=True)
                self.start_over()
    return up_to_three_times


def has_torch():
    return (BIN / "signvote-worker").exists()


class Process:
    """One program with its log file."""

    def __init__(self, name, command, log_path):
        self.name = name
        self.command = [str(word) for word in command]
        self.log_path = pathlib.Path(log_path)
        self._log = open(self.log_path, "wb")
        self.started = time.monotonic()
        self.popen = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True)

    @property
    def pid(self):
        return self.popen.pid

    @property
    def alive(self):
        return self.popen.poll() is None

    def log(self):
        self._log.flush()
        return self.log_path.read_text(errors="replace")

    def signal(self, number):
        self.popen.send_signal(number)

    def kill(self):
        """SIGKILL, and wait for it to be gone."""
        if self.alive:
            self.popen.kill()
        self.popen.wait(10)

    def wait(self, timeout):
        """Exit status; raises when the process outlives `timeout` seconds."""
        try:
            return self.popen.wait(timeout * SLOWNESS)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} still runs after {timeout * SLOWNESS:.0f} s") from None

    def close(self):
        if self.alive:
            self.popen.kill()
            self.popen.wait(10)
        self._log.close()


class Server(Process):
    def ports(self, timeout=60):
        """The bound ports, once the server listens."""
        deadline = time.monotonic() + timeout * SLOWNESS
        while time.monotonic() < deadline:
            try:
                return json.loads(self.port_file.read_text())
            except (OSError, json.JSONDecodeError):
                pass
            if not self.alive:
                raise AssertionError(f"the server ended with {self.popen.returncode} before it listened")
            time.sleep(0.02)
        raise AssertionError("the server does not listen")

    @property
    def address(self):
        return f"127.0.0.1:{self.ports()['grpc']}"

    @property
    def http(self):
        return f"127.0.0.1:{self.ports()['http']}"


class ProcessTest(unittest.TestCase):
    """Base of all process tests."""

    maxDiff = None
    insecure = False  # plaintext for the whole class

    def setUp(self):
        self.processes = []
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="signvote-e2e."))
        self._certified = set()

    def run(self, result=None):
        """Shows every process's log after a failure, and always cleans up."""
        outcome = result if result is not None else self.defaultTestResult()
        before = len(outcome.failures) + len(outcome.errors)
        try:
            return super().run(outcome)
        finally:
            processes = getattr(self, "processes", [])
            for process in processes:
                process.close()
            if len(outcome.failures) + len(outcome.errors) > before:
                for process in processes:
                    text = process.log_path.read_text(errors="replace")
                    print(f"---- {self.id()}: {process.name}: exit {process.popen.returncode}: {' '.join(process.command)}")
                    print(text[-LOG_TAIL_BYTES:], flush=True)
            if hasattr(self, "folder"):
                shutil.rmtree(self.folder, ignore_errors=True)

    def start_over(self):
        """Ends everything that the test has started; its logs and certificates stay."""
        for process in self.processes:
            process.close()

    def assert_in_time(self, in_time, what):
        """In tests that are @timed."""
        if not in_time:
            raise Disturbed(what)

    # ---- programs ---------------------------------------------------------------------------------------------------

    def start(self, name, command, kind=Process):
        path = self.folder / f"{name}.{len(self.processes)}.log"
        process = kind(name, command, path)
        self.processes.append(process)
        return process

    def command(self, program, *arguments, timeout=60, environment=None):
        """Runs a program to its end; returns (exit status, stdout, stderr)."""
        env = dict(os.environ, **(environment or {}))
        try:
            done = subprocess.run([str(BIN / program), *[str(a) for a in arguments]], stdin=subprocess.DEVNULL,
                                  capture_output=True, text=True, timeout=timeout * SLOWNESS, env=env)
        except subprocess.TimeoutExpired:
            self.fail(f"{program} {arguments} still runs after {timeout * SLOWNESS:.0f} s")
        return done.returncode, done.stdout, done.stderr

    @property
    def tls(self):
        return self.folder / "tls"

    def certify(self, *workers):
        """Certificates and tokens for these workers (and the server and the operator)."""
        missing = [w for w in workers if w not in self._certified]
        if not missing and self._certified:
            return
        names = [part for w in missing for part in ("--worker", w)]
        code, out, err = self.command("signvote", "certs", self.tls, *names)
        self.assertEqual(code, OK, out + err)
        self._certified.update(missing)

    def server_flags(self):
        if self.insecure:
            return ["--insecure"]
        return ["--tls-ca", self.tls / "ca.crt", "--tls-certificate", self.tls / "server.crt",
                "--tls-key", self.tls / "server.key"]

    def start_server(self, *flags, rounds=20, workers_min=1, name="server", listen="127.0.0.1:0", prefix=()):
        """A server on free ports. Its logs: self.round_log, self.event_log. `prefix`: what runs it, such as prlimit. `rounds`: None does
        not say it."""
        self.certify()
        index = len(self.processes)
        port_file = self.folder / f"ports.{index}.json"
        self.round_log = self.folder / f"rounds.{index}.jsonl"
        self.event_log = self.folder / f"events.{index}.jsonl"
        # The default of a long run begins with a race, whose rounds are no main rounds.
        rule = () if "--rule" in flags else ("--rule", "alias")
        process = self.start(name, [
            *prefix, BIN / "signvote-server", "--listen", listen, "--http", "127.0.0.1:0", "--port-file", port_file,
            *(() if rounds is None else ("--rounds", rounds)), "--workers-min", workers_min, "--tokens", self.tls / "tokens", "--seed", 7, *rule,
            "--round-log", self.round_log, "--event-log", self.event_log, *self.server_flags(), *flags], Server)
        process.port_file = port_file
        self.server = process
        process.ports()
        return process

    def worker_flags(self, name):
        mine = self.tls / "workers" / name
        flags = ["--server", self.server.address, "--name", name, "--token-file", mine / "token"]
        if self.insecure:
            return flags + ["--insecure"]
        return flags + ["--tls-ca", mine / "ca.crt", "--tls-certificate", mine / "worker.crt",
                        "--tls-key", mine / "worker.key"]

    def start_worker(self, name, *flags, program="signvote-synthetic-worker", prefix=()):
        process = self.start(name, [*prefix, BIN / program, *self.worker_flags(name),
                                    "--report", self.folder / f"{name}.report.json", *flags])
        return process

    def start_workers(self, names, *flags, program="signvote-synthetic-worker"):
        return {name: self.start_worker(name, *flags, program=program) for name in names}

    def raw(self, scenario, name="raw", *flags, timeout=60):
        """A rule breaker; returns (code name, message, whole output)."""
        return self.raw_with(scenario, *self.worker_flags(name), *flags, timeout=timeout)

    def raw_with(self, scenario, *flags, timeout=60):
        code, out, err = self.command("raw_client", "--scenario", scenario, *flags, timeout=timeout)
        last = [line for line in out.splitlines() if line.startswith("STATUS ")]
        self.assertTrue(last, f"raw_client {scenario} ended with {code}: {out}{err}")
        _, status, *message = last[-1].split(" ", 2)
        return status, (message or [""])[0], out

    # ---- what a run says --------------------------------------------------------------------------------------------

    def ctl(self, *arguments, timeout=60):
        flags = ["--server", self.server.address] + (["--insecure"] if self.insecure else ["--tls-dir", self.tls])
        return self.command("signvote", *flags, *arguments, timeout=timeout)

    def status(self):
        code, out, err = self.ctl("status", "--json")
        self.assertEqual(code, OK, err)
        return json.loads(out)

    def worker_status(self, name):
        for worker in self.status()["workers"]:
            if worker["name"] == name:
                return worker
        return None

    @staticmethod
    def lines(path):
        """The whole lines of a JSON-lines file that may still be written to."""
        try:
            text = pathlib.Path(path).read_text()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in text[:text.rfind("\n") + 1].splitlines()]

    def rounds(self):
        return self.lines(self.round_log)

    @staticmethod
    def stepsize(line):
        """A round's stepsize, exact: its fp32 bits."""
        return struct.unpack(">f", bytes.fromhex(line["stepsize_bits"]))[0]

    def events(self, kind=None):
        return [e for e in self.lines(self.event_log) if kind is None or e["kind"] == kind]

    def wait_until(self, what, condition, timeout=60, poll=0.05):
        """Waits for condition() to be true and returns it."""
        deadline = time.monotonic() + timeout * SLOWNESS
        while True:
            value = condition()
            if value:
                return value
            if time.monotonic() > deadline:
                self.fail(f"after {timeout * SLOWNESS:.0f} s still not: {what}")
            time.sleep(poll)

    def wait_round(self, count, timeout=60):
        """Waits until `count` rounds are committed."""
        def enough():
            alive = self.server.alive  # before the look at its log: it may end with the round that is waited for
            if len(self.rounds()) >= count:
                return True
            self.assertTrue(alive, f"the server ended with {self.server.popen.returncode} before round {count}")
            return False
        self.wait_until(f"{count} rounds committed", enough, timeout, poll=0.02)

    def wait_end(self, timeout=60, expected=OK):
        """Waits for the server's end and checks its exit status."""
        self.assertEqual(self.server.wait(timeout), expected, "exit status of the server")

    def report(self, name):
        return json.loads((self.folder / f"{name}.report.json").read_text())

    def assert_exit(self, process, expected, timeout=60):
        self.assertEqual(process.wait(timeout), expected, f"exit status of {process.name}")

    def assert_all_end_well(self, workers, timeout=60):
        """Server and workers end with 0 and with the same replica; returns its digest."""
        self.wait_end(timeout)
        for process in workers:
            self.assert_exit(process, OK)
        return self.one_digest(workers)

    def end_run(self, *workers):
        """Ends a run of FOREVER: after one last round everybody leaves in good order, the server last, all with 0 and with the
        same replica; returns its digest."""
        self.pause()
        for process in workers:
            code, out, err = self.ctl("drain", process.name)
            self.assertEqual(code, OK, out + err)
            self.assert_exit(process, OK)
        self.server.signal(signal.SIGTERM)
        self.wait_end()
        return self.one_digest(workers)

    def pause(self):
        """Between two rounds, of which the round log has every one."""
        self.assertEqual(self.ctl("pause")[0], OK)
        self.wait_until("the run is paused", lambda: self.status()["phase"] == "paused")
        committed = self.status()["round"]
        self.wait_until("the round log has every round", lambda: len(self.rounds()) >= committed)

    def small_disk(self, size):
        """A folder on a file system of its own, of `size` ("90m"); skips where none can be mounted."""
        small = self.folder / "small"
        small.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", small], capture_output=True, text=True)
        if done.returncode != 0:
            self.skipTest(f"no file system of its own can be mounted here: {done.stderr.strip()}")
        self.addCleanup(subprocess.run, ["umount", "-l", str(small)], check=False)
        return small

    def one_digest(self, workers):
        digests = {p.name: self.report(p.name)["digest"] for p in workers}
        self.assertEqual(len(set(digests.values())), 1, f"replicas differ: {digests}")
        return next(iter(digests.values()))


def http_get(address, path, timeout=10):
    """(status, body) of http://address/path."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=timeout) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metadata(path):
    """What a safetensors file says of itself; None where there is none."""
    try:
        data = pathlib.Path(path).read_bytes()
    except FileNotFoundError:
        return None
    length, = struct.unpack("<Q", data[:8])
    return json.loads(data[8:8 + length])["__metadata__"]


def values(path):
    """The parameters of a safetensors file as bytes."""
    data = pathlib.Path(path).read_bytes()
    length, = struct.unpack("<Q", data[:8])
    return data[8 + length:]


def fill_disk(folder):
    """All that is left there is taken by others."""
    with open(folder / "others", "wb") as others:
        try:
            while True:
                others.write(bytes(1 << 16))
                others.flush()
        except OSError:
            pass


def stop(process):
    process.signal(signal.SIGSTOP)


def cont(process):
    process.signal(signal.SIGCONT)


def run_tests():
    """unittest's main where a machine may not allow a test: a file of which something was left out ends as skipped, so that
    ctest and scripts/test show it."""
    result = unittest.main(verbosity=2, exit=False).result
    if not result.wasSuccessful():
        sys.exit(1)
    sys.exit(SKIPPED_STATUS if result.skipped else 0)


def has_own_mounts():
    """Whether run_tests_with_own_mounts() could give this program a mount namespace of its own."""
    return os.environ.get(OWN_MOUNTS) == "yes"


def run_tests_with_own_mounts():
    """run_tests() in a mount namespace of this program's own, where the machine allows one."""
    if OWN_MOUNTS not in os.environ:
        own = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--mount"]
        possible = shutil.which("unshare") is not None and subprocess.run(
            [*own, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], stderr=subprocess.DEVNULL).returncode == 0
        os.environ[OWN_MOUNTS] = "yes" if possible else "no"
        if possible:
            os.execvp("unshare", [*own, sys.executable, *sys.orig_argv[1:]])
    run_tests()
