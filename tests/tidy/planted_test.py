"""The planted bugs of docs/testing.md are changes of the sources as they stand: scripts/plant plays them."""

import pathlib
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "lib"))
import mutate  # noqa: E402
import planted  # noqa: E402

ROW = "| bug | file | before | after | seed |\n|---|---|---|---|---|\n"


class PlantedTest(unittest.TestCase):
    def test_every_bug_changes_one_place_of_its_file(self):
        bugs = planted.rows((ROOT / "docs/testing.md").read_text())
        self.assertGreaterEqual(len(bugs), 12)
        self.assertEqual(len({bug.name for bug in bugs}), len(bugs))
        for bug in bugs:
            with self.subTest(bug.name):
                self.assertEqual((ROOT / bug.file).read_text().count(bug.before), 1)
                self.assertNotEqual(bug.before, bug.after)
                self.assertLess(bug.seed, planted.SEEDS_MAX)

    def test_a_table_that_cannot_be_read_is_told(self):
        head = f"## {planted.HEADING}\n\n{ROW}"
        self.assertEqual(planted.rows(head + "| `a-b` | `f.cc` | `x \\| y` | `;` | 1,200 |\n"),
                         [planted.Planted("a-b", "f.cc", "x | y", ";", 1200)])
        for page, words in (("# no such heading\n", "has no table"), (head + "| `a` | `f.cc` | `x` | 1 |\n", "needs five cells")):
            with self.assertRaisesRegex(mutate.CannotRun, words):
                planted.rows(page)

    def test_a_bug_whose_line_has_changed_is_told(self):
        with tempfile.TemporaryDirectory() as folder:
            root = pathlib.Path(folder)
            (root / "f.cc").write_text("int x = 1;\n")
            with self.assertRaisesRegex(mutate.CannotRun, "a-b: f.cc has 0 times: y"):
                planted.first_failure(root, root, planted.Planted("a-b", "f.cc", "y", ";", 1), range(1))


if __name__ == "__main__":
    unittest.main(verbosity=2)
