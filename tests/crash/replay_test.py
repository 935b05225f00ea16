"""The replay that crash tests trust: it follows a run that was made up here, and does not follow one of which anything is
other than it was recorded."""

import base64
import json
import pathlib
import tempfile
import unittest

import numpy as np
from replay import Ballots, Journal, Replay

from pyworker import bits, coins
from pyworker.checksums import payload_hash, xxh3
from pyworker.layout import Layout, Tensor

D, CHUNK, SEED = 1200, 512, 3
NAMES = ("a", "b")


def round_of(round_, gamma, ballots):
    """The lines of a dump of a step on which everybody voted."""
    ones = sum(ballots.astype(int))
    words = coins.tie_words(SEED, round_, np.arange((D + 63) // 64, dtype=np.uint64))
    coin = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[:D].astype(bool)
    verdict = np.where(2 * ones == len(ballots), coin, 2 * ones > len(ballots))
    sums = [xxh3(bits.pack(verdict[at:at + CHUNK])) for at in range(0, D, CHUNK)]
    lines = [f"  72 chunk     round {round_}: attempt 0 chunk {k} counted 2, 64 bytes, checksum {s:016x}" for k, s in enumerate(sums)]
    lines.append(f" 999 commit    round {round_}: step attempt 0 stepsize {gamma} rho 1 data step {round_} voters ids 0,1 "
                 f"chunks {len(sums)} hash {payload_hash([2] * len(sums), sums):016x}")
    return lines, verdict


class ReplayTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="signvote-replay.")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)
        drawn = np.random.default_rng(1)
        self.start = drawn.standard_normal(D).astype(np.float32)
        self.ballots = drawn.integers(0, 2, (3, len(NAMES), D)).astype(bool)  # [rounds, workers, D]
        self.dump = ["segment-1.journal: run 0, epoch 1, from round 0"]
        self.dump += [f" 72 name      round 0: id {i} '{name}' incarnation 1" for i, name in enumerate(NAMES)]
        self.want = self.start.copy()
        for round_, ballots in enumerate(self.ballots):
            lines, verdict = round_of(round_, 0.25, ballots)
            self.dump += lines
            self.want += np.where(verdict, np.float32(-0.25), np.float32(0.25))

    def record(self, life=1):
        for i, name in enumerate(NAMES):
            lines = []
            for round_, ballots in enumerate(self.ballots):
                chunks = [base64.b64encode(bits.pack(ballots[i][at:at + CHUNK])).decode() for at in range(0, D, CHUNK)]
                lines.append(json.dumps({"round": round_, "worker": name, "incarnation": life, "chunks": chunks}))
            (self.folder / f"{name}.{life}.ballots").write_text("\n".join(lines) + '\n{"round": 3, "wor')

    def replay(self):
        journal = Journal()
        journal.read("\n".join(self.dump))
        replay = Replay(Layout([Tensor("x", (D,))]), CHUNK, SEED, self.start)
        replay.run(journal, Ballots(self.folder))
        return replay

    def test_a_run_comes_out_as_it_was(self):
        self.record()
        replay = self.replay()
        self.assertEqual(replay.replica.values.tobytes(), self.want.tobytes())
        self.assertEqual((replay.tied_chunks, replay.several), (9, 0))

    def test_a_ballot_of_an_earlier_life_is_found(self):
        self.record(life=1)
        self.ballots[1, 0, 700] ^= True
        self.record(life=2)
        replay = self.replay()
        self.assertEqual(replay.replica.values.tobytes(), self.want.tobytes())
        self.assertEqual(replay.several, 1)

    def test_one_bit_of_a_ballot_counts(self):
        self.ballots[2, 0, 1199] ^= True
        self.ballots[2, 1, 1199] = self.ballots[2, 0, 1199]
        self.record()
        with self.assertRaisesRegex(AssertionError, "round 2, chunk 2: the recorded ballots of .* do not make this verdict"):
            self.replay()

    def test_a_voter_that_wrote_nothing_down_is_named(self):
        self.record()
        (self.folder / "b.1.ballots").unlink()
        with self.assertRaisesRegex(AssertionError, "round 0: the journal counts b, which wrote no ballot"):
            self.replay()

    def test_a_commit_that_is_missing_or_another_one_is_named(self):
        whole = list(self.dump)
        self.dump = [line for line in whole if "commit    round 1" not in line]
        with self.assertRaisesRegex(AssertionError, "round 2 follows round 0"):
            self.replay()
        self.dump = whole + [line.replace("stepsize 0.25", "stepsize 0.5") for line in whole if "round 1:" in line]
        with self.assertRaisesRegex(AssertionError, "round 1 was committed twice"):
            self.replay()


if __name__ == "__main__":
    unittest.main()
