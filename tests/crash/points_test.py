"""Server and workers that end by SIGKILL at each named place, one life for each: no commit that was told is lost, nobody hangs,
and what comes out is what an undisturbed run (server) or the recorded ballots (worker) make.

A place is a CrashPoint("NAME") of the sources, which builds for tests obey (common/crash_point.h).
"""

import pathlib
import re
import signal
import unittest

from crashes import CHUNK, COORDINATES, NAMES, CrashRun, harness

ROOT = pathlib.Path(__file__).resolve().parents[2]
NO_PRODUCT = {"tests", "build", "out"}  # folders of the repository

# (point, pass of its process), in the order in which the lives of one run come to them.
SERVER = [
    # Before the run has begun.
    ("segment.made", 1), ("segment.named", 1), ("recovery.done", 1),
    ("snapshot.piece-written", 1), ("snapshot.file-synced", 1), ("snapshot.file-named", 1), ("snapshot.file-named", 2),
    ("journal.note-written", 2),
    # Its first commits, of which each must be told once or again.
    ("journal.chunk-written", 2), ("journal.commit-due", 1), ("journal.commit-written", 1), ("journal.commit-synced", 1),
    ("commit.told-to-one", 1), ("commit.told-to-one", 3),
    # Amid a recovery, and before it is of use.
    ("recovery.commit-played", 1), ("recovery.done", 1), ("segment.made", 1), ("segment.named", 1),
    # Snapshots beside rounds; what an older one needed goes.
    ("snapshot.piece-written", 1), ("snapshot.file-synced", 2), ("snapshot.file-named", 3), ("segment.dropped", 1),
    ("segment.dropped", 2), ("journal.chunk-written", 23), ("journal.commit-written", 6),
]
# Fewer than --workers-min.
WORKERS_BEFORE_THE_RUN = {"recovery.done": 1, "snapshot.piece-written": 1, "snapshot.file-synced": 1, "snapshot.file-named": 1,
                          "journal.note-written": 2}
WORKER = [
    ("state.piece-taken", 1), ("ballot.chunk-due", 3), ("ballot.sent", 1), ("commit.apply-due", 2), ("commit.applied", 2),
    ("ballot.chunk-due", 12), ("checkpoint.written", 1), ("checkpoint.written", 2), ("checkpoint.named", 1),
]


class Sources(unittest.TestCase):
    def test_every_point_of_the_sources_is_visited(self):
        called = set()
        for path in ROOT.glob("*/**/*.cc"):
            if path.relative_to(ROOT).parts[0] not in NO_PRODUCT:
                called.update(re.findall(r'\bCrashPoint\("([^"]*)"\)', path.read_text()))
        self.assertEqual(called, {point for point, _ in SERVER + WORKER})


class Points(CrashRun):
    def ends_at(self, point, number, process):
        self.assertEqual(process.wait(60), -signal.SIGKILL, f"at {point}:{number}")


class ServerPoints(Points):
    ROUNDS = 320
    # A race, which rewinds and whose snapshots have the starting point too.
    RULE = ("--rule", "lever", "--lever-race", "on", "--direction", "signum", "--deadline", "off")

    def life(self, *prefix):
        """A server's; whether it lived until it listened. What it recovers must have every commit that anybody heard of."""
        told = self.heard()
        try:
            self.life_of_server(*self.RULE, "--snapshot-every", 4, "--snapshots-keep", 1, "--return-wait", 60, rounds=self.ROUNDS,
                                prefix=prefix)
        except AssertionError:
            if self.server.popen.poll() != -signal.SIGKILL:
                raise
            return False
        if told:
            self.assertGreaterEqual(self.recovered(self.server), told, "commits that were told are lost")
        return True

    @staticmethod
    def losses(lines):
        return {line["round"]: (line["loss"], line["stepsize_bits"], line["payload_hash"]) for line in lines}

    def test_a_server_killed_at_each_point_ends_its_run_as_an_undisturbed_one(self):
        workers, lines = {}, []
        for point, number in [*SERVER, (None, None)]:
            listens = self.life(*(("env", f"SIGNVOTE_CRASH_AT={point}:{number}") if point else ()))
            # Who has which share is in the journal with the names, and they are behind the first snapshot: before that no
            # round may open.
            wanted = NAMES[:WORKERS_BEFORE_THE_RUN.get(point, len(NAMES))] if listens else ()
            workers |= {name: self.life_of_worker(name, "--compute-ms", 5) for name in wanted if name not in workers}
            if point:
                self.ends_at(point, number, self.server)
                lines += self.rounds()
        digest = self.assert_all_end_well(workers.values())
        disturbed = self.losses(lines + self.rounds())
        reports = [self.report(name) for name in NAMES]

        self.start_server(*self.RULE, "--init", self.folder / "x0.safetensors", "--chunk-coordinates", CHUNK,
                          rounds=self.ROUNDS, workers_min=len(NAMES), name="undisturbed")
        workers = self.start_workers(NAMES, "--coordinates", COORDINATES)
        self.assertEqual(self.assert_all_end_well(workers.values()), digest)
        undisturbed = self.losses(self.rounds())
        for report in reports:
            self.assertEqual((report["next_round"], report["verdict_mismatches"]), (len(undisturbed), 0), report)
        # A commit whose line was not written before its server died is in no log.
        self.assertGreaterEqual(len(disturbed), len(undisturbed) - len(SERVER))
        self.assertEqual(disturbed, {round_: undisturbed[round_] for round_ in disturbed})


class WorkerPoints(Points):
    def test_a_worker_killed_at_each_point_costs_the_others_nothing(self):
        self.life_of_server("--direction", "signum")
        workers = {name: self.life_of_worker(name, "--compute-ms", 10) for name in NAMES[1:]}
        mine = NAMES[0]
        for point, number in WORKER:
            begun = bool(self.rounds())
            worker = self.life(mine, "env", f"SIGNVOTE_CRASH_AT={point}:{number}")
            self.ends_at(point, number, worker)
            if begun:
                self.wait_round(len(self.rounds()) + 2)
        workers[mine] = self.life(mine)
        joined = len(self.rounds())
        self.wait_until("it votes again", lambda: any(
            mine in [voter["name"] for voter in line["workers"]] for line in self.rounds()[joined:]))
        for worker in workers.values():
            self.assertTrue(worker.alive, worker.name)
        self.end_and_replay(workers.values())
        self.assertEqual(self.report(mine)["checkpoint"]["resumed"]["how"], "as it was")

    def life(self, name, *prefix):
        return self.life_of_worker(name, "--compute-ms", 10, "--checkpoint", self.folder / "state", "--checkpoint-every", 2,
                                   prefix=prefix)


if __name__ == "__main__":
    harness.run_tests()
