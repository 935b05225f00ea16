#!/usr/bin/env python3
"""Sizes at which a server must work, as processes on this machine: the real server and synthetic workers over the loopback
interface, plaintext, everybody from the first round on. And a size that the memory rule refuses.

  rounds     commits, with every ballot: at least --rounds
  round      from commit to commit; not judged, because everybody shares this machine's cores
  digests    different ones among the replicas after the last round, and at every digest before it: one; no resync, by which
             the server would mend one that is not its own
  resident   the server's largest, over the memory rule: ≤ 4 d + 3 n d/8 + recent commits + 9 d/8 + 200 MB (docs/performance.md)
  refused    --workers-max 1023 and a model whose ballots do not fit: the worker is told each part with its bytes and what
             would help, the server goes on, and with what would help the same model is taken
"""

import argparse
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

from bench_run import BenchRun, Report, ThisMachine, exit_status  # noqa: E402 (it finds the tests' modules)
import harness  # noqa: E402

# name, coordinates, workers
SIZES = [("134m_16", 134_000_000, 16), ("4m_63", 4_000_000, 63)]
DIGEST_EVERY = 5
WORKERS_MAX = 1023  # the most that --workers-max takes
REFUSED = "refused"


def packed(coordinates):
    return -(-coordinates // 8)


def kept_commits_bytes(coordinates):
    """Of the default catch-up budget: whole rounds, 1,024 at most."""
    return min(1024, max(64 << 20, 8 * packed(coordinates)) // packed(coordinates)) * packed(coordinates)


def rule_bytes(coordinates, workers):
    """What the server may have resident without an export, for a rule that needs no x0."""
    return (4 * coordinates + 3 * workers * packed(coordinates) + kept_commits_bytes(coordinates) + 9 * packed(coordinates)
            + 200_000_000)


def available_bytes():
    text = pathlib.Path("/proc/meminfo").read_text()
    return 1024 * int(re.search(r"MemAvailable:\s+(\d+)", text)[1])


def measure(report, folder, name, coordinates, count, rounds, holders):
    """One size. `holders`: how many workers keep a replica."""
    # A replica, a ballot, the verdicts and messages on their way.
    needed = rule_bytes(coordinates, count) + holders * 4 * coordinates + count * (8 * packed(coordinates) + 40_000_000)
    if needed > available_bytes():
        raise AssertionError(f"{name} takes about {needed >> 20} MiB, {available_bytes() >> 20} MiB are left; give --holders")
    with BenchRun(ThisMachine(), folder) as run:
        everybody = holders == count
        run.serve("--workers-min", count, "--workers-max", count, "--digest-every", DIGEST_EVERY if everybody else 0)
        for k in range(count):
            run.attach(f"w{k}", coordinates, *(() if k < holders else ("--no-replica",)))
        run.wait_members(600)
        run.wait_rounds(rounds, 600)
        reports = run.finish()
        lines = run.rounds()
        times = [r["unix_time"] for r in lines]
        report.at_least(f"{name}_rounds", "", len(lines), rounds)
        report.add(f"{name}_missed_ballots", "", [sum(count - len(r["voters"]) for r in lines)], 0)
        report.add(f"{name}_round", "s", [b - a for a, b in zip(times, times[1:])])
        last = {r["digest"] for r in reports.values() if "digest" in r}
        on_the_way = {}
        for event in run.events("digest"):
            if event["worker"]:  # the server compares its own with these: events "resync"
                on_the_way.setdefault(event["digest_round"], set()).add(event["digest"])
        report.add(f"{name}_digests", "", [max([len(last), *map(len, on_the_way.values())])], 1)
        report.add(f"{name}_resyncs", "", [len(run.events("resync"))], 0)
        report.add(f"{name}_resident", "MB", [run.resident_bytes / 1e6])
        report.add(f"{name}_ratio_resident_to_rule", "ratio", [run.resident_bytes / rule_bytes(coordinates, count)], 1)


def refuse(report, folder):
    coordinates = int(1.2 * available_bytes() / (3 * WORKERS_MAX / 8))
    with BenchRun(ThisMachine(), folder) as run:
        run.serve("--workers-max", WORKERS_MAX)
        process = run.attach("w0", coordinates, "--no-replica")
        status = process.wait(60)
        text = process.log()
        run.processes.remove(process)
        wanted = [f"the master replica {mib(4 * coordinates)}",
                  f"ballots of {WORKERS_MAX} workers {mib(3 * WORKERS_MAX * packed(coordinates))}",
                  f"commits kept for catching up {mib(kept_commits_bytes(coordinates))}",
                  f"verdicts being counted or sent {mib(9 * packed(coordinates))}",
                  f"the copy of an export {mib(4 * coordinates)}",
                  f"everything else {mib(200_000_000)}", f"--workers-max below {WORKERS_MAX}"]
        missing = [w for w in wanted if w not in text]
        if status != harness.REFUSED or missing or not run.server.alive:
            raise AssertionError(f"ended with {status}, without {missing}: {text}")
        print(text.strip().splitlines()[-1], file=sys.stderr)
    report.add(f"{REFUSED}_coordinates", "", [coordinates])
    with BenchRun(ThisMachine(), folder / "taken") as run:
        run.serve("--workers-max", 2, "--digest-every", 0)
        run.attach("w0", coordinates, "--no-replica")
        run.wait_rounds(3)
        run.finish()
        report.at_least(f"{REFUSED}_then_taken_rounds", "", len(run.rounds()), 3)


def mib(count):
    return f"{-(-count // (1 << 20))} MiB ({count} bytes)"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object per figure and line")
    parser.add_argument("--quick", action="store_true", help="small inputs: shows that it runs, not how fast")
    parser.add_argument("--check", action="store_true", help="exit status 1 when a gate is missed")
    parser.add_argument("--repetitions", type=int, default=11, metavar="ROUNDS", help="rounds of each size, at least [11]")
    parser.add_argument("--holders", type=int, default=1023,
                        help="workers that keep a replica, where memory is short [all]; without all, digests at the end alone")
    parser.add_argument("--only", default="", help="only the sizes whose names hold this text")
    options = parser.parse_args()
    report = Report(options.json)

    def measure_all(folder):
        for name, coordinates, count in SIZES:
            if options.only in name:
                d = coordinates // 50 if options.quick else coordinates
                measure(report, folder / name, name, d, count, options.repetitions, min(count, options.holders))
        if options.only in REFUSED:
            refuse(report, folder / REFUSED)

    return exit_status("sizes", report, options.check, measure_all)


if __name__ == "__main__":
    sys.exit(main())
