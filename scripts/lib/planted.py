"""scripts/plant: does the simulation find bugs that were planted? docs/testing.md, "Planted bugs".

Each row of the page's table is one bug: a line of a source and what becomes of it. It is compiled with the command of an existing
build and linked into run_sim_test, which must fail at the row's seed. The build folder is only read (mutate.py).
"""

import argparse
import contextlib
import pathlib
import re
import sys
import tempfile
from typing import NamedTuple

import mutate

PROGRAM = "run_sim_test"
SEEDS_MAX = 20_000
SECONDS_MAX = 1200
HEADING = "Planted bugs"


class Planted(NamedTuple):
    name: str
    file: str
    before: str
    after: str
    seed: int


def rows(page: str) -> list[Planted]:
    """The table in docs/testing.md."""
    section = re.search(rf"^## {HEADING}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    found = []
    for row in re.findall(r"^\| (`[a-z0-9-]+` \| .*) \|$", section.group(1) if section else "", re.MULTILINE):
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)]
        if len(cells) != 5:
            raise mutate.CannotRun(f"docs/testing.md: a row of '{HEADING}' needs five cells: | {row} |")
        found.append(Planted(*(cell.strip("`") for cell in cells[:4]), int(cells[4].replace(",", ""))))
    if not found:
        raise mutate.CannotRun(f"docs/testing.md has no table under '{HEADING}'")
    return found


def first_failure(root: pathlib.Path, folder: pathlib.Path, bug: Planted, seeds: range) -> str | None:
    """What the first seed that notices says; None: none does."""
    source = (root / bug.file).read_text()
    if source.count(bug.before) != 1:
        raise mutate.CannotRun(f"{bug.name}: {bug.file} has {source.count(bug.before)} times: {bug.before}")
    test = f"{PROGRAM} --gtest_filter=*EverySeed* --first={seeds.start} --seeds={seeds.stop}"
    build = mutate.Build(root, folder, bug.file, (test,))
    with contextlib.ExitStack() as stack:
        private = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="signvote-plant.")))
        made, output = build.compile(source.replace(bug.before, bug.after), private / "made")
        programs = build.link(made) if made is not None else None
        if programs is None:
            raise mutate.CannotRun(f"{bug.name} does not compile:\n{output[-2000:]}")
        verdict = mutate.judge(build, programs, 0, (SECONDS_MAX,))
    if verdict.word == "survived":
        return None
    found = re.search(r"^(after \d+ commits: .*)\n\s*again with --seed=(\d+)", verdict.output, re.MULTILINE)
    return f"seed {found.group(2)}: {found.group(1)}" if found else f"{verdict.word}: {verdict.output.strip()[-300:]}"


def main(arguments: list[str], root: pathlib.Path) -> int:
    parser = argparse.ArgumentParser(prog="scripts/plant", description="Plants the bugs of a table one by one and plays the seed of "
                                     "the simulation that must find it; exit status 1 when one does not. docs/testing.md, Planted bugs.")
    parser.add_argument("name", metavar="NAME", nargs="*", help="of the table; without any, all of them")
    parser.add_argument("--search", action="store_true", help=f"plays seeds from 0 on, {SEEDS_MAX} at most, and says which one finds it")
    parser.add_argument("--build", type=pathlib.Path, default=root / "build/dev", help="an up-to-date build folder, which is only "
                        "read (default build/dev)")
    options = parser.parse_args(arguments)
    try:
        bugs = rows((root / "docs/testing.md").read_text())
        unknown = set(options.name) - {bug.name for bug in bugs}
        if unknown:
            raise mutate.CannotRun(f"no bug is called {', '.join(sorted(unknown))}; there are {', '.join(bug.name for bug in bugs)}")
        missed = 0
        for bug in bugs:
            if options.name and bug.name not in options.name:
                continue
            seeds = range(SEEDS_MAX) if options.search else range(bug.seed, bug.seed + 1)
            said = first_failure(root, options.build.resolve(), bug, seeds)
            missed += said is None
            print(f"{bug.name}: {said or 'NOT FOUND'}", flush=True)
    except mutate.CannotRun as error:
        print(f"scripts/plant: {error}", file=sys.stderr)
        return mutate.CANNOT_RUN
    print(f"{missed} not found" if missed else "all were found")
    return mutate.FAILS if missed else mutate.PASSES


def program(arguments: list[str], root: pathlib.Path) -> int:
    """main() as a program: as mutate.py's."""
    return mutate.as_program(lambda: main(arguments, root), "scripts/plant")
