"""scripts/mutate on a project of two functions: what it kills, what it must report as survived, and what it may not count.

Also: the mutators write what they say, and the table of equivalent mutants in docs/testing.md names mutants that exist.
"""

import contextlib
import hashlib
import io
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "scripts" / "lib"))
import mutate  # noqa: E402
import mutators  # noqa: E402

TOY = """#include "room/toy.h"
#define LEFT_ALONE (1 + 1)
namespace toy {
static_assert(LEFT_ALONE == 2, "1 < 2");  // 3 + 4
int Clamp(int x, int low, int high) {
  if (x < low) return low;
  if (x > high) return high;
  return x;
}
int Steps(int n) {
  int steps = 0;
  while (n > 0) {
    --n;
    ++steps;
  }
  const int unused = 7;
  (void)unused;
  return steps;
}
}  // namespace toy
"""
# Every line of the functions is held to its meaning. Where Clamp's comparisons touch their bounds, a changed comparison returns
# the same number; of the two the compiler sees through the second.
GOOD_TEST = """#include "room/toy.h"
int main() {
  using namespace toy;
  const bool good = Clamp(1, 2, 9) == 2 && Clamp(10, 2, 9) == 9 && Clamp(5, 2, 9) == 5 && Steps(3) == 3 && Steps(0) == 0 &&
                    Steps(-1) == 0;
  return good ? 0 : 1;
}
"""
POOR_TEST = """#include "room/toy.h"
int main() { return toy::Clamp(5, 2, 9) == 5 && toy::Steps(0) == 0 ? 0 : 1; }
"""
CMAKE = """cmake_minimum_required(VERSION 3.25)
project(toy CXX)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${PROJECT_BINARY_DIR}/bin")
add_compile_options(-O1 -g -Werror=return-type -I${PROJECT_SOURCE_DIR})
add_subdirectory(room)
add_executable(toy_test toy_test.cc)
target_link_libraries(toy_test toy)
add_executable(empty_test empty_test.cc)
"""
EQUIVALENTS = """# Tests
## Equivalent mutants
| file | before | after | why nothing can tell them apart |
|---|---|---|---|
| `room/toy.cc` | `if (x < low) return low;` | `if (x <= low) return low;` | at the bound both return it |
## Next
"""


def files_of(folder):
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


@unittest.skipUnless(shutil.which("ninja") and shutil.which("cmake"), "needs cmake and ninja")
class MutateTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls._temporary = tempfile.TemporaryDirectory()
        cls.addClassCleanup(cls._temporary.cleanup)
        cls.addClassCleanup(setattr, mutate, "LIMIT_SECONDS_MIN", mutate.LIMIT_SECONDS_MIN)
        mutate.LIMIT_SECONDS_MIN = 2  # the toy takes milliseconds
        cls.root = pathlib.Path(cls._temporary.name).resolve()
        for name, text in {
                "CMakeLists.txt": CMAKE, "room/CMakeLists.txt": "add_library(toy STATIC toy.cc)\n", "room/toy.cc": TOY,
                "room/toy.h": "#pragma once\nnamespace toy {\nint Clamp(int x, int low, int high);\nint Steps(int n);\n}\n",
                "toy_test.cc": GOOD_TEST, "empty_test.cc": "int main() { return 0; }\n"}.items():
            (cls.root / name).parent.mkdir(exist_ok=True)
            (cls.root / name).write_text(text)
        subprocess.run(["cmake", "-G", "Ninja", "-S", cls.root, "-B", cls.root / "build/dev"], check=True, capture_output=True)
        cls.build()

    @classmethod
    def build(cls):
        subprocess.run(["ninja", "-C", cls.root / "build/dev"], check=True, capture_output=True)

    def mutate(self, *arguments, test="toy_test"):
        """(exit status, what it printed)."""
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            status = mutate.main(["room/toy.cc", "--sample", "100", "--test", test, *arguments], self.root)
        return status, out.getvalue()

    def use(self, test, page=None):
        (self.root / "toy_test.cc").write_text(test)
        shutil.rmtree(self.root / "docs", ignore_errors=True)
        if page is not None:
            (self.root / "docs").mkdir()
            (self.root / "docs/testing.md").write_text(page)
        self.build()

    def count(self, output, what):
        return int(re.search(rf"(\d+) (?:more )?{what}", output).group(1))

    def test_good_tests_kill_all_but_the_equivalent_ones_and_the_tree_stays_as_it_was(self):
        self.use(GOOD_TEST)
        before = files_of(self.root)
        status, output = self.mutate()
        self.assertEqual(files_of(self.root), before)
        survivors = re.findall(r"^survived  room/toy\.cc:(\d+): (.*)\n  - (.*)\n  \+ (.*)$", output, re.MULTILINE)
        self.assertEqual(survivors, [("6", "comparison", "if (x < low) return low;", "if (x <= low) return low;")])
        self.assertEqual(status, mutate.PASSES, output)
        self.assertGreater(self.count(output, "killed"), 10)
        self.assertGreater(self.count(output, "by the time limit"), 0, "a loop that does not end is killed")
        self.assertGreater(self.count(output, "did not compile"), 0, "void functions cannot return {}")
        self.assertGreater(self.count(output, "changed no code"), 0, "an unused constant")

    def test_poor_tests_fail_and_each_survivor_is_shown(self):
        self.use(POOR_TEST)
        status, output = self.mutate()
        self.assertEqual(status, mutate.FAILS, output)
        self.assertIn("  - ++steps;\n  + ;\n", output)
        self.assertIn("less than 90 %", output)

    def test_listed_equivalents_do_not_count_as_survivors(self):
        self.use(GOOD_TEST, EQUIVALENTS)
        status, output = self.mutate()
        self.assertEqual((status, self.count(output, "survived"), self.count(output, "equivalent")), (mutate.PASSES, 0, 1), output)

    def test_a_sample_that_is_mostly_called_equivalent_fails(self):
        self.use(POOR_TEST)
        survivors = re.findall(r"^  - (.*)\n  \+ (.*)$", self.mutate()[1], re.MULTILINE)
        self.use(POOR_TEST, EQUIVALENTS.replace("## Next", "".join(
            f"| `room/toy.cc` | `{before}` | `{after}` | it is claimed |\n" for before, after in survivors) + "## Next"))
        status, output = self.mutate()
        self.assertEqual(self.count(output, "survived"), 0, output)
        self.assertEqual(status, mutate.FAILS, output)
        self.assertIn("are called equivalent: write tests instead", output)

    def test_a_seed_draws_the_same_sample_again_and_another_seed_another(self):
        self.use(POOR_TEST)
        draw = [self.mutate("--seed", seed, "--sample", "6", "--jobs", jobs)[1] for seed, jobs in (("1", "1"), ("1", "2"), ("2", "2"))]
        self.assertEqual(draw[0], draw[1])
        self.assertNotEqual(draw[1], draw[2].replace("seed 2", "seed 1"))

    def test_what_cannot_be_judged_says_what_to_do(self):
        self.use(GOOD_TEST)
        status, output = self.mutate(test="empty_test")
        self.assertEqual((status, "empty_test does not link room/toy.cc" in output), (mutate.CANNOT_RUN, True), output)
        status, output = self.mutate("--build", str(self.root / "nowhere"))
        self.assertEqual((status, "is no build folder" in output), (mutate.CANNOT_RUN, True), output)
        (self.root / "toy_test.cc").write_text("int main() { return 1; }\n#include \"room/toy.h\"\nint f() { return toy::Steps(1); }\n")
        status, output = self.mutate()
        self.assertEqual((status, "is not up to date" in output), (mutate.CANNOT_RUN, True), output)
        self.build()
        status, output = self.mutate()
        self.assertEqual((status, "does not pass its tests" in output), (mutate.CANNOT_RUN, True), output)


    def test_a_signal_ends_what_runs_and_leaves_nothing_behind(self):
        self.use("#include \"room/toy.h\"\n#include <unistd.h>\nint main() { return toy::Steps(sleep(1000)); }\n")
        with tempfile.TemporaryDirectory() as temporary:
            program = ("import pathlib, sys; sys.dont_write_bytecode = True; sys.path.insert(0, sys.argv[1]); import mutate; "
                       "sys.exit(mutate.program(sys.argv[3:], pathlib.Path(sys.argv[2])))")
            process = subprocess.Popen(
                [sys.executable, "-c", program, SOURCE / "scripts" / "lib", self.root, "room/toy.cc", "--test", "toy_test"],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, "TMPDIR": temporary})
            self.assertIn("mutants can be made", process.stdout.readline())
            run = pathlib.Path(temporary)
            while not list(run.glob("*/*/run.*")):  # bounded by ctest: the test program is running by then, or nearly
                self.assertIsNone(process.poll())
                time.sleep(0.01)
            process.terminate()
            output, _ = process.communicate(timeout=60)
            self.assertEqual((process.returncode, output), (128 + signal.SIGTERM, "scripts/mutate: stopped\n"))
            self.assertEqual(list(run.iterdir()), [])


class MutatorsTest(unittest.TestCase):
    def changes(self, source):
        return [m.change(source)[1] for m in mutators.mutants(source)]

    def test_each_mutator_writes_what_it_says(self):
        for source, *expected in (
                ("x = a < b;", "x = a <= b;", "x = a >= b;"),
                ("x = a && b;", "x = a || b;"),
                ("x = a + 2;", "x = a - 2;", "x = a + 3;", "x = a + 1;"),
                ("{ x += n; }", "{ x -= n; }", "{ ; }"),
                ("if (a) f();", "if (!(a)) f();"),
                ("if (int* a = f(); a) g();", "if (int* a = f(); !(a)) g();"),
                ("y = !a;", "y = a;"),
                ("y = true;", "y = false;"),
                ("y = 0.5f;", "y = 1.0f;", "y = 0.25f;"),
                ("y = std::min(a, b);", "y = std::max(a, b);"),
                ("{ f(a, b); }", "{ f(b, a); }", "{ ; }"),
                ("if (a) f(); else g();", "if (a) f();"),
                ("if (a) { f(); } else if (b) { g(); } else { h(); } z();", "if (a) { f(); } z();"),
                ("{ if (a) return 1; }", "{ if (a) ; }"),
                ("int F(int a) const { G(); }", "int F(int a) const { return; G(); }", "int F(int a) const { return {}; G(); }")):
            for after in expected:
                self.assertIn(after, self.changes(source), source)

    def test_what_is_no_statement_or_operator_is_left_alone(self):
        for source in ("#if A < B && C + 1\n", "// a < b\n", "/* f(); */", 'static_assert(a < b, "x");', "SIGNVOTE_CHECK(a < 2);",
                       'LogInfo("x", {{"k", 1 + 1}});', "std::vector<int> a;", "int&& a;", "using A = B;", '"a < 1"_x;',
                       "v.reserve(n);", "namespace a {\nclass B;\n}"):
            self.assertEqual(self.changes(source), [], source)

    def test_a_mutant_keeps_the_number_of_lines(self):
        source = "void F() {\n  f(a,\n    b);\n  if (a) {\n    g();\n  } else {\n    h();\n  }\n}\n"
        made = mutators.mutants(source)
        self.assertGreater(len(made), 6)
        for mutant in made:
            self.assertEqual(mutant.apply(source).count("\n"), source.count("\n"))


    def test_mutants_that_share_a_source_lie_in_copies_of_their_functions_and_the_rest_is_left_alone(self):
        source = "const int a = 1;\nconstexpr int F() { return 2; }\nint G() {\n  f(3);\n  return 4;\n}\nT::T() : x(5) { g(); }\n"
        text = mutators.Source(source)
        made = mutators.mutants(source)
        together = {n: m for n, m in enumerate(made, 1) if mutators.switchable(text, m)}
        lines = {m.line(source) for m in together.values()}
        self.assertEqual(lines, {3, 4, 5, 7})
        self.assertNotIn("  ;", {m.change(source)[1] for m in together.values() if m.line(source) == 5}, "a lost return")
        self.assertFalse([m for m in together.values() if "x(" in m.change(source)[1] and "x(5)" not in m.change(source)[1]])
        switched = mutators.switched(text, together, "WHICH", "a.cc")
        self.assertEqual(switched.count("mutant_number == "), len(together))
        for number, mutant in together.items():
            copy = switched[switched.index(f'"mutant:{number}"'):]
            self.assertIn(mutant.text.strip() or ";", copy[:copy.index("else")])

    def test_a_complaint_blames_the_mutant_whose_line_it_names(self):
        self.assertEqual(mutators.blamed("mutant:7:12:3: error: no\nmutant:8:1:1: warning: x\n/a.h:1:2: error: y\n"
                                         "mutant:9:4:5:   required from here\nmutant:7:4:5:   required from here\n"), ({7}, {9}))


class PageTest(unittest.TestCase):
    def test_every_listed_equivalent_is_a_mutant_of_its_file(self):
        for row in mutate.equivalents((SOURCE / "docs/testing.md").read_text()):
            source = (SOURCE / row.file).read_text()
            self.assertIn((row.before, row.after), {m.change(source) for m in mutators.mutants(source)}, row.file)

    def test_every_known_test_is_a_program_of_this_repository(self):
        listed = set()
        for path in (SOURCE / "tests").rglob("CMakeLists.txt"):
            listed |= set(re.findall(r"signvote_test\((\w+)", path.read_text()))
        for prefix, tests in mutate.TESTS.items():
            self.assertTrue((SOURCE / prefix).exists(), prefix)
            for test in tests:
                self.assertIn(test.split()[0], listed, prefix)


if __name__ == "__main__":
    unittest.main()
