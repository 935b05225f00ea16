"""However a worker ends after it has joined, its replica is saved: signals, a lost server, refusals, bad data.

The table of signals in docs/operations.md is walked: what it says happens.
"""

import array
import itertools
import json
import os
import re
import signal

import harness
from endings import Valve, signal_table
from harness import BAD_INPUT, BIN, FOREVER, OK, REFUSED, UNAVAILABLE, USAGE, metadata, values


def damage(pid, parameters):
    """A bit of a process's replica flips in its memory, wherever these bytes lie."""
    found = 0
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        for first, end in touched_memory(pid):
            memory.seek(first)
            at, data = -1, memory.read(end - first)
            while (at := data.find(parameters, at + 1)) >= 0:
                memory.seek(first + at + 2)  # a high bit of the first value: a step's rounding may swallow a low one
                memory.write(bytes([parameters[2] ^ 0x40]))
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

    def pause_known(self):
        """Pauses the run and waits for the digest of its last round; returns both."""
        self.pause()
        committed = len(self.rounds())
        return committed, self.wait_until("its digest is known", lambda: self.digests(committed))

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
        committed, _ = self.pause_known()
        self.server.kill()
        self.assert_exit(worker, UNAVAILABLE)
        self.assertEqual(self.assert_saved(), committed)
        self.assertEqual(json.loads((self.folder / "config.json").read_text())["model_type"], "llama")

    def test_a_worker_that_waits_too_long_keeps_its_replica(self):
        self.start_run()
        worker = self.worker("a", "--wait-timeout", 1)
        self.wait_round(3)
        committed, _ = self.pause_known()
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
        committed, known = self.pause_known()
        self.server.kill()
        self.start_run(listen=address)
        self.assert_exit(worker, REFUSED)
        self.assertRegex(worker.log().splitlines()[-1], r" error .*worker 'a' belongs to run \S+, this server trains run \S+, which a worker "
                         "that is started anew joins")
        said = metadata(self.save)
        self.assertEqual((int(said["signvote.round"]), {said["signvote.digest"]}), (committed, known))

    def test_a_replica_is_saved_before_another_state_takes_its_place(self):
        # As few commits are kept, and as few bytes are queued for a worker, as can be.
        self.start_run("--catch-up-bytes", 0, "--session-buffer-bytes", 1 << 20)
        worker = self.worker("a")
        self.wait_round(5)
        committed, _ = self.pause_known()
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
        # It may have had some more commits from what its connection still held.
        self.assertGreaterEqual(self.assert_saved(), committed)
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
    harness.run_tests()
