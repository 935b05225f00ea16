"""scripts/lib/test_report.py on what failing tests write, and scripts/test with a real ctest whose tests fail: the last thing
before the count says why each did."""

import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(SOURCE / "scripts" / "lib"))
import test_report  # noqa: E402

GTEST = """[==========] Running 2 tests from 1 test suite.
[ RUN      ] TallyTest.TiesAreCoins
some chatter
tests/unit/tally_test.cc:41: Failure
Expected equality of these values:
  verdict
    Which is: 3
  7
[  FAILED  ] TallyTest.TiesAreCoins (12 ms)
[ RUN      ] TallyTest.Empty
[       OK ] TallyTest.Empty (0 ms)
[----------] 2 tests from TallyTest (12 ms total)
[  FAILED  ] TallyTest.TiesAreCoins

 1 FAILED TEST
"""
TSAN = """[ RUN      ] SessionTest.Stops
==================
WARNING: ThreadSanitizer: data race (pid=7)
  Write of size 8 at 0x7b04 by thread T2:
    #0 signvote::Session::Stop() worker/session/session.cc:88 (session_test+0x1)

  Previous read of size 8 at 0x7b04 by main thread:
    #0 signvote::Session::Done() worker/session/session.cc:61 (session_test+0x2)
""" + "\n".join(f"    #{n} frame" for n in range(1, 30)) + """
SUMMARY: ThreadSanitizer: data race worker/session/session.cc:88 in signvote::Session::Stop()
==================
"""
ASAN = """==9==ERROR: AddressSanitizer: heap-use-after-free on address 0x602 at pc 0x1
READ of size 4 at 0x602 thread T0
    #0 0x1 in signvote::Apply common/apply.cc:20
""" + "\n".join(f"    #{n} frame" for n in range(1, 30)) + """
SUMMARY: AddressSanitizer: heap-use-after-free common/apply.cc:20 in signvote::Apply
"""
UBSAN = """common/bits.h:30:12: runtime error: shift exponent 64 is too large
    #0 0x1 in signvote::Mask common/bits.h:30
"""
PYTHON = """---- server_test.ServerTest.test_ends: server: exit 1: signvote-server --rounds 3
signvote-server: error: nothing to do
F.
======================================================================
FAIL: test_ends (__main__.ServerTest)
----------------------------------------------------------------------
Traceback (most recent call last):
  File "tests/e2e/server_test.py", line 90, in test_ends
    self.assertEqual(server.wait(5), 0)
AssertionError: 1 != 0 : the server ended badly

----------------------------------------------------------------------
Ran 2 tests in 0.1s

FAILED (failures=1)
"""


class Dearest(unittest.TestCase):
    def test_steps_and_tests_stand_in_one_list_and_a_step_once(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / "dev").mkdir()
            log = folder / "dev" / ".ninja_log"
            log.write_text("# ninja log v5\n0\t90000\t1\ta.o\taa\n0\t5000\t2\ta.o\tab\n0\t3000\t1\tb.h\tcc\n0\t3000\t1\tb.cc\tcc\n")
            junit = folder / "dev-quick.xml"
            junit.write_text('<testsuite><testcase name="slow_test" time="4"/><testcase name="quick" time="1"/></testsuite>')
            self.assertEqual(test_report.dearest([log, junit]), [
                (5.0, "dev: a.o"), (4.0, "dev-quick: slow_test"), (3.0, "dev: b.cc"), (1.0, "dev-quick: quick")])


class ExcerptTest(unittest.TestCase):
    def expect(self, output, *words, end_too=False):
        lines = test_report.excerpt(output, end_too)
        self.assertLessEqual(len(lines), test_report.LINES_PER_TEST)
        text = "\n".join(lines)
        for word in words:
            self.assertIn(word, text)
        return lines

    def test_gtest_failure_has_its_place_its_values_and_its_test(self):
        lines = self.expect(GTEST)
        self.assertEqual(lines, GTEST.splitlines()[3:9])

    def test_reports_of_sanitizers_have_their_head_and_first_frames(self):
        self.expect(TSAN, "data race (pid=7)", "session.cc:88", "session.cc:61", "SUMMARY: ThreadSanitizer")
        self.expect(ASAN, "heap-use-after-free on address", "common/apply.cc:20", "SUMMARY: AddressSanitizer")
        self.expect(UBSAN, "bits.h:30:12: runtime error", "signvote::Mask")

    def test_traceback_ends_with_its_exception(self):
        lines = self.expect(PYTHON, "FAIL: test_ends", "server_test.py\", line 90", "signvote-server: error: nothing to do")
        self.assertEqual(lines[-1], "AssertionError: 1 != 0 : the server ended badly")
        frames = "".join(f'  File "f{n}.py", line {n}, in f\n    f()\n' for n in range(40))
        self.expect(f"Traceback (most recent call last):\n{frames}ValueError: the end\n", "f0.py", "f39.py", "ValueError: the end")

    def test_compilers_errors_are_found(self):
        log = "[1/9] Building x.cc.o\nFAILED: x.cc.o\nx.cc:3:5: error: expected ';'\n    3 | int a\n[2/9] Building y.cc.o\n"
        self.assertEqual(self.expect(log), log.splitlines()[1:4])

    def test_where_room_is_short_the_cause_comes_before_the_rest(self):
        noise = "program: error: as the test wants it\n\n" * 50
        lines = self.expect(noise + GTEST * 30 + PYTHON + TSAN, "data race (pid=7)", "tally_test.cc:41: Failure", "further places")
        self.assertGreater(len(lines), test_report.LINES_PER_TEST // 2)
        self.expect(noise + PYTHON, "AssertionError: 1 != 0")

    def test_output_without_a_reason_shows_its_end(self):
        lines = self.expect("".join(f"line {n}\n\n" for n in range(100)))
        self.assertEqual(lines, [f"line {n}" for n in range(100 - test_report.TAIL_LINES, 100)])

    def test_errors_that_a_test_may_have_wanted_do_not_hide_the_end(self):
        output = "program: error: as the test wants it\n\n" * 50 + "".join(f"line {n}\n" for n in range(100))
        self.assertEqual(self.expect(output, "as the test wants it", end_too=True)[-1], "line 99")
        self.assertNotIn("line 99", self.expect(output))
        self.assertEqual(self.expect(PYTHON, end_too=True)[-1], "AssertionError: 1 != 0 : the server ended badly")

    def test_long_lines_and_colours_are_cut(self):
        lines = self.expect("a.cc:1: Failure\n[NON-XML-CHAR-0x1B][31mred[NON-XML-CHAR-0x1B][0m " + "x" * 5000)
        self.assertEqual(lines[1], ("red " + "x" * 5000)[:test_report.CHARACTERS_MAX])


# A build folder's list of tests, as CMake writes it; ctest is the real one.
TESTS = """
add_test(tally_test "/bin/cat" "{dir}/gtest.txt" "{dir}/missing")
add_test(slow_test "/bin/sh" "-c" "echo waiting for the server; exec sleep 60")
set_tests_properties(slow_test PROPERTIES TIMEOUT 3)
add_test(crash_test "/bin/sh" "-c" "kill -SEGV $$")
add_test(gone_test "{dir}/no-such-program")
add_test(large_test "/bin/sh" "-c" "yes chatter | head -c 9000000; echo 'x.cc:9: Failure'; exit 1")
add_test(good_test "/bin/sh" "-c" "echo 'good.cc:1: Failure, says a test that passes'")
"""


class ScriptTest(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="signvote-report-test-"))
        self.addCleanup(shutil.rmtree, self.dir)
        for file in ("scripts/test", "scripts/lib/test_report.py"):
            (self.dir / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(SOURCE / file, self.dir / file)
        build = self.dir / "build/dev"
        build.mkdir(parents=True)
        (build / "CMakeCache.txt").write_text("LibTorch_CPU_LIBRARY:FILEPATH=/x\nSIGNVOTE_HAS_CUDA:INTERNAL=ON\n")
        (self.dir / "gtest.txt").write_text(GTEST)
        self.tests = build / "CTestTestfile.cmake"
        self.tests.write_text('add_test(good_test "/bin/true")\n')
        self.cmake("true")

    def cmake(self, body):
        path = self.dir / "bin/cmake"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)

    def run_script(self):
        env = {**os.environ, "PATH": f"{self.dir / 'bin'}:{os.environ['PATH']}"}
        for name in ("CTEST_PARALLEL_LEVEL", "CTEST_OUTPUT_ON_FAILURE"):
            env.pop(name, None)
        return subprocess.run([self.dir / "scripts/test", "--quick", "--no-setup", "--jobs", "2"], env=env, text=True,
                              capture_output=True, timeout=100, check=False)

    def test_reasons_stand_between_the_names_and_the_count(self):
        self.tests.write_text(TESTS.format(dir=self.dir))
        result = self.run_script()
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        lines = result.stdout.splitlines()
        self.assertEqual(lines[-1], "3 passed, 5 failed")  # configure, build and good_test passed
        done = next(n for n, line in enumerate(lines) if re.fullmatch(r" *\d+ s  done; processor time.*", line))
        told = "\n".join(lines[done + 1:-1])
        shown = dict(re.findall(r"(?ms)^---- dev-quick: (\w+.*?)\n(.*?)(?=^----|\Z)", told))
        self.assertEqual(set(shown), {"tally_test (Failed)", "slow_test (Timeout)", "crash_test (SEGFAULT)",
                                      "gone_test (Not Run)", "large_test (Failed)"})
        self.assertIn("tests/unit/tally_test.cc:41: Failure", shown["tally_test (Failed)"])
        self.assertIn("Which is: 3", shown["tally_test (Failed)"])
        self.assertIn("waiting for the server", shown["slow_test (Timeout)"])
        self.assertIn("no output", shown["crash_test (SEGFAULT)"])
        self.assertIn("no-such-program", shown["gone_test (Not Run)"])
        self.assertIn("x.cc:9: Failure", shown["large_test (Failed)"])

    def test_a_build_that_fails_shows_its_errors_last(self):
        self.cmake('[ "$1" != --build ] || { echo "x.cc:3:5: error: no such thing"; exit 1; }')
        result = self.run_script()
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        self.assertEqual(result.stdout.splitlines()[-3:],
                         ["---- dev: build", "    x.cc:3:5: error: no such thing", "1 passed, 1 failed"])

    def test_ctest_that_finds_no_tests_is_a_failure_that_says_so(self):
        self.tests.write_text("")
        result = self.run_script()
        self.assertEqual(result.returncode, 1, result.stdout + result.stderr)
        self.assertEqual(result.stdout.splitlines()[-1], "2 passed, 1 failed")
        self.assertIn("No tests were found", result.stdout)

    def test_what_this_machine_does_not_allow_is_told_and_no_failure(self):
        self.tests.write_text("""
add_test(alone_test "/bin/sh" "-c" "echo \\"test_a (x.Y) ... skipped 'no root here'\\"; exit 77")
set_tests_properties(alone_test PROPERTIES SKIP_RETURN_CODE 77)
add_test(silent_test "/bin/sh" "-c" "exit 77")
set_tests_properties(silent_test PROPERTIES SKIP_RETURN_CODE 77)
add_test(good_test "/bin/true")
""")
        result = self.run_script()
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        lines = result.stdout.splitlines()
        self.assertEqual(lines[-1], "3 passed, 0 failed")
        at = lines.index("skipped, 2 of all tests:")
        self.assertEqual(lines[at + 1:at + 3], ["  dev: alone_test: no root here", "  dev: silent_test: no reason given"])

    def test_success_shows_the_count_alone(self):
        result = self.run_script()
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertEqual(result.stdout.splitlines()[-1], "3 passed, 0 failed")
        self.assertNotIn("----", result.stdout)


if __name__ == "__main__":
    unittest.main()
