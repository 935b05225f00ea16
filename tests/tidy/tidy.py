#!/usr/bin/env python3
"""Checks the rules of this repository that no compiler checks. Usage: tidy.py [ROOT]

Each finding is one line, `path:line: [rule] what is wrong and what to do instead`; the exit status is 1 if there is any.
A line may say `// tidy: allow(rule) reason` (in scripts `# tidy: allow(rule) reason`) to be left alone; the reason is
not optional. The rules are the functions below; tidy_test.py plants a violation of each.
"""

import ast
import builtins
import os
import pathlib
import re
import symtable
import sys
from typing import Iterator, NamedTuple

import cpp_scopes

SKIPPED_FOLDERS = {".git", "build", "out", "__pycache__"}
CPP_SUFFIXES = (".h", ".cc", ".cu", ".cuh", ".inc")
TEXT_SUFFIXES = CPP_SUFFIXES + (".md", ".py", ".txt", ".cmake", ".json", ".proto", ".yml", ".yaml", ".sh", ".toml")
LINES_MAX = 800
MAIN_LINES_MAX = 60  # of a main.cc: programs are libraries, which tests can link
PROSE_COLUMNS = 120
MEMBERS_MAX = 25  # data members of a type: beyond that it has more than one job

# A part may include itself and the parts listed: docs/architecture.md, "Folders". The longest matching prefix decides.
_PROTO = ["common", "proto/signvote", "proto/wire"]
_TALLY = _PROTO + ["server/tally", "server/stepsize"]
_ROUND = _TALLY + ["server/round"]
_COMMIT = _ROUND + ["server/vote", "server/commit"]
_REPLICA = _COMMIT + ["server/replica"]
_JOURNAL = _REPLICA + ["server/journal"]
_RUN = _JOURNAL + ["server/run"]
_SERVER = _RUN + ["server/http", "server/rpc"]
_DIRECTION = _PROTO + ["worker/codec"]
_SESSION = _DIRECTION + ["worker/direction"]
_VOTE = _SESSION + ["worker/session"]
_MODELS = _VOTE + ["worker/vote"]
_TRAIN = _MODELS + ["worker/checkpoint", "worker/models", "worker/data"]
_WORKER = _TRAIN + ["worker/train", "worker/selftest"]
MAY_INCLUDE = {
    "common": [],
    "proto/signvote": ["common"],
    "proto/wire": ["common", "proto/signvote"],
    "server/tally": _PROTO,
    "server/stepsize": _PROTO,
    "server/round": _TALLY,
    "server/vote": _ROUND,
    "server/commit": _TALLY,
    "server/replica": _COMMIT,
    "server/journal": _REPLICA,
    "server/run": _JOURNAL,
    "server/http": _RUN,
    "server/rpc": _RUN,
    "server": _SERVER,
    "worker/codec": _PROTO,
    "worker/direction": _DIRECTION,
    "worker/selftest": _SESSION,
    "worker/session": _SESSION,
    "worker/vote": _VOTE,
    "worker/checkpoint": _MODELS,
    "worker/models": _MODELS,
    "worker/data": _MODELS,
    "worker/train": _TRAIN,
    "worker": _WORKER,
    "ctl": _PROTO + ["server/journal"],
    "lab": _SERVER + _WORKER + ["server", "worker", "ctl"],
    "tests": _SERVER + _WORKER + ["server", "worker", "ctl", "lab"],
}
PRODUCT = ("proto", "server", "worker", "ctl", "lab")  # what must go through common/ for time, files, chance and locks
TORCH_FOLDERS = ("worker/models", "worker/data", "worker/train")

# (rule, pattern, replacement, folders in which it holds)
_EVERYWHERE = PRODUCT + ("tests",)
BANNED = [
    ("clock", r"\b(?:steady|system|high_resolution)_clock::now\b|\bclock_gettime\s*\(|\bgettimeofday\s*\(",
     "ask a signvote::Clock (common/clock.h)", PRODUCT),
    ("sleep", r"\bsleep_(?:for|until)\b|\b(?:u|nano)sleep\s*\(",
     "use Clock::SleepFor (common/clock.h) or CondVar::WaitFor (common/mutex.h)", PRODUCT),
    ("file", r"(?<![\w:])::open\s*\(|\bfopen\s*\(|\bstd::[io]?fstream\b",
     "use signvote::FileSystem (common/file_system.h)", PRODUCT),
    ("random", r"(?<![\w:.>])(?:std::)?s?rand\s*\(|\bstd::random_device\b|\bstd::mt19937(?:_64)?\b",
     "use signvote::Rng (common/rng.h), or FileSystem::RandomBytes for keys and ids", _EVERYWHERE),
    ("mutex", r"\babsl::Mutex\b|\babsl::CondVar\b|\bstd::(?:recursive_|shared_|timed_)?mutex\b|"
              r"\bstd::condition_variable(?:_any)?\b",
     "use signvote::Mutex and CondVar (common/mutex.h)", _EVERYWHERE),
    ("throw", r"\bthrow\b(?!\s*\()", "return an absl::Status", PRODUCT + ("common",)),
]

# Libraries that decide or calculate: they must not link gRPC, whatever way it might come.
WITHOUT_GRPC = ("stepsize", "round", "tally", "vote", "commit", "replica", "journal", "run", "follower", "worker_vote", "worker_checkpoint", "lab_local", "lab_tasks")
GRPC_TARGET = re.compile(r"^(?:gRPC::.*|signvote::(?:proto|wire))$")
# (what, pattern, the only places of server/ where it may stand)
APART = [
    ("a thread", re.compile(r"\bstd::j?thread\b(?!::)"),
     ("server/run/run_thread.", "server/vote/tally_sink.", "server/replica/applier.",
      "server/journal/journal.", "server/journal/snapshotter.", "server/rpc/")),
    ("a socket", re.compile(r"#\s*include\s*<(?:sys/socket|netinet/\w+|arpa/inet|netdb|grpc(?:pp)?/[^>]*)(?:\.h)?>"), ("server/rpc/",)),
    ("a file", re.compile(r"\bFileSystem\b"),
     # Flags and tokens are read at the start; a model is written at the end.
     ("server/flags.", "server/rpc/", "server/server.", "server/init_file.", "server/init_run.", "server/tokens_file.", "server/exporter.", "server/main.")),
]

TORCH_HEADER = re.compile(r"^(?:torch|ATen|c10|caffe2)/")
RPC_HEADER = re.compile(r"^(?:grpc|grpcpp|google/protobuf)/|\.pb\.h$")
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
ALLOW = re.compile(r"(?://|#) tidy: allow\((\w+)\)(.*)")
# Split so that this file does not find itself.
PRIVATE_PATHS = re.compile("/" + r"work/|/" + r"tmp/[\w.]+/\w|/" + r"root/|/" + r"home/\w")
MARKDOWN_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)|!\[[^\]]*\]\(([^)\s]+)\)")


class Finding(NamedTuple):
    path: str
    line: int
    rule: str
    text: str

    def __str__(self):
        return f"{self.path}:{self.line}: [{self.rule}] {self.text}"


class Tree:
    """The files of a repository, read once. Paths are relative with forward slashes."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        self.text: dict[str, str] = {}
        self._code: dict[str, str] = {}
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(f for f in folders if f not in SKIPPED_FOLDERS)
            for name in sorted(names):
                path = pathlib.Path(folder, name)
                if path.is_symlink() or not is_text(path):
                    continue
                self.text[path.relative_to(root).as_posix()] = path.read_text(encoding="utf-8", errors="replace")

    def code(self, path: str) -> str:
        """The C++ text without comments and literals."""
        if path not in self._code:
            self._code[path] = without_comments(self.text[path])
        return self._code[path]

    def cpp(self, *folders: str) -> Iterator[str]:
        for path in self.text:
            if path.endswith(CPP_SUFFIXES) and (not folders or path.startswith(tuple(f + "/" for f in folders))):
                yield path


def is_text(path: pathlib.Path) -> bool:
    if path.name.endswith(TEXT_SUFFIXES):
        return True
    if "." in path.name:
        return False
    with path.open("rb") as file:  # scripts have no suffix
        return file.read(2) == b"#!"


def without_comments(text: str) -> str:
    """The C++ text with comments and literals blanked, line numbers kept."""
    pattern = re.compile(r'//[^\n]*|/\*.*?\*/|R"(\w*)\(.*?\)\1"|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])+\'', re.DOTALL)
    return pattern.sub(lambda m: re.sub(r"[^\n]", " ", m.group()), text)


def includes(text: str) -> Iterator[tuple[int, str, bool]]:
    """(line, path, quoted) of each include."""
    for number, line in enumerate(text.splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match.group(2), match.group(1) == '"'


def part_of(path: str) -> str:
    """The part of MAY_INCLUDE that a path belongs to, "" for none."""
    if path.startswith("signvote/"):  # generated from proto/signvote
        return "proto/signvote"
    best = ""
    for part in MAY_INCLUDE:
        if path.startswith(part + "/") and len(part) > len(best):
            best = part
    return best


def include_order(tree: Tree) -> Iterator[Finding]:
    for path in tree.cpp():
        part = part_of(path)
        if not part:
            continue
        for line, included, quoted in includes(tree.text[path]):
            other = part_of(included) if quoted else ""
            if other and other != part and other not in MAY_INCLUDE[part]:
                yield Finding(path, line, "order", f"{part} may not include {other} ({included}): an include points only "
                              "to the left in docs/architecture.md, Folders; move what is shared to the left")


def own_header_first(tree: Tree) -> Iterator[Finding]:
    for path in tree.cpp():
        header = path.removesuffix(".cc") + ".h"
        if not path.endswith(".cc") or header not in tree.text:
            continue
        first = next(includes(tree.text[path]), None)
        if first is None or first[1] != header:
            yield Finding(path, first[0] if first else 1, "self", f'include "{header}" first: that proves that the header '
                          "stands alone")


def pragma_once(tree: Tree) -> Iterator[Finding]:
    for path in tree.cpp():
        if path.endswith((".h", ".cuh")) and not tree.text[path].startswith("#pragma once\n"):
            yield Finding(path, 1, "pragma", "a header starts with #pragma once")


def banned_calls(tree: Tree) -> Iterator[Finding]:
    compiled = [(rule, re.compile(pattern), instead, folders) for rule, pattern, instead, folders in BANNED]
    for path in tree.cpp():
        code = tree.code(path).splitlines()
        for rule, pattern, instead, folders in compiled:
            if not path.startswith(tuple(f + "/" for f in folders)):
                continue
            for number, line in enumerate(code, 1):
                match = pattern.search(line)
                if match:
                    yield Finding(path, number, rule, f"{match.group().strip()}: {instead}")


def torch_apart(tree: Tree) -> Iterator[Finding]:
    memo: dict[str, set[str]] = {}

    def reached(path: str) -> set[str]:
        """Every header that a file includes, through this repository's own ones too."""
        if path not in memo:
            memo[path] = set()  # ends cycles
            found = set()
            for _, included, _ in includes(tree.text[path]):
                found.add(included)
                if included in tree.text:
                    found |= reached(included)
            memo[path] = found
        return memo[path]

    def torch_through(included: str) -> bool:
        return included in tree.text and any(TORCH_HEADER.match(i) for i in reached(included))

    in_torch_folders = tuple(f + "/" for f in TORCH_FOLDERS)
    # Tests and the lab may link it; a header of the torch folders may name it, for those .cc files alone.
    may_see = in_torch_folders + ("lab/", "tests/")
    for path in tree.cpp():
        every = reached(path)
        torch = sorted(i for i in every if TORCH_HEADER.match(i))
        rpc = sorted(i for i in every if RPC_HEADER.search(i))
        if torch and not path.startswith(may_see):
            line = next((n for n, i, _ in includes(tree.text[path]) if i in torch or torch_through(i)), 1)
            yield Finding(path, line, "torch", f"sees {torch[0]}: only worker/models, worker/data and worker/train include "
                          "torch, and none of their headers that others include")
        elif torch and rpc and path.endswith(".cc"):
            yield Finding(path, 1, "torch", f"sees both {torch[0]} and {rpc[0]}: LibTorch and gRPC or protobuf never meet in "
                          "one translation unit; put a torch-free interface between them")


def link_graph(tree: Tree) -> Iterator[Finding]:
    """Libraries that decide, and the simulation, reach no gRPC through what they link."""
    # Name to (path, line, what it links).
    targets: dict[str, tuple[str, int, list[str]]] = {}
    for path, text in tree.text.items():
        if not path.endswith("CMakeLists.txt"):
            continue
        for match in re.finditer(r"\b(signvote_library|signvote_test)\(\s*([\w$<>{}-]+)([^()]*(?:\([^()]*\)[^()]*)*)\)", text):
            kind, name, body = match.groups()
            links = [word for part in re.findall(r"\bDEPS\b((?:\s+[\w:.-]+)+)", body.replace("PRIVATE_DEPS", "DEPS"))
                     for word in part.split() if word != "DEPS"]
            simulation = kind == "signvote_test" and path.startswith("tests/sim/")
            if kind == "signvote_library" or simulation:
                key = f"test {name}" if simulation else name
                targets[key] = (path, text.count("\n", 0, match.start()) + 1, links)

    def way(name: str, seen: set[str]) -> list[str]:
        """From a target to gRPC, [] when there is none."""
        if name in seen or name not in targets:
            return []
        seen.add(name)
        for link in targets[name][2]:
            if GRPC_TARGET.match(link):
                return [link]
            if link.startswith("signvote::"):
                further = way(link.removeprefix("signvote::"), seen)
                if further:
                    return [link] + further
        return []

    for name, (path, line, _) in targets.items():
        if name in WITHOUT_GRPC or name.startswith("test "):
            links = way(name, set())
            if links:
                yield Finding(path, line, "grpc", f"{name} links gRPC through {' → '.join(links)}: it must be driven without it")


def effects_apart(tree: Tree) -> Iterator[Finding]:
    """Threads, sockets and files of the server stand at its edges."""
    for path in tree.cpp("server"):
        code = tree.code(path).splitlines()
        for what, pattern, places in APART:
            if path.startswith(places):
                continue
            # Includes are told from strings by the text itself.
            lines = tree.text[path].splitlines() if "include" in pattern.pattern else code
            for number, line in enumerate(lines, 1):
                if pattern.search(line):
                    yield Finding(path, number, "effect", f"{what}: only {', '.join(places)} may have one")
                    break


def listed_sources(tree: Tree) -> Iterator[Finding]:
    for path in tree.cpp():
        if not path.endswith(".cc"):
            continue
        folder, name = os.path.split(path)
        listed = False
        relative = name
        while True:
            # With or without .cc: some lists name programs and add the suffix in a loop.
            listed = listed or re.search(rf"(?<![\w/.-]){re.escape(relative.removesuffix('.cc'))}(?:\.cc)?(?![\w.-])",
                                         tree.text.get(f"{folder}/CMakeLists.txt" if folder else "CMakeLists.txt", ""))
            if listed or not folder:
                break
            folder, last = os.path.split(folder)
            relative = f"{last}/{relative}"
        if not listed:
            yield Finding(path, 1, "orphan", "no CMakeLists.txt lists this file: add it, or delete it")


def slug(heading: str) -> str:
    """The anchor that a Markdown renderer makes of a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading.strip()).lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def anchors(text: str) -> set[str]:
    found: dict[str, int] = {}
    out = set()
    for heading in re.findall(r"^#{1,6}\s+(.*?)\s*#*$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.MULTILINE):
        name = slug(heading)
        count = found.get(name, 0)
        out.add(name if count == 0 else f"{name}-{count}")
        found[name] = count + 1
    return out


def prose(tree: Tree) -> Iterator[tuple[str, int, str]]:
    """(path, number, line) of every page, without what stands in code blocks."""
    for path, text in tree.text.items():
        if not path.endswith(".md"):
            continue
        fenced = False
        for number, line in enumerate(text.splitlines(), 1):
            if line.lstrip().startswith("```"):
                fenced = not fenced
            if not fenced:
                yield path, number, line


def wide_prose(tree: Tree) -> Iterator[Finding]:
    """Paragraphs and list items are PROSE_COLUMNS wide at most, where a line can be broken: not within links and code spans."""
    kept = re.compile(r"`[^`]*`|!?\[[^\]]*\]\([^)]*\)")
    exempt = re.compile(r"\s*(?:\||#|<|\[[^\]]+\]:)")
    marker = re.compile(r"\s*(?:>\s*)*(?:(?:[*+-]|\d+[.)])\s+)?")
    before = ""
    for path, number, line in prose(tree):
        code = line.startswith("    ") and not before.strip() and not re.match(r"\s*(?:[*+-]|\d+[.)])\s", line)
        before = line
        if len(line) <= PROSE_COLUMNS or code or exempt.match(line):
            continue
        text = kept.sub(lambda m: "x" * len(m.group()), line)
        if " " in text[marker.match(text).end():PROSE_COLUMNS + 1]:
            yield Finding(path, number, "prose", f"{len(line)} columns: break lines of prose at {PROSE_COLUMNS}")


def dead_links(tree: Tree) -> Iterator[Finding]:
    for path, number, line in prose(tree):
        for match in MARKDOWN_LINK.finditer(re.sub(r"`[^`]*`", "", line)):
            target = match.group(1) or match.group(2)
            if re.match(r"[a-z][a-z0-9+.-]*:", target):
                continue
            file, _, anchor = target.partition("#")
            resolved = path if not file else os.path.normpath(os.path.join(os.path.dirname(path), file))
            if file and not (tree.root / resolved).exists():
                yield Finding(path, number, "link", f"{target}: there is no {resolved}")
            elif anchor and resolved in tree.text and anchor not in anchors(tree.text[resolved]):
                yield Finding(path, number, "link", f"{target}: {resolved} has no heading with the anchor #{anchor}")


def page_names(tree: Tree) -> Iterator[Finding]:
    """What a page calls a test or a path of this repository is one; NAME stands for any."""
    suites: dict[str, set[str]] = {}
    for path in tree.cpp("tests"):
        for suite, name in re.findall(r"\bTEST(?:_[FP])?\(\s*(\w+),\s*(\w+)", tree.text[path]):
            suites.setdefault(suite, set()).add(name)
    folders = ("tests", "common", "proto", "server", "worker", "ctl", "lab", "scripts", "deploy", "dashboards", "cmake")
    for path, number, line in prose(tree):
        for word in re.findall(r"`([^`\s]+)`", line):
            suite, _, name = word.partition(".")
            end_to_end = re.fullmatch(r"e2e_(\w+_test)", word)
            if re.fullmatch(r"[A-Z]\w*Test", suite) and suite not in suites:
                yield Finding(path, number, "name", f"{word}: no test has this name")
            elif suite in suites and name and name not in suites[suite]:
                yield Finding(path, number, "name", f"{word}: {suite} has no such test")
            elif end_to_end and f"tests/e2e/{end_to_end.group(1)}.py" not in tree.text:
                yield Finding(path, number, "name", f"{word}: there is no tests/e2e/{end_to_end.group(1)}.py")
            elif "NAME" not in word and re.fullmatch(rf"(?:{'|'.join(folders)})/[\w./-]+", word) and not (tree.root / word).exists():
                yield Finding(path, number, "name", f"{word}: there is no such path")


def promised_messages(tree: Tree) -> Iterator[Finding]:
    """What docs/bad_input.md says that a refusal says stands in a test that the row names."""
    page = "docs/bad_input.md"
    head = "| input | ends with | message | test |"
    if head not in tree.text.get(page, ""):
        return
    sources = {path: re.sub(r'"\s*\n\s*R?"', "", text).replace('\\"', '"') for path, text in tree.text.items()
               if path.startswith("tests/") and path.endswith((".cc", ".py"))}
    lines = tree.text[page].splitlines()
    first = lines.index(head) + 2
    for number, line in enumerate(lines[first:], first + 1):
        if not line.startswith("|"):
            break
        *_, messages, tests = [cell.strip() for cell in line.strip("|").split(" | ")]
        said = ""
        for test in re.findall(r"`([\w.]+)`", tests):
            suite, _, name = test.partition(".")
            script = re.fullmatch(r"(e2e|interop)_(\w+)", test)
            said += "".join(text for path, text in sources.items()
                            if (script and path == f"tests/{script.group(1)}/{script.group(2)}.py") or
                            re.search(rf"\bTEST(?:_[FP])?\(\s*{suite},\s*{name or '.'}", text))
        for message in re.findall(r"`([^`]+)`", messages):
            if message not in said:
                yield Finding(page, number, "message", f"{message}: no test of this row expects that")


def private_words(tree: Tree) -> Iterator[Finding]:
    for path, text in tree.text.items():
        for number, line in enumerate(text.splitlines(), 1):
            match = PRIVATE_PATHS.search(line)
            if match:
                yield Finding(path, number, "path", f"{match.group()}: a path of one machine; name it by a variable, or "
                              "relative to the repository")


def unfinished(tree: Tree) -> Iterator[Finding]:
    pattern = re.compile(r"\b(?:FIX" + r"ME|XX" + r"X|HA" + r"CK)\b|\bTO" + r"DO\b(?!\([\w-]+\): \S)")
    for path, text in tree.text.items():
        if path.endswith(".md"):
            continue
        for number, line in enumerate(text.splitlines(), 1):
            match = pattern.search(line)
            if match and not path.startswith("tests/tidy/"):
                yield Finding(path, number, "unfinished", f"{match.group()}: finish it, or write TO" + "DO(topic): and the "
                              "condition that ends it")


def exit_codes(tree: Tree) -> Iterator[Finding]:
    """common/exit_codes.h and the table of docs/operations.md, "Exit codes", name the same codes."""
    header, page = "common/exit_codes.h", "docs/operations.md"
    if header not in tree.text or page not in tree.text:
        return
    body = re.search(r"enum class ExitCode[^{]*\{(.*?)\};", tree.code(header), re.DOTALL)
    code = {int(number): name for name, number in re.findall(r"(\w+)\s*=\s*(\d+)", body.group(1) if body else "")}
    section = re.search(r"^## Exit codes\n(.*?)(?=^## |\Z)", tree.text[page], re.DOTALL | re.MULTILINE)
    table = {int(n): name for n, name in re.findall(r"^\| (\d+) \| `?(\w+)`? \|", section.group(1) if section else "",
                                                   re.MULTILINE)}
    for number in sorted(code.keys() | table.keys()):
        if code.get(number) != table.get(number):
            yield Finding(page, 1, "exit", f"exit code {number} is {code.get(number, 'missing')} in {header} and "
                          f"{table.get(number, 'missing')} in the table under Exit codes")


def proto_comments(tree: Tree) -> Iterator[Finding]:
    """Each field and value of a .proto says what it is: beside it, or on the line above."""
    member = re.compile(r"^\s+(?:(?:repeated|optional) )?(?:[\w.]+ )?(\w+) = \d+;\s*$")
    for path, text in tree.text.items():
        if not path.startswith("proto/") or not path.endswith(".proto"):
            continue
        lines = text.splitlines()
        for number, line in enumerate(lines, 1):
            match = member.match(line)
            if match and not lines[number - 2].strip().startswith("//"):
                yield Finding(path, number, "proto", f"{match.group(1)} has no comment: say its unit and what its absence means")


def types(tree: Tree) -> Iterator[Finding]:
    """No type of the product has more data than one job needs, and none has the name of another in its namespace."""
    first: dict[tuple[str, str], str] = {}
    for path in tree.cpp(*PRODUCT, "common"):
        for found in cpp_scopes.types(tree.code(path)):
            if found.members > MEMBERS_MAX:
                yield Finding(path, found.line, "members", f"{found.name} has {found.members} data members: split classes above "
                              f"{MEMBERS_MAX}, or group what belongs together")
            if found.nested or "?" in found.namespace:
                continue
            other = first.setdefault((found.namespace, found.name), path)
            if other != path:
                yield Finding(path, found.line, "twice", f"{found.name} is another type in {other}: one word for one thing, "
                              "and the linker takes either's functions for both")


def small_mains(tree: Tree) -> Iterator[Finding]:
    for path in tree.cpp(*PRODUCT):
        lines = tree.text[path].count("\n")
        if path.endswith("/main.cc") and lines >= MAIN_LINES_MAX:
            yield Finding(path, MAIN_LINES_MAX, "main", f"{lines} lines: a program is a library that tests can link; main.cc "
                          f"has fewer than {MAIN_LINES_MAX}")


def torch_version(tree: Tree) -> Iterator[Finding]:
    """LibTorch's version stands in one script; pages may repeat it, and then it is that one."""
    home = "scripts/lib/libtorch.sh"
    match = re.search(r"^readonly TORCH_VERSION=(\S+)$", tree.text.get(home, ""), re.MULTILINE)
    if match is None:
        return
    version = match.group(1)
    for path, text in tree.text.items():
        page = path.endswith(".md")
        for number, line in enumerate(text.splitlines(), 1):
            if page and any(said != version for said in re.findall(r"\btorch==(\d[\w.]*\w)", line)):
                yield Finding(path, number, "torch", f"the version in {home} is {version}")
            elif not page and path != home and re.search(rf"(?<![\d.]){re.escape(version)}(?![\d.])", line):
                yield Finding(path, number, "torch", f"LibTorch's version: read it from {home}")


# What a module has without a word of its own.
MODULE_NAMES = set(dir(builtins)) | {"__file__", "__name__", "__doc__", "__spec__", "__package__", "__loader__", "__builtins__"}


def undefined_names(tree: Tree) -> Iterator[Finding]:
    """A name that a Python file reads somewhere and defines nowhere is an error only where and when it is read."""
    for path, text in tree.text.items():
        if not (path.endswith(".py") or re.match(r"#!.*\bpython", text)):
            continue
        try:
            parsed, table = ast.parse(text), symtable.symtable(text, path, "exec")
        except SyntaxError as error:
            yield Finding(path, error.lineno or 1, "undefined", f"no Python: {error.msg}")
            continue
        if any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in ast.walk(parsed)):
            continue  # it may define anything
        scopes = [table]
        for scope in scopes:  # grows while it is walked
            scopes += scope.get_children()
        # Those that a function assigns to by `global` count too.
        defined = MODULE_NAMES | {symbol.get_name() for scope in scopes for symbol in scope.get_symbols()
                                  if (scope is table or symbol.is_declared_global()) and
                                  (symbol.is_assigned() or symbol.is_imported() or symbol.is_namespace())}
        missing = {symbol.get_name() for scope in scopes for symbol in scope.get_symbols()
                   if symbol.is_referenced() and (scope is table or symbol.is_global())} - defined
        for node in ast.walk(parsed):
            if isinstance(node, ast.Name) and node.id in missing:
                missing.remove(node.id)
                yield Finding(path, node.lineno, "undefined", f"{node.id} is defined nowhere: import it, or mend its name")


def long_files(tree: Tree) -> Iterator[Finding]:
    for path, text in tree.text.items():
        lines = text.count("\n")
        if lines > LINES_MAX and not path.endswith((".json", ".md")):
            yield Finding(path, LINES_MAX + 1, "length", f"{lines} lines: split files above {LINES_MAX}")


RULES = [include_order, own_header_first, pragma_once, banned_calls, torch_apart, link_graph, effects_apart, listed_sources, dead_links, page_names, promised_messages,
         private_words, unfinished, exit_codes, proto_comments, types, small_mains, torch_version, wide_prose, undefined_names, long_files]


def check(root: pathlib.Path) -> list[Finding]:
    tree = Tree(root)
    findings = []
    for rule in RULES:
        for finding in rule(tree):
            lines = tree.text[finding.path].splitlines()
            line = lines[finding.line - 1] if 0 < finding.line <= len(lines) else ""
            allow = ALLOW.search(line)
            if allow and allow.group(1) == finding.rule:
                if allow.group(2).strip():
                    continue
                finding = finding._replace(text=finding.text + " (tidy: allow needs a reason)")
            findings.append(finding)
    return sorted(findings)


def main() -> int:
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[2]
    findings = check(root)
    for finding in findings:
        print(finding)
    print(f"tidy: {len(findings)} findings" if findings else "tidy: clean")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
