#!/usr/bin/env python3
"""Holds a demo's report.json to what a demo must show. Prints every finding. Exit status 0: there is none; 3: only times are
too long, which another run tells from a machine that was busy with something else; 1: anything else.
"""

import argparse
import json
import math
import sys

WIRE_OVERHEAD_MAX = 1.02       # of d/8 bytes per worker, round and direction
DEATH_SECONDS_MAX = 1.5        # beyond a normal round
NUMBERS = ("rounds", "coordinates", "seconds", "loss.first", "loss.last", "loss.held_out_first", "loss.held_out_last",
           "wire.up_bytes_per_round", "wire.down_bytes_per_round", "wire.fp32_bytes_per_round")
OTHERS = {"members": list, "events": list, "digests": dict, "replicas_equal": bool, "time_split": dict}


class TooLong(str):
    """A finding about a time."""


def look_up(report, path):
    for key in path.split("."):
        report = report[key] if isinstance(report, dict) and key in report else None
    return report


def findings(report, options):
    for path in NUMBERS:
        value = look_up(report, path)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            yield f"{path}: {value!r} is not a number"
            return
    for path, kind in OTHERS.items():
        if not isinstance(look_up(report, path), kind):
            yield f"{path}: {look_up(report, path)!r} is not a {kind.__name__}"
            return
    d = report["coordinates"]
    if report["rounds"] != options.rounds:
        yield f"rounds: {report['rounds']}, asked for {options.rounds}"
    if d < options.coordinates_min:
        yield f"coordinates: {d}, at least {options.coordinates_min} expected"
    fall = report["loss"]["held_out_first"] - report["loss"]["held_out_last"]
    if fall < options.fall_min:
        yield f"held-out loss fell by {fall:.3f}, at least {options.fall_min} expected"
    for way in ("up", "down"):
        ratio = report["wire"][f"{way}_bytes_per_round"] / (d / 8)
        if not 1 <= ratio <= WIRE_OVERHEAD_MAX:
            yield f"wire, {way}: {ratio:.4f} x d/8 bytes, between 1 and {WIRE_OVERHEAD_MAX} expected"
    if report["wire"]["fp32_bytes_per_round"] != 4 * d:
        yield "wire.fp32_bytes_per_round is not 4 bytes a coordinate"
    if not report["replicas_equal"] or len(set(report["digests"].values())) != 1:
        yield f"replicas differ: {report['digests']}"
    if "server" not in report["digests"] or len(report["digests"]) < 3:
        yield f"digests: the server and at least two workers expected, got {sorted(report['digests'])}"
    kinds = {event.get("kind"): event for event in report["events"]}
    for kind in ("joined", "worker_killed"):
        if kind not in kinds:
            yield f"events: no {kind}"
            continue
        for key in ("round", "seconds_to_next_commit"):
            if not isinstance(kinds[kind].get(key), (int, float)):
                yield f"events: {kind} has no {key}"
    late = [e["worker"] for e in report["events"] if e.get("kind") == "joined" and e["round"] > 0]
    if not late or late[0] not in report["digests"]:
        yield "no worker joined during the run and answered with a digest at its end"
    killed = kinds.get("worker_killed", {})
    if killed.get("worker") in report["digests"]:
        yield f"the killed worker {killed['worker']} has a digest"
    if isinstance(killed.get("seconds_to_next_commit"), (int, float)):
        normal = killed["normal_round_seconds"]
        if killed["seconds_to_next_commit"] > DEATH_SECONDS_MAX + normal:
            yield TooLong(f"the kill cost {killed['seconds_to_next_commit']:.2f} s, at most {DEATH_SECONDS_MAX + normal:.2f} s "
                          "expected")
    if report["seconds"] > options.seconds_max:
        yield TooLong(f"seconds: {report['seconds']:.0f}, at most {options.seconds_max:.0f} expected")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("report")
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--coordinates-min", type=int, default=800_000)
    parser.add_argument("--fall-min", type=float, default=0.5, help="least fall of the held-out loss, nats per byte")
    parser.add_argument("--seconds-max", type=float, default=300)
    options = parser.parse_args()
    with open(options.report) as file:
        report = json.load(file)
    found = list(findings(report, options))
    for line in found:
        print(f"{options.report}: {line}")
    if not found:
        print(f"{options.report}: ok")
    if not found:
        return 0
    return 3 if all(isinstance(line, TooLong) for line in found) else 1


if __name__ == "__main__":
    sys.exit(main())
