#!/usr/bin/env python3
"""What it takes to join a run at size: the real server and three members, then a newcomer, which must fetch the whole
replica while rounds go on. Synthetic ballots, no model; defaults. Two kinds of runs over a server's link that tc's token bucket
holds to a rate (network namespaces), and one over the loopback interface:

  paced  members compute, as long as it takes that verdicts fill a quarter of the server's link (--fill): those of the members
         and the newcomer's, which come while it fetches
  back   back to back: ballots are there when a round opens, so that a round takes what the network takes
  large  600 M coordinates and one member over the loopback interface: rounds are committed meanwhile

Seconds are the server's: of commits, of the newcomer's join, and of its first seat. A seat is given when a round opens. The newcomer
has all that it needs and joins when one has just opened; one that comes later in a round may wait a round longer. Figures and
gates, d coordinates, n members, `rate` the link's:

  transfers  state transfers of the newcomer: exactly one, and no connection lost
  bytes      what the transfer moved, at most 1.02 × 4 d; setup: that, and the verdicts that came meanwhile
  ready      until the newcomer holds the replica and all commits
  member     until its first seat; paced: ≤ 1.6 × 4 d / rate; back: ≤ 1.3 × (n + 1) × 4 d / rate
  round      median from commit to commit while it fetched, over the median of the time before (--before);
             paced: ≤ 1.15, back: ≤ 1.15 × (n + 2) / n
  fill       verdicts over what the link moves, before the join and while the newcomer fetches
  missed     ballots of members that a round went on without, from the beginning of that time on: none
  large      ≥ 10 rounds are committed while it fetches
"""

import argparse
import dataclasses
import os
import pathlib
import re
import statistics
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from bench_run import SERVER, BenchRun, Report, ThisMachine, exit_status  # noqa: E402 (it finds the tests' modules)
import hosts  # noqa: E402

MEMBERS = 3
WORKERS = [f"w{k}" for k in range(1, MEMBERS + 2)]  # the last one is the newcomer
FILL = 0.25  # paced: of the server's link, by verdicts
MEMBER_PACED, MEMBER_BACK = 1.6, 1.3 * (MEMBERS + 1)  # times 4 d / rate
ROUND_PACED, ROUND_BACK = 1.15, 1.15 * (MEMBERS + 2) / MEMBERS  # of the median before
TRANSFER_BYTES = 1.02  # of 4 d: one transfer
LARGE_ROUNDS_MIN = 10
WARM_UP_ROUNDS = 4  # TCP's windows open, deadlines learn
ROUNDS_AFTER = 3  # with the newcomer
ROUNDS_BEFORE_MIN = 9  # for a fair median


@dataclasses.dataclass
class Case:
    name: str
    coordinates: int
    mbit: int | None  # the server's link; None: the loopback interface
    paced: bool
    fill: float = FILL
    exchange_s: float = 0  # paced: what a round takes beyond computing, as measured
    members: int = MEMBERS
    before_s: float = 60  # how long rounds are timed before the newcomer comes
    server_flags: tuple = ()

    @property
    def copy_s(self):
        """Seconds in which the link moves the replica and nothing else."""
        return 4 * self.coordinates * 8 / (self.mbit * 1e6)

    @property
    def compute_ms(self):
        if not self.paced:
            return 0
        return round(1000 * (self.verdicts_s(self.members + 1) / self.fill - self.exchange_s))

    def verdicts_s(self, workers):
        """Seconds in which the link moves a verdict to so many workers and nothing else."""
        return workers * self.coordinates / (self.mbit * 1e6)


class Join:
    """One run of a case, and its figures."""

    def __init__(self, network, folder, case):
        self.case = case
        with BenchRun(network, folder) as run:
            self._run(run)

    def _run(self, run):
        case = self.case
        members, newcomer = WORKERS[:case.members], WORKERS[-1]
        flags = ["--compute-ms", case.compute_ms]
        run.serve("--workers-min", case.members, *case.server_flags)
        for name in members:
            run.attach(name, case.coordinates, *flags)
        run.wait_members(300)
        if case.mbit is not None:
            run.network[SERVER].shape(case.mbit)
        run.wait_rounds(len(run.rounds()) + WARM_UP_ROUNDS)
        begin = len(run.rounds())
        began = run.rounds()[-1]["unix_time"]
        run.wait_for("rounds were timed before the join", timeout=case.before_s + 300, condition=lambda: (
            len(run.rounds()) >= begin + ROUNDS_BEFORE_MIN and run.rounds()[-1]["unix_time"] >= began + case.before_s))
        start = run.folder / "start"
        os.mkfifo(start)
        process = run.attach(newcomer, case.coordinates, *flags, "--start-fifo", start)
        run.wait_for("the newcomer can join", lambda: "ready to join" in process.log(), 300)
        run.wait_rounds(len(run.rounds()) + 1)
        start.open("w").close()
        run.wait_for("the newcomer is a member", lambda: run.events("member", newcomer), 600)
        run.wait_rounds(len(run.rounds()) + ROUNDS_AFTER)
        self.reports = run.finish()
        self._measure(run, begin, newcomer)

    def _measure(self, run, begin, newcomer):
        joined, member = (run.events(kind, newcomer)[0]["unix_time"] for kind in ("joined", "member"))
        fetched = re.search(r"fetched the state of the run seconds=(\S+) bytes=(\d+)", run.workers[newcomer].log())
        self.member_s = member - joined
        self.ready_s, self.transfer_bytes = float(fetched[1]), int(fetched[2])
        rounds = run.rounds()
        times = [r["unix_time"] for r in rounds]
        gaps = [(b, b - a) for a, b in zip(times[begin - 1:], times[begin:])]
        self.before_s = [gap for at, gap in gaps if at <= joined]
        # A round counts by its end: those that the transfer could slow.
        self.during_s = [gap for at, gap in gaps if joined < at <= member]
        self.missed = sum(len(r["members"]) - len(r["voters"]) for r in rounds[begin:])
        self.lost = len(run.events("lost"))
        report = self.reports[newcomer]
        self.transfers = report["state_transfers"]
        self.setup_bytes = report["wire"]["setup_received_bytes"]
        self.digests = {r["digest"] for r in self.reports.values() if "digest" in r}
        self.resident_bytes = run.resident_bytes

    def check(self):
        """What must hold however busy the machine is."""
        if len(self.digests) != 1:
            raise AssertionError(f"replicas differ: {self.digests}")

    def print(self, report):
        case = self.case
        def add(name, unit, samples, gate=None):
            report.add(f"{case.name}_{name}", unit, samples, gate)
        add("transfers", "", [self.transfers], 1)
        add("lost", "", [self.lost], 0)
        add("transfer_bytes", "bytes", [self.transfer_bytes])
        add("ratio_transfer_bytes", "ratio", [self.transfer_bytes / (4 * case.coordinates)], TRANSFER_BYTES)
        add("setup_bytes", "bytes", [self.setup_bytes])
        add("ready", "s", [self.ready_s])
        add("member", "s", [self.member_s])
        before = statistics.median(self.before_s)
        add("round_before", "s", self.before_s)
        add("round_during", "s", self.during_s)
        ratios = [s / before for s in self.during_s]
        if case.mbit is None:
            report.at_least(f"{case.name}_rounds_during", "", len(self.during_s), LARGE_ROUNDS_MIN)
            add("ratio_round", "ratio", ratios)
        else:
            add("fill_before", "ratio", [case.verdicts_s(case.members) / before])
            add("fill_during", "ratio", [case.verdicts_s(case.members + 1) / statistics.median(self.during_s)])
            add("ratio_ready", "ratio", [self.ready_s / case.copy_s])
            add("ratio_member", "ratio", [self.member_s / case.copy_s], MEMBER_PACED if case.paced else MEMBER_BACK)
            add("ratio_round", "ratio", ratios, ROUND_PACED if case.paced else ROUND_BACK)
            add("missed_ballots", "", [self.missed], 0)
        add("server_resident", "MB", [self.resident_bytes / 1e6])


CASES = [Case("paced_25m_100mbit", 25_000_000, 100, True, exchange_s=0.06),
         Case("back_25m_100mbit", 25_000_000, 100, False),
         Case("paced_134m_1000mbit", 134_000_000, 1000, True, exchange_s=0.13),
         Case("back_134m_1000mbit", 134_000_000, 1000, False),
         Case("large_600m_loopback", 600_000_000, None, False, members=1, before_s=0, server_flags=("--workers-max", "8"))]


def run(case, folder):
    """Runs a case in network namespaces of its own, or on this machine."""
    if case.mbit is None:
        return Join(ThisMachine(), folder / case.name, case)
    with hosts.Network(SERVER, *WORKERS) as network:
        return Join(network, folder / case.name, case)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per figure and line")
    parser.add_argument("--quick", action="store_true", help="small inputs: shows that it runs, not how fast")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a gate is missed")
    parser.add_argument("--repetitions", type=int, default=1, help="runs of each case [1]")
    parser.add_argument("--before", type=float, help="seconds in which rounds are timed before the join [60; large: 0]")
    parser.add_argument("--fill", type=float, default=FILL, help="of the link, by verdicts, where rounds are paced [0.25]")
    parser.add_argument("--only", default="", help="only the cases whose names hold this text")
    options = parser.parse_args()
    hosts.prepare()
    report = Report(options.json)

    def measure_all(folder):
        for case in [c for c in CASES if options.only in c.name]:
            case.fill = options.fill
            if options.before is not None:
                case.before_s = options.before
            if options.quick:
                case.coordinates, case.before_s = case.coordinates // 25, min(case.before_s, 3)
            for k in range(options.repetitions):
                join = run(case, folder / str(k))
                join.print(report)
                join.check()

    return exit_status("join", report, options.check, measure_all)


if __name__ == "__main__":
    sys.exit(main())
