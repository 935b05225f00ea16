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

from . import apply, bits, direction, security
from .checksums import payload_hash, xxh3
from .layout import Layout, Tensor
from .messages import services, training
from .replica import Replica
from .stream import DRAIN, Ended, Silent, Stream

PROTOCOL = 2
SOFTWARE_VERSION = "python-interop"
STATE_CHUNK = 1 << 18  # coordinates
BACKOFF_SECONDS, BACKOFF_SECONDS_MAX = 0.05, 2.0
SIGNS = {training.PAYLOAD_UNSPECIFIED, training.PAYLOAD_SIGNS}
BALLOTS_MAX = 1024  # that counts are ever of
DENSE = {training.PAYLOAD_FP32: 4, training.PAYLOAD_BF16: 2}  # bytes of a value
FETCHES_MAX = 5
PLANE_REPLICA, PLANE_X0 = 0, 1

_Code = grpc.StatusCode
_NOT_AGAIN = {_Code.UNAUTHENTICATED, _Code.PERMISSION_DENIED, _Code.FAILED_PRECONDITION, _Code.ALREADY_EXISTS,
              _Code.INVALID_ARGUMENT, _Code.DEADLINE_EXCEEDED}


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
        self.layout = trainer.model.layout  # the model's own; from the first welcome on the run's
        self._initial = initial  # function: the parameters to upload when this worker is the first
        # Of the run; kept from stream to stream.
        self.replica = None
        self.run_id, self.epoch = b"", 0
        self.ballot = None
        self.draining = False
        self.stream = None
        self._mismatches = 0  # verdicts that did not match their commit, in a row
        self._fetches_failed = 0
        self._x0_over = False  # the run has let go of x0
        # For the report.
        self.streams = self.voted = self.fetched = 0
        self.commits = dict.fromkeys(("step", "rewind", "none"), 0)  # applied, by kind
        self.run_done = False  # a commit said that it is the last
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
            token=self.options.token, run_id=self.run_id, model_config_json=self.trainer.model.config_json, can_probe=True,
            tensors=[training.TensorShape(name=t.name, shape=t.shape) for t in self.trainer.model.tensors])
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
            self._adopt(welcome.layout)
        except ValueError as error:
            raise Broken(str(error)) from None
        self._adopt_payloads(welcome)
        all_dense = all(tensor.dense for tensor in welcome.layout.tensors)
        if welcome.local_steps_max > 1 and (not self._factors.stepped or self._factors.by_update and not all_dense):
            raise Broken("local steps of this direction are unknown: upgrade")
        if welcome.endpoints:
            raise Broken("the run's ballots go to other endpoints than this stream: upgrade")
        if welcome.clip.kind not in (training.Clip.KIND_UNSPECIFIED, training.Clip.KIND_NORM):
            raise Broken(f"clipping {welcome.clip.kind} is unknown: upgrade")
        self.trainer.norm_max = welcome.clip.max_norm if welcome.clip.kind == training.Clip.KIND_NORM else None
        self._welcome = welcome
        self._progressed = True
        self.run_id = welcome.run_id
        state = training.Welcome.State
        self.states.append(state.Name(welcome.state))
        self.log(f"welcome: incarnation {welcome.incarnation}, {state.Name(welcome.state)}, round {welcome.round}")
        if welcome.state == state.STATE_KEEP and self.replica is not None:
            if welcome.needs_x0 and self.replica.x0 is None and not self._x0_over:
                raise Broken("Welcome says STATE_KEEP, and that x0 is needed, which this replica lacks")
        elif welcome.state == state.STATE_FETCH:
            self._fetch()
        elif welcome.state == state.STATE_UPLOAD:
            self._upload()
        else:
            raise Broken(f"Welcome says {state.Name(welcome.state)}")
        self.epoch = welcome.epoch
        self.stream.send(ready=training.Ready(round=self.replica.round))

    def _adopt_payloads(self, welcome):
        """Which chunks of a commit are counts, and which are dense both ways; the others are signs."""
        first, self._counts, self._dense = 0, set(), {}
        self._kinds = SIGNS | {range_.down for range_ in welcome.payloads}  # that a commit may name
        for range_ in welcome.payloads:
            dense = range_.up if range_.up == range_.down and range_.up in DENSE else None
            if dense is None and (range_.up not in SIGNS or range_.down not in SIGNS | {training.PAYLOAD_COUNTS}):
                raise Broken("the run's payloads are of a kind that this worker cannot make or apply: upgrade")
            if range_.first_chunk != first or not range_.chunks:
                raise Broken("the run's payloads do not cover its chunks in order")
            first += range_.chunks
            if dense is not None:
                self._dense |= dict.fromkeys(range(range_.first_chunk, first), dense)
            if range_.down == training.PAYLOAD_COUNTS:
                self._counts |= set(range(range_.first_chunk, first))
        chunks = -(-self.layout.coordinates // welcome.chunk_coordinates)
        if first not in (0, chunks):
            raise Broken("the run's payloads do not cover its chunks in order")
        if self._counts and not 1 <= welcome.ballots_max <= BALLOTS_MAX:
            raise Broken(f"counts of up to {welcome.ballots_max} ballots")

    def _adopt(self, layout):
        """The run's order of tensors, with its scales and decays. ValueError: it is not this worker's model."""
        unknown = [t.name for t in layout.tensors if t.treatment > training.Tensor.TREATMENT_PLAIN]
        if unknown:
            raise ValueError(f"the treatment of tensor {unknown[0]} is unknown")
        run = Layout([Tensor(t.name, tuple(t.shape), t.step_scale, t.weight_decay,
                             t.treatment == training.Tensor.TREATMENT_SPARSE, t.dense) for t in layout.tensors])
        if run.digest() != layout.digest:
            raise ValueError("Welcome's layout has another digest than it says")
        if run.digest() != Layout(self.trainer.model.tensors).digest():
            raise ValueError("the run trains another layout than this worker's model")
        if any(not math.isfinite(t.step_scale) or t.step_scale <= 0 or not math.isfinite(t.weight_decay) or t.weight_decay < 0
               for t in run.tensors):
            raise ValueError("Welcome's layout has a scale or a decay that cannot be")
        if self.replica is not None and run.tensors != self.layout.tensors:
            raise ValueError("the run's layout is another one than before")
        self.layout = run
        self.trainer.adopt(run)

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
        if open_.local_steps > max(1, self._welcome.local_steps_max):
            raise Broken(f"round {open_.round} asks for {open_.local_steps} local steps, more than Welcome said")
        if not all(math.isfinite(eta) and eta >= 0 for eta in (open_.eta_first, open_.eta_last)):
            raise Broken(f"round {open_.round} has inner stepsizes {open_.eta_first} to {open_.eta_last}")
        if open_.start not in training.RoundOpen.Start.values():
            raise Broken(f"round {open_.round} starts in a way that this worker cannot: upgrade")
        if open_.start == training.RoundOpen.START_X0 and self.replica.x0 is None:
            raise Broken(f"round {open_.round} starts from x0, which Welcome did not say is needed")
        self._open = open_
        # Verdicts of earlier attempts are void.
        now = (self._welcome.epoch, open_.round, open_.attempt)
        self._verdicts = {key: chunks for key, chunks in self._verdicts.items() if key == now}
        begin = time.monotonic()
        if self.ballot is None or self.ballot.round != open_.round:
            self.ballot = self.trainer.vote(open_, self._welcome.seed, self._factors, self.replica)
        at = {"round": open_.round, "attempt": open_.attempt}
        if not self.ballot.scalars:
            self.stream.send(abstain=training.Abstain(reason=self.ballot.abstain_reason, **at))
            return
        for chunk, where in enumerate(self._chunks() if self.ballot.packed is not None else ()):
            payload = self._dense_ballot(chunk) if chunk in self._dense else self.ballot.packed[where]
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
        size = chunks[verdict.chunk].stop - chunks[verdict.chunk].start if verdict.chunk < len(chunks) else 0
        if verdict.chunk in self._dense:
            size = self._count(verdict.chunk) * DENSE[self._dense[verdict.chunk]]
        planes = range(1, bits.count_planes(self._welcome.ballots_max) + 1) if verdict.chunk in self._counts else (1,)
        if size == 0 or len(verdict.payload) not in {size * n for n in planes}:
            raise Broken(f"verdict chunk {verdict.chunk} of {len(verdict.payload)} bytes does not exist")
        if xxh3(verdict.payload) != verdict.checksum:
            raise Rejoin(f"verdict chunk {verdict.chunk}: its checksum differs")
        at = (verdict.epoch, verdict.round, verdict.attempt)
        self._verdicts.setdefault(at, {})[verdict.chunk] = (verdict.checksum, verdict.payload)

    def _on_commit(self, commit):
        if commit.run_id != self.run_id:
            raise Broken("a commit of another run")
        if commit.round < self.replica.round:
            return
        if commit.round > self.replica.round:
            raise Rejoin(f"commit {commit.round} came, the replica stands at {self.replica.round}")
        kind = training.Commit
        if commit.kind == kind.KIND_STEP:
            self._step(commit)
            self.trainer.moved()
        elif commit.kind == kind.KIND_REWIND:
            if self.replica.x0 is None:
                raise Broken(f"commit {commit.round} rewinds to x0, which Welcome did not say is needed")
            self.replica.rewind(commit.round)
            self.trainer.rewound()
        elif commit.kind == kind.KIND_NONE:
            self.replica.none(commit.round)
        else:
            raise Broken(f"commit {commit.round} is of a kind that this worker cannot apply: upgrade")
        self.commits[kind.Kind.Name(commit.kind).removeprefix("KIND_").lower()] += 1
        self.run_done |= commit.run_done
        self._mismatches = 0
        self._verdicts.clear()
        self._open = None
        if commit.digest_due and self.replica.level:
            self._send_digest(commit.round + 1)
        if self.draining:
            self._leave()

    def _step(self, commit):
        """Moves the replica, if the verdict is the one that the commit means and can be applied."""
        decay_step = commit.decay_step if commit.HasField("decay_step") else commit.stepsize
        if commit.payload not in self._kinds:
            raise Broken(f"commit {commit.round} has a payload that this worker cannot apply: upgrade")
        if len(commit.scales) not in (0, len(self.layout.tensors)):
            raise Broken(f"commit {commit.round} has {len(commit.scales)} scales for {len(self.layout.tensors)} tensors")
        for name, value in ("stepsize", commit.stepsize), ("decay_step", decay_step), *(("scale", s) for s in commit.scales):
            if not math.isfinite(value) or value < 0:
                raise Broken(f"commit {commit.round} has {name} {value}")
        if not math.isfinite(commit.rho):
            raise Broken(f"commit {commit.round} has rho {commit.rho}")
        if commit.rho != 1 and self.replica.x0 is None:
            raise Broken(f"commit {commit.round} rescales about x0, which Welcome did not say is needed")
        chunks = self._verdicts.get((commit.epoch, commit.round, commit.attempt), {})
        due = len(self._chunks())
        if len(chunks) != due or len(commit.counted) != due or commit.payload_hash != payload_hash(
                commit.counted, [chunks[k][0] for k in range(due)]):
            self._mismatches += 1
            raise Rejoin(f"round {commit.round}: verdict and commit do not match", keep=self._mismatches < 2)
        try:
            signs = self._signs([chunks[k][1] for k in range(due)], commit.counted)
        except ValueError as error:
            raise Broken(f"round {commit.round}: {error}") from None
        self.replica.step(commit.round, signs, commit.stepsize, commit.rho, decay_step, list(commit.scales))

    def _signs(self, payloads, counted):
        """What a step moves by: a verdict's bits, or the mean of the ballots' signs where some chunk is counts."""
        sizes = [self._count(k) for k in range(len(payloads))]
        if not self._counts and not self._dense:
            return np.concatenate([bits.unpack(p, n) for p, n in zip(payloads, sizes, strict=True)])
        means = []
        for k, (payload, n) in enumerate(zip(payloads, sizes, strict=True)):
            if k in self._counts:
                means.append(apply.mean_signs(bits.unpack_counts(payload, n, counted[k]), counted[k]))
            elif k in self._dense:  # what moves it, in a sign's place
                narrow = self._dense[k] == training.PAYLOAD_BF16
                means.append(bits.widen_bf16(payload) if narrow else np.frombuffer(payload, "<f4"))
            else:
                means.append(np.where(bits.unpack(payload, n), np.float32(1), np.float32(-1)))
        return np.concatenate(means)

    def _count(self, chunk):
        """Its coordinates."""
        size = self._welcome.chunk_coordinates
        return min(size, self.layout.coordinates - chunk * size)

    def _dense_ballot(self, chunk):
        """The gradient of dense tensors, and 1 or -1 where the chunk is voted on."""
        first = chunk * self._welcome.chunk_coordinates
        here = slice(first, first + self._count(chunk))
        signs = np.where(bits.unpack(self.ballot.packed, self.layout.coordinates)[here], np.float32(1), np.float32(-1))
        dense = self.layout.dense()[here]
        values = np.where(dense, self.ballot.gradient[here], signs).astype("<f4")
        return bits.narrow_bf16(values) if self._dense[chunk] == training.PAYLOAD_BF16 else values.tobytes()

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
        """The replica, plane by plane, each in ascending order. x0 does not come once the run has let go of it."""
        pieces = {plane: [] for plane in ((PLANE_REPLICA, PLANE_X0) if self._welcome.needs_x0 else (PLANE_REPLICA,))}
        due = [(plane, 0) for plane in pieces]
        try:
            for chunk in self._stub.FetchState(training.FetchStateRequest(ticket=self._welcome.ticket),
                                                timeout=self.options.message_timeout):
                values = np.frombuffer(chunk.payload, dtype="<f4")
                if not due or (chunk.plane, chunk.first) != due[0] or chunk.count != len(values) or not len(values):
                    raise Rejoin(f"state chunk at {chunk.first} of plane {chunk.plane} is not the one that is due", keep=False)
                if xxh3(chunk.payload) != chunk.checksum:
                    raise Rejoin(f"state chunk at {chunk.first}: its checksum differs", keep=False)
                pieces[chunk.plane].append((chunk.round, chunk.first, values))
                end = chunk.first + len(values)
                if end > self.layout.coordinates:
                    raise Rejoin(f"the state has more than {self.layout.coordinates} coordinates", keep=False)
                due[0] = (chunk.plane, end)
                if end == self.layout.coordinates:
                    due.pop(0)
            if due == [(PLANE_X0, 0)]:
                del pieces[PLANE_X0], due[0]
                self._x0_over = True
            if due:
                raise Rejoin(f"the state ended at coordinate {due[0][1]} of plane {due[0][0]}", keep=False)
        except (grpc.RpcError, Rejoin) as error:
            self._fetches_failed += 1
            if self._fetches_failed >= FETCHES_MAX:
                raise Broken(f"the state could not be fetched: {error}") from None
            if isinstance(error, grpc.RpcError):
                raise Rejoin(f"FetchState: {error.code().name}: {error.details()}", keep=False) from None
            raise
        self._fetches_failed = 0
        x0 = np.concatenate([values for _, _, values in pieces[PLANE_X0]]) if PLANE_X0 in pieces else None
        self.replica = Replica.fetched(self.layout, pieces[PLANE_REPLICA], x0)
        self.ballot = None  # was computed at another replica
        self.trainer.moved()
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
        self.replica = Replica(self.layout, values, x0=values if self._welcome.needs_x0 else None)
