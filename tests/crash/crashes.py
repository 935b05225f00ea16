"""What all crash tests stand on: a server with a journal, workers that write their ballots down, any number of lives of each,
and a replay that says what must come out."""

import json
import pathlib
import signal
import struct
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

import harness  # noqa: E402
from harness import OK, ProcessTest  # noqa: E402
from replay import Ballots, Journal, Replay  # noqa: E402  (puts tests/interop on the path)

from pyworker.layout import Layout, Tensor  # noqa: E402

NAMES = ("w1", "w2", "w3", "w4")
SEED = 7  # of the run: harness.start_server
COORDINATES, CHUNK = 20_001, 4096  # the last chunk is short, and its last byte


class CrashRun(ProcessTest):
    """A run over any number of servers' and workers' lives."""

    insecure = True

    def setUp(self):
        super().setUp()
        self.certify(*NAMES)
        self.journal = Journal()
        self.lives = []  # (process, round log)
        self.times = {}  # of commits, by round, as far as their server could still log them
        self.told = 0  # commits that somebody heard of
        self.address = None
        self.layout = Layout([Tensor("x", (COORDINATES,))])
        self.x0 = np.random.default_rng(SEED).uniform(-2, 2, COORDINATES).astype(np.float32)
        header = json.dumps({"x": {"dtype": "F32", "shape": [COORDINATES], "data_offsets": [0, 4 * COORDINATES]}}).encode()
        (self.folder / "x0.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + self.x0.tobytes())

    @property
    def journal_folder(self):
        return self.folder / "journal"

    def life_of_server(self, *flags, **options):
        """Starts it, first or again; what it recovers must have every commit that anybody heard of."""
        listen = self.address or "127.0.0.1:0"
        options = {"rounds": harness.FOREVER, "workers_min": 4} | options
        server = self.start_server(
            "--journal", self.journal_folder, "--init", self.folder / "x0.safetensors", "--chunk-coordinates", CHUNK,
            "--export", self.folder / "final.safetensors", *flags, listen=listen, **options)
        self.address = server.address
        self.lives.append((server, self.round_log))
        return server

    def life_of_worker(self, name, *flags, prefix=()):
        log = self.folder / f"{name}.{len(self.processes)}.jsonl"
        worker = self.start_worker(name, "--coordinates", COORDINATES, "--ballots", self.folder / "ballots", "--round-log", log,
                                   *flags, prefix=prefix)
        self.lives.append((worker, log))
        return worker

    # ---- what is known of the run

    def read_journal(self):
        """While no server writes to it."""
        code, out, err = self.command("signvote", "journal", "dump", self.journal_folder)
        self.assertEqual(code, OK, err)
        self.journal.read(out)

    def heard(self):
        """Commits that were told: what the logs of workers and of the servers have."""
        for process, log in list(self.lives):
            over = not process.alive  # before the look at its log
            for line in self.lines(log):
                self.told = max(self.told, line["round"] + 1)
                if process.name == "server":
                    self.times[line["round"]] = line["unix_time"]
            if over:
                self.lives.remove((process, log))
        return self.told

    def recovered(self, server):
        """The round at which it took the run up."""
        line = next(l for l in server.log().splitlines() if "recovered the run from its journal" in l)
        return int(next(word for word in line.split() if word.startswith("round=")).removeprefix("round="))

    def server_died(self):
        """Behind its end, before the next one's start: nothing that was told is missing."""
        self.read_journal()
        self.assertGreaterEqual(self.journal.rounds, self.heard(), "commits that were told are lost")

    # ---- the end

    def end_and_replay(self, workers, timeout=60):
        """Everybody leaves after one last round, with one replica: that which the recorded ballots make."""
        self.assertEqual(self.ctl("pause")[0], OK)
        self.wait_until("the run is paused", lambda: self.status()["phase"] == "paused", timeout)
        for worker in workers:
            code, out, err = self.ctl("drain", worker.name)
            self.assertEqual(code, OK, out + err)
            self.assert_exit(worker, OK)
        self.server.signal(signal.SIGTERM)
        self.wait_end()
        self.server_died()
        digest = self.one_digest(workers)
        replay = self.replay()
        self.assertEqual(f"{replay.replica.digest():016x}", digest, "the replay of the recorded ballots is another")
        self.assertEqual(harness.values(self.folder / "final.safetensors"), replay.replica.values.tobytes())
        for worker in workers:
            report = self.report(worker.name)
            self.assertEqual(report["verdict_mismatches"], 0, worker.name)
            self.assertEqual(report["next_round"], self.journal.rounds, worker.name)
        return replay

    def replay(self):
        replay = Replay(self.layout, CHUNK, SEED, self.x0)
        replay.run(self.journal, Ballots(self.folder / "ballots"))
        return replay
