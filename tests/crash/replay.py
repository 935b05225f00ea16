"""A run counted again in one process, by nobody who took part: from the initial parameters, what `signvote journal dump`
says of its commits, and the ballots that the workers wrote down before they sent them (docs/lab.md, "Recorded ballots").

Coins, packed bits and apply are those of tests/interop/pyworker, which was written from docs/wire_format.md alone.
"""

import base64
import dataclasses
import itertools
import json
import pathlib
import re
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "interop"))

from pyworker import bits, coins  # noqa: E402
from pyworker.checksums import payload_hash, xxh3  # noqa: E402
from pyworker.replica import Replica  # noqa: E402

_RECORD = re.compile(r"\s*\d+ (\w+)\s+round (\d+): (.*)")
_NAME = re.compile(r"id (\d+) '(.*)' incarnation (\d+)")
_CHUNK = re.compile(r"attempt (\d+) chunk (\d+) counted (\d+), \d+ bytes, checksum ([0-9a-f]{16})")
_COMMIT = re.compile(
    r"(?P<kind>step|rewind|none) attempt (?P<attempt>\d+) stepsize (?P<gamma>\S+) rho (?P<rho>\S+)"
    r"(?: decay step (?P<decay_step>\S+))?(?: scales (?P<scales>\S+))? data step (?P<data_step>\d+)"
    r" voters (?P<voters>.*?) chunks (?P<chunks>\d+) hash (?P<hash>[0-9a-f]{16})")
_VOTERS = re.compile(r"ids ([\d,]*)(?: of (\d+) chunks)?")


@dataclasses.dataclass(frozen=True)
class Commit:
    kind: str
    gamma: float
    rho: float
    decay_step: float | None
    scales: tuple | None
    payload_hash: int
    voters: tuple     # per chunk: ids
    checksums: tuple  # per chunk


class Journal:
    """What dumps of one journal say, one behind the other: what an earlier one has seen stays, also when its segments went."""

    def __init__(self):
        self.names = {}    # by id
        self.commits = {}  # by round

    @property
    def rounds(self):
        return len(self.commits)

    def read(self, dump):
        """AssertionError: a commit is missing, or is another than an earlier dump said."""
        sums = {}
        for line in dump.splitlines():
            record = _RECORD.fullmatch(line)
            if record is None:
                continue  # a segment's name
            kind, round_, says = record[1], int(record[2]), record[3]
            if kind == "name":
                name = _NAME.match(says)
                assert self.names.setdefault(int(name[1]), name[2]) == name[2], line
            elif kind == "chunk":
                chunk = _CHUNK.fullmatch(says)
                sums[round_, int(chunk[1]), int(chunk[2])] = int(chunk[4], 16)
            elif kind == "commit":
                self._add(round_, _COMMIT.match(says), sums)

    def _add(self, round_, said, sums):
        count, attempt = int(said["chunks"]), int(said["attempt"])
        voters = []
        for ids, chunks in _VOTERS.findall(said["voters"]):
            voters += [tuple(int(i) for i in ids.split(",") if i)] * int(chunks or count)
        commit = Commit(
            kind=said["kind"], gamma=float(said["gamma"]), rho=float(said["rho"]),
            decay_step=float(said["decay_step"]) if said["decay_step"] else None,
            scales=tuple(float(s) for s in said["scales"].split(",")) if said["scales"] else None,
            payload_hash=int(said["hash"], 16), voters=tuple(voters),
            checksums=tuple(sums[round_, attempt, k] for k in range(count)))
        assert len(voters) == count, f"round {round_}: voters of {len(voters)} chunks, of {count}"
        if count:
            counted = [len(ids) for ids in commit.voters]
            assert payload_hash(counted, commit.checksums) == commit.payload_hash, f"round {round_}: hash"
        if round_ in self.commits:
            assert self.commits[round_] == commit, f"round {round_} was committed twice: {self.commits[round_]}, {commit}"
            return
        assert round_ == self.rounds, f"round {round_} follows round {self.rounds - 1}"
        self.commits[round_] = commit


class Ballots:
    """Every ballot that was written down, by (name, round): each chunk's payloads, of which a worker that was killed in the
    round and started again may have more than one."""

    def __init__(self, folder):
        self._of = {}
        for path in sorted(pathlib.Path(folder).glob("*.ballots")):
            data = path.read_bytes()
            # What follows the last line's end was being written when its worker was killed: nothing of it was sent.
            for line in data[:data.rfind(b"\n") + 1].splitlines():
                ballot = json.loads(line)
                chunks = [base64.b64decode(chunk) for chunk in ballot["chunks"]]
                self._of.setdefault((ballot["worker"], ballot["round"]), []).append(chunks)

    def payloads(self, name, round_, k):
        """Different ones, those of the last incarnation first."""
        ballots = self._of.get((name, round_), [])
        return list(dict.fromkeys(chunks[k] for chunks in reversed(ballots) if chunks[k]))


class Replay:
    """run() once. What it says of itself afterwards: replica, and of how many chunks the vote was a tie somewhere, or had to be
    looked for among the ballots of several incarnations."""

    def __init__(self, layout, chunk_coordinates, seed, start, x0=True):
        self.replica = Replica(layout, start, x0=start if x0 else None)
        self.chunk_coordinates, self.seed = chunk_coordinates, seed
        self.tied_chunks = self.several = 0

    def run(self, journal, ballots):
        for round_ in range(journal.rounds):
            commit = journal.commits[round_]
            if commit.kind == "none":
                self.replica.none(round_)
            elif commit.kind == "rewind":
                self.replica.rewind(round_)
            else:
                verdict = np.concatenate([self._chunk(journal, ballots, round_, k) for k in range(len(commit.voters))])
                self.replica.step(round_, verdict, commit.gamma, commit.rho, commit.decay_step, commit.scales)
        return self.replica

    def _chunk(self, journal, ballots, round_, k):
        commit = journal.commits[round_]
        names = [journal.names[i] for i in commit.voters[k]]
        recorded = [ballots.payloads(name, round_, k) for name in names]
        for name, payloads in zip(names, recorded):
            assert payloads, f"round {round_}: the journal counts {name}, which wrote no ballot"
        for tried, votes in enumerate(itertools.product(*recorded)):
            verdict, tied = self._vote(votes, round_, k)
            if xxh3(bits.pack(verdict)) == commit.checksums[k]:
                self.several += tried > 0
                self.tied_chunks += tied
                return verdict
        raise AssertionError(f"round {round_}, chunk {k}: the recorded ballots of {names} do not make this verdict")

    def _vote(self, votes, round_, k):
        """The majority, ties by the coins of round and coordinate; and whether there was a tie."""
        first = k * self.chunk_coordinates
        count = min(self.chunk_coordinates, self.replica.layout.coordinates - first)
        ones = sum(bits.unpack(vote, count).astype(np.int32) for vote in votes)
        tie = 2 * ones == len(votes)
        words = coins.tie_words(self.seed, round_, np.arange(first // 64, (first + count + 63) // 64, dtype=np.uint64))
        coin = np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[:count].astype(bool)
        return np.where(tie, coin, 2 * ones > len(votes)), bool(tie.any())
