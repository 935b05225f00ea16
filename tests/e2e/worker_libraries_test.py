#!/usr/bin/env python3
"""A build of the worker's libraries alone, for other languages' bindings, looks for nothing that only programs need. It is
configured and not built: CMake's own file says which targets there are and what they link.

usage: worker_libraries_test.py SOURCE CMAKE CXX_COMPILER GENERATOR
"""

import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

SOURCE, CMAKE, COMPILER, GENERATOR = sys.argv[1:5]
# Whoever asks for one of these as REQUIRED, with them switched off, ends the configuration.
PROGRAMS_ONLY = ["CLI11", "prometheus-cpp", "GTest", "LibTorch"]
MODULES_ONLY = re.compile(r"\bncurses")
LINKED = re.compile(r"ncurses|prometheus|civetweb|CLI11|libtorch|libc10|gtest", re.IGNORECASE)
LIBRARIES = {"signvote_common", "signvote_messages", "signvote_wire", "signvote_codec", "signvote_direction", "signvote_follower",
             "signvote_selftest", "signvote_session", "signvote_worker_vote"}


class WorkerLibrariesTest(unittest.TestCase):
    def setUp(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="signvote-libraries-"))
        self.addCleanup(shutil.rmtree, self.dir)
        self.build = self.dir / "build"
        query = self.build / ".cmake/api/v1/query"
        query.mkdir(parents=True)
        (query / "codemodel-v2").touch()
        # pkg-config with an eye on what it is asked for, and without ncurses.
        self.asked = self.dir / "asked"
        self.asked.touch()
        self.pkg_config = self.dir / "pkg-config"
        self.pkg_config.write_text(f"""#!/bin/sh
echo "$*" >>'{self.asked}'
case "$*" in *ncurses*) exit 1 ;; esac
exec '{shutil.which("pkg-config")}' "$@"
""")
        self.pkg_config.chmod(0o755)

    def configure(self, *options):
        off = [f"-DCMAKE_DISABLE_FIND_PACKAGE_{name}=ON" for name in PROGRAMS_ONLY]
        return subprocess.run(
            [CMAKE, "-S", SOURCE, "-B", str(self.build), "-G", GENERATOR, f"-DCMAKE_CXX_COMPILER={COMPILER}",
             f"-DPKG_CONFIG_EXECUTABLE={self.pkg_config}", "-DSIGNVOTE_WITH_CUDA=OFF", *off, *options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=280)

    def targets(self):
        """Name to what CMake knows of each target."""
        reply = self.build / ".cmake/api/v1/reply"
        model = json.loads(next(reply.glob("codemodel-v2-*.json")).read_text())
        return {target["name"]: json.loads((reply / target["jsonFile"]).read_text())
                for target in model["configurations"][0]["targets"]}

    def test_the_libraries_are_there_and_nothing_of_the_programs_is_looked_for(self):
        done = self.configure("-DSIGNVOTE_WORKER_LIBRARIES_ONLY=ON")
        self.assertEqual(done.returncode, 0, done.stdout[-4000:])
        asked = self.asked.read_text()
        self.assertIn("libxxhash", asked, "pkg-config was not watched")
        self.assertIsNone(MODULES_ONLY.search(asked), asked)
        targets = self.targets()
        self.assertLessEqual(LIBRARIES, set(targets))
        for name, target in targets.items():
            self.assertNotEqual(target["type"], "EXECUTABLE", name)
            for fragment in target.get("link", {}).get("commandFragments", []):
                self.assertIsNone(LINKED.search(fragment["fragment"]), f"{name}: {fragment}")
            for group in target.get("compileGroups", []):
                for include in group.get("includes", []):
                    self.assertIsNone(LINKED.search(include["path"]), f"{name}: {include}")

    def test_a_build_of_everything_looks_for_them(self):
        """That the test above can fail."""
        done = self.configure()
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("CLI11", done.stdout)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
