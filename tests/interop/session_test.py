"""The Python worker's session against a scripted server: what it must refuse, resend and ask again.

docs/wire_format.md, "What may be applied", "Attempts" and the right column of "Damage".
"""

import concurrent.futures
import unittest

import grpc
import numpy as np

from pyworker import apply, bits, data, mlp
from pyworker.checksums import replica_digest, xxh3
from pyworker.messages import services, training
from pyworker.session import Broken, Options, Session
from pyworker.trainer import Trainer

RUN, EPOCH = bytes(range(16)), 3
SMALL = {"features": 40, "hidden_size": 20, "classes": 5, "num_hidden_layers": 1}  # 925 coordinates: two chunks of 512
CHUNK = 512
GAMMA = 0.125


class Script(services.TrainingServicer):
    """One server; conversation(stream) is called with the number of each Session call, from 0, and yields what it says."""

    def __init__(self, model):
        self.model = model
        self.x = model.initial()
        self.joins, self.readies, self.pongs, self.ballots, self.digests = [], [], [], [], []
        self.fetches = 0
        self.conversation = None
        self.damage_state = lambda chunk: chunk

    # ---- what a conversation is made of -----------------------------------------------------------------------------

    def until(self, requests, kind):
        """Reads the worker's messages up to the first of this kind, and keeps those that tests look at."""
        for message in requests:
            got = message.WhichOneof("message")
            if got == "ballot_chunk":
                self.ballots.append(message.ballot_chunk)
            kept = {"ready": self.readies, "pong": self.pongs, "replica_digest": self.digests}.get(got)
            if kept is not None:
                kept.append(getattr(message, got))
            if got == kind:
                return
        raise AssertionError(f"the worker hung up before it sent {kind}")

    @staticmethod
    def open(round_, attempt=0):
        return training.ServerMessage(round_open=training.RoundOpen(round=round_, attempt=attempt, members=1))

    def verdict(self, plus, round_, attempt=0, **changes):
        """A round's chunks."""
        packed = bits.pack(plus)
        for k, first in enumerate(range(0, len(packed), CHUNK // 8)):
            payload = packed[first:first + CHUNK // 8]
            fields = dict(run_id=RUN, epoch=EPOCH, round=round_, attempt=attempt, chunk=k, payload=payload,
                          checksum=xxh3(payload))
            yield training.ServerMessage(verdict_chunk=training.VerdictChunk(**dict(fields, **changes)))

    @staticmethod
    def commit(plus, round_, attempt=0, **changes):
        fields = dict(run_id=RUN, epoch=EPOCH, round=round_, attempt=attempt, kind=training.Commit.KIND_STEP, stepsize=GAMMA,
                      rho=1, verdict_hash=xxh3(bits.pack(plus)))
        return training.ServerMessage(commit=training.Commit(**dict(fields, **changes)))

    # ---- the service ------------------------------------------------------------------------------------------------

    def Session(self, requests, context):  # noqa: N802: gRPC's name
        join = next(requests).join
        self.joins.append(join.round if join.HasField("round") else None)
        keep = join.HasField("round")
        yield training.ServerMessage(welcome=training.Welcome(
            protocol=1, run_id=RUN, epoch=EPOCH, incarnation=len(self.joins), ticket=b"t" * 16, chunk_coordinates=CHUNK,
            state=training.Welcome.STATE_KEEP if keep else training.Welcome.STATE_FETCH,
            direction=training.Direction(kind=training.Direction.KIND_SIGNSGD)))
        self.until(requests, "ready")
        yield from self.conversation(len(self.joins) - 1, requests)

    def FetchState(self, request, context):  # noqa: N802
        self.fetches += 1
        payload = self.x.astype("<f4").tobytes()
        yield self.damage_state(training.StateChunk(
            round=0, first=0, count=len(self.x), checksum=xxh3(payload), payload=payload))


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

    def finish(self, requests):
        yield training.ServerMessage(finish=training.Finish(rounds=1))
        self.script.until(requests, "replica_digest")

    def moved(self):
        """The digest after one commit of self.plus."""
        return replica_digest(apply.apply_step(self.script.x, self.plus, GAMMA, 1, 0))

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
        changes = {"upgrade": {"rho": 0.5}, "of a kind": {"kind": 2}, "stepsize -": {"stepsize": -1},
                   "stepsize nan": {"stepsize": float("nan")}, "another run": {"run_id": b"x" * 16}}
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
