"""README.md's section about other machines, executed literally: every shell block, on the machine that its first line names.

A machine is a network namespace with a home folder and a clone of the repository of its own (the committed state of this
checkout). The test adds only what a machine has by itself: names that resolve, ~/corpus, a cache folder that knows LibTorch and
ccache's objects; and it copies the folders that the text says to copy.

One clone is built, by the workers' commands and then the server's, and the workers begin with copies of it from between the two,
each at the same path, as on a disk of its own: there the commands find nothing left to compile, and the test sees that they did
not. And nothing is compiled that the dev preset has compiled: the compiler optimises as dev does, whatever it is told, so that ccache knows every object. Commands,
targets and programs are those of the text; what the compiler makes of release's own options is for `scripts/test --preset
release`.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import harness
import hosts

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECTION = "Attach workers on other machines"
SERVER = "train.example.net"
WORKERS = ("alice", "bob")
BUILD_SECONDS_MAX = 1500  # from nothing, without one object in ccache
RELEASE_OPTIONS = ("-O3", "-DNDEBUG")  # CMake's own for the release preset
ROUNDS_MIN = 3


def shell_blocks(text, section):
    """The section's shell blocks, by the comment that begins each; raises when one has none."""
    found = re.search(rf"^## {re.escape(section)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise AssertionError(f"README.md has no section '{section}'")
    blocks = {}
    for block in re.findall(r"^```sh\n(.*?)^```$", found.group(1), re.MULTILINE | re.DOTALL):
        where = re.match(r"# (on .*)\n", block)
        if not where:
            raise AssertionError(f"a shell block of '{section}' does not begin with the machine it is for:\n{block}")
        blocks[where.group(1)] = block
    return blocks


def build_commands(block):
    """The block's lines up to the last that builds."""
    lines = block.splitlines()
    built = [number for number, line in enumerate(lines) if re.search(r"\bninja\b", line)]
    if not built:
        raise AssertionError(f"nothing is built in\n{block}")
    return "".join(f"{line}\n" for line in lines[:built[-1] + 1])


class Blocks(unittest.TestCase):
    def test_what_builds_is_the_beginning_of_a_block(self):
        self.assertEqual(build_commands("# on x\nscripts/setup\nninja a\nbin/a --flag\n"), "# on x\nscripts/setup\nninja a\n")
        with self.assertRaisesRegex(AssertionError, "nothing is built"):
            build_commands("# on x\nls\n")

    def test_a_block_belongs_to_the_machine_in_its_first_line(self):
        text = "## A\n```sh\n# on x\none\n```\n## B\n```sh\n# on y\ntwo\n```\n"
        self.assertEqual(shell_blocks(text, "B"), {"on y": "# on y\ntwo\n"})
        with self.assertRaisesRegex(AssertionError, "does not begin with the machine"):
            shell_blocks("## A\n```sh\nls\n```\n", "A")
        with self.assertRaisesRegex(AssertionError, "no section"):
            shell_blocks(text, "C")

    def test_a_machine_compiles_as_dev_does(self):
        calls = tempfile.NamedTemporaryFile("r")
        self.addCleanup(calls.close)
        script = compiler_launcher({"configurePresets": [{"name": "dev", "cacheVariables": {
            "CMAKE_BUILD_TYPE": "RelWithDebInfo", "CMAKE_CXX_FLAGS_RELWITHDEBINFO": "-O2 -g1"}}]}, calls.name).replace(
                "exec ccache", "exec echo")
        done = subprocess.run(["bash", "-c", script, "compile", "c++", "-O3", "-DNDEBUG", "-c", "a b.cc"], capture_output=True,
                              text=True, check=True)
        self.assertEqual(done.stdout, "c++ -O2 -g1 -c a b.cc\n")
        done = subprocess.run(["bash", "-c", script, "compile", "/cuda/bin/nvcc", "-O3", "a.cu"], capture_output=True, text=True,
                              check=True)
        self.assertEqual(done.stdout, "/cuda/bin/nvcc -O3 a.cu\n")
        self.assertEqual(calls.read(), "c++ -O3 -DNDEBUG -c a b.cc\n/cuda/bin/nvcc -O3 a.cu\n")


def compiler_launcher(presets, calls):
    """A script that compiles with dev's options where release's are asked for, and adds a line to the file `calls`."""
    dev = next(preset for preset in presets["configurePresets"] if preset["name"] == "dev")["cacheVariables"]
    options = dev[f"CMAKE_CXX_FLAGS_{dev['CMAKE_BUILD_TYPE'].upper()}"]
    # nvcc has optimisation levels of its own.
    return (f"#!/bin/bash\necho \"$*\" >>{calls}\n"
            "[ \"${1##*/}\" != nvcc ] || exec ccache \"$@\"\ncall=()\nfor word in \"$@\"; do\n  case \"$word\" in\n"
            f"    {RELEASE_OPTIONS[0]}) call+=({options}) ;;\n    {RELEASE_OPTIONS[1]}) ;;\n"
            "    *) call+=(\"$word\") ;;\n  esac\ndone\nexec ccache \"${call[@]}\"\n")


@unittest.skipUnless(harness.has_torch(), "needs LibTorch")
class Readme(hosts.HostsTest):
    def setUp(self):
        super().setUp()
        caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
        ccache = subprocess.run(["ccache", "--get-config", "cache_dir"], capture_output=True, text=True, check=True)
        # What git asks for where the checkout belongs to somebody else.
        (self.folder / "gitconfig").write_text("[safe]\n\tdirectory = *\n")
        launcher = self.folder / "compile"
        self.calls = self.folder / "compiled"
        self.calls.touch()
        launcher.write_text(compiler_launcher(json.loads((ROOT / "CMakePresets.json").read_text()), self.calls))
        launcher.chmod(0o755)
        self.environment = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "XDG_CACHE_HOME": str(caches),
                            "CMAKE_CXX_COMPILER_LAUNCHER": str(launcher), "CCACHE_DIR": ccache.stdout.strip(), "CCACHE_NOHASHDIR": "1",
                            "GIT_CONFIG_GLOBAL": str(self.folder / "gitconfig")}
        for name in ("LIBTORCH", "TMPDIR"):
            if name in os.environ:
                self.environment[name] = os.environ[name]

    def give_disk(self, machine):
        """The machine's own home, where every machine has it; returns the folder as this test sees it."""
        disk = self.folder / f"disk-{machine}"
        disk.mkdir(exist_ok=True)
        self.home.mkdir(exist_ok=True)
        self.network[machine].do("mount", "--bind", disk, self.home)
        return disk

    def build_once(self, machine, commands):
        """A clone on the machine's disk, built there by these commands."""
        disk = self.give_disk(machine)
        done = subprocess.run(["git", "clone", "--quiet", ROOT, disk / "signvote"], env=self.environment, capture_output=True,
                              text=True, timeout=120)
        self.assertEqual(done.returncode, 0, f"cannot clone {ROOT}: {done.stderr}")
        terminal = self.type_in(machine, "build", commands)
        self.assert_exit(terminal, harness.OK, timeout=BUILD_SECONDS_MAX)
        return disk

    def compiled(self):
        return [line for line in self.calls.read_text().splitlines() if "CMakeScratch" not in line and "CMakeTmp" not in line]

    def type_in(self, machine, title, block):
        """A terminal on the machine into which the block is typed. Its processes end with it: they live in its namespace.
        The `exit` keeps the last command from taking the shell's place as that namespace's first process, which Ctrl-C spares."""
        return self.start_on(self.network[machine], title, [
            "unshare", "--pid", "--fork", "--kill-child", "--mount-proc", "env", "-i", "--default-signal=INT",
            f"--chdir={self.home / 'signvote'}",
            *[f"{name}={value}" for name, value in self.environment.items()], f"HOME={self.home}",
            f"CCACHE_BASEDIR={self.home / 'signvote'}", "bash", "-c", f"{block}exit\n"])

    @staticmethod
    def interrupt(terminal):
        """Ctrl-C: every process of the terminal hears of it."""
        os.killpg(terminal.pid, signal.SIGINT)

    def wait_for_text(self, process, text, timeout):
        def there():
            if text in process.log():
                return True
            self.assertTrue(process.alive, f"{process.name} ended with {process.popen.returncode} before it said '{text}'")
            return False
        begin = time.monotonic()
        self.wait_until(f"{process.name} says '{text}'", there, timeout, poll=0.2)
        return time.monotonic() - begin

    def test_the_section_about_other_machines_works_as_it_stands(self):
        blocks = shell_blocks((ROOT / "README.md").read_text(), SECTION)
        self.assertEqual(list(blocks), ["on train.example.net", "on alice's machine and on bob's",
                                        "on train.example.net, in another terminal"])
        serve, work, watch = blocks.values()
        self.network = self.connect(SERVER, *WORKERS)
        self.home = self.folder / "home"
        begin = time.monotonic()
        built = self.build_once(SERVER, build_commands(work))
        print(f"the workers' programs are built in {time.monotonic() - begin:.0f} s", flush=True)
        disks = {}
        for name in WORKERS:
            disks[name] = self.give_disk(name)
            done = subprocess.run(["cp", "-a", "--reflink=auto", built / "signvote", disks[name]], capture_output=True, text=True)
            self.assertEqual(done.returncode, 0, done.stderr)
        checkout = built / "signvote"
        server = self.type_in(SERVER, "server", serve)
        seconds = self.wait_for_text(server, " listening ", BUILD_SECONDS_MAX)
        print(f"the server serves {seconds:.0f} s after its first command", flush=True)
        once = self.compiled()
        self.assertTrue(once, "the compiler was never called through the launcher")

        terminals = []
        for name in WORKERS:
            theirs = disks[name] / "signvote"
            shutil.copytree(checkout / "certs/workers" / name, theirs / "identity")
            corpus = theirs.parent / "corpus"
            corpus.mkdir()
            for number in range(3):
                (corpus / f"{number}.txt").write_text(
                    "".join(f"{name} writes: the sum of {a} and {number} is {a + number}.\n" for a in range(3000)))
            terminals.append(self.type_in(name, name, work))
            seconds = self.wait_for_text(terminals[-1], "model name=nano", BUILD_SECONDS_MAX)
            print(f"{name}'s worker starts {seconds:.0f} s after its first command", flush=True)

        def running():
            terminal = self.type_in(SERVER, "watch", watch)
            # `status` prints a table of two workers at most and ends; what follows it is `top`, until Ctrl-C.
            self.wait_until("the run is shown", lambda: re.search(r"^worker +role.*\n(?:.*\n){4}", terminal.log(), re.MULTILINE))
            self.interrupt(terminal)
            self.assert_exit(terminal, harness.OK)
            table = terminal.log()
            committed = re.search(r"^main +([\d,]+) of 20,000", table, re.MULTILINE)
            self.assertTrue(committed, table)
            raced = re.search(r"^race .*?([\d,]+)(?: of at most [\d,]+)? rounds", table, re.MULTILINE)
            rounds = sum(int(found.group(1).replace(",", "")) for found in (committed, raced) if found)
            return rounds >= ROUNDS_MIN and all(re.search(rf"^{name} +member ", table, re.MULTILINE) for name in WORKERS)
        self.wait_until("both are members and rounds are committed", running, timeout=120, poll=2)

        for terminal in terminals:
            self.interrupt(terminal)
            self.assert_exit(terminal, harness.OK, timeout=60)
            self.assertIn("outcome=drained", terminal.log())
        self.interrupt(server)
        self.assert_exit(server, harness.OK, timeout=60)
        self.assertTrue((checkout / "model.safetensors").exists(), "the server exported the model")
        self.assertEqual(self.compiled(), once, "the machines compiled something again")


if __name__ == "__main__":
    hosts.main()
