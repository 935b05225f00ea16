"""Every flag of every program whose value is a file, a folder or an address, given what people mistake for one; on the
command line, in the environment and in a config file.

The programs say themselves which flags those are (`--describe`, "kind"); what shall happen stands in the two tables of
docs/bad_input.md, "What a flag is given". A program that refuses says so in one line that names the flag or what it was
given; one that takes the value ends as it does with a good one. Either way it ends within a bound.
"""

import concurrent.futures
import ctypes
import json
import os
import pathlib
import re
import shutil
import socket
import struct
import subprocess
import unittest

import harness
from harness import BIN, OK, UNAVAILABLE, WAIT_TIMEOUT

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "bad_input.md"
PROGRAMS = ("signvote-server", "signvote-worker", "signvote-lab", "signvote-lab-run", "signvote")
FILE_KINDS = ("file", "path", "folder", "new file", "log", "new folder")
ADDRESS_KINDS = ("dial", "listen", "host")
OTHER_KINDS = ("number", "word", "switch", "text")
LIKE = {"new model": "new file"}  # kinds for which the page has no column of their own
NOT_TRIED, TAKEN = "–", "taken"
BOUND_S = 20 * harness.SLOWNESS
MARK = b"\xef\xbb\xbf"
NO_UTF8 = b"\xff\xe4"
SWEEP = b"tasks = ['logistic']\nrules = ['alias2']\n[run]\nmax-rounds = 1\n"
SCENARIO = b"rounds = 1\n[workers]\ncount = 1\ncoordinates = 1000\n"
PICTURE = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(256))
# What a config file may do to a value that the command line does not; the rest is the same code.
CONFIG_ROWS = ("no value", "an empty folder", "a link to what is good", "`127.0.0.1:PORT`", "`[::1]`", "`http://127.0.0.1:PORT/`")
# Root may read what nobody may, unless it gives that up.
AS_OTHERS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def table(kinds):
    """{row: ({kind: cell}, {flag: cell})} of the page's table of these kinds; the second are its exceptions."""
    head = "| given | " + " | ".join(kinds) + " | but |\n"
    rows = {}
    for line in PAGE.read_text().split(head)[1].splitlines()[1:]:
        if not line.startswith("|"):
            break
        given, *cells, but = [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split(" | ")]
        exceptions = dict(re.findall(r"`(--[a-z-]+|TOML)` (\w+|–)", but))
        rows[given] = (dict(zip(kinds, cells, strict=True)), exceptions)
    return rows


def shown(value):
    """Bytes as a message shows them."""
    text = value.decode("utf-8", "surrogateescape")
    return re.sub(r"[\x00-\x1f]", " ", re.sub(r"[\udc80-\udcff]", "?", text))


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
        return True
    except OSError:
        return False


def http_has_ipv6():
    """What the machine's civetweb says of itself."""
    try:
        return ctypes.CDLL("libcivetweb.so.1").mg_check_feature(8) != 0
    except OSError:  # linked statically, or of another name
        return True


class FlagValues(harness.ProcessTest):
    @classmethod
    def setUpClass(cls):
        cls.files, cls.addresses = table(FILE_KINDS), table(ADDRESS_KINDS)
        programs = [name for name in PROGRAMS if (BIN / name).exists()]
        cls.described = {name: json.loads(subprocess.run([BIN / name, "--describe"], capture_output=True, timeout=60,
                                                         check=True).stdout) for name in programs}

    def setUp(self):
        super().setUp()
        self.certify("a")
        self.places = 0
        # Bound and not listening: whoever dials it is refused, and nobody else gets it.
        self.closed = {}
        for family, host in ((socket.AF_INET, "127.0.0.1"), *([(socket.AF_INET6, "::1")] if has_ipv6() else [])):
            held = socket.socket(family)
            held.bind((host, 0))
            self.addCleanup(held.close)
            self.closed[host] = held.getsockname()[1]
        self.corpus = self.folder / "corpus.txt"
        self.corpus.write_text("".join(f"the sum of {a} and {b} is {a + b}.\n" for a in range(40) for b in range(20)))

    # ---- commands that end by themselves, and what their flags are given when all is well ---------------------------

    def command_of(self, program, option):
        """(words, exit status) of the command in which the flag is tried, without it, and how that ends when all is well."""
        name = option["names"][0]
        mine = self.tls / "workers" / "a"
        if program == "signvote-server":
            flags = {"--listen": "127.0.0.1:0", "--http": "off", "--rounds": "1", "--wait-timeout": "0.05", "--log-level": "error"}
            if name == "--insecure-bind":
                return [BIN / program, "--insecure", *self.words(flags)], WAIT_TIMEOUT
            flags |= {"--tls-ca": self.tls / "ca.crt", "--tls-certificate": self.tls / "server.crt",
                      "--tls-key": self.tls / "server.key", "--tokens": self.tls / "tokens"}
            flags.pop(name, None)
            return [BIN / program, *self.words(flags)], WAIT_TIMEOUT
        dial = {"--server": f"127.0.0.1:{self.closed['127.0.0.1']}"}
        if program == "signvote-worker":
            flags = {**dial, "--tls-dir": mine, "--connect-timeout": "0.1", "--http": "off", "--progress": "off", "--threads": "1",
                     "--model": "micro", "--data": self.corpus, "--batch": "1", "--sequence": "16", "--eval": "off",
                     "--log-level": "error"}
            flags.pop(name, None)
            return [BIN / program, *self.words(flags)], UNAVAILABLE
        sub = option["of"]
        if program == "signvote-lab":
            if sub == "sweep":
                return [BIN / program, "sweep", "--progress", "off", "--jobs", "1",
                        *([] if name == "TOML" else [self.write(self.new_folder() / "sweep.toml", SWEEP)]),
                        *([] if name == "--output" else ["--output", self.new_folder()])], OK
            flags = {"--task": "text", "--data": self.corpus, "--batch": "1", "--max-rounds": "1", "--rule": "fixed", "--eval-every": "0",
                     "--progress": "off", "--log-level": "error"}
            flags.pop(name, None)
            return [BIN / program, sub, *self.words(flags)], OK
        if program == "signvote-lab-run":
            if name == "--out":
                return [BIN / program, "--progress", "off", self.write(self.new_folder() / "run.toml", SCENARIO)], OK
            return [BIN / program, "--dry-run", *([] if name == "TOML" else [self.write(self.new_folder() / "run.toml", SCENARIO)])], OK
        if sub == "certs":
            return [BIN / program, "certs", *([] if name == "DIR" else [self.new_folder() / "certs"])], OK
        if sub in ("verify", "dump", "truncate"):
            return [BIN / program, "journal", sub], OK
        if name == "--journal":
            return [BIN / program, "export", self.new_folder() / "model.safetensors"], OK
        flags = {**dial, "--tls-dir": self.tls, "--timeout": "0.2"}
        flags.pop(name, None)
        return [BIN / program, *self.words(flags), sub or "status"], UNAVAILABLE

    @staticmethod
    def words(flags):
        return [word for name, value in flags.items() for word in (name, value)]

    def good(self, program, name):
        """(bytes of a good file, whether it is text), or the path of a good folder, of a flag that reads."""
        mine = self.tls / "workers" / "a"
        if program == "signvote-lab-run" and name == "TOML":
            return SCENARIO
        role, folder = {"signvote-server": ("server", self.tls), "signvote-worker": ("worker", mine), "signvote-lab": ("worker", mine),
                        "signvote": ("admin", self.tls)}[program]
        header = b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
        values = {
            "--tls-ca": (folder / "ca.crt").read_bytes(), "--tls-certificate": (folder / f"{role}.crt").read_bytes(),
            "--tls-key": (folder / f"{role}.key").read_bytes(), "TOML": SWEEP, "--tokens": (self.tls / "tokens").read_bytes(),
            "--token-file": (mine / "token").read_bytes(), "--data": self.corpus.read_bytes(),
            "--config": b"# of the test\n" + (b"seed = 3\n" if program == "signvote-server" else b"init-seed = 3\n"),
            "--model": json.dumps({"model_type": "llama", "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 1,
                                   "num_attention_heads": 2, "intermediate_size": 96}, indent=1).encode(),
            "--init": struct.pack("<Q", len(header)) + header + struct.pack("<2f", 1, 2),
            "--tls-dir": folder,
        }
        if program == "signvote" and name in ("DIR", "--journal"):
            return self.journal()
        self.assertIn(name, values, f"{program} {name} is new: say here what a good value of it is")
        return values[name]

    def journal(self):
        """The folder of a run of one round."""
        folder = self.folder / "journal"
        if not folder.exists():
            self.start_server("--journal", folder, rounds=1)
            worker = self.start_worker("a", "--coordinates", 1000)
            self.wait_end()
            self.assert_exit(worker, OK)
        return folder

    # ---- what a flag is given ---------------------------------------------------------------------------------------

    def new_folder(self):
        self.places += 1
        folder = self.folder / f"place{self.places}"
        folder.mkdir()
        return folder

    def write(self, path, data):
        with open(path, "wb") as file:
            file.write(data)
        os.chmod(path, 0o600)
        return path

    def copy_good(self, program, option, path):
        """A good value of the flag at `path`: the file or folder, or for one that is written a file that is in the way."""
        kind = option["kind"]
        if kind == "new folder":
            os.mkdir(path)
        elif kind in ("new file", "log"):
            self.write(path, b"what was here before\n")
        elif kind == "folder":
            shutil.copytree(self.good(program, option["names"][0]), os.fsdecode(path))
        else:
            self.write(path, self.good(program, option["names"][0]))
        return path

    def file_value(self, given, program, option):
        """The value of a file flag in the row `given`; None: this row is none of this flag's (a binary file has no lines)."""
        folder = os.fsencode(self.new_folder())
        path = folder + b"/value"
        reads = option["kind"] in ("file", "path")
        if given == "no value":
            return b""
        if given == "nothing of that name, which has two lines and is no UTF-8":
            return folder + b"/none\n" + NO_UTF8
        if given == "something in a folder that is not there":
            return folder + b"/none/value"
        if given == "an empty file":
            return self.write(path, b"")
        if given == "an empty folder":
            os.mkdir(path)
            return path
        if given == "a FIFO":
            os.mkfifo(path, 0o600)
            return path
        if given in ("`/dev/null`", "`/dev/zero`", "`/dev/full`"):
            return given.strip("`").encode()
        if given == "a link to what is good":
            os.symlink(self.copy_good(program, option, folder + b"/good"), path)
            return path
        if given == "a link to nothing":
            os.symlink(folder + b"/none", path)
            return path
        if given == "a loop of links":
            os.symlink(path, path)
            return path
        if given == "what nobody may read or write":
            os.chmod(self.copy_good(program, option, path), 0)
            return path
        if given == "a new name in a folder that nobody may write":
            os.chmod(folder, 0o500)
            return path
        if given == "a picture":
            return self.write(path, PICTURE)
        if given == "a byte-order mark first":
            return self.write(path, MARK + self.good(program, option["names"][0])) if reads else None
        if given == "lines that end as Windows ends them":
            return self.write(path, self.good(program, option["names"][0]).replace(b"\n", b"\r\n")) if reads else None
        if given == "what is good, under a name that is no UTF-8":
            return self.copy_good(program, option, folder + b"/" + NO_UTF8)
        return self.fail(f"the page has a row of which this test knows nothing: {given}")

    def address_value(self, given):
        closed = self.closed
        values = {
            "no value": "", "`127.0.0.1`": "127.0.0.1", "`127.0.0.1:PORT`": f"127.0.0.1:{closed['127.0.0.1']}",
            "`localhost:PORT`": f"localhost:{closed['127.0.0.1']}", "`::1`": "::1", "`[::1]`": "[::1]",
            "`[::1]:PORT`": f"[::1]:{closed.get('::1', 1)}", "`::1:PORT`": f"::1:{closed.get('::1', 1)}",
            "`127.0.0.1:0`": "127.0.0.1:0", "`[::1]:0`": "[::1]:0", "`localhost:0`": "localhost:0",
            "`127.0.0.1:70000`": "127.0.0.1:70000",
            "a name that does not resolve": "no-such-host.invalid", "the same with a port": "no-such-host.invalid:7070",
            "another machine's address with a port": "192.0.2.1:7070", "another machine's address": "192.0.2.1",
            "`http://127.0.0.1:PORT/`": f"http://127.0.0.1:{closed['127.0.0.1']}/",
            "`fe80::1%lo`": "fe80::1%lo", "`fe80::1`": "fe80::1", "`[fe80::1]:PORT`": "[fe80::1]:7070",
            "`[fe80::1%]:PORT`": "[fe80::1%]:7070", "`[fe80::1%lo]:PORT`": "[fe80::1%lo]:7070",
        }
        self.assertIn(given, values, "the page has a row of which this test knows nothing")
        return values[given].encode()

    # ---- running ----------------------------------------------------------------------------------------------------

    def options(self, kinds):
        """(program, option) of each flag and argument of these kinds; option["of"]: its subcommand, or ""."""
        def walk(program, command, of):
            for option in command["options"] + command["positionals"]:
                kind = LIKE.get(option["kind"], option["kind"])
                if kind in kinds:
                    yield program, option | {"of": of, "kind": kind}
            for sub in command["subcommands"]:
                yield from walk(program, sub, sub["name"])
        for program, command in self.described.items():
            yield from walk(program, command, "")

    def check(self, given, program, option, value, cell, way="flag"):
        """What is wrong with what the program does; "": nothing. `way`: where the value stands, "flag", "env" or "config"."""
        name = option["names"][0]
        command, well = self.command_of(program, option)
        words = [os.fsencode(str(word)) for word in command]
        environment = {key: text for key, text in os.environ.items() if not key.startswith("SIGNVOTE_")}
        environment["RES_OPTIONS"] = "timeout:1 attempts:1"
        if way == "env":
            environment[option["env"]] = os.fsdecode(value)
        elif way == "config":
            quoted = json.dumps(os.fsdecode(value))
            words += [b"--config", self.write(os.fsencode(self.new_folder()) + b"/flags.toml",
                                              f"{name.lstrip('-')} = {quoted}\n".encode())]
        else:
            words += ([name.encode()] if name.startswith("-") else []) + [value]
        prefix = AS_OTHERS if "nobody may" in given and os.geteuid() == 0 else []
        what = f"{program} {name} ({way}) with {given}"
        try:
            done = subprocess.run([*prefix, *words], stdin=subprocess.DEVNULL, capture_output=True, timeout=BOUND_S,
                                  env=environment, cwd=self.folder)
        except subprocess.TimeoutExpired:
            return f"{what}: still runs after {BOUND_S:.0f} s"
        said = done.stderr.decode("utf-8", "replace")
        expected = well if cell == TAKEN else int(cell)
        if done.returncode != expected:
            return f"{what}: exit {done.returncode}, not {cell} ({expected}): {said}"
        if said.count("\n") != (1 if expected else 0):
            return f"{what}: says not one line: {said}"
        nothing = way == "env" and not value  # as if it were not there
        if cell != TAKEN and not nothing and name not in said and not (value and shown(value) in said):
            return f"{what}: names neither the flag nor {shown(value)}: {said}"
        return ""

    @staticmethod
    def cell(given, option, cells, exceptions):
        name = option["names"][0]
        if name == "--http" and given in ("`[::1]:PORT`", "`[::1]:0`", "`[fe80::1%lo]:PORT`") and not http_has_ipv6():
            return "2"
        return exceptions.get(name, cells[option["kind"]])

    def cases(self, kinds, rows, value_of, skipped):
        for program, option in self.options(kinds):
            for given, (cells, exceptions) in rows.items():
                cell = self.cell(given, option, cells, exceptions)
                value = None if cell == NOT_TRIED or skipped(given, option) else value_of(given, program, option)
                if value is not None:
                    yield given, program, option, value, cell

    def check_all(self, cases):
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            wrong = [what for what in pool.map(lambda case: self.check(*case), cases) if what]
        self.assertEqual(wrong, [], f"{len(wrong)} of {len(cases)}:\n" + "\n".join(wrong))
        return len(cases)

    def try_all(self, kinds, rows, value_of, skipped=lambda given, option: False):
        self.assertEqual({kind for _, option in self.options(kinds) for kind in [option["kind"]]}, set(kinds))
        return self.check_all(list(self.cases(kinds, rows, value_of, skipped)))

    def tearDown(self):
        for folder, folders, _ in os.walk(self.folder):  # so that it can be removed
            for name in folders:
                os.chmod(os.path.join(folder, name), 0o700)

    def test_each_flag_says_of_what_kind_its_value_is(self):
        every = {kind: 0 for kind in FILE_KINDS + ADDRESS_KINDS + OTHER_KINDS}
        for program, option in self.options(every | {"": 0}):
            self.assertIn(option["kind"], every, f"{program} {option['names']}: give it a Kind (common/flags/flags.h)")
            every[option["kind"]] += 1
        self.assertEqual([kind for kind, count in every.items() if count == 0], [], "kinds that no flag has")
        for program, command in self.described.items():
            self.assertEqual([o["names"] for _, o in self.options({"text", "number"})
                              if re.search(r"\b(FILE|DIR|PATH|PORT|ADDRESS)\b", o["type"])], [], program)

    def test_files_and_folders(self):
        tried = self.try_all(FILE_KINDS, self.files, self.file_value)
        self.assertGreater(tried, 150)

    def test_addresses(self):
        ipv6 = has_ipv6()
        tried = self.try_all(ADDRESS_KINDS, self.addresses, lambda given, program, option: self.address_value(given),
                             skipped=lambda given, option: not ipv6 and "::1" in given and option["kind"] != "dial")
        self.assertGreater(tried, 60)
        if not ipv6:
            self.skipTest("no IPv6 here: its addresses to listen on were left out")


    def every_case(self):
        ipv6 = has_ipv6()
        yield from self.cases(FILE_KINDS, self.files, self.file_value, lambda given, option: False)
        yield from self.cases(ADDRESS_KINDS, self.addresses, lambda given, program, option: self.address_value(given),
                              lambda given, option: not ipv6 and "::1" in given and option["kind"] != "dial")

    def test_values_of_the_environment(self):
        cases = [(*case, "env") for case in self.every_case() if case[2]["env"]]
        self.assertEqual({case[2]["env"] for case in cases}, {"SIGNVOTE_SERVER", "SIGNVOTE_TLS_DIR"})
        self.assertGreater(self.check_all(cases), 20)

    def test_values_of_a_config_file(self):
        with_config = {program for program, option in self.options({"file"}) if option["names"][0] == "--config"}
        cases = [(*case, "config") for case in self.every_case() if case[0] in CONFIG_ROWS and case[1] in with_config and
                 case[2]["names"][0] != "--config"]
        self.assertEqual({case[0] for case in cases}, set(CONFIG_ROWS))
        self.assertGreater(self.check_all(cases), 60 if harness.has_torch() else 30)

    @unittest.skipUnless(harness.has_torch(), "needs LibTorch")
    def test_the_folder_of_libtorch_when_no_corpus_is_named(self):
        """$LIBTORCH has the corpus of who names none."""
        option = {"names": ["LIBTORCH"], "kind": "folder", "env": "LIBTORCH"}
        good = self.new_folder()
        (good / "include").mkdir()
        shutil.copy(self.corpus, good / "include")
        rows = {row: cells for row, cells in self.files.items() if row != "no value"}

        def value(given, program, _):
            if given == "a link to what is good":
                link = self.new_folder() / "link"
                link.symlink_to(good)
                return os.fsencode(link)
            if given == "what is good, under a name that is no UTF-8":
                copy = os.fsencode(self.new_folder()) + b"/" + NO_UTF8
                shutil.copytree(good, os.fsdecode(copy))
                return copy
            return self.file_value(given, program, {"kind": "path", "names": ["--data"]})
        mine = self.tls / "workers" / "a"
        self.command_of = lambda program, _: ([
            BIN / program, "--server", f"127.0.0.1:{self.closed['127.0.0.1']}", "--tls-dir", mine, "--connect-timeout", "0.1",
            "--http", "off", "--progress", "off", "--threads", "1", "--model", "micro", "--batch", "1", "--sequence", "16",
            "--eval", "off", "--log-level", "error"], UNAVAILABLE)
        cases = []
        for given, (cells, _) in rows.items():
            if cells["folder"] != NOT_TRIED and given != "a new name in a folder that nobody may write":
                cases.append((given, "signvote-worker", option, value(given, "signvote-worker", option), cells["folder"], "env"))
        self.assertGreater(self.check_all(cases), 8)


class LibTorch(FlagValues):
    """signvote-libtorch, a script, as it lies in an installation."""

    test_each_flag_says_of_what_kind_its_value_is = test_files_and_folders = test_addresses = None
    test_values_of_the_environment = test_values_of_a_config_file = None
    test_the_folder_of_libtorch_when_no_corpus_is_named = None
    NO_LIBTORCH = 7  # docs/install.md, "LibTorch"

    def setUp(self):
        super().setUp()
        root = PAGE.parents[1]
        self.prefix = self.folder / "prefix"
        for source, folder in (("deploy/package/signvote-libtorch", "bin"), ("scripts/lib/libtorch.sh", "share/signvote"),
                               ("scripts/lib/wheels.sh", "share/signvote")):
            (self.prefix / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(root / source, self.prefix / folder)
        (self.prefix / "lib" / "signvote").mkdir(parents=True)

    def test_the_folder_that_is_linked(self):
        option = {"names": ["--link"], "kind": "folder", "env": ""}
        self.command_of = lambda program, _: ([self.prefix / "bin" / program], OK)
        cases = []
        for given, (cells, _) in self.files.items():
            # A copy of LibTorch to link is install_test's.
            if cells["folder"] in (NOT_TRIED, TAKEN) or given == "a new name in a folder that nobody may write":
                continue
            value = self.file_value(given, "signvote-worker", {"kind": "path", "names": ["--data"]})
            code = cells["folder"] if cells["folder"] == "2" else str(self.NO_LIBTORCH)
            cases.append((given, "signvote-libtorch", option, value, code))
        self.assertGreater(self.check_all(cases), 10)
        self.assertEqual(list((self.prefix / "lib" / "signvote").iterdir()), [])


class Ipv6(harness.ProcessTest):
    @unittest.skipUnless(has_ipv6(), "no IPv6 here")
    def test_a_run_over_it(self):
        self.certify("a")
        self.start_server(rounds=3, listen="[::1]:0")
        flags = self.worker_flags("a")
        flags[flags.index("--server") + 1] = address = f"[::1]:{self.server.ports()['grpc']}"
        code, out, err = self.command("signvote", "--server", address, "--tls-dir", self.tls, "status")
        self.assertEqual(code, OK, out + err)
        worker = self.start("a", [BIN / "signvote-synthetic-worker", *flags, "--report", self.folder / "a.report.json"])
        self.assert_all_end_well([worker])


if __name__ == "__main__":
    harness.run_tests()
