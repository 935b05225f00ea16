#!/usr/bin/env python3
"""What a journal costs a round: one run with --durability none, one with sync, one with group, and one without a journal (off).
All are there at once, and paused but for one: they go on in turn, for a few rounds each, so that whatever else the machine does
strikes them alike. The real server, synthetic ballots, no model, back to back. Where:

  links  hosts of their own (network namespaces), every link held to 1 Gbit/s by tc's token bucket; the journal on --disk
  tmpfs  the loopback interface; the journal on --tmpfs
  disk   the loopback interface; the journal on --disk

Figures: `round` from the first byte of a ballot to the commit at all workers; `ratio` of the median round of a turn to that of
`none` in the same turn, the gate is 1.10 for links and tmpfs, `low` and `high` hold its median with 95 %; `write` is what the
place of the journal itself takes for the bytes of a round, written into a preallocated file, with fdatasync, in the same turns.
"""

import argparse
import contextlib
import math
import os
import pathlib
import shutil
import statistics
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from bench_run import SERVER, BenchRun, Report, ThisMachine, exit_status  # noqa: E402 (it finds the tests' modules)
import harness  # noqa: E402
import hosts  # noqa: E402

COORDINATES = 25_000_000
WORKERS = ["w1", "w2", "w3", "w4"]
MODES = ("none", "sync", "group", "off")
MBIT = 1000
GATE = 1.10
WARM_UP_ROUNDS = 4  # TCP's windows open, deadlines learn
SETTLE_ROUNDS = 2  # of each turn


class Run(BenchRun):
    """A run of one mode, paused but for its turns."""

    def __init__(self, mode, network, folder, journals):
        super().__init__(network, folder)
        self.journal = pathlib.Path(tempfile.mkdtemp(prefix="signvote-journal.", dir=journals))
        self.flags = () if mode == "off" else ("--journal", self.journal / "journal", "--durability", mode)
        self.turns = []  # the rounds of each

    def __exit__(self, *_):
        super().__exit__()
        shutil.rmtree(self.journal, ignore_errors=True)
        if not self.local:
            self.network.close()

    def begin(self, coordinates):
        self.serve("--workers-min", len(WORKERS), "--digest-every", 0, *self.flags)
        for name in WORKERS:
            self.attach(name, coordinates, "--round-log", self.folder / f"{name}.jsonl")
        self.wait_members()
        if not self.local:
            for host in (SERVER, *WORKERS):
                self.network[host].shape(MBIT)
        self.wait_rounds(WARM_UP_ROUNDS)
        self.pause()

    def turn(self, count):
        begin = len(self.rounds()) + SETTLE_ROUNDS
        self.ctl("resume")
        self.wait_rounds(begin + count)
        self.pause()
        self.turns.append(range(begin, begin + count))

    def finish(self):
        """Returns the seconds of the rounds of each turn."""
        digests = {r["digest"] for r in super().finish().values()}
        if len(digests) != 1:
            raise AssertionError(f"replicas differ: {digests}")
        lines = [{r["round"]: r for r in harness.ProcessTest.lines(self.folder / f"{w}.jsonl")} for w in WORKERS]

        def seconds(number):
            seen = [of[number] for of in lines]
            return (max(r["committed_ns"] for r in seen) - min(r["first_chunk_ns"] for r in seen)) * 1e-9
        return [[seconds(number) for number in turn] for turn in self.turns]


def write_s(folder, count, times):
    """Seconds in which so many bytes are written and synced there, in turn."""
    data, seconds = os.urandom(count), []
    with open(folder / "write", "wb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, count * times)
        os.fsync(file.fileno())
        for _ in range(times):
            begin = time.monotonic()
            file.write(data)
            os.fdatasync(file.fileno())
            seconds.append(time.monotonic() - begin)
    os.unlink(folder / "write")
    return seconds


def measure(report, name, folder, journals, on_links, options, gate):
    with contextlib.ExitStack() as ends:
        runs = {}
        for mode in MODES:
            network = hosts.Network(SERVER, *WORKERS) if on_links else ThisMachine()
            runs[mode] = ends.enter_context(Run(mode, network, folder / mode, journals))
            runs[mode].begin(options.d)
        written = []
        for k in range(options.turns):
            for j in range(len(MODES)):
                runs[MODES[(k + j) % len(MODES)]].turn(options.repetitions)
            written += write_s(runs["off"].journal, options.d // 8, options.repetitions)
        seconds = {mode: run.finish() for mode, run in runs.items()}
    for mode in MODES:
        report.add(f"{name}_{mode}_round", "s", [s for turn in seconds[mode] for s in turn])
    for mode in MODES[1:]:
        ratios = [statistics.median(turn) / statistics.median(none) for turn, none in zip(seconds[mode], seconds["none"])]
        report.add(f"{name}_{mode}_ratio", "ratio", ratios, gate if mode == "sync" else None)
        low, high = median_interval(ratios)
        report.add(f"{name}_{mode}_ratio_low", "ratio", [low])
        report.add(f"{name}_{mode}_ratio_high", "ratio", [high])
    report.add(f"{name}_write", "s", written)
    report.add(f"{name}_load", "", [os.getloadavg()[0]])


def median_interval(samples):
    """Order statistics that hold the median with 95 %; all of them where there are few."""
    ordered, n = sorted(samples), len(samples)
    below = [math.comb(n, k) / 2**n for k in range(n + 1)]
    k = 0
    while sum(below[:k + 1]) <= 0.025:
        k += 1
    return ordered[max(k - 1, 0)], ordered[n - max(k, 1)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per figure and line")
    parser.add_argument("--quick", action="store_true", help="small inputs: shows that it runs, not how fast")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a gate is missed")
    parser.add_argument("--repetitions", type=int, default=10, help="timed rounds of each turn [10]")
    parser.add_argument("--turns", type=int, default=31, help="turns of each run [31]")
    parser.add_argument("--d", type=int, default=COORDINATES, help="coordinates [25000000]")
    parser.add_argument("--disk", default=tempfile.gettempdir(), help="a folder on the disk [that for temporary files]")
    parser.add_argument("--tmpfs", default="/dev/shm", help="a folder on a tmpfs [/dev/shm]")
    parser.add_argument("--only", default="", help="only the places whose names hold this text")
    options = parser.parse_args()
    hosts.prepare()
    if options.quick:
        options.d, options.repetitions, options.turns = min(options.d, 2_000_000), min(options.repetitions, 3), 3
    report = Report(options.json)
    # name, where the journal lies, whether on links, gate on what sync takes.
    places = [("links", options.disk, True, GATE), ("tmpfs", options.tmpfs, False, GATE), ("disk", options.disk, False, None)]

    def measure_all(folder):
        for name, journals, on_links, gate in places:
            if options.only in name:
                measure(report, name, folder / name, journals, on_links, options, None if options.quick else gate)

    return exit_status("journal", report, options.check, measure_all)


if __name__ == "__main__":
    sys.exit(main())
