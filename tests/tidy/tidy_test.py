"""The tidy checker finds each planted violation, and nothing in a clean tree."""

import pathlib
import shutil
import tempfile
import unittest

import tidy

CLEAN = {
    "common/a.h": "#pragma once\n// steady_clock::now() in a comment is no call\n",
    "common/a.cc": '#include "common/a.h"\n#include <chrono>\nauto t = std::chrono::steady_clock::now();\n',
    "common/CMakeLists.txt": "signvote_library(common SRCS a.cc)\n",
    "server/round/engine.h": '#pragma once\n#include "server/tally/tally.h"\n#include "common/a.h"\n',
    "server/tally/tally.h": "#pragma once\n",
    "server/rpc/rpc.h": '#pragma once\n#include "signvote/v1/training.pb.h"\n#include "proto/wire/wire.h"\n',
    "proto/wire/wire.h": "#pragma once\n",
    "worker/session/session.h": "#pragma once\n",
    "docs/page.md": "# A page\n\n## Part `one`, of two\n\n[self](#part-one-of-two) [b](other.md#top) [web](https://x.y/z)\n",
    "docs/other.md": "# Top\n![picture](../docs/page.md)\n```\n[not a link](nowhere.md)\n```\n`[nor](this.md)`\n",
    "scripts/run": "#!/bin/sh\necho fine\n",
}


class TidyTest(unittest.TestCase):
    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="signvote-tidy-test-"))
        self.addCleanup(shutil.rmtree, self.root)
        for path, text in CLEAN.items():
            self.plant(path, text)

    def plant(self, path, text):
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def plant_cc(self, path, text):
        """A source that its folder lists, so that only the planted violation is found."""
        self.plant(path, text)
        folder = (self.root / path).parent
        with (folder / "CMakeLists.txt").open("a") as listing:
            listing.write(f"add({(self.root / path).name})\n")

    def found(self):
        return [(f.path, f.line, f.rule) for f in tidy.check(self.root)]

    def expect(self, path, line, rule):
        self.assertEqual(self.found(), [(path, line, rule)], [str(f) for f in tidy.check(self.root)])

    def test_a_clean_tree_has_no_findings(self):
        self.assertEqual(self.found(), [])

    def test_an_include_to_the_right_is_found(self):
        right = [
            ("common/x.h", "proto/wire/wire.h"),
            ("common/x.h", "signvote/v1/training.pb.h"),
            ("proto/wire/x.h", "server/tally/tally.h"),
            ("server/tally/x.h", "server/stepsize/rule.h"),
            ("server/tally/x.h", "server/round/engine.h"),
            ("server/round/x.h", "server/vote/vote.h"),
            ("server/vote/x.h", "server/commit/ring.h"),
            ("server/commit/x.h", "server/replica/replica.h"),
            ("server/replica/x.h", "server/rpc/rpc.h"),
            ("server/http/x.h", "server/rpc/rpc.h"),
            ("server/rpc/x.h", "worker/session/session.h"),
            ("worker/codec/x.h", "worker/direction/direction.h"),
            ("worker/direction/x.h", "worker/session/session.h"),
            ("worker/session/x.h", "worker/models/model.h"),
            ("worker/models/x.h", "worker/data/data.h"),
            ("worker/models/x.h", "worker/train/train.h"),
            ("worker/x.h", "server/round/engine.h"),
            ("ctl/x.h", "server/round/engine.h"),
            ("ctl/x.h", "worker/session/session.h"),
            ("server/x.h", "tests/support/help.h"),
        ]
        for path, included in right:
            with self.subTest(path=path, included=included):
                self.plant(path, f'#pragma once\n#include "{included}"\n')
                self.expect(path, 2, "order")
                (self.root / path).unlink()

    def test_an_include_to_the_left_is_fine(self):
        self.plant("worker/train/x.h", '#pragma once\n#include "worker/models/m.h"\n#include "worker/data/d.h"\n'
                   '#include "common/a.h"\n')
        self.plant("server/x.h", '#pragma once\n#include "server/rpc/rpc.h"\n#include "server/http/h.h"\n')
        self.plant("tests/unit/x.h", '#pragma once\n#include "server/rpc/rpc.h"\n#include "worker/session/session.h"\n')
        self.assertEqual(self.found(), [])

    def test_each_banned_call_is_found_with_its_replacement(self):
        calls = {
            "auto t = std::chrono::steady_clock::now();": ("clock", "Clock"),
            "auto t = system_clock::now();": ("clock", "Clock"),
            "clock_gettime(CLOCK_MONOTONIC, &t);": ("clock", "Clock"),
            "std::this_thread::sleep_for(s);": ("sleep", "SleepFor"),
            "usleep(3);": ("sleep", "SleepFor"),
            "int fd = ::open(path, 0);": ("file", "FileSystem"),
            "FILE* f = fopen(path, mode);": ("file", "FileSystem"),
            "std::ofstream out(path);": ("file", "FileSystem"),
            "std::ifstream in(path);": ("file", "FileSystem"),
            "int x = rand();": ("random", "Rng"),
            "int x = std::rand();": ("random", "Rng"),
            "std::random_device device;": ("random", "Rng"),
            "std::mt19937 generator;": ("random", "Rng"),
            "absl::Mutex mu;": ("mutex", "signvote::Mutex"),
            "std::mutex mu;": ("mutex", "signvote::Mutex"),
            "std::condition_variable cv;": ("mutex", "signvote::Mutex"),
            "throw 3;": ("throw", "absl::Status"),
        }
        for call, (rule, replacement) in calls.items():
            with self.subTest(call=call):
                self.plant("server/round/engine.h", f"#pragma once\n\n{call}\n")
                self.expect("server/round/engine.h", 3, rule)
                self.assertIn(replacement, tidy.check(self.root)[0].text)

    def test_comments_strings_and_lookalikes_are_no_calls(self):
        self.plant("server/round/engine.h", '#pragma once\n// rand() and throw\n/* std::mutex\n absl::Mutex */\n'
                   'const char* s = "fopen(x) \\" rand()";\nint operand(int);\nint y = my::open(3), z = brand(2);\n'
                   'auto r = R"(throw fopen())";\n')
        self.assertEqual(self.found(), [])

    def test_tests_may_open_files_but_not_roll_dice(self):
        self.plant("tests/unit/x.h", "#pragma once\nstd::ofstream out;\n")
        self.assertEqual(self.found(), [])
        self.plant("tests/unit/x.h", "#pragma once\nint x = rand();\n")
        self.expect("tests/unit/x.h", 2, "random")

    def test_an_allowance_needs_the_right_rule_and_a_reason(self):
        line = "std::mutex mu;  // tidy: allow(mutex) gRPC's own interface wants one"
        self.plant("server/round/engine.h", f"#pragma once\n{line}\n")
        self.assertEqual(self.found(), [])
        self.plant("server/round/engine.h", "#pragma once\nstd::mutex mu;  // tidy: allow(mutex)\n")
        self.expect("server/round/engine.h", 2, "mutex")
        self.plant("server/round/engine.h", "#pragma once\nstd::mutex mu;  // tidy: allow(clock) because\n")
        self.expect("server/round/engine.h", 2, "mutex")

    def test_torch_outside_its_folders_is_found(self):
        self.plant("worker/session/session.h", "#pragma once\n#include <torch/torch.h>\n")
        self.expect("worker/session/session.h", 2, "torch")
        self.plant("worker/session/session.h", "#pragma once\n")
        self.plant("worker/models/llama.h", "#pragma once\n#include <ATen/ATen.h>\n")
        self.plant_cc("worker/models/llama.cc", '#include "worker/models/llama.h"\n#include <torch/torch.h>\n')
        self.assertEqual(self.found(), [])
        self.plant_cc("worker/main.cc", '#include "common/a.h"\n#include "worker/models/llama.h"\n')
        self.expect("worker/main.cc", 2, "torch")

    def test_torch_and_grpc_in_one_unit_are_found_even_through_headers(self):
        self.plant_cc("worker/train/x.cc", '#include "worker/session/session.h"\n#include <torch/torch.h>\n')
        self.assertEqual(self.found(), [])
        for header in ("<grpcpp/grpcpp.h>", '"signvote/v1/training.pb.h"', "<google/protobuf/message.h>"):
            self.plant("worker/session/session.h", f"#pragma once\n#include {header}\n")
            self.expect("worker/train/x.cc", 1, "torch")

    def test_a_header_without_pragma_once_is_found(self):
        self.plant("common/b.h", "// words\n#pragma once\n")
        self.expect("common/b.h", 1, "pragma")

    def test_a_source_that_does_not_start_with_its_header_is_found(self):
        self.plant("common/a.cc", '#include <vector>\n#include "common/a.h"\n')
        self.expect("common/a.cc", 1, "self")

    def test_a_source_that_no_list_names_is_found(self):
        self.plant("common/forgotten.cc", "int x;\n")
        self.expect("common/forgotten.cc", 1, "orphan")
        self.plant("CMakeLists.txt", "add(common/forgotten.cc)\n")
        self.assertEqual(self.found(), [])
        self.plant("CMakeLists.txt", "add(common/unforgotten.cc not_common/forgotten.cc)\n")
        self.expect("common/forgotten.cc", 1, "orphan")

    def test_grpc_behind_what_decides_is_found_however_far_away(self):
        self.plant("server/run/CMakeLists.txt", "# The run.\nsignvote_library(run\n  SRCS run.cc\n  DEPS signvote::helper)\n")
        libraries = ("signvote_library(helper HDRS h.h DEPS signvote::common PRIVATE_DEPS signvote::far)\n"
                     "signvote_library(far HDRS f.h DEPS signvote::{})\n")
        self.plant("common/libraries/CMakeLists.txt", libraries.format("messages"))
        self.assertEqual(self.found(), [])
        self.plant("common/libraries/CMakeLists.txt", libraries.format("proto"))
        self.expect("server/run/CMakeLists.txt", 2, "grpc")
        self.plant("server/run/CMakeLists.txt", "")
        self.plant("tests/sim/CMakeLists.txt", "signvote_test(sim SRCS a.cc DEPS signvote::messages gRPC::grpc++)\n")
        self.expect("tests/sim/CMakeLists.txt", 1, "grpc")

    def test_threads_sockets_and_files_inside_the_server_are_found(self):
        self.plant_cc("server/rpc/edge.cc", "#include <sys/socket.h>\nstd::thread t;\n")
        self.plant_cc("server/tokens_file.cc", "FileSystem* fs;\n")
        self.plant_cc("server/run/count.cc", "auto n = std::thread::hardware_concurrency();\n")
        self.assertEqual(self.found(), [])
        for path, text in [("server/run/a.cc", "\nstd::jthread t;\n"), ("server/vote/a.cc", "\n#include <netinet/in.h>\n"),
                           ("server/round/a.cc", "\nFileSystem* fs;\n"),
                           ("server/run/tokens.cc", "\nFileSystem* fs;\n"), ("server/replica/master_replica.cc", "\nFileSystem* fs;\n"), ("server/commit/a.cc", "\n#include <grpcpp/alarm.h>\n")]:
            self.plant_cc(path, text)
            self.assertIn((path, 2, "effect"), self.found())
            (self.root / path).unlink()

    def test_dead_links_and_anchors_are_found(self):
        self.plant("docs/page.md", "# A\n[x](missing.md)\n")
        self.expect("docs/page.md", 2, "link")
        self.plant("docs/page.md", "# A\n![x](missing.png)\n")
        self.expect("docs/page.md", 2, "link")
        self.plant("docs/page.md", "# A\n\n[x](other.md#bottom)\n")
        self.expect("docs/page.md", 3, "link")
        self.plant("docs/page.md", "# A\n\n[x](#b)\n")
        self.expect("docs/page.md", 3, "link")
        self.plant("README.md", "[x](docs/page.md#a)\n")
        self.plant("docs/page.md", "# A\n")
        self.assertEqual(self.found(), [])

    def test_tests_and_paths_that_a_page_names_must_exist(self):
        self.plant_cc("tests/unit/a_test.cc", "TEST(ATest, Works) {\n}\nTEST_F(Vote, Counts) {\n}\n")
        self.plant("tests/e2e/run_test.py", "")
        self.plant("docs/page.md", "`ATest` `ATest.Works` `Vote.Counts` `e2e_run_test` `tests/e2e/run_test.py` `common/`\n"
                   "`server/rules/NAME.cc` `Other.Word` `a/b.cc`\n```\n`BTest`\n```\n")
        self.assertEqual(self.found(), [])
        for word in ("BTest", "ATest.Fails", "Vote.Miscounts", "e2e_walk_test", "tests/e2e/walk_test.py", "common/b.h"):
            self.plant("docs/page.md", f"# A\n`{word}`\n")
            self.expect("docs/page.md", 2, "name")

    def test_paths_of_one_machine_are_found_in_any_text(self):
        for path in ("docs/page.md", "scripts/run", "common/a.h", "CMakePresets.json"):
            before = CLEAN.get(path, "{}\n")
            self.plant(path, before + "see /" + "work/main\n")
            self.expect(path, before.count("\n") + 1, "path")
            self.plant(path, before)
        self.plant("docs/page.md", "network/x and /" + "tmp/x are fine\n")
        self.assertEqual(self.found(), [])
        for path in ("tmp/some/file", "root/x", "home/me"):
            self.plant("docs/page.md", f"/{path}\n")
            self.expect("docs/page.md", 1, "path")

    def test_unfinished_marks_are_found_unless_they_say_when_they_end(self):
        self.plant("common/a.h", "#pragma once\n// TO" + "DO later\n")
        self.expect("common/a.h", 2, "unfinished")
        self.plant("common/a.h", "#pragma once\n// FIX" + "ME\n")
        self.expect("common/a.h", 2, "unfinished")
        self.plant("common/a.h", "#pragma once\n// TO" + "DO(journal): when the format has a version 2\n")
        self.assertEqual(self.found(), [])

    def test_exit_codes_that_the_page_does_not_repeat_are_found(self):
        self.plant("common/exit_codes.h", "#pragma once\nenum class ExitCode : int {\n  kOk = 0,  // x\n  kBad = 1,\n};\n")
        table = "# A\n\n## Exit codes\n\n| code | name |\n|---|---|\n| 0 | kOk |\n"
        self.plant("docs/operations.md", table + "| 1 | kBad |\n\n## Next\n\n| 7 | kNot |\n")
        self.assertEqual(self.found(), [])
        for rest in ("", "| 1 | kGood |\n", "| 1 | kBad |\n| 2 | kMore |\n"):
            self.plant("docs/operations.md", table + rest)
            self.expect("docs/operations.md", 1, "exit")

    def test_fields_without_a_comment_are_found(self):
        head = 'syntax = "proto3";\nmessage M {\n  uint64 a = 1;  // seconds\n  // of the run\n  repeated M b = 2;\n'
        self.plant("proto/a.proto", head + "}\n")
        self.assertEqual(self.found(), [])
        for field in ("uint64 c = 3;", "optional a.b.M c = 3;", "  KIND_C = 3;"):
            self.plant("proto/a.proto", head + f"  {field}\n}}\n")
            self.expect("proto/a.proto", 6, "proto")

    def test_types_with_too_much_data_are_found(self):
        inner = "  struct Inner {\n" + "    int x;\n" * 25 + "  } inner_;\n"
        head = "#pragma once\nclass A final : public B<C, D> {\n public:\n  static int made;\n  void F(int a) const { int b = 1; int c; }\n" + inner
        tail = "};\n"
        self.plant("server/vote/a.h", head + "  int x = 1;\n" * 24 + tail)
        self.assertEqual(self.found(), [])
        for members in (1, 2):
            self.plant("server/vote/a.h", head + "  int x = 1;\n" * (24 + members) + tail)
            self.expect("server/vote/a.h", 2, "members")
        self.plant("server/vote/a.h", head.replace(inner, inner.replace("int x;", "int x, y;", 1)) + tail)
        self.expect("server/vote/a.h", 6, "members")
        self.plant("server/vote/a.h", "#pragma once\n")
        self.plant("tests/a.h", head + "  int x = 1;\n" * 25 + tail)  # fixtures hold what they hold
        self.assertEqual(self.found(), [])

    def test_two_types_of_one_name_in_a_namespace_are_found(self):
        def text(namespace, kind="struct"):
            return f"#pragma once\nnamespace {namespace} {{\n{kind} Totals {{\n  int x;\n}};\n}}\n"
        self.plant("server/vote/a.h", text("signvote::vote"))
        for other in ("signvote", "signvote::vote { namespace deeper"):
            self.plant("worker/data/a.h", text(other) + ("}\n" if "deeper" in other else ""))
            self.assertEqual(self.found(), [])
        self.plant_cc("worker/data/b.cc", text("signvote::vote { namespace").replace("#pragma once\n", "\n") + "}\n")
        self.plant("worker/data/a.h", "#pragma once\nnamespace signvote::vote {\nstruct Totals;\nvoid Totals(int x);\n}\n")
        self.assertEqual(self.found(), [])
        for kind in ("struct", "class alignas(8)", "template <typename T>\nclass"):
            self.plant("worker/data/a.h", text("signvote::vote", kind))
            self.expect("worker/data/a.h", 3 + kind.count("\n"), "twice")

    def test_a_long_main_is_found(self):
        self.plant_cc("ctl/main.cc", "int x;\n" * 59)
        self.assertEqual(self.found(), [])
        self.plant("ctl/main.cc", "int x;\n" * 60)
        self.expect("ctl/main.cc", 60, "main")

    def test_the_version_of_torch_has_one_home(self):
        self.plant("scripts/lib/libtorch.sh", "#!/bin/bash\nreadonly TORCH_VERSION=3.1.4\n")
        self.plant("docs/install.md", "pip install torch==3.1.4\n")
        self.plant("scripts/other", "#!/bin/sh\necho 13.1.4 3.1.45 3.1.4.1\n")
        self.assertEqual(self.found(), [])
        self.plant("docs/install.md", "pip install torch==3.1.3\n")
        self.expect("docs/install.md", 1, "torch")
        self.plant("docs/install.md", "")
        self.plant("scripts/other", "#!/bin/sh\necho torch-3.1.4\n")
        self.expect("scripts/other", 2, "torch")

    def test_prose_over_120_columns_is_found_where_it_can_be_broken(self):
        words = "word " * 24  # 120 columns and a space
        for line in ("| " + words * 2 + "|", "# " + words * 2, "<p " + words * 2 + ">", "[web]: https://x.y/" + "z" * 120 + " 'of it'",
                     words.strip(), "* [" + words + "](https://x.y/z)", "1. `" + words + "`", "> " + "w" * 130 + " word",
                     "    " + words * 2):
            with self.subTest(line=line):
                self.plant("docs/page.md", f"# A page\n\n## Part `one`, of two\n\n```\n{words * 2}\n```\n\n{line}\n")
                self.assertEqual(self.found(), [])
        for line in (words + "w", "  * " + words, "1. " + words, "> " + words + words, "a `" + "w" * 117 + "` word"):
            with self.subTest(line=line):
                self.plant("docs/page.md", f"# A page\n\n## Part `one`, of two\n\n{line}\n")
                self.expect("docs/page.md", 5, "prose")

    def test_long_files_are_found(self):
        self.plant("common/a.h", "#pragma once\n" + "int x;\n" * 799)
        self.assertEqual(self.found(), [])
        self.plant("common/a.h", "#pragma once\n" + "int x;\n" * 800)
        self.expect("common/a.h", 801, "length")

    def test_build_folders_are_not_read(self):
        self.plant("build/dev/x.h", "no pragma\n")
        self.plant("out/x.h", "no pragma\n")
        self.assertEqual(self.found(), [])

    def test_the_command_tells_findings_and_exit_status(self):
        import subprocess
        import sys
        command = [sys.executable, str(pathlib.Path(tidy.__file__)), str(self.root)]
        clean = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual((clean.returncode, clean.stdout), (0, "tidy: clean\n"))
        self.plant("common/b.h", "")
        dirty = subprocess.run(command, capture_output=True, text=True, check=False)
        self.assertEqual(dirty.returncode, 1)
        self.assertIn("common/b.h:1: [pragma]", dirty.stdout)
        self.assertIn("tidy: 1 findings", dirty.stdout)

    def test_a_message_that_no_test_of_its_row_expects_is_found(self):
        self.plant_cc("tests/unit/a_test.cc", 'TEST(ATest, Refuses) {\n  Expect("\\"key\\" is "\n         "missing");\n}\n')
        self.plant("tests/e2e/b_test.py", 'print("no such file")\n')
        head = "| input | ends with | message | test |\n|---|---|---|---|\n"
        good = '| x | exit 3 | `"key" is missing`, `no such` | `ATest.Refuses`, `e2e_b_test` |\n| y | taken | | `ATest` |\n'
        self.plant("docs/bad_input.md", head + good)
        self.assertEqual(self.found(), [])
        self.plant("docs/bad_input.md", head + good + "| z | exit 3 | `no such file` | `ATest.Refuses` |\n")
        self.expect("docs/bad_input.md", 5, "message")

    def test_a_name_that_a_python_file_defines_nowhere_is_found(self):
        missing = {
            "import os\nprint(os.sep, struct.calcsize('<Q'))\n": 2,
            "def f(x):\n    return [y + z for y in x]\n": 2,
            "class A:\n    def f(self):\n        return lambda: base64.b64encode(self)\n": 3,
            "def f():\n    import json\n\n\ndef g():\n    return json.loads('1')\n": 6,
            "x: Finding = None\n": 1,
        }
        for text, line in missing.items():
            for path, head in (("tests/e2e/x_test.py", ""), ("scripts/x", "#!/usr/bin/env python3\n")):
                with self.subTest(text=text, path=path):
                    self.plant(path, head + text)
                    self.expect(path, line + head.count("\n"), "undefined")
                    (self.root / path).unlink()

    def test_names_that_python_or_the_file_defines_are_fine(self):
        self.plant("tests/e2e/x_test.py", '''import os.path as where
from json import loads

def f(x, *rest, key=None, **more):
    global later
    later = [y for y in rest if (z := y)]
    try:
        with open(where.join(__file__, x)) as file:
            return loads(file.read()), key, more
    except OSError as error:
        return lambda n: (n, error, Other.size, z)


class Other:
    size = 3
    half = size / 2


if __name__ == "__main__":
    print(f("a"), later, f"{Other.half}")
''')
        self.plant("tests/e2e/y_test.py", "from x_test import *\nprint(whatever)\n")
        self.assertEqual(self.found(), [])

    def test_a_python_file_that_is_none_is_found(self):
        self.plant("tests/e2e/x_test.py", "def f(:\n")
        self.expect("tests/e2e/x_test.py", 1, "undefined")


if __name__ == "__main__":
    unittest.main()
