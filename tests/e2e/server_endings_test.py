"""However a server ends, what was trained is kept: signals, stops that nobody helps, disks that do not take a model.

The table of signals in docs/operations.md is walked: what it says happens.
"""

import json
import os
import pathlib
import pty
import re
import signal
import time
import unittest

import harness
from endings import Valve, signal_table
from harness import BAD_INPUT, BIN, FOREVER, OK, USAGE, metadata, timed

STOP_SECONDS_MAX = 15  # docs/operations.md, "Stopping"
COORDINATES = 8_000_000  # 32 MB: more than sockets hold


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
            self.start("a", [BIN / "signvote-synthetic-worker", *flags, "--coordinates", COORDINATES, "--server-timeout", 1])
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


if __name__ == "__main__":
    harness.run_tests()
