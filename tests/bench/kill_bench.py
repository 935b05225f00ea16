#!/usr/bin/env python3
"""What a kill costs: the real server on a journal and synthetic workers on this machine, back to back, defaults. Programs are
killed (SIGKILL) at random moments, one at a time, and started again: the server at once, as a service would, on its journal and its
port; a worker once a round was committed without it. For d coordinates and n workers:

  server  from the kill of the server to the next commit; what its start takes is a part of it
  loss    from the kill of a worker to the next commit
  rejoin  from the start of a worker's process to the first commit that counts its ballot
  commits that the journal had to have and the next server did not: none; digests of all replicas must be equal at the end

The worst one counts.
"""

import argparse
import dataclasses
import os
import pathlib
import random
import shutil
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from bench_run import BenchRun, Report, ThisMachine, exit_status  # noqa: E402 (it finds the tests' modules)

CALM_S = (0.5, 4.0)  # between the last recovery and the next kill


@dataclasses.dataclass
class Case:
    name: str
    coordinates: int
    workers: int
    server_gate_s: float
    worker_kills: bool


LOSS_GATE_S, REJOIN_GATE_S = 1.5, 3.0
CASES = [Case("25m", 25_000_000, 4, 5.0, True), Case("134m", 134_000_000, 2, 10.0, False)]


class Kills:
    """One run of a case, and its figures."""

    def __init__(self, folder, case, kills, compute_ms, rng):
        self.case, self.rng = case, rng
        self.names = [f"w{k}" for k in range(1, case.workers + 1)]
        self.worker_flags = ["--compute-ms", compute_ms]
        self.server_s, self.loss_s, self.rejoin_s = [], [], []
        self.lost_commits, self.starts = 0, 0
        with BenchRun(ThisMachine(), folder) as run:
            self.run = run
            self._start_server()
            for name in self.names:
                run.attach(name, case.coordinates, *self.worker_flags)
            run.wait_members(300)
            for _ in range(kills):
                self._kill_server()
            for k in range(kills if case.worker_kills else 0):
                self._kill_worker(self.names[k % len(self.names)])
            reports = run.finish()
            self.resident_bytes = run.resident_bytes
        digests = {r["digest"] for r in reports.values()}
        if len(digests) != 1:
            raise AssertionError(f"replicas differ: {digests}")

    def _start_server(self, port=0):
        """Each server has a round log of its own: the last line of one that was killed may be half a line."""
        run = self.run
        run.round_log = run.folder / f"rounds.{self.starts}.jsonl"
        run.ports.unlink(missing_ok=True)
        self.starts += 1
        run.serve("--workers-min", len(self.names), "--journal", run.folder / "journal", port=port)
        self.port = run.port()

    def _calm(self):
        time.sleep(self.rng.uniform(*CALM_S))

    def _end(self, process):
        """Returns the time of the kill."""
        killed = time.time()
        process.kill()
        self.run.processes.remove(process)
        process.close()
        return killed

    def _first(self, what, since, counts=lambda r: True):
        """The first commit after `since` that counts."""
        return self.run.wait_for(what, lambda: next(
            (r for r in self.run.rounds() if r["unix_time"] > since and counts(r)), None), 300)

    def _kill_server(self):
        self._calm()
        killed = self._end(self.run.server)
        told = [r["round"] for r in self.run.rounds()]
        self._start_server(self.port)
        commit = self._first("a commit follows the kill of the server", killed)
        self.server_s.append(commit["unix_time"] - killed)
        self.lost_commits += max(0, (told[-1] + 1 if told else 0) - commit["round"])
        self._first("everybody votes again", killed, lambda r: set(r["voters"]) == set(self.names))

    def _kill_worker(self, name):
        self._calm()
        killed = self._end(self.run.workers[name])
        self.loss_s.append(self._first("a commit follows the kill of a worker", killed)["unix_time"] - killed)
        self._first("a round goes on without it", killed, lambda r: name not in r["voters"])
        started = time.time()
        self.run.attach(name, self.case.coordinates, *self.worker_flags)
        commit = self._first("its ballot is counted", started, lambda r: name in r["voters"])
        self.rejoin_s.append(commit["unix_time"] - started)

    def print(self, report, gates):
        case = self.case
        def add(name, samples, gate):
            report.add(f"{case.name}_{name}", "s", samples)
            report.add(f"{case.name}_{name}_worst", "s", [max(samples)], gate if gates else None)
        add("server", self.server_s, case.server_gate_s)
        if case.worker_kills:
            add("loss", self.loss_s, LOSS_GATE_S)
            add("rejoin", self.rejoin_s, REJOIN_GATE_S)
        report.add(f"{case.name}_lost_commits", "", [self.lost_commits], 0)
        report.add(f"{case.name}_server_resident", "MB", [self.resident_bytes / 1e6])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per figure and line")
    parser.add_argument("--quick", action="store_true", help="small inputs: shows that it runs, not how fast")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a gate is missed")
    parser.add_argument("--repetitions", type=int, default=10, help="kills of each kind [10]")
    parser.add_argument("--compute-ms", type=int, default=0, help="what a worker computes [0: back to back]")
    parser.add_argument("--seed", type=int, default=1, help="of the moments [1]")
    parser.add_argument("--only", default="", help="only the cases whose names hold this text")
    options = parser.parse_args()
    if options.quick:
        options.repetitions = min(options.repetitions, 2)
    report = Report(options.json)

    def measure_all(folder):
        for case in [c for c in CASES if options.only in c.name]:
            if options.quick:
                case.coordinates //= 25
            Kills(folder / case.name, case, options.repetitions, options.compute_ms,
                  random.Random(options.seed)).print(report, not options.quick)
            shutil.rmtree(folder / case.name)
            report.add(f"{case.name}_load", "", [os.getloadavg()[0]])

    return exit_status("kill", report, options.check, measure_all)


if __name__ == "__main__":
    sys.exit(main())
