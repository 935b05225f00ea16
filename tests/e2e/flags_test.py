"""Flags in the pages are flags of the programs: every one that a page names exists, and the defaults of docs/operations.md are
those of --help."""

import json
import pathlib
import re
import subprocess
import unittest

import harness

SOURCE = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = ("signvote-server", "signvote-worker", "signvote-lab", "signvote-lab-run", "signvote-synthetic-worker", "signvote")
SCRIPTS = ("setup", "demo", "bench", "test", "mutate", "plant")
SUBCOMMANDS = ("status", "top", "pause", "resume", "drain", "evict", "export", "journal", "certs", "lab", "version")
LAB_SUBCOMMANDS = ("train", "sweep", "tasks", "methods")
HIDDEN = "--describe"  # from --help; every program takes it
PAGES = [SOURCE / name for name in ("README.md", "CONTRIBUTING.md")] + sorted((SOURCE / "docs").glob("*.md"))
# Flags of other programs that pages name.
FOREIGN = {"apt-get": {"--fix-broken"}, "cmake": {"--preset", "--build", "--install", "--prefix", "--target", "--config"},
           "docker compose": {"--file", "--rm"}, "ctest": {"--test-dir"}, "GoogleTest": {"--gtest"}, "systemctl": {"--now"}, "tar": {"--strip-components"}}


def help_of(*command):
    done = subprocess.run([str(c) for c in command] + ["--help"], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def flags_in(text):
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*[a-z0-9]", text))


def defaults_in(text):
    """{flag: default} of a --help; None where it shows none."""
    found = {}
    for names, value in re.findall(r"(?m)^  (-[\w,-]+)(?: ([^\n]*?))?(?:  .*)?$", text):
        default = re.search(r"=(\S*)$", (value or "").split("  ")[0].strip())
        found.update({name: default.group(1) if default else None for name in names.split(",")})
    return found


def table_rows(text, head):
    """The rows of the table that begins with the cell `head`, as lists of cells."""
    table = re.search(rf"(?m)^\| {re.escape(head)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text)
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table.group(1).splitlines()]


class Flags(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.help = {name: help_of(harness.BIN / name) for name in PROGRAMS if (harness.BIN / name).exists()}
        cls.operator = "".join(help_of(harness.BIN / "signvote", c) for c in SUBCOMMANDS)
        if "signvote-lab" in cls.help:
            cls.operator += "".join(help_of(harness.BIN / "signvote-lab", c) for c in LAB_SUBCOMMANDS)
        scripts = "".join(help_of(SOURCE / "scripts" / name) for name in SCRIPTS)
        installed = (SOURCE / "deploy/package/signvote-libtorch").read_text()
        benches = "".join(path.read_text() for folder in ("bench", "sim") for path in sorted((SOURCE / "tests" / folder).glob("*"))
                          if path.is_file())
        for name in cls.help:
            subprocess.run([harness.BIN / name, HIDDEN], stdout=subprocess.DEVNULL, timeout=30, check=True)
        cls.known = flags_in("".join(cls.help.values()) + cls.operator + scripts + installed + benches).union({HIDDEN}, *FOREIGN.values())

    @unittest.skipUnless((harness.BIN / "signvote-worker").exists(), "needs LibTorch")
    def test_every_flag_that_a_page_names_exists(self):
        unknown = {}
        for page in PAGES:
            code = re.sub(r"<!--.*?-->", "", page.read_text(), flags=re.DOTALL)
            named = flags_in("\n".join(re.findall(r"(?ms)^```.*?^```|`[^`\n]+`", code)))
            if named - self.known:
                unknown[page.name] = sorted(named - self.known)
        self.assertEqual(unknown, {"bad_input.md": ["--no-such-flag"]})

    def test_defaults_of_the_page_are_those_of_the_programs(self):
        page = (SOURCE / "docs/operations.md").read_text()
        compared = 0
        for head, program in (("server", "signvote-server"), ("worker", "signvote-worker")):
            if program not in self.help:
                continue
            real = defaults_in(self.help[program])
            for names, values, _ in table_rows(page, head):
                names = re.findall(r"--[\w-]+", names)
                self.assertEqual([n for n in names if n not in real], [], "no such flag")
                # "a, b": in order; "0: what it means"; units are words of the page.
                stated = [re.sub(r"[`\s]|:.*| s$", "", v) for v in re.sub(r" s$", "", values).split(",")]
                for name, value in zip(names, stated):
                    if not value or value in ("required", "all", "LibTorch'sheaders"):
                        continue
                    self.assertEqual(real[name], value, f"{program} {name}")
                    compared += 1
        self.assertGreater(compared, 8)

    def test_limits_of_the_page_are_those_of_the_server(self):
        page = (SOURCE / "docs/operations.md").read_text()
        real = defaults_in(self.help["signvote-server"])
        for _, flag, default in table_rows(page, "limit"):
            if flag and real[flag.strip("`")] != "auto":  # it depends on the model
                number = re.match(r"(\d+)( MiB)?", default)
                self.assertEqual(real[flag.strip("`")], str(int(number.group(1)) * (2**20 if number.group(2) else 1)), flag)

    def test_every_option_says_what_it_does(self):
        def check(command, name):
            for option in command["options"] + command["positionals"]:
                self.assertTrue(option["text"], f"{name} {option['names']}")
            for sub in command["subcommands"]:
                check(sub, f"{name} {sub['name']}")
        for name in self.help:
            done = subprocess.run([harness.BIN / name, HIDDEN], capture_output=True, timeout=30, check=True)
            check(json.loads(done.stdout), name)


if __name__ == "__main__":
    unittest.main(verbosity=2)
