"""scripts/mutate: would the tests notice if this file were wrong? docs/testing.md, "Mutation".

Draws mutants of one C++ source (mutators.py), compiles them with the command of an existing build, links them into the tests that
TESTS names for the file, and runs these. A function that has mutants is compiled once with all of them, and SIGNVOTE_MUTANT in the
environment says which one it is; what lies outside of functions, or takes away the end of one, is compiled alone. The build folder is
only read: sources, objects, libraries and programs lie in a temporary folder.
"""

import argparse
import concurrent.futures
import contextlib
import hashlib
import json
import os
import pathlib
import random
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from typing import NamedTuple

import mutators

KILLED_MIN = 0.9  # of the sampled mutants that are not listed as equivalent
EQUIVALENT_MAX = 0.1  # of the sample
COMPILE_SECONDS_MAX = 300
LIMIT_SECONDS_MIN = 10  # a machine that does other things beside is slow, and no hang
LIMIT_FACTOR = 6  # times what the unchanged program takes
MEMORY_BYTES_MAX = 8 << 30  # of a mutant that allocates without end
SPARE = 1.3  # so many are compiled together for each that is wanted: some do not compile, or change no code
WHICH = "SIGNVOTE_MUTANT"
# The loader could not load it, or the kernel had no memory any more: that says nothing about the mutant.
CANNOT_SAY = (127, -signal.SIGKILL)
STARTS_MAX = 3
PASSES, FAILS, CANNOT_RUN = 0, 1, 2

# The tests that hold a file to what its header promises, by the longest prefix of its path. Quick ones first: the first that
# fails ends the mutant.
SIMULATION = "run_sim_test --seeds=300"
TESTS = {
    "common/": ("common_test",),
    "server/commit/": ("commit_test", SIMULATION),
    "server/journal/": ("journal_test", "run_journal_test", SIMULATION),
    "server/replica/": ("replica_test", SIMULATION),
    "server/round/": ("round_test", SIMULATION),
    "server/run/": ("run_parts_test", "run_test", "run_thread_test", SIMULATION),
    "server/stepsize/": ("stepsize_test", "alias_paper_test", SIMULATION),
    "server/tally/": ("tally_test",),
    "server/vote/": ("vote_test", SIMULATION),
    "worker/direction/": ("direction_test",),
    "worker/session/": ("follower_test", SIMULATION, "session_test"),
    "worker/vote/": ("voter_test",),
}


class CannotRun(Exception):
    """Nothing can be said about the tests; the text says what to do."""


class Stopped(KeyboardInterrupt):
    """A signal came, its number is the argument; or another part of this program has failed. What runs is ended."""


class Children:
    """The processes that run now, so that none outlives this one."""

    def __init__(self):
        self._lock = threading.Lock()
        # A signal interrupts the main thread alone: what starts in this one is never lost half-way.
        self._starter = concurrent.futures.ThreadPoolExecutor(1)
        self._running: set[subprocess.Popen] = set()
        self._stopped = False

    def start(self, command: list[str], **options) -> subprocess.Popen:
        return self._starter.submit(self._start, command, options).result()

    def _start(self, command: list[str], options: dict) -> subprocess.Popen:
        with self._lock:
            if self._stopped:
                raise Stopped
            process = subprocess.Popen(command, start_new_session=True, **options)
            self._running.add(process)
            return process

    def end(self, process: subprocess.Popen):
        """With whatever it has started."""
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        with self._lock:
            self._running.discard(process)

    def stop(self):
        with self._lock:
            self._stopped = True
            running = list(self._running)
        for process in running:
            self.end(process)


class Equivalent(NamedTuple):
    file: str
    before: str
    after: str
    why: str


def equivalents(page: str) -> list[Equivalent]:
    """The rows of the table in docs/testing.md, "Equivalent mutants"."""
    section = re.search(r"^## Equivalent mutants\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    found = []
    for row in re.findall(r"^\| (`.*) \|$", section.group(1) if section else "", re.MULTILINE):
        cells = [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", row)]
        if len(cells) != 4 or not all(cells):
            raise CannotRun(f"docs/testing.md: a row of 'Equivalent mutants' needs four cells: | {row} |")
        found.append(Equivalent(*(cell.strip("`").strip() for cell in cells[:3]), cells[3]))
    return found


def tests_of(file: str) -> tuple[str, ...]:
    prefix = max((p for p in TESTS if file.startswith(p)), key=len, default=None)
    if prefix is None:
        raise CannotRun(f"no tests are known for {file}: name them in TESTS of scripts/lib/mutate.py, or with --test")
    return TESTS[prefix]


children = Children()


def run(command: list[str], cwd: pathlib.Path, seconds: float, env: dict[str, str] | None = None) -> tuple[int | None, str]:
    """(exit status, output); the status is None when the time was up. Whatever the command started is ended with it."""
    def alone():
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES_MAX, MEMORY_BYTES_MAX))

    with tempfile.TemporaryFile() as output:
        process = children.start(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                 preexec_fn=alone)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            children.end(process)
        output.seek(0)
        return status, output.read().decode(errors="replace")


class Build:
    """What an up-to-date build folder says about one source and the programs that test it."""

    def __init__(self, root: pathlib.Path, folder: pathlib.Path, file: str, tests: tuple[str, ...]):
        self.folder, self.source = folder, root / file
        programs = [shlex.split(test)[0] for test in tests]
        if not (folder / "build.ninja").exists():
            raise CannotRun(f"{folder} is no build folder: run cmake --preset dev && ninja -C build/dev {' '.join(programs)}")
        status, output = run(["ninja", "-n", *programs], folder, COMPILE_SECONDS_MAX)
        if status != 0 or "no work to do" not in output:
            raise CannotRun(f"{folder} is not up to date: run ninja -C {folder} {' '.join(programs)}\n{output[-500:]}")
        database = json.loads((folder / "compile_commands.json").read_text())
        entry = next((e for e in database if pathlib.Path(e["directory"], e["file"]) == self.source), None)
        if entry is None:
            raise CannotRun(f"{folder} does not compile {file}: a source (.cc) of this build is needed")
        command = shlex.split(entry["command"])
        self.object = command[command.index("-o") + 1]
        self._compile = self._bare(command)
        self._includes: list[str] = []
        # A CMake target's objects lie in PLACE/CMakeFiles/TARGET.dir, its archive is PLACE/libTARGET.a.
        place, _, rest = self.object.partition("CMakeFiles/")
        self.archive = f"{place}lib{rest.split('.dir/')[0]}.a"
        self.tests = []  # (link command, program, arguments)
        for test in tests:
            program, *arguments = shlex.split(test)
            status, output = run(["ninja", "-t", "commands", program], folder, COMPILE_SECONDS_MAX)
            link = shlex.split(output.splitlines()[-1].removeprefix(": && ").removesuffix(" && :"))
            if self.archive not in link and self.object not in link:
                raise CannotRun(f"{program} does not link {file}, so it cannot test it")
            self.tests.append((link, program, arguments))

    @staticmethod
    def _bare(command: list[str]) -> list[str]:
        """The compiler call without launcher, debug info, input, output and list of dependencies."""
        if pathlib.Path(command[0]).name == "ccache":
            command = command[1:]
        bare, skip = [], False
        for word in command:
            if skip:
                skip = False
            elif word in ("-o", "-c", "-MF", "-MT", "-MQ"):
                skip = True
            elif word not in ("-MD", "-MMD") and not re.fullmatch(r"-g\w*", word):
                bare.append(word)
        return bare

    def prepare(self, text: str, place: pathlib.Path):
        """Has the includes that `text` begins with parsed once, for every compile() after."""
        place.mkdir(parents=True)
        header = place / "includes.h"
        header.write_text("".join(line + "\n" for line in re.match(r"(?:#include [^\n]*\n|\n)*", text).group().splitlines() if line))
        status, _ = run([*self._compile, "-iquote", str(self.source.parent), "-x", "c++-header", str(header), "-o", f"{header}.gch"],
                        self.folder, COMPILE_SECONDS_MAX)
        self._includes = ["-include", str(header)] if status == 0 else []

    def compile(self, text: str, place: pathlib.Path, flags: tuple[str, ...] = ()) -> tuple[pathlib.Path | None, str]:
        """The object of `text` in the source's place, None when it does not compile, and what the compiler said. Equal code gives
        equal bytes: the name of the file in __FILE__ and in the symbols is the source's own, and there is no debug info."""
        place.mkdir(parents=True)
        source, made = place / self.source.name, place / pathlib.Path(self.object).name
        source.write_text(f'#line 1 "{self.source}"\n{text}')
        includes = [] if flags else self._includes  # parsed with other flags they are of no use
        status, output = run([*self._compile, *flags, *includes, "-frandom-seed=0", "-iquote", str(self.source.parent), "-c",
                              str(source), "-o", str(made)], self.folder, COMPILE_SECONDS_MAX)
        return (made if status == 0 else None), output

    def link(self, made: pathlib.Path) -> list[pathlib.Path] | None:
        """The tests' programs with this object in place of the source's."""
        library = made.parent / pathlib.Path(self.archive).name
        if any(self.archive in link for link, _, _ in self.tests):
            shutil.copy(self.folder / self.archive, library)
            if run(["ar", "r", str(library), str(made)], made.parent, COMPILE_SECONDS_MAX)[0] != 0:
                return None
        swapped = {self.object: str(made), self.archive: str(library)}
        programs = []
        for link, program, _ in self.tests:
            programs.append(made.parent / program)
            command = [swapped.get(word, word) for word in link]
            command[command.index("-o") + 1] = str(programs[-1])
            if run(command, self.folder, COMPILE_SECONDS_MAX)[0] != 0:
                return None
        return programs


class Verdict(NamedTuple):
    word: str  # "killed", "survived", "hangs" (killed by its time limit)
    seconds: tuple[float, ...] = ()
    output: str = ""


class Candidate(NamedTuple):
    """A mutant that compiles: its programs, and its number in them (0: they are its own)."""
    mutant: mutators.Mutant
    programs: list[pathlib.Path]
    number: int


def judge(build: Build, programs: list[pathlib.Path], number: int, limits: tuple[float, ...]) -> Verdict:
    """Runs the tests' programs as this mutant; the first that fails decides."""
    seconds = []
    with tempfile.TemporaryDirectory(prefix="run.", dir=programs[0].parent) as here:
        environment = {**os.environ, "TMPDIR": here, "GTEST_FAIL_FAST": "1", "GTEST_BRIEF": "1", WHICH: str(number)}
        for binary, (_, _, arguments), limit in zip(programs, build.tests, limits):
            begin = time.monotonic()
            for _ in range(STARTS_MAX):
                status, output = run([str(binary), *arguments], pathlib.Path(here), limit, environment)
                if status not in CANNOT_SAY:
                    break
            else:
                raise CannotRun(f"{binary.name} does not run here, with exit status {status}: is there memory?\n{output[-500:]}")
            seconds.append(time.monotonic() - begin)
            if status != 0:
                return Verdict("hangs" if status is None else "killed", tuple(seconds), output)
    return Verdict("survived", tuple(seconds))


class Workshop:
    """Makes programs of mutants: together where it can be, else alone."""

    def __init__(self, build: Build, source: str, private: pathlib.Path, pool: concurrent.futures.Executor):
        self._build, self._source, self._private, self._pool = build, source, private, pool
        self._places = 0
        self._lock = threading.Lock()
        self._text = mutators.Source(source)

    def place(self) -> pathlib.Path:
        with self._lock:
            self._places += 1
            return self._private / str(self._places)

    def object_of(self, mutant: mutators.Mutant | None) -> tuple[pathlib.Path | None, bytes]:
        """Compiled alone, as the build would, and a name for its code; of None the source itself."""
        made, _ = self._build.compile(mutant.apply(self._source) if mutant else self._source, self.place())
        return made, hashlib.sha256(made.read_bytes()).digest() if made else b""

    def programs(self, mutants: list[mutators.Mutant]) -> list[Candidate | None]:
        """In the same order; None: it does not compile."""
        together = dict(enumerate((m for m in mutants if mutators.switchable(self._text, m)), 1))
        found: dict[mutators.Mutant, Candidate | None] = {}
        while together:
            made, output = self._build.compile(mutators.switched(self._text, together, WHICH, str(self._build.source)), self.place(),
                                               ("-O0",))
            if made is not None:
                programs = self._build.link(made)
                if programs is not None:
                    found |= {mutant: Candidate(mutant, programs, number) for number, mutant in together.items()}
                break
            wrong, suspects = mutators.blamed(output)
            found |= {together[number]: None for number in wrong}
            suspects |= wrong
            together = {number: mutant for number, mutant in together.items() if number not in suspects} if suspects else {}
        alone = [mutant for mutant in mutants if mutant not in found]
        found.update(zip(alone, self._pool.map(self._alone, alone)))
        return [found[mutant] for mutant in mutants]

    def _alone(self, mutant: mutators.Mutant) -> Candidate | None:
        made, _ = self.object_of(mutant)
        programs = self._build.link(made) if made is not None else None
        return Candidate(mutant, programs, 0) if programs is not None else None


class Report:
    """Counts, and the lines that a person reads."""

    def __init__(self, file: str, known: list[Equivalent]):
        self.file, self.known = file, {(e.before, e.after) for e in known if e.file == file}
        self.killed = self.hung = self.survived = self.equivalent = 0
        self.uncompiled = self.unchanged = self.doubles = 0

    @property
    def judged(self) -> int:
        return self.killed + self.survived + self.equivalent

    def add(self, mutant: mutators.Mutant, source: str, verdict: Verdict):
        if verdict.word in ("killed", "hangs"):
            self.killed += 1
            self.hung += verdict.word == "hangs"
            return
        before, after = mutant.change(source)
        if (before, after) in self.known:
            self.equivalent += 1
            return
        self.survived += 1
        print(f"survived  {self.file}:{mutant.line(source)}: {mutant.mutator}\n  - {before}\n  + {after}", flush=True)

    def end(self) -> int:
        share = self.killed / (self.killed + self.survived) if self.killed + self.survived else 1.0
        print(f"{self.file}: {self.judged} mutants ({self.uncompiled} more did not compile, {self.unchanged} changed no code, "
              f"{self.doubles} were the code of another): {self.killed} killed ({self.hung} by the time limit), "
              f"{self.survived} survived, {self.equivalent} equivalent (docs/testing.md): {100 * share:.1f} % killed")
        if self.equivalent > EQUIVALENT_MAX * self.judged:
            print(f"more than {100 * EQUIVALENT_MAX:.0f} % of the sample are called equivalent: write tests instead")
            return FAILS
        if share < KILLED_MIN:
            print(f"less than {100 * KILLED_MIN:.0f} %: the survivors above are what no test notices")
            return FAILS
        return PASSES


def mutate(root: pathlib.Path, folder: pathlib.Path, file: str, tests: tuple[str, ...], sample: int, seed: int, jobs: int) -> int:
    source = (root / file).read_text()
    page = root / "docs/testing.md"
    report = Report(file, equivalents(page.read_text()) if page.exists() else [])
    build = Build(root, folder, file, tests)
    waiting = mutators.mutants(source)
    print(f"{file}: {len(waiting)} mutants can be made; seed {seed} draws {sample}; tests: {', '.join(tests)}", flush=True)
    random.Random(seed).shuffle(waiting)
    with contextlib.ExitStack() as stack:
        private = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="signvote-mutate.")))
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(jobs))
        # Left first: whatever ends this ends what runs, and the pool need not wait for it.
        stack.push(lambda kind, *_: children.stop() if kind is not None else None)
        build.prepare(source, private / "includes")
        workshop = Workshop(build, source, private, pool)
        original, unchanged = workshop.object_of(None)
        programs = build.link(original) if original is not None else None
        if programs is None:
            raise CannotRun(f"{file} itself does not compile")
        verdict = judge(build, programs, 0, (COMPILE_SECONDS_MAX,) * len(tests))
        if verdict.word != "survived":
            raise CannotRun(f"the unchanged {file} does not pass its tests:\n{verdict.output[-3000:]}")
        limits = tuple(max(LIMIT_SECONDS_MIN, LIMIT_FACTOR * seconds) for seconds in verdict.seconds)
        seen = {unchanged}

        def judged(candidate: Candidate) -> tuple[Verdict, bytes]:
            """With the code of one that survives, which may be that of the source."""
            found = judge(build, candidate.programs, candidate.number, limits)
            if candidate.number == 0:
                shutil.rmtree(candidate.programs[0].parent)
            return found, workshop.object_of(candidate.mutant)[1] if found.word == "survived" else b""

        # Always as many as are still wanted: which mutants are judged depends on the seed alone, not on who was faster.
        ready: list[Candidate] = []
        while (waiting or ready) and report.judged < sample:
            wanted = sample - report.judged
            if len(ready) < wanted and waiting:
                wave, waiting = waiting[:round(SPARE * wanted) + 1], waiting[round(SPARE * wanted) + 1:]
                made = workshop.programs(wave)
                report.uncompiled += made.count(None)
                ready += [candidate for candidate in made if candidate is not None]
                continue
            now, ready = ready[:wanted], ready[wanted:]
            for candidate, (verdict, code) in zip(now, pool.map(judged, now)):
                if code in seen:
                    report.unchanged += code == unchanged
                    report.doubles += code != unchanged
                    continue
                if code:
                    seen.add(code)
                report.add(candidate.mutant, source, verdict)
    return report.end()


def main(arguments: list[str], root: pathlib.Path) -> int:
    parser = argparse.ArgumentParser(prog="scripts/mutate", description="Compiles small wrong changes of one C++ source and counts "
                                     "how many its tests notice; exit status 1 below 90 %%. docs/testing.md, Mutation.")
    parser.add_argument("file", metavar="FILE", help="a source (.cc) of this repository")
    parser.add_argument("--sample", type=int, default=60, help="how many mutants that compile and differ (default 60)")
    parser.add_argument("--seed", type=int, default=1, help="which ones are drawn (default 1)")
    parser.add_argument("--build", type=pathlib.Path, default=root / "build/dev", help="an up-to-date build folder, which is only "
                        "read (default build/dev)")
    parser.add_argument("--jobs", type=int, default=2, help="mutants at a time (default 2)")
    parser.add_argument("--test", action="append", metavar="'PROGRAM ARGS'", help="the tests, quick ones first, instead of those "
                        "known for the file (repeatable)")
    options = parser.parse_args(arguments)
    if options.sample < 1 or options.jobs < 1:
        parser.error("--sample and --jobs are positive numbers")
    try:
        path = pathlib.Path(options.file)
        path = path.resolve() if path.exists() else root / path
        if not path.is_file() or not path.is_relative_to(root):
            raise CannotRun(f"{options.file}: no file of this repository")
        file = path.relative_to(root).as_posix()
        return mutate(root, options.build.resolve(), file, tuple(options.test or tests_of(file)), options.sample, options.seed,
                      options.jobs)
    except CannotRun as error:
        print(f"scripts/mutate: {error}", file=sys.stderr)
        return CANNOT_RUN


def as_program(work, name: str) -> int:
    """`work` as a program: SIGTERM and Ctrl-C end what runs, and leave nothing behind."""
    def on_signal(number, _):
        signal.signal(number, signal.SIG_IGN)  # once: cleaning up is not to be interrupted
        raise Stopped(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    try:
        return work()
    except Stopped as stopped:
        children.stop()
        print(f"{name}: stopped", file=sys.stderr)
        return 128 + stopped.args[0]


def program(arguments: list[str], root: pathlib.Path) -> int:
    return as_program(lambda: main(arguments, root), "scripts/mutate")
