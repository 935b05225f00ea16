#!/usr/bin/env python3
"""Every C++ and CUDA file is laid out as .clang-format says, by clang-format 14. Usage: layout_test.py [ROOT]

Other versions lay the same text out differently, so only 14 judges: Debian 12's, or PyPI's `clang-format==14.*`. Exit
status 77 (skipped) with the reason where there is none.
"""

import pathlib
import re
import shutil
import subprocess
import sys

VERSION = 14
SUFFIXES = (".h", ".cc", ".cu", ".cuh", ".inc")
SKIPPED_FOLDERS = {".git", "build", "out"}
SKIPPED = 77
BATCH = 40  # files per call: an argument list has a bound


def version_of(program: str) -> int:
    out = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=60).stdout
    match = re.search(r"version (\d+)\.", out)
    return int(match.group(1)) if match else 0


def formatter() -> tuple[str | None, str]:
    """(program, reason): the program is None when no clang-format of VERSION is installed."""
    seen = []
    for name in (f"clang-format-{VERSION}", "clang-format"):
        program = shutil.which(name)
        if program is None:
            continue
        version = version_of(program)
        if version == VERSION:
            return program, ""
        seen.append(f"{program} is version {version}")
    return None, "; ".join(seen) or "clang-format is not installed"


def sources(root: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.suffix in SUFFIXES and path.is_file()
                  and not SKIPPED_FOLDERS & set(path.relative_to(root).parts))


def findings(program: str, root: pathlib.Path) -> list[str]:
    files, wrong = sources(root), []
    for first in range(0, len(files), BATCH):
        result = subprocess.run([program, "--dry-run", *files[first:first + BATCH]], cwd=root, capture_output=True,
                                text=True, timeout=300)
        wrong += re.findall(r"^(.+?):\d+:\d+: warning: code should be clang-formatted", result.stderr, re.MULTILINE)
        if result.returncode != 0:
            wrong.append(result.stderr.strip())
    return sorted(set(wrong))


def main() -> int:
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else pathlib.Path(__file__).resolve().parents[2]
    program, reason = formatter()
    if program is None:
        print(f"skipped: layout is judged by clang-format {VERSION} (Debian 12's, or PyPI's clang-format=={VERSION}.*): "
              f"{reason}")
        return SKIPPED
    wrong = findings(program, root)
    for path in wrong:
        print(f"{path}: not laid out as .clang-format says; run {program} -i {path}")
    print(f"layout: {len(wrong)} of {len(sources(root))} files" if wrong else "layout: clean")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
