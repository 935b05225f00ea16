"""A run for a bench: the real server and synthetic workers as processes, each on a host of its own (network namespaces) or all on
this machine; and how a bench's figures are printed."""

import json
import pathlib
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))

import harness  # noqa: E402
import hosts  # noqa: E402

SERVER = "train.example.net"
PORT = 7070


class ThisMachine:
    """In a host's place: everything runs here, over the loopback interface."""

    def __getitem__(self, _):
        return self

    def enter(self, command):
        return command

    def run(self, *command, timeout=60):
        done = subprocess.run([str(word) for word in command], stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=timeout * harness.SLOWNESS, check=False)
        return done.returncode, done.stdout, done.stderr


class BenchRun:
    """A context manager: whatever it has started ends with it. `network`: a hosts.Network whose hosts are SERVER and the workers'
    names, or ThisMachine()."""

    def __init__(self, network, folder, tls=False):
        self.network, self.folder, self.tls = network, folder, tls
        self.local = isinstance(network, ThisMachine)
        self.processes = []
        self.workers = {}
        folder.mkdir(parents=True)
        self.ports = folder / "ports.json"
        self.round_log, self.event_log = folder / "rounds.jsonl", folder / "events.jsonl"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.close()

    # ---- processes
    def start(self, host, name, *command):
        process = harness.Process(name, self.network[host].enter(command), self.folder / f"{name}.log")
        self.processes.append(process)
        return process

    def end(self, process, timeout):
        status = process.wait(timeout)
        if status != 0:
            raise AssertionError(f"{process.name} ended with {status}:\n{process.log()[-4000:]}")

    def wait_for(self, what, condition, timeout=60):
        """Until condition() is true; returns it."""
        deadline = time.monotonic() + timeout * harness.SLOWNESS
        while True:
            value = condition()
            if value:
                return value
            for process in self.processes:
                if process.popen.poll() not in (None, 0):
                    raise AssertionError(f"{process.name} ended before {what}:\n{process.log()[-4000:]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"after {timeout * harness.SLOWNESS:.0f} s still not: {what}")
            time.sleep(0.01)

    def certify(self, workers):
        names = [word for w in workers for word in ("--worker", w)]
        subprocess.run([harness.BIN / "signvote", "certs", self.folder / "tls", "--server-name", SERVER, *names], check=True,
                       stdout=subprocess.DEVNULL, timeout=60)

    def serve(self, *flags, port=0):
        """The server, once it listens; on this machine at `port`, 0: any. Stepsizes are fixed: there is no objective."""
        tls = self.folder / "tls"
        security = ["--insecure"] if self.local else ["--insecure", "--insecure-bind", "0.0.0.0"]
        if self.tls:
            security = ["--tls-ca", tls / "ca.crt", "--tls-certificate", tls / "server.crt", "--tls-key", tls / "server.key",
                        "--tokens", tls / "tokens"]
        listen = f"127.0.0.1:{port}" if self.local else f"0.0.0.0:{PORT}"
        self.server = self.start(SERVER, "server", harness.BIN / "signvote-server", "--listen", listen, "--http", "off",
                                 "--port-file", self.ports, "--rule", "fixed", "--stepsize", "1e-6", "--rounds",
                                 harness.FOREVER, "--round-log", self.round_log, "--event-log", self.event_log, *security, *flags)
        self.wait_for("the server listens", self.ports.exists)
        return self.server

    def port(self):
        """At which the server listens."""
        return json.loads(self.ports.read_text())["grpc"]

    def attach(self, name, coordinates, *flags):
        """A synthetic worker with random ballots."""
        security = ["--insecure"]
        if self.tls:
            mine = self.folder / "tls/workers" / name
            security = ["--token-file", mine / "token", "--tls-ca", mine / "ca.crt", "--tls-certificate", mine / "worker.crt",
                        "--tls-key", mine / "worker.key"]
        where = f"127.0.0.1:{self.port()}" if self.local else f"{SERVER}:{PORT}"
        self.workers[name] = self.start(
            name, name, harness.BIN / "signvote-synthetic-worker", "--server", where, "--name", name, "--coordinates", coordinates,
            "--random-ballots", "--report", self.folder / f"{name}.json", *security, *flags)
        return self.workers[name]

    def ctl(self, *arguments):
        where = ["--server", f"{SERVER}:{PORT}", "--tls-dir", self.folder / "tls"]
        if not self.tls:  # such a server takes them from its own machine only
            where = ["--server", f"127.0.0.1:{self.port()}", "--insecure"]
        code, out, err = self.network[SERVER].run(harness.BIN / "signvote", *where, *arguments)
        if code != 0:
            raise AssertionError(f"signvote {' '.join(map(str, arguments))} ended with {code}: {err}")
        return out

    def pause(self):
        self.ctl("pause")
        self.wait_for("the run is paused", lambda: json.loads(self.ctl("status", "--json"))["phase"] == "paused")

    def part(self, name):
        """This worker leaves in good order."""
        self.ctl("drain", name)
        self.end(self.workers[name], 60)

    def finish(self):
        """Everybody leaves after the same round, the server last; returns the workers' reports.
        resident_bytes is then the most memory that the server has had resident."""
        self.pause()
        for name, process in self.workers.items():
            if process.alive:
                self.part(name)
        status = pathlib.Path(f"/proc/{self.server.pid}/status").read_text()
        self.resident_bytes = 1024 * int(status.split("VmHWM:")[1].split()[0])
        self.server.signal(signal.SIGTERM)
        self.end(self.server, 60)
        return {name: json.loads((self.folder / f"{name}.json").read_text()) for name in self.workers}

    # ---- what the run says
    def rounds(self):
        return harness.ProcessTest.lines(self.round_log)

    def events(self, kind, worker=None):
        return [e for e in harness.ProcessTest.lines(self.event_log)
                if e["kind"] == kind and worker in (None, e.get("worker"))]

    def wait_members(self, timeout=60):
        """Until everybody attached so far is a member."""
        self.wait_for("all workers are members", lambda: len({e["worker"] for e in self.events("member")}) == len(self.workers),
                      timeout)

    def wait_rounds(self, count, timeout=300):
        """Until `count` rounds are committed."""
        self.wait_for(f"{count} rounds are committed", lambda: len(self.rounds()) >= count, timeout)


class Report:
    def __init__(self, as_json):
        self.as_json = as_json
        self.missed = False

    def add(self, name, unit, samples, gate=None):
        """Prints the median of the samples, their least and largest; with a gate, whether the median is at most that."""
        self._print(name, unit, samples, gate, gate is None or statistics.median(samples) <= gate)

    def at_least(self, name, unit, value, gate):
        """Prints a value, and whether it is at least `gate`."""
        self._print(name, unit, [value], gate, value >= gate)

    def _print(self, name, unit, samples, gate, ok):
        middle, low, high = statistics.median(samples), min(samples), max(samples)
        if self.as_json:
            print(json.dumps({"name": name, "value": middle, "unit": unit, "n": len(samples), "spread_min": low,
                              "spread_max": high, **({} if gate is None else {"gate": gate, "ok": ok})}), flush=True)
        else:
            text = "" if gate is None else f"  gate {gate:g}: {'ok' if ok else 'MISSED'}"
            print(f"{name:<44} {middle:10.4g} {unit:<6} [{low:.4g} .. {high:.4g}]{text}", flush=True)
        self.missed |= not ok


def exit_status(bench, report, check, measure):
    """Calls measure(folder), a folder that is gone afterwards, and says how the bench ends. `check`: 1 where a gate is missed."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix=f"signvote-{bench}."))
    try:
        measure(folder)
    except hosts.Terminated:
        return hosts.Terminated.EXIT_STATUS
    except (AssertionError, hosts.Unavailable) as error:
        print(f"{bench}_bench: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if check and report.missed else 0
