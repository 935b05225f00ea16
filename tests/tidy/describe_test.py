"""deploy/package/describe.py reads every form that CLI11's help takes, and refuses what it does not know."""

import pathlib
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "deploy" / "package"))
import describe  # noqa: E402

HELP = """tool: does things. More elsewhere.
Usage: tool [OPTIONS] SUBCOMMAND

Options:
  -h,--help                   Print this help message and exit
  --server HOST:PORT (Env:TOOL_SERVER)
                              HOST:PORT of the server

Numbers:
  --rounds,--max-rounds UINT:UINT in [1 - 99]=5
                              rounds; 0: none
  --rate FLOAT:POSITIVE=0.1   a rate
  --threads UINT=7            threads
  --mode TEXT:{auto,off}=auto a mode
  --name TEXT ...             a name
  --key FILE                  its owner's

Forms:
  --lines Excludes: --json --once
                              lines
  --once Excludes: --lines    one picture
  --json,--objects Excludes: --lines
                              objects
  --token FILE ... REQUIRED (Env:TOOL_TOKEN) Needs: --key --name Excludes: --json
                              a token

Subcommands:
  copy                        copies one file
"""
COPY = """copies one file
Usage: tool copy [OPTIONS] FILE

Positionals:
  FILE FILE REQUIRED          what to copy

Options:
  -h,--help                   Print this help message and exit
  --force                     even over another
"""


def read(help_text=HELP, copy=COPY):
    return describe.read_command("tool", lambda *words: copy if words == ("copy",) else help_text)


class DescribeTest(unittest.TestCase):
    def option(self, name):
        (found,) = [o for o in read().options if name in o.names]
        return found

    def test_each_form_of_an_option_is_read(self):
        server = self.option("--server")
        self.assertEqual((server.type, server.env, server.text), ("HOST:PORT", "TOOL_SERVER", "HOST:PORT of the server"))
        rounds = self.option("--rounds")
        self.assertEqual((rounds.names, rounds.least, rounds.most, rounds.default, rounds.group),
                         (["--rounds", "--max-rounds"], "1", "99", "5", "Numbers"))
        self.assertEqual((self.option("--rate").sign, self.option("--rate").default), ("POSITIVE", "0.1"))
        self.assertEqual((self.option("--mode").choices, self.option("--mode").text), (["auto", "off"], "a mode"))
        self.assertTrue(self.option("--name").many)
        self.assertEqual(self.option("--help").type, "")
        token = self.option("--token")
        self.assertEqual((token.type, token.many, token.env, token.needs, token.excludes),
                         ("FILE", True, "TOOL_TOKEN", ["--key", "--name"], ["--json"]))
        lines = self.option("--lines")
        self.assertEqual((lines.names, lines.type, lines.needs, lines.excludes), (["--lines"], "", [], ["--json", "--once"]))
        self.assertEqual(describe.read_option("--lines Excludes: --once --json", "", "").excludes, lines.excludes)

    def test_subcommands_are_read_with_their_arguments(self):
        (copy,) = read().subcommands
        self.assertEqual((copy.name, copy.text), ("copy", "copies one file"))
        self.assertEqual([(p.names, p.type) for p in copy.positionals], [(["FILE"], "FILE")])
        self.assertEqual([o.names for o in copy.options], [["-h", "--help"], ["--force"]])

    def test_what_is_not_understood_is_refused(self):
        for change, message in ((("--rate FLOAT:POSITIVE=0.1 ", "--rate FLOAT:<0.1..2>=0.1 "), "cannot read the help line '--rate"),
                                (("Excludes: --lines ", "Excludes: "), "cannot read the help line '--once"),
                                (("Numbers:", "Numbers"), "unexpected line 'Numbers'"),
                                (("Usage: ", "Use: "), "has no 'Usage: ' line")):
            self.assertIn(change[0], HELP)
            with self.assertRaisesRegex(describe.DescribeError, message):
                read(HELP.replace(*change))

    def test_help_for_the_man_page_names_values_ranges_and_sources(self):
        text = describe.gnu_help(read())
        for line in ("--rounds, --max-rounds=N", "rounds; 0: none (1 to 99; default 5)", "--mode=auto|off", "copy FILE",
                     "HOST:PORT of the server (else from $TOOL_SERVER)", "a rate (above 0; default 0.1)", "threads (default all processors)", "Options of copy:",
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
