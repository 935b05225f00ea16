"""A storm: SIGKILL of a random process, the server or one of four workers, every 2 to 5 s, each started again at once. No commit
that anybody heard of is lost, nothing hangs, and the final parameters are those of a replay of the recorded ballots.

  SIGNVOTE_BIN=build/dev/bin SIGNVOTE_CRASH_SECONDS=600 SIGNVOTE_CRASH_SEED=3 PYTHON tests/crash/storm_test.py

where PYTHON is the one that scripts/setup has installed the tests' packages for (docs/testing.md).
"""

import os
import random
import time

from crashes import NAMES, CrashRun, harness

SECONDS = float(os.environ.get("SIGNVOTE_CRASH_SECONDS", "60"))
KILL_SEED = int(os.environ.get("SIGNVOTE_CRASH_SEED", "1"))
COMMITS_A_MINUTE = 30
HANG_SECONDS = 60  # without any commit


class Storm(CrashRun):
    # Its race rewinds, and commits rounds without a step. No commit is let go of before the replay has read it.
    FLAGS = ("--rule", "lever", "--lever-race", "on", "--direction", "signum", "--snapshot-every", 100, "--snapshots-keep", 10_000)

    def test_the_run_is_that_of_its_recorded_ballots(self):
        drawn = random.Random(KILL_SEED)
        self.life_of_server(*self.FLAGS)
        workers = {name: self.life_of_worker(name, "--compute-ms", 30) for name in NAMES}
        self.wait_round(5)
        begin = time.time()
        kills = dict.fromkeys(("server", *NAMES), 0)
        while time.time() - begin < SECONDS:
            self.calm(drawn.uniform(2, 5), workers)
            victim = drawn.choice(list(kills))
            kills[victim] += 1
            if victim == "server":
                self.server.kill()
                self.server_died()
                told = self.told
                server = self.life_of_server(*self.FLAGS)
                self.assertGreaterEqual(self.recovered(server), told, "commits that were told are lost")
            else:
                workers[victim].kill()
                workers[victim] = self.life_of_worker(victim, "--compute-ms", 30)
        self.calm(2, workers)
        replay = self.end_and_replay(workers.values())
        print(f"seed {KILL_SEED}: {SECONDS:.0f} s, kills {kills}, {self.journal.rounds} commits, {replay.tied_chunks} chunks "
              f"with ties, {replay.several} of ballots of several lives", flush=True)
        self.assertGreater(replay.tied_chunks, 0, "no tie was decided by a coin")
        for minute in range(int(SECONDS // 60)):
            from_, to = begin + 60 * minute, begin + 60 * (minute + 1)
            self.assertGreaterEqual(sum(from_ <= at < to for at in self.times.values()), COMMITS_A_MINUTE, f"commits in minute {minute}")

    def calm(self, seconds, workers):
        """So long, and until there is a commit: nobody ends by itself, and there is one."""
        until = time.monotonic() + seconds
        hangs = until + HANG_SECONDS * harness.SLOWNESS
        while True:
            for process in (self.server, *workers.values()):
                self.assertTrue(process.alive, f"{process.name} ended by itself with {process.popen.returncode}")
            if time.monotonic() >= until and self.rounds():
                return
            self.assertLess(time.monotonic(), hangs, "no commit")
            time.sleep(0.05)


if __name__ == "__main__":
    harness.run_tests()
