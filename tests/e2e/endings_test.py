"""However a program ends, what was trained is kept: signals, lost servers, refusals, disks that do not take it.

The table of signals in docs/operations.md is walked: what it says happens.
"""

import array
import itertools
import json
import os
import pathlib
import pty
import re
import select
import signal
import socket
import threading
import time
import unittest

import harness
from harness import BAD_INPUT, BIN, FOREVER, OK, REFUSED, UNAVAILABLE, USAGE, metadata, timed, values

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROGRAMS = ("server", "worker")
STOP_SECONDS_MAX = 15  # docs/operations.md, "Stopping"
COORDINATES = 8_000_000  # 32 MB: more than sockets hold


def damage(pid, parameters):
    """A bit of a process's replica flips in its memory, wherever these bytes lie."""
    found = 0
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for first, end in touched_memory(pid):
            memory.seek(first)
            at, data = -1, memory.read(end - first)
            while (at := data.find(parameters, at + 1)) >= 0:
                memory.seek(first + at)
                memory.write(bytes([parameters[0] ^ 1]))
                found += 1
    assert found, "the replica is not where it was looked for"


def touched_memory(pid):
    """(first, end) of what a process has written to."""
    page = os.sysconf("SC_PAGE_SIZE")
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pages:
        for line in maps:
            area, mode = line.split()[:2]
            if not mode.startswith("rw"):
                continue
            at, end = (int(n, 16) for n in area.split("-"))
            pages.seek(at // page * 8)
            for present, run in itertools.groupby(array.array("Q", pages.read((end - at) // page * 8)), lambda entry: entry >> 63):
                first, at = at, at + page * sum(1 for _ in run)
                if present:
                    yield first, at


class Valve:
    """A port that passes connections on to another one, until it has passed `bytes_max` of one connection in one direction,
    "up" to that port or "down" from it: whatever follows waits, the other way too."""

    def __init__(self, test, address, direction, bytes_max):
        host, port = address.rsplit(":", 1)
        self.target, self.direction, self.bytes_max = (host, int(port)), direction, bytes_max
        self.shut, self.held = threading.Event(), []
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listening.getsockname()[1]}"
        self.ended = os.pipe()
        thread = threading.Thread(target=self.run)
        thread.start()

        def end():
            os.close(self.ended[1])
            thread.join()
            os.close(self.ended[0])
        test.addCleanup(end)

    def run(self):
        peers, passed = {}, {}  # of each socket: the one that its bytes go to, and how many did
        while True:
            readable = select.select([self.listening, self.ended[0], *peers], [], [])[0]
            if self.ended[0] in readable:
                break
            for one in readable:
                if one is self.listening:
                    near = one.accept()[0]
                    try:
                        far = socket.create_connection(self.target)
                    except OSError:  # it has ended
                        near.close()
                        continue
                    peers |= {near: far, far: near}
                    passed |= {near: (0, "up"), far: (0, "down")}
                    continue
                if one not in peers:
                    continue  # its other end has just gone
                other, (count, direction) = peers[one], passed[one]
                try:
                    data = one.recv(1 << 16)
                    other.sendall(data)
                except OSError:
                    data = b""
                passed[one] = count + len(data), direction
                if not data:
                    for gone in (one, other):
                        peers.pop(gone)
                        gone.close()
                elif direction == self.direction and passed[one][0] > self.bytes_max:
                    peers.pop(one), peers.pop(other)  # open, and nobody looks at them any more
                    self.held += one, other
                    self.shut.set()
        for one in [self.listening, *peers, *self.held]:
            one.close()


def signal_table():
    """{program: {signal: first word of what it does}} of the page."""
    page = (ROOT / "docs" / "operations.md").read_text()
    section = page[page.index("### Signals"):]
    rows = {program: {} for program in PROGRAMS}
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if len(cells) != 3 or not cells[0].startswith("SIG"):
            continue
        for name in cells[0].split(", "):
            for program, cell in zip(PROGRAMS, cells[1:]):
                rows[program][name.removeprefix("SIG")] = re.match(r"\w+", cell).group()
    return rows


class Table(unittest.TestCase):
    def test_the_page_says_what_each_signal_does(self):
        wanted = {"INT", "TERM", "QUIT", "HUP", "XCPU", "USR1", "USR2", "PIPE", "XFSZ"}
        for program, rows in signal_table().items():
            self.assertEqual(set(rows), wanted, program)
            self.assertLessEqual(set(rows.values()), {"stops", "copies", "reopens", "ignored"}, program)


class ServerEndings(harness.ProcessTest):
    insecure = True

    def setUp(self):
        super().setUp()
        self.certify("a")

    def start_with_export(self, name, *flags, rounds=FOREVER):
        folder = self.folder / name
        folder.mkdir()
        self.export = folder / "model.safetensors"
        self.start_server("--export", self.export, *flags, rounds=rounds, name=name)

    def assert_holds_the_last_round(self):
        self.assertEqual(int(metadata(self.export)["signvote.round"]), len(self.rounds()))

    def logged(self, text, timeout=30):
        self.wait_until(f"the server says '{text}'", lambda: text in self.server.log(), timeout)

    def an_event_is_logged(self):
        for command in ("pause", "resume"):
            self.assertEqual(self.ctl(command)[0], OK)
        return self.lines(self.event_log)

    def phases(self):
        """(phase, how a server gets there, whether it then holds a model)."""
        def waiting(name):
            self.start_with_export(name)

        def training(name):
            self.start_with_export(name)
            self.start_worker("a", "--compute-ms", 10, "--server-timeout", 1)
            self.wait_round(3)

        def paused(name):
            training(name)
            self.pause()
        return [("waiting", waiting, False), ("training", training, True), ("paused", paused, True)]

    def stop_server(self, number=signal.SIGTERM, timeout=60):
        """(exit status, seconds that it took)."""
        begin = time.monotonic()
        self.server.signal(number)
        return self.server.wait(timeout), time.monotonic() - begin

    def open_round_and_transfer(self, *flags):
        """A round that nobody completes, and a state transfer whose reader reads nothing."""
        self.start_server("--deadline", "off", *flags, rounds=FOREVER)
        self.start_worker("a", "--coordinates", COORDINATES, "--compute-ms", 600_000, "--server-timeout", 1)
        self.wait_until("the round is open", lambda: (self.worker_status("a") or {}).get("role") == "member")
        reader = self.start("raw", [BIN / "raw_client", "--scenario", "hold-fetch", *self.worker_flags("b"),
                                    "--coordinates", COORDINATES, "--timeout", 600])
        self.wait_until("the transfer is under way", lambda: "HOLDS a fetch" in reader.log())

    def busy_phases(self):
        """(phase, how a server gets there, with an export at self.export; whether a model is written)."""
        def round_and_transfer():
            self.open_round_and_transfer("--export", self.export)

        def far_behind():
            self.start_server("--export", self.export, "--test-applier-delay-ms", 60_000, rounds=FOREVER)
            self.start_worker("a", "--compute-ms", 10, "--server-timeout", 1)
            self.wait_round(3)

        def uploading():
            self.start_server("--export", self.export, rounds=FOREVER)
            valve = Valve(self, self.server.address, "up", 1 << 20)
            flags = self.worker_flags("a")
            flags[flags.index("--server") + 1] = valve.address
            self.start("a", [BIN / "synthetic_worker", *flags, "--coordinates", COORDINATES, "--server-timeout", 1])
            self.assertTrue(valve.shut.wait(60 * harness.SLOWNESS), self.server.log())
            self.logged("initial parameters come from a worker")

        return [("a round that nobody completes and a transfer that nobody reads", round_and_transfer, True),
                ("an applier that is far behind", far_behind, True),
                ("an upload that stands still", uploading, False)]

    @timed
    def test_a_stop_ends_the_server_in_time_also_when_nobody_else_moves(self):
        self.certify("b")
        took = {}
        for number, (phase, reach, has_model) in enumerate(self.busy_phases()):
            with self.subTest(phase=phase):
                self.export = self.folder / f"busy-{number}-{len(self.processes)}.safetensors"
                reach()
                code, took[phase] = self.stop_server()
                self.assertEqual(code, OK, self.server.log())
                self.assertEqual(self.export.exists(), has_model)
                self.start_over()
        print("".join(f"{seconds:.1f} s: {phase}\n" for phase, seconds in took.items()), end="", flush=True)
        self.assert_in_time(max(took.values()) <= STOP_SECONDS_MAX, f"a stop took {took}")

    def reading_init(self):
        """A server that is stopped while it reads its --init."""
        header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 28], "data_offsets": [0, 1 << 30]}}).encode()
        init = self.folder / "init.safetensors"
        with init.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + (1 << 30))  # zeros that take no room
        for attempt in range(5):
            port_file = self.folder / f"ports.init.{len(self.processes)}.json"
            self.event_log = self.folder / f"events.init.{len(self.processes)}.jsonl"
            self.server = self.start("server", [
                BIN / "signvote-server", "--listen", "127.0.0.1:0", "--http", "off", "--port-file", port_file, "--rounds", FOREVER,
                "--tokens", self.tls / "tokens", "--init", init, "--export", self.export, "--event-log", self.event_log,
                *self.server_flags()], harness.Server)
            self.server.port_file = port_file
            maps = pathlib.Path(f"/proc/{self.server.pid}/maps")
            while self.server.alive and str(init) not in maps.read_text() and not port_file.exists():
                time.sleep(0.001)
            harness.stop(self.server)
            if self.server.alive and not port_file.exists():
                return
            self.server.kill()  # it had read all of it before it was stopped
        self.fail("the server reads 1 GiB quicker than it can be stopped")

    def assert_each_signal_in_a_busy_phase(self, reach, after, at_stop):
        """`reach` brings a new server there; what is no stop leaves it there (`after`), so that one server gets all of that.
        `at_stop`: what holds of its exit code and its export."""
        table = signal_table()["server"]
        stops = [name for name, does in table.items() if does == "stops" and name != "HUP"]
        others = sorted(set(table) - set(stops))
        longest = 0
        for names in [[name] for name in stops] + [[*others, "TERM"]]:
            with self.subTest(signals=names):
                self.export = self.folder / f"{'-'.join(names)}-{len(self.processes)}.safetensors"
                reach()
                for name in names[:-1]:
                    self.server.signal(getattr(signal, f"SIG{name}"))
                if names[:-1]:
                    after()
                    self.assertTrue(self.server.alive, self.server.log())
                begin = time.monotonic()
                self.server.signal(getattr(signal, f"SIG{names[-1]}"))
                harness.cont(self.server)
                code = self.server.wait(60)
                longest = max(longest, time.monotonic() - begin)
                at_stop(code)
                self.start_over()
        self.assert_in_time(longest <= STOP_SECONDS_MAX, f"a stop took {longest:.1f} s")

    def assert_written(self, code):
        self.assertEqual(code, OK, self.server.log())
        self.assertIsNotNone(metadata(self.export), self.server.log())

    def assert_nothing_to_write(self, code):
        self.assertEqual(code, OK, self.server.log())
        self.assertIsNone(metadata(self.export))

    @timed
    def test_each_signal_does_what_the_page_says_while_the_server_reads_init(self):
        def goes_on():
            harness.cont(self.server)
            self.server.ports()
        self.assert_each_signal_in_a_busy_phase(self.reading_init, goes_on, self.assert_nothing_to_write)

    @timed
    def test_each_signal_does_what_the_page_says_while_an_upload_stands_still(self):
        reach = dict((phase, reach) for phase, reach, _ in self.busy_phases())["an upload that stands still"]
        self.assert_each_signal_in_a_busy_phase(reach, self.reopened, self.assert_nothing_to_write)

    @timed
    def test_each_signal_does_what_the_page_says_with_a_round_open_and_a_transfer_under_way(self):
        self.certify("b")
        reach = self.busy_phases()[0][1]
        self.assert_each_signal_in_a_busy_phase(reach, self.reopened, self.assert_written)

    @timed
    def test_each_signal_does_what_the_page_says_while_the_applier_is_far_behind(self):
        reach = self.busy_phases()[1][1]
        self.assert_each_signal_in_a_busy_phase(reach, self.reopened, self.assert_written)

    def reopened(self):
        """SIGUSR2 has come, and with it whatever came before it."""
        self.event_log.rename(self.event_log.with_suffix(".1"))
        self.server.signal(signal.SIGUSR2)
        self.wait_until("the log is there again", self.an_event_is_logged)

    def test_a_second_signal_ends_the_server_at_once_with_a_round_open_and_a_transfer_in_flight(self):
        self.certify("b")
        self.open_round_and_transfer()
        self.server.signal(signal.SIGTERM)
        self.logged("stopping in round 0")
        self.assertTrue(self.server.alive, "the open round may complete")
        self.server.signal(signal.SIGTERM)
        self.assertEqual(self.server.wait(10), -signal.SIGTERM)

    @timed
    def test_each_signal_does_what_the_page_says_in_each_phase(self):
        longest = 0
        for phase, reach, has_model in self.phases():
            for name, does in signal_table()["server"].items():
                # The server of these tests has tokens, and no terminal.
                does = "reopens" if name == "HUP" else does
                with self.subTest(phase=phase, signal=name):
                    reach(f"{phase}-{name}-{len(self.processes)}")
                    server, before = self.server, len(self.rounds())
                    if does == "reopens":
                        self.event_log.rename(self.event_log.with_suffix(".1"))
                    begin = time.monotonic()
                    server.signal(getattr(signal, f"SIG{name}"))
                    if does == "stops":
                        code = server.wait(60)
                        longest = max(longest, time.monotonic() - begin)
                        self.assertEqual(code, OK, server.log())
                        if has_model:
                            self.assert_holds_the_last_round()
                    else:
                        if phase == "training":
                            self.wait_round(before + 3)
                        if does == "copies" and has_model:
                            self.wait_until("a copy is there", lambda: list(self.export.parent.glob("model.round-*")))
                        if does == "reopens" and phase == "training":
                            # The next event after the signal has come makes it.
                            self.wait_until("the log is there again", self.an_event_is_logged)
                        longest = max(longest, self.stop_server()[1])
                    self.start_over()
        self.assert_in_time(longest <= STOP_SECONDS_MAX, f"a stop took {longest:.1f} s")

    def test_a_second_signal_ends_the_server_at_once(self):
        self.start_with_export("second", "--linger-export", 600)
        self.export.parent.rename(self.folder / "gone")
        self.start_worker("a", "--compute-ms", 10, "--server-timeout", 1)
        self.wait_round(3)
        self.server.signal(signal.SIGTERM)
        self.logged("the model is not written")
        self.server.signal(signal.SIGTERM)
        self.assertEqual(self.server.wait(10), -signal.SIGTERM)

    def test_a_model_that_cannot_be_written_is_held_and_saved_elsewhere(self):
        self.start_with_export("held", rounds=10)
        self.export.parent.rename(self.folder / "gone")
        self.start_worker("a")
        self.logged("free the disk, or save it elsewhere with `signvote export PATH`")
        elsewhere = self.folder / "elsewhere.safetensors"
        code, out, err = self.ctl("export", elsewhere)
        self.assertEqual(code, OK, out + err)
        self.assertEqual(int(metadata(elsewhere)["signvote.round"]), 10)
        self.server.signal(signal.SIGTERM)  # the first: it gives up
        self.wait_end(20, expected=BAD_INPUT)
        self.assertRegex(self.server.log().splitlines()[-1], r" error .*held/model\.safetensors.*No such file")

    def test_a_disk_that_is_mended_gets_the_model(self):
        self.start_with_export("mended", rounds=10)
        self.export.parent.rename(self.folder / "gone")
        self.start_worker("a")
        self.logged("the model is not written")
        (self.folder / "gone").rename(self.export.parent)
        self.server.signal(signal.SIGUSR1)  # at once; it would be tried again anyhow
        self.wait_end(30)
        self.assert_holds_the_last_round()

    def hold_a_model(self, name):
        self.start_with_export(name, rounds=10)
        self.export.parent.rename(self.folder / f"gone-{name}")
        self.start_worker("a")
        self.logged("the model is not written")

    def test_each_signal_does_what_the_page_says_while_a_model_is_held(self):
        table = signal_table()["server"]
        # Nothing is opened again once the run is over; but it is no stop either.
        stops = [name for name, does in table.items() if does == "stops" and name != "HUP"]
        for name in stops:
            with self.subTest(signal=name):
                self.hold_a_model(name)
                self.server.signal(getattr(signal, f"SIG{name}"))
                self.wait_end(20, expected=BAD_INPUT)
        self.hold_a_model("rest")
        for name in sorted(set(table) - set(stops) - {"USR1"}):
            self.server.signal(getattr(signal, f"SIG{name}"))
        said = self.server.log().count("the model is not written")
        self.server.signal(signal.SIGUSR1)
        self.wait_until("it is tried again", lambda: self.server.log().count("the model is not written") > said)
        self.export.parent.mkdir()
        self.server.signal(signal.SIGUSR1)
        self.wait_end(30)
        self.assert_holds_the_last_round()

    def test_it_is_held_for_linger_export_and_no_longer(self):
        self.start_with_export("linger", "--linger-export", 1, rounds=10)
        self.export.parent.rename(self.folder / "gone")
        self.start_worker("a")
        self.wait_end(30, expected=BAD_INPUT)

    def test_copies_are_written_while_the_run_goes_on_and_the_last_are_kept(self):
        self.start_with_export("copies", "--export-every", 5, "--export-keep", 2)
        self.start_worker("a", "--compute-ms", 20, "--server-timeout", 1)
        self.wait_until("three are written", lambda: self.server.log().count("a copy of the model is written") >= 3)
        self.server.signal(signal.SIGTERM)
        self.wait_end(60)
        self.assert_holds_the_last_round()
        copies = sorted(self.export.parent.glob("model.round-*.safetensors"))
        self.assertEqual(len(copies), 2, copies)
        for path in copies:
            said = int(re.search(r"round-(\d+)", path.name).group(1))
            self.assertEqual(int(metadata(path)["signvote.round"]), said)
        code, _, err = self.command("signvote-server", "--insecure", "--rounds", 1, "--export-every", 5)
        self.assertEqual(code, USAGE)
        self.assertIn("--export-every needs --export", err)

    def terminal_server(self, *wrapper):
        """A server with certificates, whose SIGHUP means a reload, on a terminal of its own; (its master's descriptor)."""
        type(self).insecure = False
        self.addCleanup(setattr, type(self), "insecure", True)
        self.export = self.folder / "model.safetensors"
        port_file = self.folder / "ports.json"
        self.round_log = self.folder / "rounds.jsonl"
        command = [*wrapper, (BIN / "signvote-server").resolve(), "--listen", "127.0.0.1:0", "--http", "off", "--port-file", port_file,
                   "--rounds", FOREVER, "--tokens", self.tls / "tokens", "--export", self.export,
                   "--round-log", self.round_log, *self.server_flags()]
        command = [str(word) for word in command]
        log = os.open(self.folder / "terminal.log", os.O_WRONLY | os.O_CREAT, 0o600)
        pid, master = pty.fork()
        if pid == 0:
            os.dup2(log, 2)
            os.chdir(self.folder)  # nohup leaves its output where it runs
            os.execvp(command[0], command)
        os.close(log)
        test = self

        class Terminal:
            def __init__(self):
                self.port_file, self.returncode = port_file, None
                self.popen = self
                self.log = (test.folder / "terminal.log").read_text

            @property
            def alive(self):
                if self.returncode is None:
                    done, status = os.waitpid(pid, os.WNOHANG)
                    self.returncode = os.waitstatus_to_exitcode(status) if done else None
                return self.returncode is None
            ports, address = harness.Server.ports, harness.Server.address
        self.server = Terminal()
        self.addCleanup(lambda: self.server.alive and os.kill(pid, signal.SIGKILL))
        self.server.ports()
        return pid, master

    def test_a_closed_terminal_stops_a_server_that_reloads_on_sighup(self):
        pid, master = self.terminal_server()
        self.start_worker("a", "--compute-ms", 10, "--server-timeout", 1)
        self.wait_round(3)
        os.kill(pid, signal.SIGHUP)
        self.logged("tokens read again")
        os.close(master)
        self.wait_until("the server ends", lambda: not self.server.alive, 30)
        self.assertEqual(self.server.returncode, OK, self.server.log())
        self.assert_holds_the_last_round()

    def test_under_nohup_a_closed_terminal_ends_nothing(self):
        pid, master = self.terminal_server("nohup")
        self.start_worker("a", "--compute-ms", 10, "--server-timeout", 1)
        self.wait_round(3)
        os.close(master)
        self.wait_round(len(self.rounds()) + 5)
        os.kill(pid, signal.SIGTERM)
        self.wait_until("the server ends", lambda: not self.server.alive, 30)
        self.assertEqual(self.server.returncode, OK, self.server.log())


@unittest.skipUnless(harness.has_torch(), "needs LibTorch")
class WorkerEndings(harness.ProcessTest):
    def setUp(self):
        super().setUp()
        self.certify("a", "b")
        self.corpus = self.folder / "corpus.txt"
        # Large enough to be mapped.
        self.corpus.write_text("".join(f"the sum of {a} and {b} is {a + b}.\n" for a in range(250) for b in range(200)))
        self.assertGreater(self.corpus.stat().st_size, 1 << 20)

    def worker(self, name, *flags, folder=None):
        self.save = (folder or self.folder) / f"{name}.safetensors"
        command = [BIN / "signvote-worker", *self.worker_flags(name), "--report", self.folder / f"{name}.report.json",
                   "--model", "micro", "--data", self.corpus, "--batch", 2, "--sequence", 32, "--threads", 1,
                   "--eval-tokens", 64, "--save", self.save, *flags]
        return self.start(name, command)

    def start_run(self, *flags, **arguments):
        self.start_server("--digest-every", 1, *flags, rounds=FOREVER, **arguments)

    def assert_same_values(self, one, other):
        self.assertTrue(values(one) == values(other), f"{one} and {other} hold different parameters")

    def assert_saved(self):
        """The file holds the replica of its round: its digest is the one that the run knows of that round."""
        said = metadata(self.save)
        self.assertIsNotNone(said, "nothing was saved")
        round_ = int(said["signvote.round"])
        known = self.wait_until(f"the digest of round {round_} is known", lambda: self.digests(round_))
        self.assertEqual(known, {said["signvote.digest"]}, f"round {round_}")
        return round_

    def digests(self, round_):
        return {e["digest"] for e in self.events("digest") if e.get("digest_round") == round_}

    def test_each_signal_does_what_the_page_says_while_it_trains(self):
        self.start_run()
        for name, does in signal_table()["worker"].items():
            with self.subTest(signal=name):
                log = self.folder / f"{name}.jsonl"
                worker = self.worker("a", "--round-log", log)
                self.wait_until("it votes", lambda: len(self.lines(log)) >= 2)
                if does == "reopens":
                    log.rename(log.with_suffix(".1"))
                worker.signal(getattr(signal, f"SIG{name}"))
                if does == "stops":
                    self.assert_exit(worker, OK)
                else:
                    if does == "copies":
                        self.wait_until("a copy is there", lambda: list(self.folder.glob("a.round-*")))
                    elif does == "reopens":
                        self.wait_until("the log is there again", lambda: self.lines(log))
                    else:
                        voted = len(self.lines(log))
                        self.wait_until("it goes on", lambda: len(self.lines(log)) > voted + 2)
                    worker.signal(signal.SIGTERM)
                    self.assert_exit(worker, OK)
                self.assert_saved()
                self.save.unlink()

    def assert_each_signal_in_a_phase_without_rounds(self, reach, saved_round, code=OK):
        """`reach` brings a new worker there. Signals that are no stop change nothing, so one worker gets them all."""
        table = signal_table()["worker"]
        stops = [name for name, does in table.items() if does == "stops"]
        others = sorted(set(table) - set(stops))
        for names in [[name] for name in stops] + [[*others, "TERM"]]:
            with self.subTest(signals=names):
                worker = reach()
                for name in names:
                    worker.signal(getattr(signal, f"SIG{name}"))
                self.assert_exit(worker, code)
                said = metadata(self.save)
                self.assertEqual(said and said["signvote.round"], saved_round and saved_round())
                self.save.unlink(missing_ok=True)

    def so_far(self, text, *flags):
        worker = self.worker("a", *flags)
        self.wait_until("it is so far", lambda: text in worker.log())
        return worker

    def test_each_signal_does_what_the_page_says_while_it_waits_for_others(self):
        self.start_run(workers_min=2)
        self.assert_each_signal_in_a_phase_without_rounds(lambda: self.so_far(" joined "), lambda: "0")

    def test_each_signal_does_what_the_page_says_while_it_looks_for_the_server(self):
        self.start_run()
        self.server.ports()
        self.server.kill()
        self.assert_each_signal_in_a_phase_without_rounds(lambda: self.so_far(" data ", "--connect-timeout", 600), None)

    def test_each_signal_does_what_the_page_says_while_the_run_is_paused(self):
        self.start_run()
        worker = self.worker("a")
        self.wait_round(3)
        self.pause()
        worker.signal(signal.SIGTERM)
        self.assert_exit(worker, OK)
        # From now on no round opens; who joins has the replica.
        self.assert_each_signal_in_a_phase_without_rounds(lambda: self.so_far(" joined "), lambda: str(len(self.rounds())))

    def large_worker(self, name, *flags):
        """8 MB of parameters, of which a valve lets one through."""
        config = self.folder / "large" / "config.json"
        config.parent.mkdir(exist_ok=True)
        config.write_text(json.dumps({"model_type": "llama", "vocab_size": 256, "hidden_size": 256, "num_hidden_layers": 2,
                                      "num_attention_heads": 4, "intermediate_size": 768}))
        return self.worker(name, "--model", config, *flags)

    def test_each_signal_does_what_the_page_says_while_it_uploads_the_parameters(self):
        def reach():
            self.start_run()
            valve = Valve(self, self.server.address, "up", 1 << 20)
            worker = self.large_worker("a", "--server", valve.address)
            self.assertTrue(valve.shut.wait(60 * harness.SLOWNESS), worker.log())
            return worker
        # What it began with is not the run's yet, and nothing was trained.
        self.assert_each_signal_in_a_phase_without_rounds(reach, None)

    def test_each_signal_does_what_the_page_says_while_it_fetches_the_state(self):
        self.start_run()
        member = self.large_worker("b")
        self.wait_round(3)

        def reach():
            valve = Valve(self, self.server.address, "down", 1 << 20)
            worker = self.large_worker("a", "--server", valve.address)
            self.assertTrue(valve.shut.wait(60 * harness.SLOWNESS), worker.log())
            return worker
        # Not all of the replica is the run's.
        self.assert_each_signal_in_a_phase_without_rounds(reach, None)
        self.assertTrue(member.alive, member.log())

    def test_each_signal_does_what_the_page_says_once_the_server_is_lost(self):
        def reach():
            self.start_run()
            worker = self.worker("a")
            self.wait_round(3)
            self.pause()
            self.server.kill()
            return worker
        self.assert_each_signal_in_a_phase_without_rounds(reach, lambda: str(len(self.rounds())))

    def test_each_signal_does_what_the_page_says_while_a_replica_is_held(self):
        shelf = self.folder / "shelf"
        table = signal_table()["worker"]
        stops = [name for name, does in table.items() if does == "stops"]

        def hold(name):
            shelf.mkdir()
            self.start_run()
            worker = self.worker("a", "--server-timeout", 1, folder=shelf)
            self.wait_round(3)
            self.pause()  # its digests are known, and its rounds counted
            shelf.rename(self.folder / f"gone-{name}")
            self.server.kill()
            self.wait_until("it is held", lambda: "the replica is not saved" in worker.log())
            return worker
        for name in stops:
            with self.subTest(signal=name):
                worker = hold(name)
                worker.signal(getattr(signal, f"SIG{name}"))
                self.assert_exit(worker, UNAVAILABLE)
                self.assertRegex(worker.log(), r"the replica is not saved .*No such file.* exit_code=5")
        worker = hold("rest")
        for name in sorted(set(table) - set(stops) - {"USR1"}):
            worker.signal(getattr(signal, f"SIG{name}"))
        said = worker.log().count("the replica is not saved")
        worker.signal(signal.SIGUSR1)
        self.wait_until("it is tried again", lambda: worker.log().count("the replica is not saved") > said)
        shelf.mkdir()
        worker.signal(signal.SIGUSR1)
        self.assert_exit(worker, UNAVAILABLE)
        self.assert_saved()

    def test_a_run_that_diverges_ends_its_worker_with_8_and_costs_no_replica(self):
        export = self.folder / "export" / "model.safetensors"
        export.parent.mkdir()
        # One step beyond all measure: finite parameters, no finite loss.
        self.start_run("--rule", "fixed", "--stepsize", "1e15", "--export", export)
        worker = self.worker("a")
        self.wait_end(expected=harness.DIVERGED)
        self.assert_exit(worker, harness.DIVERGED)
        self.assertRegex(worker.log().splitlines()[-1], r" error .*server \S+ has ended the run: diverged: no worker had a finite loss")
        self.assertEqual(metadata(self.save)["signvote.round"], str(len(self.rounds())))
        self.assert_same_values(self.save, export)

    def test_a_damaged_replica_of_the_server_ends_its_workers_with_9_and_costs_none_of_theirs(self):
        self.start_run(workers_min=2)
        workers = [self.worker(name) for name in "ab"]
        self.wait_round(3)
        self.pause()
        known = self.folder / "known" / "model.safetensors"
        known.parent.mkdir()
        self.assertEqual(self.ctl("export", known)[0], OK)
        damage(self.server.pid, values(known)[:256])
        self.assertEqual(self.ctl("resume")[0], OK)
        self.wait_end(expected=harness.MISMATCH)
        files = []
        for worker in workers:
            self.assert_exit(worker, harness.MISMATCH)
            self.assertRegex(worker.log().splitlines()[-1], r" error .*server \S+ has ended the run: ")
            files.append(self.folder / f"{worker.name}.safetensors")
        said = [metadata(path) for path in files]
        round_ = int(said[0]["signvote.round"])
        self.assertEqual({m["signvote.round"] for m in said}, {str(round_)})
        self.assertEqual({m["signvote.digest"] for m in said},
                         {e["digest"] for e in self.events("digest") if e.get("digest_round") == round_ and e.get("worker")})
        self.assert_same_values(*files)

    def test_a_second_signal_ends_it_at_once(self):
        self.start_run()
        worker = self.worker("a")
        self.wait_round(3)
        harness.stop(self.server)  # the round in progress is waited for
        worker.signal(signal.SIGTERM)
        self.wait_until("it stops", lambda: "the round in progress is finished first" in worker.log())
        worker.signal(signal.SIGINT)
        self.assertEqual(worker.wait(10), -signal.SIGINT)
        harness.cont(self.server)

    def test_a_lost_server_costs_no_replica(self):
        self.start_run()
        worker = self.worker("a", "--server-timeout", 1)
        self.wait_round(5)
        self.pause()
        committed = len(self.rounds())
        self.wait_until("its digest is known", lambda: self.digests(committed))
        self.server.kill()
        self.assert_exit(worker, UNAVAILABLE)
        self.assertEqual(self.assert_saved(), committed)
        self.assertEqual(json.loads((self.folder / "config.json").read_text())["model_type"], "llama")

    def test_a_worker_that_waits_too_long_keeps_its_replica(self):
        self.start_run()
        worker = self.worker("a", "--wait-timeout", 1)
        self.wait_round(3)
        self.pause()
        committed = len(self.rounds())
        self.wait_until("its digest is known", lambda: self.digests(committed))
        self.assert_exit(worker, harness.WAIT_TIMEOUT)
        self.assertEqual(self.assert_saved(), committed)

    def test_an_evicted_worker_keeps_its_replica(self):
        self.start_run()
        worker = self.worker("a")
        self.wait_round(5)
        self.assertEqual(self.ctl("evict", "a")[0], OK)
        self.assert_exit(worker, REFUSED)
        self.assert_saved()

    def test_a_server_that_came_back_as_another_run_ends_its_worker_with_4_and_costs_no_replica(self):
        self.start_run()
        address = self.server.address
        worker = self.worker("a")
        self.wait_round(5)
        self.pause()
        committed = len(self.rounds())
        known = self.wait_until("its digest is known", lambda: self.digests(committed))
        self.server.kill()
        self.start_run(listen=address)
        self.assert_exit(worker, REFUSED)
        self.assertRegex(worker.log().splitlines()[-1], r" error .*the server came back as another run")
        said = metadata(self.save)
        self.assertEqual((int(said["signvote.round"]), {said["signvote.digest"]}), (committed, known))

    def test_a_replica_is_saved_before_another_state_takes_its_place(self):
        # As few commits are kept, and as few bytes are queued for a worker, as can be.
        self.start_run("--catch-up-bytes", 0, "--session-buffer-bytes", 1 << 20)
        worker = self.worker("a")
        self.wait_round(5)
        self.pause()
        committed = len(self.rounds())
        known = self.wait_until("its digest is known", lambda: self.digests(committed))
        harness.stop(worker)
        # Its connection is over for the server, and the run goes on without it.
        other = self.worker("b")
        save_b, self.save = self.save, self.folder / "a.safetensors"
        self.assertEqual(self.ctl("resume")[0], OK)
        self.wait_until("it is given up", lambda: any(e["worker"] == "a" for e in self.events("lost")), timeout=120)
        self.wait_round(committed + 20, timeout=120)
        harness.cont(worker)
        self.wait_until("it is saved", lambda: "the replica is saved before another state takes its place" in worker.log())
        worker.kill()
        said = metadata(self.save)
        self.assertEqual((int(said["signvote.round"]), {said["signvote.digest"]}), (committed, known))
        other.signal(signal.SIGTERM)
        self.assert_exit(other, OK)
        self.assertIsNotNone(metadata(save_b))

    def test_a_corpus_that_is_cut_is_told_and_costs_no_replica(self):
        self.start_run()
        worker = self.worker("a")
        self.wait_round(5)
        os.truncate(self.corpus, 4096)
        self.assert_exit(worker, BAD_INPUT)
        self.assertRegex(worker.log().splitlines()[-1], r" error .*--data: .*corpus\.txt: was cut while it was trained on")
        self.assert_saved()

    def test_copies_are_saved_while_it_trains_and_the_last_are_kept(self):
        self.start_run()
        worker = self.worker("a", "--save-every", 4, "--save-keep", 2)
        self.wait_until("three are written", lambda: worker.log().count("a copy of the model is written") >= 3)
        worker.signal(signal.SIGTERM)
        self.assert_exit(worker, OK)
        self.assert_saved()
        copies = sorted(self.folder.glob("a.round-*.safetensors"))
        self.assertEqual(len(copies), 2, copies)
        for self.save in copies:
            self.assertEqual(self.assert_saved(), int(re.search(r"round-(\d+)", self.save.name).group(1)))
        code, _, err = self.command("signvote-worker", "--save-every", "often", "--selftest")
        self.assertEqual(code, USAGE)
        self.assertIn("--save-every 'often' is neither", err)

    def test_a_worker_that_never_joined_saves_nothing(self):
        self.start_run()
        address = self.server.address
        self.server.kill()
        worker = self.worker("a", "--server", address, "--connect-timeout", 1)
        self.assert_exit(worker, UNAVAILABLE)
        self.assertIsNone(metadata(self.save))


if __name__ == "__main__":
    unittest.main(verbosity=2)
