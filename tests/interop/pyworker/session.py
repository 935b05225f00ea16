"""A worker's part in a run, over as many streams as it takes: join, get the state, vote, apply, leave.

docs/wire_format.md, "Order of messages", is the text that this file follows; what ends a stream and whether to try again
is its table of statuses, what a damaged message ends with its table "Damage".
"""

import dataclasses
import math
import random
import time

import grpc
import numpy as np

from . import bits, direction, security
from .checksums import xxh3
from .messages import services, training
from .replica import Replica
from .stream import DRAIN, Ended, Silent, Stream

PROTOCOL = 1
SOFTWARE_VERSION = "python-interop"
STATE_CHUNK = 1 << 18  # coordinates
BACKOFF_SECONDS, BACKOFF_SECONDS_MAX = 0.05, 2.0
FETCHES_MAX = 5

_Code = grpc.StatusCode
_NOT_AGAIN = {_Code.UNAUTHENTICATED, _Code.PERMISSION_DENIED, _Code.FAILED_PRECONDITION, _Code.ALREADY_EXISTS,
              _Code.INVALID_ARGUMENT}


class Rejoin(Exception):
    """This stream is of no more use; another one is. keep: whether the replica is to be trusted."""

    def __init__(self, text, keep=True):
        super().__init__(text)
        self.keep = keep


class Broken(Exception):
    """The server sends what this worker must not accept, or cannot understand."""


@dataclasses.dataclass
class Options:
    server: str
    name: str
    token: str
    credentials: security.Credentials | None = None  # None: plaintext
    server_timeout: float = 600   # seconds that a lost server is looked for
    message_timeout: float = 600  # longest silence of a stream


class Session:
    """run() once. Its fields tell the caller what happened, also after an exception."""

    def __init__(self, options, trainer, initial, log):
        self.options, self.trainer, self.log = options, trainer, log
        self.layout = trainer.model.layout
        self._initial = initial  # function: the parameters to upload when this worker is the first
        # Of the run; kept from stream to stream.
        self.replica = None
        self.run_id, self.epoch = b"", 0
        self.ballot = None
        self.draining = False
        self.stream = None
        self._mismatches = 0  # verdicts that did not match their commit, in a row
        self._fetches_failed = 0
        # For the report.
        self.streams = self.voted = self.fetched = 0
        self.states = []  # of each welcome

    def drain(self):
        """From a signal handler: finish the round and leave."""
        self.draining = True
        if self.stream is not None:
            self.stream.inbox.put(DRAIN)

    def run(self):
        """"finished" or "drained". Raises security.Refused, security.Unreachable or Broken."""
        wait, looked_for = BACKOFF_SECONDS, time.monotonic()
        while True:
            try:
                return self._one_stream()
            except Ended as end:
                self._raise_unless_again(end)
                reason = str(end)
            except (Rejoin, Silent, security.Unreachable) as problem:
                reason = str(problem)
                if isinstance(problem, Rejoin) and not problem.keep:
                    self.replica = None
            if self.draining:
                return "drained"  # there is no round to finish
            if self._progressed:
                wait, looked_for = BACKOFF_SECONDS, time.monotonic()
            elif time.monotonic() - looked_for > self.options.server_timeout:
                raise security.Unreachable(
                    f"no session with {self.options.server} for {self.options.server_timeout:.0f} s: {reason}")
            self.log(f"joins again: {reason}")
            time.sleep(random.uniform(wait / 2, wait))
            wait = min(2 * wait, BACKOFF_SECONDS_MAX)

    # ---- one stream -------------------------------------------------------------------------------------------------

    def _one_stream(self):
        self._progressed = False  # a welcome came: the server is there
        self._welcome = None
        self._verdicts = {}       # (epoch, round, attempt) -> {chunk: payload}
        self._open = None         # the RoundOpen whose commit is awaited
        self._finished = False    # Finish came and is answered
        self._left = False        # Leave is sent
        self.streams += 1
        with security.dial(self.options.server, self.options.credentials, timeout=20) as channel:
            self._stub = services.TrainingStub(channel)
            self.stream = Stream(self._stub)
            try:
                self.stream.send(join=self.join_message())
                self._converse()
            except Ended as end:
                if self._finished or self._left:  # all is said; how the server hangs up does not matter
                    return "finished" if self._finished else "drained"
                if end.code == _Code.OK:
                    raise Rejoin("the server closed the session, the run not finished") from None
                raise
            finally:
                stream, self.stream = self.stream, None
                stream.close()

    def join_message(self):
        join = training.Join(
            protocol_min=PROTOCOL, protocol_max=PROTOCOL, software_version=SOFTWARE_VERSION, name=self.options.name,
            token=self.options.token, run_id=self.run_id, model_config_json=self.trainer.model.config_json)
        for tensor in self.layout.tensors:
            join.layout.tensors.add(name=tensor.name, shape=tensor.shape, step_scale=tensor.step_scale,
                                    weight_decay=tensor.weight_decay)
        join.layout.digest = self.layout.digest()
        # Pieces that stand at different rounds have no one round to name: such a replica is fetched again.
        if self.replica is not None and self.replica.level:
            join.round, join.epoch = self.replica.round, self.epoch
        return join

    def _converse(self):
        """Answers the server until the stream ends: by an exception, always."""
        handlers = {
            "welcome": self._on_welcome, "round_open": self._on_round_open, "verdict_chunk": self._on_verdict_chunk,
            "commit": self._on_commit, "resync": self._on_resync, "finish": self._on_finish, "drain": self._on_drain,
            "notice": self._on_notice, DRAIN: self._on_drain}
        while True:
            kind, message = self.stream.receive(self.options.message_timeout)
            if self._welcome is None and kind not in ("welcome", "notice", DRAIN):
                raise Broken(f"{kind} came before Welcome")
            if kind in handlers:  # others are of a later version: ignored
                handlers[kind](message)

    def _raise_unless_again(self, end):
        if end.code in _NOT_AGAIN or (end.code == _Code.RESOURCE_EXHAUSTED and self._welcome is None):
            raise security.Refused(str(end))

    # ---- what the server says -----------------------------------------------------------------------------------------

    def _on_notice(self, notice):
        self.log(f"notice: {notice.text}")

    def _on_welcome(self, welcome):
        if self._welcome is not None:
            raise Broken("a second Welcome")
        if welcome.protocol != PROTOCOL:
            raise Broken(f"the server chose protocol {welcome.protocol}")
        if len(welcome.run_id) != 16 or welcome.chunk_coordinates == 0 or welcome.chunk_coordinates % 512:
            raise Broken("Welcome names no run or no chunks")
        try:
            self._factors = direction.factors(welcome.direction)
        except ValueError as error:
            raise Broken(str(error)) from None
        self._welcome = welcome
        self._progressed = True
        self.run_id = welcome.run_id
        state = training.Welcome.State
        self.states.append(state.Name(welcome.state))
        self.log(f"welcome: incarnation {welcome.incarnation}, {state.Name(welcome.state)}, round {welcome.round}")
        if welcome.state == state.STATE_KEEP and self.replica is not None:
            pass
        elif welcome.state == state.STATE_FETCH:
            self._fetch()
        elif welcome.state == state.STATE_UPLOAD:
            self._upload()
        else:
            raise Broken(f"Welcome says {state.Name(welcome.state)}")
        self.epoch = welcome.epoch
        self.stream.send(ready=training.Ready(round=self.replica.round))

    def _on_resync(self, resync):
        self.log(f"resync in round {resync.round}: {resync.reason}")
        self._fetch()
        self._verdicts.clear()
        self._open = None
        self.stream.send(ready=training.Ready(round=self.replica.round))

    def _on_round_open(self, open_):
        if self._left:
            return
        if open_.round != self.replica.round or not self.replica.level:
            raise Rejoin(f"round {open_.round} opens, the replica stands at {self.replica.round}")
        self._open = open_
        # Verdicts of earlier attempts are void.
        now = (self._welcome.epoch, open_.round, open_.attempt)
        self._verdicts = {key: chunks for key, chunks in self._verdicts.items() if key == now}
        begin = time.monotonic()
        if self.ballot is None or self.ballot.round != open_.round:
            self.ballot = self.trainer.vote(open_, self._welcome.seed, self._factors, self.replica)
        at = {"round": open_.round, "attempt": open_.attempt}
        if self.ballot.packed is None:
            self.stream.send(abstain=training.Abstain(reason=self.ballot.abstain_reason, **at))
            return
        for chunk, where in enumerate(self._chunks()):
            payload = self.ballot.packed[where]
            self.stream.send(ballot_chunk=training.BallotChunk(
                run_id=self.run_id, epoch=self._welcome.epoch, chunk=chunk, checksum=xxh3(payload), payload=payload,
                **at))
        self.stream.send(scalars=training.Scalars(
            compute_us=int((time.monotonic() - begin) * 1e6), **self.ballot.scalars, **at))
        self.voted += 1

    def _on_verdict_chunk(self, verdict):
        chunks = self._chunks()
        if verdict.run_id != self.run_id:
            raise Broken("a verdict of another run")
        if verdict.chunk >= len(chunks) or len(verdict.payload) != chunks[verdict.chunk].stop - chunks[verdict.chunk].start:
            raise Broken(f"verdict chunk {verdict.chunk} of {len(verdict.payload)} bytes does not exist")
        if xxh3(verdict.payload) != verdict.checksum:
            raise Rejoin(f"verdict chunk {verdict.chunk}: its checksum differs")
        self._verdicts.setdefault((verdict.epoch, verdict.round, verdict.attempt), {})[verdict.chunk] = verdict.payload

    def _on_commit(self, commit):
        if commit.run_id != self.run_id:
            raise Broken("a commit of another run")
        if commit.round < self.replica.round:
            return
        if commit.round > self.replica.round:
            raise Rejoin(f"commit {commit.round} came, the replica stands at {self.replica.round}")
        if commit.kind != training.Commit.KIND_STEP or commit.rho != 1:
            raise Broken(f"commit {commit.round} is of a kind that this worker cannot apply: upgrade")
        if not math.isfinite(commit.stepsize) or commit.stepsize < 0:
            raise Broken(f"commit {commit.round} has stepsize {commit.stepsize}")
        chunks = self._verdicts.get((commit.epoch, commit.round, commit.attempt), {})
        whole = b"".join(chunks[k] for k in sorted(chunks))
        if len(chunks) != len(self._chunks()) or xxh3(whole) != commit.verdict_hash:
            self._mismatches += 1
            raise Rejoin(f"round {commit.round}: verdict and commit do not match", keep=self._mismatches < 2)
        try:
            verdict = bits.unpack(whole, self.layout.coordinates)
        except ValueError as error:
            raise Broken(f"round {commit.round}: {error}") from None
        self.replica.apply(commit.round, verdict, commit.stepsize)
        self._mismatches = 0
        self._verdicts.clear()
        self._open = None
        if commit.digest_due and self.replica.level:
            self._send_digest(commit.round + 1)
        if self.draining:
            self._leave()

    def _on_finish(self, finish):
        if self.replica is not None and self.replica.level and self.replica.round == finish.rounds:
            self._send_digest(finish.rounds)
        else:
            self.log(f"the run ended after {finish.rounds} rounds, before this worker had caught up")
        self._finished = True

    def _on_drain(self, _):
        self.draining = True
        if self._open is None:
            self._leave()

    # ---- what it answers ----------------------------------------------------------------------------------------------

    def _leave(self):
        self.stream.send(leave=training.Leave(reason="drained"))
        self._left = True

    def _send_digest(self, round_):
        self.stream.send(replica_digest=training.ReplicaDigest(round=round_, digest=self.replica.digest()))

    def _chunks(self):
        """Each chunk's bytes within the whole model's packed bits."""
        d, c = self.layout.coordinates, self._welcome.chunk_coordinates
        return [slice(first // 8, (min(first + c, d) + 7) // 8) for first in range(0, d, c)]

    def _fetch(self):
        pieces, expected = [], 0
        try:
            for chunk in self._stub.FetchState(training.FetchStateRequest(ticket=self._welcome.ticket),
                                                timeout=self.options.message_timeout):
                values = np.frombuffer(chunk.payload, dtype="<f4")
                if chunk.first != expected or chunk.count != len(values):
                    raise Rejoin(f"state chunk at {chunk.first} came, {expected} was due", keep=False)
                if xxh3(chunk.payload) != chunk.checksum:
                    raise Rejoin(f"state chunk at {chunk.first}: its checksum differs", keep=False)
                pieces.append((chunk.round, chunk.first, values))
                expected += len(values)
            if expected != self.layout.coordinates:
                raise Rejoin(f"the state has {expected} coordinates, {self.layout.coordinates} are due", keep=False)
        except (grpc.RpcError, Rejoin) as error:
            self._fetches_failed += 1
            if self._fetches_failed >= FETCHES_MAX:
                raise Broken(f"the state could not be fetched: {error}") from None
            if isinstance(error, grpc.RpcError):
                raise Rejoin(f"FetchState: {error.code().name}: {error.details()}", keep=False) from None
            raise
        self._fetches_failed = 0
        self.replica = Replica.fetched(self.layout, pieces)
        self.ballot = None  # was computed at another replica
        self.fetched += 1

    def _upload(self):
        values = self._initial()

        def requests():
            yield training.UploadStateRequest(ticket=self._welcome.ticket)
            for first in range(0, len(values), STATE_CHUNK):
                part = values[first:first + STATE_CHUNK].astype("<f4")
                yield training.UploadStateRequest(chunk=training.StateChunk(
                    round=0, first=first, count=len(part), checksum=xxh3(part.tobytes()), payload=part.tobytes()))

        try:
            reply = self._stub.UploadState(requests(), timeout=self.options.message_timeout)
        except grpc.RpcError as error:
            raise Rejoin(f"UploadState: {error.code().name}: {error.details()}") from None
        if reply.coordinates != len(values):
            raise Broken(f"the server took {reply.coordinates} of {len(values)} coordinates")
        self.replica = Replica(self.layout, values)
