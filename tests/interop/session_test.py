"""The Python worker's session against a scripted server: what it must refuse, resend and ask again.

docs/wire_format.md, "What may be applied", "Attempts" and the right column of "Damage".
"""

import concurrent.futures
import math
import os
import pathlib
import random
import subprocess
import unittest

import grpc
import numpy as np

from pyworker import apply, bits, data, mlp
from pyworker.checksums import payload_hash, replica_digest, xxh3
from pyworker.layout import Layout, Tensor
from pyworker.messages import services, training
from pyworker.session import Broken, Options, Session
from pyworker.trainer import Trainer

RUN, EPOCH = bytes(range(16)), 3
SMALL = {"features": 40, "hidden_size": 20, "classes": 5, "num_hidden_layers": 1}  # 925 coordinates: two chunks of 512
CHUNK = 512
GAMMA = 0.125
APPLY_COMMITS = pathlib.Path(os.environ["SIGNVOTE_BIN"]) / "apply_commits"


def hex32(value):
    return f"{np.float32(value).view(np.uint32):08x}"


def run_layout(model):
    """The run's: the model's tensors backwards, with scales and decays that the model knows nothing of."""
    return Layout([Tensor(t.name, t.shape, *((0.5, np.float32(0.1)) if len(t.shape) == 2 else (1.0, 0.0)))
                   for t in reversed(model.tensors)])


class Script(services.TrainingServicer):
    """One server; conversation(stream) is called with the number of each Session call, from 0, and yields what it says."""

    def __init__(self, model):
        self.layout = run_layout(model)
        self.x = np.random.default_rng(3).normal(0, 0.3, self.layout.coordinates).astype(np.float32)
        self.x0 = self.x + np.float32(0.25)
        self.joins, self.readies, self.pongs, self.ballots, self.digests, self.scalars = [], [], [], [], [], []
        self.fetches = 0
        self.conversation = None
        self.welcome = {}  # fields of Welcome beyond the usual ones
        self.planes = (0, 1)  # sent by FetchState, in this order
        self.damage_state = lambda chunk: chunk

    # ---- what a conversation is made of -----------------------------------------------------------------------------

    def until(self, requests, kind):
        """Reads the worker's messages up to the first of this kind, and keeps those that tests look at."""
        for message in requests:
            got = message.WhichOneof("message")
            if got == "ballot_chunk":
                self.ballots.append(message.ballot_chunk)
            kept = {"ready": self.readies, "pong": self.pongs, "replica_digest": self.digests,
                    "scalars": self.scalars}.get(got)
            if kept is not None:
                kept.append(getattr(message, got))
            if got == kind:
                return
        raise AssertionError(f"the worker hung up before it sent {kind}")

    @staticmethod
    def open(round_, attempt=0, **changes):
        return training.ServerMessage(round_open=training.RoundOpen(
            round=round_, attempt=attempt, members=1, role=training.RoundOpen.ROLE_MEMBER, **changes))

    def verdict(self, plus, round_, attempt=0, **changes):
        """A round's chunks."""
        packed = bits.pack(plus)
        for k, first in enumerate(range(0, len(packed), CHUNK // 8)):
            payload = packed[first:first + CHUNK // 8]
            fields = dict(run_id=RUN, epoch=EPOCH, round=round_, attempt=attempt, chunk=k, payload=payload,
                          checksum=xxh3(payload))
            yield training.ServerMessage(verdict_chunk=training.VerdictChunk(**dict(fields, **changes)))

    @staticmethod
    def counted_chunks(ones, ballots):
        """The planes of each chunk."""
        return [b"".join(bits.pack((ones[first:first + CHUNK] >> p) & 1) for p in range(bits.count_planes(ballots)))
                for first in range(0, len(ones), CHUNK)]

    def counts(self, ones, ballots, round_):
        for k, payload in enumerate(self.counted_chunks(ones, ballots)):
            yield training.ServerMessage(verdict_chunk=training.VerdictChunk(
                run_id=RUN, epoch=EPOCH, round=round_, chunk=k, payload=payload, checksum=xxh3(payload)))

    @staticmethod
    def commit(plus, round_, attempt=0, **changes):
        packed = bits.pack(plus)
        chunks = [packed[first:first + CHUNK // 8] for first in range(0, len(packed), CHUNK // 8)]
        fields = dict(run_id=RUN, epoch=EPOCH, round=round_, attempt=attempt, kind=training.Commit.KIND_STEP, stepsize=GAMMA,
                      rho=1, counted=[1] * len(chunks), payload_hash=payload_hash([1] * len(chunks), map(xxh3, chunks)),
                      data_step=round_, next_data_step=round_ + 1)
        return training.ServerMessage(commit=training.Commit(**dict(fields, **changes)))

    @staticmethod
    def still(kind, round_, **changes):
        """A commit without a payload."""
        return training.ServerMessage(commit=training.Commit(
            run_id=RUN, epoch=EPOCH, round=round_, kind=kind, stepsize=GAMMA, rho=1, data_step=round_,
            next_data_step=round_ + 1, reason="for the test", **changes))

    # ---- the service ------------------------------------------------------------------------------------------------

    def Session(self, requests, context):  # noqa: N802: gRPC's name
        self.join = join = next(requests).join
        self.joins.append(join.round if join.HasField("round") else None)
        keep = join.HasField("round")
        fields = dict(
            protocol=2, run_id=RUN, epoch=EPOCH, incarnation=len(self.joins), ticket=b"t" * 16, chunk_coordinates=CHUNK,
            state=training.Welcome.STATE_KEEP if keep else training.Welcome.STATE_FETCH, needs_x0=True,
            layout=training.Layout(digest=self.layout.digest(), tensors=[training.Tensor(
                name=t.name, shape=t.shape, step_scale=t.step_scale, weight_decay=t.weight_decay)
                for t in self.layout.tensors]),
            direction=training.Direction(kind=training.Direction.KIND_SIGNUM, beta=0.5))
        yield training.ServerMessage(welcome=training.Welcome(**dict(fields, **self.welcome)))
        self.until(requests, "ready")
        yield from self.conversation(len(self.joins) - 1, requests)

    def FetchState(self, request, context):  # noqa: N802
        self.fetches += 1
        for plane in self.planes:
            values = (self.x, self.x0)[plane]
            for first in range(0, len(values), 600):  # a border that is none of chunks or tensors
                payload = values[first:first + 600].astype("<f4").tobytes()
                yield self.damage_state(training.StateChunk(
                    plane=plane, round=0, first=first, count=len(payload) // 4, checksum=xxh3(payload), payload=payload))


class SessionTest(unittest.TestCase):
    def setUp(self):
        self.model = mlp.Mlp(SMALL)
        self.plus = np.arange(self.model.layout.coordinates) % 3 == 0
        self.script = Script(self.model)
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(4))
        services.add_TrainingServicer_to_server(self.script, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self.addCleanup(lambda: server.stop(None).wait(10))
        trainer = Trainer(self.model, data.Synthetic(SMALL["features"], SMALL["classes"]))
        options = Options(f"127.0.0.1:{port}", "a", "", server_timeout=60, message_timeout=60)
        self.session = Session(options, trainer, self.model.initial, lambda text: None)

    def finish(self, requests, rounds=1):
        yield training.ServerMessage(finish=training.Finish(rounds=rounds))
        self.script.until(requests, "replica_digest")

    def moved(self):
        """The digest after one commit of self.plus."""
        layout = self.script.layout
        return replica_digest(np.concatenate([
            apply.apply_step(self.script.x[where], self.plus[where], GAMMA, t.step_scale, t.weight_decay)
            for t, where in zip(layout.tensors, layout.ranges)]))

    def test_a_verdict_that_does_not_match_its_commit_is_never_applied(self):
        """Once: the worker joins again with its replica. Twice in a row: without, and fetches the state."""
        def conversation(number, requests):
            yield self.script.open(0)
            self.script.until(requests, "scalars")
            wrong = self.plus.copy()
            wrong[700] = not wrong[700]
            yield from self.script.verdict(wrong if number < 2 else self.plus, 0)
            yield self.script.commit(self.plus, 0)
            if number == 2:
                yield from self.finish(requests)
            else:
                yield from (self.script.open(9) for _ in requests)  # until the worker hangs up

        self.script.conversation = conversation
        self.assertEqual(self.session.run(), "finished")
        self.assertEqual(self.script.joins, [None, 0, None])
        self.assertEqual(self.script.fetches, 2)
        self.assertEqual(self.script.digests[-1].digest, self.moved())

    def test_a_missing_or_damaged_chunk_is_not_applied_either(self):
        def conversation(number, requests):
            yield self.script.open(0)
            self.script.until(requests, "scalars")
            chunks = list(self.script.verdict(self.plus, 0, **({"checksum": 1} if number == 1 else {})))
            yield from chunks[:1] if number == 0 else chunks
            yield self.script.commit(self.plus, 0)
            if number == 2:
                yield from self.finish(requests)
            else:
                yield from (self.script.open(9) for _ in requests)

        self.script.conversation = conversation
        self.assertEqual(self.session.run(), "finished")
        self.assertEqual(self.script.joins, [None, 0, 0])
        self.assertEqual(self.script.digests[-1].digest, self.moved())

    def test_another_attempt_gets_the_same_ballot_and_voids_earlier_verdicts(self):
        def conversation(_, requests):
            yield self.script.open(0)
            self.script.until(requests, "scalars")
            yield from self.script.verdict(~self.plus, 0)
            yield self.script.open(0, attempt=1)
            self.script.until(requests, "scalars")
            yield from self.script.verdict(self.plus, 0, attempt=1)
            yield self.script.commit(self.plus, 0, attempt=1)
            yield from self.finish(requests)

        self.script.conversation = conversation
        self.assertEqual(self.session.run(), "finished")
        sent = [(b.attempt, b.chunk, b.payload) for b in self.script.ballots]
        self.assertEqual([s[:2] for s in sent], [(0, 0), (0, 1), (1, 0), (1, 1)])
        self.assertEqual([s[2] for s in sent[:2]], [s[2] for s in sent[2:]])
        self.assertEqual(len(self.session.trainer.losses), 1, "nothing was computed anew")
        self.assertTrue(all(b.checksum == xxh3(b.payload) and b.epoch == EPOCH for b in self.script.ballots))
        self.assertEqual(self.script.digests[-1].digest, self.moved())

    def test_a_ballot_survives_a_lost_stream(self):
        def conversation(number, requests):
            yield self.script.open(0)
            self.script.until(requests, "scalars")
            if number == 1:
                yield from self.script.verdict(self.plus, 0)
                yield self.script.commit(self.plus, 0)
                yield from self.finish(requests)

        self.script.conversation = conversation  # the first stream ends with OK, the run not finished
        self.assertEqual(self.session.run(), "finished")
        self.assertEqual(self.script.joins, [None, 0])
        self.assertEqual(len(self.session.trainer.losses), 1)
        self.assertEqual([b.payload for b in self.script.ballots[:2]], [b.payload for b in self.script.ballots[2:]])

    def test_pings_are_answered_and_unknown_messages_ignored(self):
        def conversation(_, requests):
            yield training.ServerMessage(ping=training.Ping(nonce=77))
            self.script.until(requests, "pong")
            yield training.ServerMessage.FromString(bytes.fromhex("f2070100"))  # field 126, of a later version
            yield self.script.open(0)
            self.script.until(requests, "scalars")
            yield from self.script.verdict(self.plus, 0)
            yield self.script.commit(self.plus, 0, digest_due=True)
            self.script.until(requests, "replica_digest")
            yield from self.finish(requests)

        self.script.conversation = conversation
        self.assertEqual(self.session.run(), "finished")
        self.assertEqual([p.nonce for p in self.script.pongs], [77])
        self.assertEqual({(d.round, d.digest) for d in self.script.digests}, {(1, self.moved())})

    def test_what_it_cannot_apply_ends_the_session(self):
        nan = float("nan")
        changes = {"upgrade": {"kind": 77}, "payload": {"payload": training.PAYLOAD_COUNTS}, "stepsize -": {"stepsize": -1},
                   "stepsize nan": {"stepsize": nan}, "1 scales for 4": {"scales": [1]}, "scale -": {"scales": [1, 1, -1, 1]},
                   "decay_step nan": {"decay_step": nan}, "rho nan": {"rho": nan},
                   "another run": {"run_id": b"x" * 16}}
        for text, change in changes.items():
            with self.subTest(text):
                def conversation(_, requests, change=change):
                    yield self.script.open(0)
                    self.script.until(requests, "scalars")
                    yield from self.script.verdict(self.plus, 0)
                    yield self.script.commit(self.plus, 0, **change)
                    yield from (self.script.open(9) for _ in requests)

                self.script.conversation = conversation
                with self.assertRaisesRegex(Broken, text):
                    self.session.run()
                self.assertEqual(self.session.replica.digest(), replica_digest(self.script.x), "nothing was applied")

    def test_x0_that_was_not_announced_is_not_made_up(self):
        self.script.welcome = {"needs_x0": False}
        self.script.planes = (0,)
        for text, commit in (("rescales", self.script.commit(self.plus, 0, rho=0.5)),
                             ("rewinds", self.script.still(training.Commit.KIND_REWIND, 0))):
            with self.subTest(text):
                def conversation(_, requests, commit=commit):
                    yield from self.script.verdict(self.plus, 0)
                    yield commit
                    yield from (self.script.open(9) for _ in requests)

                self.script.conversation = conversation
                with self.assertRaisesRegex(Broken, f"{text}.*x0"):
                    self.session.run()
                self.assertEqual(self.session.replica.digest(), replica_digest(self.script.x), "nothing was applied")

    def test_another_layout_than_the_models_is_refused(self):
        tensors = list(self.script.layout.tensors)
        for text, layout in (("another layout", Layout([Tensor("other", tensors[0].shape), *tensors[1:]])),
                             ("cannot be", Layout([Tensor(tensors[0].name, tensors[0].shape, -1.0), *tensors[1:]]))):
            with self.subTest(text):
                self.script.layout = layout
                with self.assertRaisesRegex(Broken, text):
                    self.session.run()

    def test_what_the_run_needs_and_this_worker_cannot_do_is_said_at_the_welcome(self):
        for text, fields in (("payloads", {"payloads": [training.PayloadRange(chunks=2, down=training.PAYLOAD_FP32)]}),
                             ("endpoints", {"endpoints": [training.DataEndpoint(chunks=2, address="a:1", ticket=b"t" * 16)]}),
                             ("clipping", {"clip": training.Clip(kind=9)}),
                             ("protocol 3", {"protocol": 3})):
            with self.subTest(text):
                self.script.welcome = fields
                with self.assertRaisesRegex(Broken, text):
                    self.session.run()
        self.assertEqual(self.script.readies, [])

    def test_a_join_tells_names_and_shapes_in_the_models_own_order(self):
        def conversation(_, requests):
            yield from self.finish(requests, rounds=0)

        self.script.conversation = conversation
        self.assertEqual(self.session.run(), "finished")
        self.assertEqual([(t.name, tuple(t.shape)) for t in self.script.join.tensors],
                         [(t.name, t.shape) for t in self.model.tensors])
        self.assertEqual(self.session.layout.tensors, self.script.layout.tensors)
        self.assertEqual(self.script.digests[-1].digest, replica_digest(self.script.x))

    def test_wanted_scalars_come_in_order_and_what_it_cannot_tell_is_nan(self):
        wanted = [training.SCALAR_X0_DISTANCE, training.SCALAR_LOCAL_INNER, training.SCALAR_PROBE_L1,
                  training.SCALAR_PREV_INNER, training.SCALAR_X0_INNER]

        def conversation(_, requests):
            for round_ in range(2):
                yield self.script.open(round_, wanted=wanted, data_step=round_)
                self.script.until(requests, "scalars")
                yield from self.script.verdict(self.plus, round_)
                yield self.script.commit(self.plus, round_)
            yield from self.finish(requests, rounds=2)

        self.script.conversation = conversation
        self.assertEqual(self.session.run(), "finished")
        first, second = [dict(zip(wanted, s.wanted, strict=True)) for s in self.script.scalars]
        self.assertAlmostEqual(first[training.SCALAR_X0_DISTANCE], 0.25 * math.sqrt(len(self.script.x)), places=4)
        self.assertTrue(all(math.isnan(first[k]) for k in (wanted[1], wanted[2], wanted[3])))
        self.assertGreater(second[training.SCALAR_PROBE_L1], 0)
        self.assertTrue(math.isfinite(second[training.SCALAR_PREV_INNER]))
        self.assertTrue(math.isnan(second[training.SCALAR_LOCAL_INNER]))
        # Of the same minibatch, at the replica that the server's own arithmetic gives.
        batch = self.session.trainer.data.train(0, 0, 0)
        _, gradient = self.model.loss_and_gradient(self.script.x, batch)
        self.assertAlmostEqual(first[training.SCALAR_X0_INNER], 0.25 * float(gradient.sum()), places=4)

    def test_local_steps_vote_on_the_way_that_they_went(self):
        """Signum in plain double beside it; a commit with scales and a decay of its own; the same ballot for another attempt."""
        self.script.welcome = {"local_steps_max": 4}
        steps, etas = 4, np.linspace(0.02, 0.01, 4)
        wanted = [training.SCALAR_LOCAL_PRODUCT, training.SCALAR_X0_INNER, training.SCALAR_LOCAL_INNER]
        asked = {"local_steps": steps, "eta_first": etas[0], "eta_last": etas[-1], "data_step": 5, "wanted": wanted}
        changes = {"stepsize": 1, "scales": [0.01, 0.02, 0.03, 0.04], "decay_step": 0.06, "next_data_step": 9}

        def conversation(_, requests):
            for attempt in range(2):
                yield self.script.open(0, attempt, **asked)
                self.script.until(requests, "scalars")
            yield from self.script.verdict(self.plus, 0, attempt=1)
            yield self.script.commit(self.plus, 0, attempt=1, **changes)
            yield from self.finish(requests)

        self.script.conversation = conversation
        self.assertEqual(self.session.run(), "finished")
        layout, x0 = self.script.layout, self.script.x0.astype(np.float64)
        y, m, losses, inner, product = self.script.x.astype(np.float64), 0.0, [], 0.0, 0.0
        for h, eta in enumerate(etas):
            loss, g = self.model.loss_and_gradient(y.astype(np.float32), self.session.trainer.data.train(0, 0, 5 + h))
            losses.append(loss)
            inner += (g * (x0 - y)).sum()
            product += np.linalg.norm(g.astype(np.float64)) * np.linalg.norm(x0 - y)
            m = 0.5 * m + 0.5 * g
            y -= eta * layout.step_scales() * np.sign(m)
        scalars = self.script.scalars[0]
        self.assertEqual((scalars.local_steps, scalars.samples), (4, 4 * len(self.session.trainer.data.train(0, 0, 5).labels)))
        self.assertAlmostEqual(scalars.loss, float(np.mean(losses)), places=4)
        told = dict(zip(wanted, scalars.wanted, strict=True))
        self.assertAlmostEqual(told[training.SCALAR_LOCAL_INNER], inner, places=3)
        self.assertAlmostEqual(told[training.SCALAR_LOCAL_PRODUCT], product, places=3)
        self.assertTrue(math.isnan(told[training.SCALAR_X0_INNER]))
        way = self.script.x - y
        np.testing.assert_allclose(scalars.displacement_mean, [np.abs(way[where]).mean() for where in layout.ranges], rtol=0.02)
        packed = b"".join(b.payload for b in self.script.ballots[:2])
        same = (bits.unpack(packed, len(way)) == (way > 0))[np.abs(way) > 1e-4]
        self.assertGreater(same.mean(), 0.99, "but where fp32 decides otherwise")
        self.assertEqual([b.payload for b in self.script.ballots[:2]], [b.payload for b in self.script.ballots[2:]])
        self.assertEqual(len(self.session.trainer.losses), 4, "another attempt computes nothing")
        moved = np.concatenate([
            apply.apply_step(self.script.x[where], self.plus[where], 1, t.step_scale, t.weight_decay, 0.06, scale)
            for t, where, scale in zip(layout.tensors, layout.ranges, changes["scales"])])
        self.assertEqual(self.script.digests[-1].digest, replica_digest(moved))

    def test_local_steps_go_on_from_where_they_ended_unless_the_replica_has_moved(self):
        self.script.welcome = {"local_steps_max": 2}
        start, starts, abstentions = training.RoundOpen, [], []

        class Watched(Trainer):
            def vote(self, *arguments):
                starts.append(None if self.y is None else self.y.copy())
                ballot = super().vote(*arguments)
                abstentions.append(ballot.abstain_reason)
                return ballot

        self.session.trainer = trainer = Watched(self.model, self.session.trainer.data)
        eta = {"local_steps": 2, "eta_first": 0.25, "eta_last": 0.25}
        ends = []

        def conversation(_, requests):
            yield self.script.open(0, start=start.START_X0, **eta)
            self.script.until(requests, "scalars")
            ends.append(trainer.y.copy())
            yield self.script.still(training.Commit.KIND_NONE, 0)
            yield self.script.open(1, start=start.START_CONTINUE, **eta)
            self.script.until(requests, "scalars")
            yield self.script.still(training.Commit.KIND_REWIND, 1)
            yield self.script.open(2, start=start.START_CONTINUE, **eta)
            self.script.until(requests, "abstain")
            yield from self.finish(requests, rounds=2)

        self.script.conversation = conversation
        self.assertEqual(self.session.run(), "finished")
        self.assertEqual(abstentions, [0, 0, training.Abstain.REASON_OTHER])
        self.assertEqual(self.script.ballots, [], "in a trial nobody votes")
        np.testing.assert_array_equal(starts[1], ends[0])
        self.assertIsNone(starts[2])
        way = np.abs(ends[0] - self.script.x0)
        self.assertLessEqual(way.max(), 0.5 + 1e-6)
        self.assertGreater(way.mean(), 0.05, "from x0, not from the replica")

    def test_local_steps_end_when_the_round_says(self):
        self.script.welcome = {"local_steps_max": 9}
        times = iter(range(100))  # a second a look
        self.session.trainer.now = lambda: next(times)

        def conversation(_, requests):
            yield self.script.open(0, local_steps=9, eta_first=0.25, eta_last=0.25, steps_until_ms=3000)
            self.script.until(requests, "scalars")
            yield self.script.still(training.Commit.KIND_NONE, 0)
            yield from self.finish(requests)

        self.script.conversation = conversation
        self.assertEqual(self.session.run(), "finished")
        self.assertEqual(self.script.scalars[0].local_steps, 3)

    def test_local_steps_that_were_not_announced_or_cannot_be_are_refused(self):
        for text, welcome, changes in (
                ("more than Welcome said", {}, {"local_steps": 4}),
                ("more than Welcome said", {"local_steps_max": 3}, {"local_steps": 4}),
                ("inner stepsizes", {"local_steps_max": 4}, {"local_steps": 4, "eta_last": math.nan}),
                ("starts in a way", {"local_steps_max": 4}, {"local_steps": 4, "start": 9}),
                ("local steps of this direction", {"local_steps_max": 4,
                                                   "direction": training.Direction(kind=training.Direction.KIND_ADAM)}, {})):
            with self.subTest(text, **changes):
                self.script.welcome = welcome
                self.script.conversation = lambda _, requests, c=changes: iter([self.script.open(0, **c)])
                with self.assertRaisesRegex(Broken, text):
                    self.session.run()

    def test_a_none_keeps_everything_and_a_rewind_forgets_the_direction(self):
        momenta = []

        class Watched(Trainer):
            def vote(self, *arguments):
                momenta.append(self.direction.momentum.copy())
                return super().vote(*arguments)

        self.session.trainer = Watched(self.model, self.session.trainer.data)

        def conversation(_, requests):
            for round_, commit in enumerate((self.script.still(training.Commit.KIND_NONE, 0, digest_due=True),
                                             self.script.still(training.Commit.KIND_REWIND, 1, digest_due=True))):
                yield self.script.open(round_, data_step=round_)
                self.script.until(requests, "scalars")
                yield from list(self.script.verdict(self.plus, round_))[:1]  # what was counted before does not matter
                yield commit
                self.script.until(requests, "replica_digest")
            yield self.script.open(2, data_step=2)
            self.script.until(requests, "scalars")
            yield from self.finish(requests, rounds=2)

        self.script.conversation = conversation
        self.assertEqual(self.session.run(), "finished")
        self.assertEqual([d.digest for d in self.script.digests], [
            replica_digest(self.script.x), replica_digest(self.script.x0), replica_digest(self.script.x0)])
        self.assertFalse(momenta[0].any())
        self.assertTrue(momenta[1].any(), "a none keeps the direction's state")
        self.assertFalse(momenta[2].any(), "a rewind does not")
        self.assertEqual(self.session.commits, {"step": 0, "rewind": 1, "none": 1})

    def test_what_refers_to_the_round_before_is_told_exactly_after_a_step(self):
        told = []

        def conversation(_, requests):
            kinds = training.Commit
            for round_, kind in enumerate((kinds.KIND_STEP, kinds.KIND_NONE, kinds.KIND_STEP, kinds.KIND_REWIND, None)):
                yield self.script.open(round_, data_step=round_, wanted=[training.SCALAR_PREV_INNER])
                self.script.until(requests, "scalars")
                told.append(not math.isnan(self.script.scalars[-1].wanted[0]))
                if kind == kinds.KIND_STEP:
                    yield from self.script.verdict(self.plus, round_)
                    yield self.script.commit(self.plus, round_)
                elif kind is not None:
                    yield self.script.still(kind, round_)
            yield from self.finish(requests, rounds=4)

        self.script.conversation = conversation
        self.assertEqual(self.session.run(), "finished")
        self.assertEqual(told, [False, True, False, True, False])

    def test_commits_of_every_kind_move_the_replica_as_cpp_does(self):
        """300 rounds, each kind with everything it may carry, drawn at random; then the C++ apply does the same."""
        draw = random.Random(11)
        kinds = training.Commit
        orders, commits = [], []
        for round_ in range(300):
            kind = draw.choices((kinds.KIND_STEP, kinds.KIND_NONE, kinds.KIND_REWIND), (20, 2, 1))[0]
            done = {"run_done": round_ == 299}
            if kind != kinds.KIND_STEP:
                commits.append((None, self.script.still(kind, round_, **done)))
                orders.append("rewind" if kind == kinds.KIND_REWIND else "none")
                continue
            plus = np.array([draw.random() < 0.5 for _ in self.plus])
            gamma = np.float32(2.0 ** draw.uniform(-12, -2))
            rho = np.float32(draw.choice((1, draw.uniform(0.5, 1.5), 0)))
            decay = np.float32(draw.choice((gamma, draw.uniform(0, 0.5), 0)))
            changes = {} if decay == gamma and draw.random() < 0.5 else {"decay_step": decay}
            if draw.random() < 0.3:
                changes["scales"] = [np.float32(draw.uniform(0, 2)) for _ in self.script.layout.tensors]
            commits.append((plus, self.script.commit(plus, round_, stepsize=gamma, rho=rho, **changes, **done)))
            scales = ",".join(map(hex32, changes.get("scales", []))) or "-"
            orders.append(f"step {hex32(gamma)} {hex32(rho)} {hex32(decay)} {scales} {bits.pack(plus).hex()}")
        self.assertEqual({o.split()[0] for o in orders}, {"step", "rewind", "none"})

        def conversation(_, requests):
            for round_, (plus, commit) in enumerate(commits):
                if plus is not None:
                    yield from self.script.verdict(plus, round_)
                yield commit
            yield from self.finish(requests, rounds=len(commits))

        self.script.conversation = conversation
        self.assertEqual(self.session.run(), "finished")
        self.assertTrue(self.session.run_done)
        layout = " ".join(f"{t.count}:{hex32(t.step_scale)}:{hex32(t.weight_decay)}" for t in self.script.layout.tensors)
        told = "\n".join([f"layout {layout}", f"x {self.script.x.tobytes().hex()}", f"x0 {self.script.x0.tobytes().hex()}",
                          *orders]) + "\n"
        done = subprocess.run([APPLY_COMMITS], input=told, capture_output=True, text=True, timeout=60, check=True)
        self.assertEqual(f"{self.script.digests[-1].digest:016x}", done.stdout.strip())

    def average(self, ones, ballots, round_, **changes):
        chunks = self.script.counted_chunks(ones, ballots)
        counted = [ballots] * len(chunks)
        return self.script.commit(self.plus, round_, counted=counted, payload=training.PAYLOAD_COUNTS,
                                  payload_hash=payload_hash(counted, map(xxh3, chunks)), **changes)

    def counts_welcome(self, ballots_max=64):
        chunks = -(-len(self.plus) // CHUNK)
        return {"ballots_max": ballots_max,
                "payloads": [training.PayloadRange(chunks=chunks, down=training.PAYLOAD_COUNTS)]}

    def test_averages_move_the_replica_as_cpp_does(self):
        draw = np.random.default_rng(12)
        rounds = []
        for round_ in range(60):
            ballots = int(draw.integers(1, 65))
            changes = {"stepsize": np.float32(2.0 ** draw.uniform(-12, -2)), "rho": np.float32(draw.choice((1, 0.75)))}
            if draw.random() < 0.3:
                changes["scales"] = [np.float32(v) for v in draw.uniform(0, 2, len(self.script.layout.tensors))]
            rounds.append((draw.integers(0, ballots + 1, len(self.plus)), ballots, changes))
        self.script.welcome = self.counts_welcome()

        def conversation(_, requests):
            for round_, (ones, ballots, changes) in enumerate(rounds):
                yield from self.script.counts(ones, ballots, round_)
                yield self.average(ones, ballots, round_, **changes)
            yield from self.finish(requests, rounds=len(rounds))

        self.script.conversation = conversation
        self.assertEqual(self.session.run(), "finished")
        orders = []
        for ones, ballots, changes in rounds:
            planes = b"".join(bits.pack((ones >> p) & 1) for p in range(bits.count_planes(ballots)))
            gamma, scales = hex32(changes["stepsize"]), ",".join(map(hex32, changes.get("scales", []))) or "-"
            orders.append(f"average {gamma} {hex32(changes['rho'])} {gamma} {scales} {planes.hex()} {ballots}")
        layout = " ".join(f"{t.count}:{hex32(t.step_scale)}:{hex32(t.weight_decay)}" for t in self.script.layout.tensors)
        told = "\n".join([f"layout {layout}", f"x {self.script.x.tobytes().hex()}", f"x0 {self.script.x0.tobytes().hex()}",
                          *orders]) + "\n"
        done = subprocess.run([APPLY_COMMITS], input=told, capture_output=True, text=True, timeout=60, check=True)
        self.assertEqual(f"{self.script.digests[-1].digest:016x}", done.stdout.strip())

    def test_counts_that_cannot_be_end_the_session(self):
        ones = np.full(len(self.plus), 3)
        for text, welcome, ballots in (("more ones than the 2", self.counts_welcome(), 2),
                                       ("does not exist", self.counts_welcome(ballots_max=1), 3),
                                       ("counts of up to 0", self.counts_welcome(ballots_max=0), 3)):
            with self.subTest(text):
                self.script.welcome = welcome

                def conversation(_, requests, ballots=ballots):
                    yield from self.script.counts(ones, ballots, 0)
                    yield self.average(ones, ballots, 0)
                    yield from (self.script.open(9) for _ in requests)

                self.script.conversation = conversation
                with self.assertRaisesRegex(Broken, text):
                    self.session.run()

    def test_planes_of_a_state_in_another_order_are_not_taken(self):
        self.script.conversation = lambda number, requests: iter(())
        for planes, text in (((1, 0), "plane 1 is not the one that is due"), ((), "ended at coordinate 0 of plane 0"),
                             ((0, 0), "plane 0 is not the one that is due")):
            with self.subTest(planes=planes):
                self.script.planes = planes
                with self.assertRaisesRegex(Broken, text):
                    self.session.run()
                self.session._fetches_failed = 0

    def test_a_damaged_state_is_asked_for_five_times(self):
        self.script.conversation = lambda number, requests: iter(())

        def damage(chunk):
            chunk.checksum ^= 1
            return chunk

        self.script.damage_state = damage
        with self.assertRaisesRegex(Broken, "could not be fetched"):
            self.session.run()
        self.assertEqual(self.script.joins, [None] * 5)


if __name__ == "__main__":
    unittest.main(verbosity=2)
