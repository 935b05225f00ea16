#!/usr/bin/env python3
"""What scripts/test reads from the files that ctest and checks leave behind.

  count JUNIT        prints "PASSED FAILED NAME...", the names being those of failed tests
  skipped JUNIT      prints a line for each test that said that it cannot run on this machine, with the reason that it gave
  failures FILE...   prints why: for each failed test of a JUnit file (.xml), and for each other log, the lines that tell
  dearest FILE...    prints the ten items that took longest, of JUnit files (.xml) their tests, and of logs of ninja (.ninja_log)
                     what made an output; several outputs of one step count once

A test shows at most 30 lines: gtest failures, reports of sanitizers, tracebacks of Python, errors of compilers, failed
checks; where none of these is found (a time-out, a crash), the end of its output.
"""

import pathlib
import re
import sys
import xml.etree.ElementTree as tree

LINES_PER_TEST = 30
TESTS_MAX = 20
CHARACTERS_MAX = 240
TAIL_LINES = 12
DEAREST = 10

GTEST_BRACKET = re.compile(r"^\[[ =\-A-Z]{10}\]")
SANITIZER_HEAD = re.compile(r"^(?:==\d+==\s*ERROR: \w*Sanitizer|WARNING: ThreadSanitizer|.*: runtime error: )")
CTEST_REASON = re.compile(r"^\s*\d+ - (\S+) \((.+)\)$", re.MULTILINE)


def until(stop, lines_max):
    """How many lines a block has: up to a line that matches `stop`, at most `lines_max`."""
    stop = re.compile(stop)

    def length(lines):
        for number, line in enumerate(lines[1:lines_max], 1):
            if stop.search(line):
                return number
        return min(len(lines), lines_max)
    return length


def traceback_length(lines):
    """A traceback: its indented frames, then the exception with what it says."""
    end = 1
    while end < len(lines) and (lines[end].startswith(" ") or not lines[end].strip()):
        end += 1
    return end + until(r"^(?:$|-{10}|={10}|Ran \d)", 12)(lines[end:]) if end < len(lines) else end


# (rank, head, length of the block that begins with it). Where room is short the lower rank is shown first: a sanitizer ends the
# program, and programs that a test starts on purpose with a mistake write errors too.
BLOCKS = [
    (0, SANITIZER_HEAD, until(r"^={10}", 16)),
    (1, re.compile(r"^SUMMARY: \w+Sanitizer"), lambda lines: 1),
    (1, re.compile(r"^\S+:\d+: Failure"), until(GTEST_BRACKET.pattern + r"|^\S+:\d+: Failure|^$", 10)),
    (1, re.compile(r"^\[  FAILED  \] .*\(\d+ ms\)"), lambda lines: 1),
    (1, re.compile(r"^(?:FAIL|ERROR): \S"), lambda lines: 1),
    (1, re.compile(r"^Traceback \(most recent call last\)"), traceback_length),
    (2, re.compile(r"(?:\berror: |^FAILED: |^CMake Error|check failed: |^terminate called|: Assertion .* failed)"),
     until(r"^\[\d+/\d+\]|^$", 6)),
]


def blocks(lines):
    """[(rank, lines)] in the order of the output."""
    found, number = [], 0
    while number < len(lines):
        for rank, head, length in BLOCKS:
            if head.search(lines[number]):
                size = length(lines[number:])
                for other in range(1, size):  # a block of equal or lower rank begins
                    if any(r <= rank and h.search(lines[number + other]) for r, h, _ in BLOCKS):
                        size = other
                        break
                found.append((rank, lines[number:number + size]))
                number += size
                break
        else:
            number += 1
    return found


def shortened(block, lines_max):
    """Its head and its end: the ends of tracebacks say what went wrong, the heads of all others where."""
    if len(block) <= lines_max:
        return block
    head = 2 if block[0].startswith("Traceback") else lines_max - 2
    return block[:head] + [f"  … {len(block) - lines_max + 1} lines"] + block[len(block) - (lines_max - head - 1):]


def excerpt(output, end_too=False):
    """The lines of a failed test's output that tell why, at most LINES_PER_TEST. `end_too`: where nothing but errors of
    programs was found, which the test may have wanted, the end of the output as well."""
    lines = [line.replace("[NON-XML-CHAR-0x1B]", "\x1b") for line in output.splitlines()]
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip()[:CHARACTERS_MAX] for line in lines]
    found = blocks(lines)
    if not found:
        return [line for line in lines if line][-TAIL_LINES:]
    end = [line for line in lines if line][-TAIL_LINES:] if end_too and all(rank == 2 for rank, _ in found) else []
    room = LINES_PER_TEST - 2 - len(end)
    total = sum(len(block) for _, block in found)
    share = room if total <= room else max(6, room // len(found))
    # A sanitizer's report keeps its length: its frames are what one needs.
    found = [(rank, shortened(block, share) if rank else block) for rank, block in found]
    chosen = set()
    for number in sorted(range(len(found)), key=lambda n: found[n][0]):
        if len(found[number][1]) <= room:
            chosen.add(number)
            room -= len(found[number][1])
    shown = [line for number in sorted(chosen) for line in found[number][1]]
    if len(chosen) < len(found):
        shown.append(f"… and {len(found) - len(chosen)} further places")
    return shown + (["… and the end:", *end] if end else [])


def testcases(junit):
    try:
        return tree.parse(junit).getroot().findall("testcase")
    except (OSError, tree.ParseError):
        return []


def skipped(case):
    """By its own word. A test without its program did not run either, and has failed."""
    return any(s.get("message", "").startswith("SKIP_RETURN_CODE") for s in case.findall("skipped"))


def failed(case):
    return case.get("status") != "run" and not skipped(case)


def reports(path):
    """(name, why in a word, lines) of each failure that a file tells of."""
    path = pathlib.Path(path)
    if path.suffix != ".xml":
        yield path.stem.replace("__", ": "), "", excerpt(path.read_text(errors="replace"))
        return
    log = path.with_suffix(".log")
    reasons = dict(CTEST_REASON.findall(log.read_text(errors="replace"))) if log.exists() else {}
    found = False
    for case in filter(failed, testcases(path)):
        found = True
        name = case.get("name")
        yield f"{path.stem}: {name}", reasons.get(name, ""), excerpt(case.findtext("system-out") or "", end_too=True)
    if not found and log.exists():  # ctest itself failed
        yield path.stem, "", excerpt(log.read_text(errors="replace"))


def steps(path):
    """(seconds, name) of the last time that each output of a ninja build was made."""
    took = {}
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            continue
        begin, end, _, output, command = line.split("\t")
        took[output] = (int(end) - int(begin), command)
    once = {}
    for output, (milliseconds, command) in sorted(took.items()):
        once.setdefault(command, (milliseconds / 1000, f"{path.parent.name}: {output}"))
    return list(once.values())


def dearest(paths):
    items = []
    for path in map(pathlib.Path, paths):
        if path.name == ".ninja_log":
            items += steps(path)
        else:
            items += [(float(case.get("time") or 0), f"{path.stem}: {case.get('name')}") for case in testcases(path)]
    return sorted(items, reverse=True)[:DEAREST]


def main():
    command, *paths = sys.argv[1:]
    if command == "dearest":
        for seconds, name in dearest(paths):
            print(f"{seconds:6.0f} s  {name}")
        return
    if command == "count":
        cases = testcases(paths[0])
        bad = [case.get("name") for case in cases if failed(case)]
        print(len(cases) - len(bad) - sum(map(skipped, cases)), len(bad), *bad)
        return
    if command == "skipped":
        for case in filter(skipped, testcases(paths[0])):
            reason = re.search(r"skipped ['\"](.*)['\"]", case.findtext("system-out") or "")
            print(f"{case.get('name')}: {reason.group(1) if reason else 'no reason given'}")
        return
    every = [report for path in paths for report in reports(path)]
    for name, reason, lines in every[:TESTS_MAX]:
        print(f"---- {name}" + (f" ({reason})" if reason else ""))
        print("\n".join("    " + line for line in lines or ["no output"]))
    if len(every) > TESTS_MAX:
        print(f"---- and {len(every) - TESTS_MAX} more")


if __name__ == "__main__":
    main()
