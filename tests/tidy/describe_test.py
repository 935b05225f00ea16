"""deploy/package/describe.py makes pages and completions from a program's description, and refuses what it does not know."""

import copy
import pathlib
import stat
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "deploy" / "package"))
import describe  # noqa: E402


def option(*names, text, **fields):
    base = {"names": list(names), "text": text, "group": "Options", "type": "", "kind": "switch", "choices": [], "least": "", "most": "",
            "default": "", "many": False, "required": False, "env": "", "needs": [], "excludes": []}
    assert set(fields) <= set(base), fields
    return base | fields


HELP = option("-h", "--help", text="Print this help message and exit")
TOOL = {
    "name": "tool", "text": "tool: does things. More elsewhere.", "positionals": [],
    "options": [
        HELP,
        option("--server", text="HOST:PORT of the server", type="HOST:PORT", kind="dial", env="TOOL_SERVER"),
        option("--rounds", "--max-rounds", text="rounds; 0: none", group="Numbers", type="UINT", kind="number", least="1", most="99", default="5"),
        option("--rate", text="a rate", group="Numbers", type="FLOAT", kind="number", default="0.1"),
        option("--threads", text="threads", group="Numbers", type="UINT", kind="number", default="7"),
        option("--mode", text="a mode", group="Numbers", type="TEXT", kind="word", choices=["auto", "off"], default="auto"),
        option("--key", text="its owner's", group="Numbers", type="FILE", kind="file"),
        option("--lines", text="lines", group="Forms", excludes=["--json", "--once"]),
        option("--once", text="one picture", group="Forms", excludes=["--lines"]),
        option("--json", "--objects", text="objects", group="Forms", excludes=["--lines"]),
        option("--token", text="a token", group="Forms", type="FILE", kind="file", many=True, required=True, env="TOOL_TOKEN",
               needs=["--key", "--name"], excludes=["--json"]),
    ],
    "subcommands": [
        {"name": "copy", "text": "copies one file", "subcommands": [], "options": [HELP, option("--force", text="even over another")],
         "positionals": [option("FILE", text="what to copy", group="Positionals", type="FILE", kind="file", required=True)]},
    ],
}


def read(tool=None):
    return describe.read_command(copy.deepcopy(tool or TOOL), "tool")


class DescribeTest(unittest.TestCase):
    def test_subcommands_are_read_with_their_arguments(self):
        (command,) = read().subcommands
        self.assertEqual((command.name, command.text, command.usage), ("copy", "copies one file", "copy [OPTIONS] FILE"))
        self.assertEqual([(p.names, p.type) for p in command.positionals], [(["FILE"], "FILE")])
        self.assertEqual([o.names for o in command.options], [["-h", "--help"], ["--force"]])
        self.assertEqual(read().usage, "tool [OPTIONS] SUBCOMMAND")

    def test_what_is_not_understood_is_refused(self):
        unknown = copy.deepcopy(TOOL)
        unknown["options"][1]["colour"] = "red"
        missing = copy.deepcopy(TOOL)
        del missing["subcommands"][0]["positionals"]
        without = copy.deepcopy(TOOL) | {"options": []}
        for tool, message in ((unknown, "tool tool: expected an object of .*colour"), (missing, "tool tool: expected an object of"),
                              (without, "tool tool has no option"), (["tool"], "found .'tool'.")):
            with self.assertRaisesRegex(describe.DescribeError, message):
                read(tool)

    def test_a_program_that_fails_or_writes_no_json_is_named(self):
        with tempfile.TemporaryDirectory() as folder:
            program = pathlib.Path(folder, "tool")
            for script, message in (("echo broken >&2; exit 3", "ended with 3: broken"), ("echo hello", "is no JSON")):
                program.write_text(f"#!/bin/sh\n{script}\n")
                program.chmod(program.stat().st_mode | stat.S_IXUSR)
                with self.assertRaisesRegex(describe.DescribeError, message):
                    describe.read_program(str(program))

    def test_help_for_the_man_page_names_values_ranges_and_sources(self):
        text = describe.gnu_help(read())
        for line in ("--rounds, --max-rounds=N", "rounds; 0: none (1 to 99; default 5)", "--mode=auto|off", "copy FILE",
                     "HOST:PORT of the server (else from $TOOL_SERVER)", "a rate (default 0.1)", "threads (default all processors)", "Options of copy:",
                     "lines (not with --json or --once)",
                     "a token (repeatable; else from $TOOL_TOKEN; only with --key and --name; not with --json)", "Does things."):
            self.assertIn(line, text)

    def test_texts_are_quoted_for_each_shell(self):
        self.assertIn("'(--key)--key=[its owner'\"'\"'s]:FILE:_files'", describe.zsh(read()))
        self.assertIn("'(--lines --json --objects --once)--lines[lines]'", describe.zsh(read()))
        self.assertIn("'(--json --objects)*--token=[a token]:FILE:_files'", describe.zsh(read()))
        self.assertIn("-l key -r -F -d 'its owner\\'s'", describe.fish(read()))
        self.assertIn("copy) words=", describe.bash(read()).replace("\n     ", ""))


if __name__ == "__main__":
    unittest.main()
