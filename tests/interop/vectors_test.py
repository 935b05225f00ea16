"""The Python pieces against the pages: every vector of docs/wire_format.md, docs/data.md and docs/models.md, recomputed.

The C++ code is held to the same lines (tests/unit), so that documents, server and this client agree or a test fails.
"""

import pathlib
import random
import re
import struct
import unittest
from fractions import Fraction

import numpy as np

from pyworker import apply, bits, checksums, coins, data, direction, layout, mlp, replica
from pyworker.messages import training

DOCS = pathlib.Path(__file__).resolve().parents[2] / "docs"


def vectors(page, fence="vectors"):
    """(kind, arguments, words without a name, result) of each line of the page's blocks."""
    for block in re.findall(rf"^```{fence}\n(.*?)^```", (DOCS / page).read_text(), re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            left, result = line.rsplit(" = ", 1)
            kind, *words = left.split()
            named = dict(w.split("=", 1) for w in words if "=" in w)
            yield kind, named, [w for w in words if "=" not in w], result


def float32(hexadecimal):
    return np.frombuffer(struct.pack("<I", int(hexadecimal, 16)), "<f4")[0]


def hex32(value):
    return f"{np.float32(value).view(np.uint32):08x}"


def hex64(word):
    return f"{int(np.ravel(word)[0]):016x}"


def parse_layout(text):
    """w:2x3,b: as a Layout, in this order of coordinates."""
    pairs = [tensor.rsplit(":", 1) for tensor in text.split(",")]
    return layout.Layout([layout.Tensor(name, tuple(int(n) for n in shape.split("x") if n)) for name, shape in pairs])


def listed(text):
    """The words of a comma-separated list; - is the empty one."""
    return [] if text == "-" else text.split(",")


def recomputed(kind, named, words):
    number = {k: int(v) for k, v in named.items() if v.isdigit()}
    if kind == "packed":
        plus = np.array([c == "+" for c in words[0]])
        packed = bits.pack(plus)
        assert (bits.unpack(packed, len(plus)) == plus).all()
        return packed.hex()
    if kind == "fin":
        return hex64(coins.fin(int(words[0], 16)))
    if kind == "tie":
        return hex64(coins.tie_words(number["seed"], number["round"], number["word"]))
    if kind == "own":
        return hex64(coins.own_words(number["seed"], number["round"], number["share"], number["word"]))
    if kind == "layout":
        parsed = parse_layout(named["tensors"])
        assert parsed.bytes().hex() == named["bytes"]
        return f"{parsed.digest():016x}"
    if kind == "domain":
        return f"{coins.domain_seed(int.from_bytes(named['name'].encode(), 'little'), number['seed']):016x}"
    if kind == "uniform":
        return hex64(coins.uniform_words(number["seed"], number["round"], number["share"], number["word"]))
    if kind == "payload":
        sums = [int(c, 16) for c in listed(named["checksums"])]
        return f"{checksums.payload_hash([int(n) for n in listed(named['counted'])], sums):016x}"
    if kind == "rewind":
        moved = replica.Replica(layout.Layout([layout.Tensor("x", (1,))]), [float32(named["x"])], x0=[float32(named["x0"])])
        moved.rewind(0)
        return hex32(moved.values[0])
    if kind == "planes":
        ones, ballots = np.array([int(n) for n in listed(named["ones"])]), number["ballots"]
        planes = b"".join(bits.pack((ones >> p) & 1) for p in range(bits.count_planes(ballots)))
        assert (bits.unpack_counts(planes, len(ones), ballots) == ones).all()
        return planes.hex()
    if kind == "bf16":
        return bits.narrow_bf16(np.array([float32(words[0])]))[::-1].hex()
    if kind == "dense":
        f = {k: float32(v) for k, v in named.items() if k != "value"}
        word = int(named["value"], 16)
        value = float32(named["value"]) if len(named["value"]) == 8 else bits.widen_bf16(struct.pack("<H", word))[0]
        x = np.array([f["x"]], np.float32)
        if f["rho"] != 1:
            x = apply.rescale(x, f["x0"], f["rho"])
        return hex32(apply.apply_step(x, np.array([value], np.float32), f["gamma"], f["scale"], f["decay"], f.get("decay_step"),
                                      f.get("factor"))[0])
    if kind == "average":
        f = {k: float32(v) for k, v in named.items() if k not in ("ones", "ballots")}
        x = np.array([f["x"]], np.float32)
        if f["rho"] != 1:
            x = apply.rescale(x, f["x0"], f["rho"])
        w = apply.mean_signs(np.array([number["ones"]]), number["ballots"])
        return hex32(apply.apply_step(x, w, f["gamma"], f["scale"], f["decay"], f.get("decay_step"), f.get("factor"))[0])
    if kind == "inner":
        first, last = float(float32(named["first"])), float(float32(named["last"]))
        etas = [np.float32(first + (last - first) * h / max(1, number["steps"] - 1)) for h in range(number["steps"])]
        return ",".join(hex32(eta) for eta in etas + [np.float32(sum(float(eta) for eta in etas))])
    if kind == "apply":
        f = {k: float32(v) for k, v in named.items() if k != "bit"}
        x = np.array([f["x"]], np.float32)
        if f["rho"] != 1:
            x = apply.rescale(x, f["x0"], f["rho"])
        bit = np.array([named["bit"] == "1"])
        return hex32(apply.apply_step(x, bit, f["gamma"], f["scale"], f["decay"], f.get("decay_step"), f.get("factor"))[0])
    if kind == "replica":
        return f"{checksums.replica_digest(np.arange(number['n'], dtype=np.float32) / 4 - 100):016x}"
    if kind == "xxh3":
        return f"{checksums.xxh3(b'' if words[0] == chr(34) * 2 else bytes.fromhex(words[0]), number['seed']):016x}"
    if kind in ("draw", "bell", "below"):
        word = data.draws(number["seed"], number["stream"], number["k"] + 1)[-1:]
        if kind == "below":
            return str(data.below(word, number["bound"])[0])
        return hex64(word if kind == "draw" else data.bell(word).view(np.uint64))
    if kind == "minibatch":
        batch = data.Synthetic().train(number["seed"], number["share"], number["data_step"])
        return " ".join([str(label) for label in batch.labels] + [f"{checksums.xxh3(batch.values.tobytes()):016x}"])
    if kind == "window":
        return str(data.first_token(number["seed"], number["share"], number["k"], number["tokens"], number["length"]))
    if kind == "held_out_window":
        begins = data.held_out_windows(number["tokens"], number["length"], number["targets"])
        return f"{begins[number['k']]} of {len(begins)}"
    if kind == "held_out_tokens":
        tokens, width = np.array([int(t) for t in listed(named["tokens"])], "<u4"), number["length"] + 1
        return hex64(data.held_out_hash(number["length"], [w.tobytes() for w in tokens.reshape(-1, width)]))
    if kind == "held_out_samples":
        samples = [data.Synthetic().held_out(k) for k in range(number["samples"])]
        return hex64(data.held_out_hash(0, [s.values.tobytes() + s.labels.astype("<u4").tobytes() for s in samples]))
    if kind == "mlp":
        model = mlp.Mlp()
        return " ".join(f"{n:016x}" for n in (model.layout.digest(),
                                              checksums.replica_digest(model.initial(number["init_seed"]))))
    raise AssertionError(f"unknown kind of vector: {kind}")


class Pages(unittest.TestCase):
    def check(self, page, *kinds):
        seen = set()
        for kind, named, words, result in vectors(page):
            with self.subTest(page=page, kind=kind, **named):
                self.assertEqual(recomputed(kind, named, words), result)
            seen.add(kind)
        self.assertEqual(seen, set(kinds))

    def test_every_vector_of_the_wire_format(self):
        self.check("wire_format.md", "packed", "fin", "tie", "own", "domain", "uniform", "layout", "apply", "average", "bf16", "dense", "planes", "rewind",
                   "payload",
                   "inner", "replica", "xxh3")

    def test_every_vector_of_the_data_page(self):
        self.check("data.md", "draw", "bell", "below", "minibatch", "window", "held_out_window", "held_out_tokens",
                   "held_out_samples")

    def test_every_vector_of_the_models_page(self):
        self.check("models.md", "mlp")

    def test_every_message_of_the_wire_format(self):
        """Generated code reads the examples, and what it writes of the same fields is the same bytes."""
        seen = set()
        for kind, named, _, result in vectors("wire_format.md", "messages"):
            raw = bytes.fromhex(result)
            payload = bytes.fromhex(named.get("payload", ""))
            run = bytes.fromhex(named.get("run", "").replace("-", ""))
            place = {k: int(named[k]) for k in ("epoch", "round", "attempt", "chunk", "first", "count", "plane") if k in named}
            bulk = dict(place, checksum=checksums.xxh3(payload), payload=payload)
            with self.subTest(kind=kind):
                if kind == "ballot":
                    message = training.WorkerMessage(ballot_chunk=training.BallotChunk(run_id=run, **bulk))
                elif kind == "verdict":
                    message = training.ServerMessage(verdict_chunk=training.VerdictChunk(run_id=run, **bulk))
                elif kind == "state":
                    message = training.StateChunk(**bulk)
                elif kind == "upload":
                    message = training.UploadStateRequest(chunk=training.StateChunk(**bulk))
                elif kind == "ready":
                    message = training.WorkerMessage(ready=training.Ready(**place))
                elif kind == "commit":
                    message = self.commit(named, dict(place, run_id=run))
                elif kind == "open":
                    message = training.ServerMessage(round_open=training.RoundOpen(
                        wanted=[int(w) for w in named["wanted"].split(",")], role=training.RoundOpen.ROLE_MEMBER,
                        **place, **{k: int(named[k]) for k in ("data_step", "share", "members", "deadline_ms")}))
                elif kind == "scalars":
                    message = training.WorkerMessage(scalars=training.Scalars(
                        wanted=[float(w) for w in named["wanted"].split(",")], samples=int(named["samples"]), **place,
                        **{k: float(named[k]) for k in ("loss", "g_l1", "g_l2_squared")}))
                else:
                    self.fail(f"unknown kind of message: {kind}")
                self.assertEqual(message.SerializeToString(deterministic=True), raw)
                self.assertEqual(type(message).FromString(raw), message)
            seen.add(kind)
        self.assertEqual(seen, {"ballot", "verdict", "state", "upload", "ready", "commit", "open", "scalars"})

    @staticmethod
    def commit(named, fields):
        kinds = {"step": training.Commit.KIND_STEP, "rewind": training.Commit.KIND_REWIND, "none": training.Commit.KIND_NONE}
        chunks = [bytes.fromhex(c) for c in named["chunks"].split(",")] if "chunks" in named else []
        counted = [int(n) for n in named["counted"].split(",")] if chunks else []
        if chunks:
            fields["payload_hash"] = checksums.payload_hash(counted, map(checksums.xxh3, chunks))
        for names, read in ((("stepsize", "rho", "decay_step", "loss"), float), (("reason",), str),
                            (("data_step", "next_data_step", "main_round", "voters"), int)):
            fields.update({k: read(named[k]) for k in names if k in named})
        return training.ServerMessage(commit=training.Commit(
            kind=kinds[named["kind"]], counted=counted, run_done="run_done" in named, **fields))


def exact_fma(x, y, z):
    """fma in rationals, rounded once to fp32: what fma32 must equal. Finite arguments, no overflow."""
    exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
    near = np.float32(float(exact))
    best = min((near, np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))),
               key=lambda f: (abs(Fraction(float(f)) - exact), int(f.view(np.uint32)) & 1))
    return best


class Pieces(unittest.TestCase):
    def test_fma_equals_exact_rationals_rounded_once(self):
        draw = random.Random(1)
        # (1 + e)(1 - e + e^2) = 1 + e^3: sums that lie beside the middle of two fp32 by less than a double shows. The page's
        # last vector is one of them; double arithmetic alone is wrong in half of these.
        cases = [[2.0**-24 * (1 + e), 1 - e + e * e, 1 + last * 2.0**-23]
                 for k in (10, 11, 12) for e in (2.0**-k, -(2.0**-k)) for last in range(4)]
        for _ in range(2000):
            exponents = [draw.randrange(-60, 20) for _ in range(2)]
            x, y = (np.float32(draw.uniform(-2, 2) * 2.0**e) for e in exponents)
            # Sums that nearly cancel, ties and far apart magnitudes.
            z = np.float32(draw.choice([-float(x) * float(y), draw.uniform(-2, 2), float(x), 0.0]) * draw.choice([1, 2.0**24]))
            cases.append([x, y, z])
        x, y, z = (np.array(column, np.float32) for column in zip(*cases))
        self.assertEqual([hex32(v) for v in apply.fma32(x, y, z) + np.float32(0)],
                         [hex32(exact_fma(*c) + np.float32(0)) for c in zip(x, y, z)])

    def test_fma_keeps_what_is_not_finite(self):
        nan, inf = np.float32(np.nan), np.float32(np.inf)
        self.assertTrue(np.isnan(apply.fma32(nan, 1, 1)[0]))
        self.assertEqual(apply.fma32(inf, 1, 1)[0], inf)
        self.assertEqual(apply.fma32(3e38, 3e38, 0)[0], inf)

    def test_directions_sign_what_the_page_says(self):
        kinds = training.Direction
        for kind, beta, beta2, a, c in ((kinds.KIND_SIGNSGD, 0.5, 0.75, 0, 0), (kinds.KIND_SIGNUM, 0.5, 0.75, 0.5, 0.5),
                                        (kinds.KIND_NESTEROV_SIGNUM, 0.5, 0, 0.25, 0.5), (kinds.KIND_LION, 0.5, 0.75, 0.5, 0.75)):
            factors = direction.factors(training.Direction(kind=kind, beta=beta, beta2=beta2))
            self.assertEqual((factors.a, factors.c), (a, c))
            state = direction.Direction(3)
            state.momentum[:] = (8, 0, 0)
            signs = state.signs(factors, np.array([-1, -1, 0], np.float32), np.array([False, True, True]))
            # u = a m + (1-a) g; the last coordinate is zero: the coin.
            self.assertEqual(signs.tolist(), [8 * a - (1 - a) > 0, False, True])
            self.assertEqual(state.momentum.tolist(), [8 * c - (1 - c), -(1 - c), 0])
        for words, changes in (("direction 0", {"kind": 0}), ("direction 8", {"kind": kinds.KIND_MUON}),
                               ("noise with envelope 9", {"envelope": 9}),
                               ("error feedback", {"error_feedback": True}),
                               ("elements of kind 2", {"state_element": training.StatePlane.ELEMENT_BF16})):
            with self.assertRaisesRegex(ValueError, f"{words}.* is unknown"):
                direction.factors(training.Direction(**{"kind": kinds.KIND_SIGNUM, **changes}))

    def test_sums_and_adams_updates_are_those_of_their_pages(self):
        kinds, nobody = training.Direction, np.zeros(2, bool)
        sgd = direction.factors(training.Direction(kind=kinds.KIND_MOMENTUM_SGD, beta=0.5))
        state = direction.Direction(2)
        for g, m in (([1, -2], [1, -2]), ([-0.25, 2], [0.25, 1])):
            self.assertEqual(state.signs(sgd, np.float32(g), nobody).tolist(), [v > 0 for v in m])
            self.assertEqual(state.momentum.tolist(), m)
        adam = direction.factors(training.Direction(kind=kinds.KIND_ADAM, beta=0.5, beta2=0.75, envelope=kinds.ENVELOPE_ONE))
        state = direction.Direction(2)
        # Of a first gradient, whatever its size, the update is its sign: length one, which noise of nearly one leaves.
        self.assertEqual(state.signs(adam, np.float32([1e-3, -7]), nobody, np.float32([-.99, .99])).tolist(), [True, False])
        state.reset()
        m, v = np.zeros(2), np.zeros(2)
        for t, g in enumerate((np.array([1.0, -2]), np.array([-3.0, 1]), np.array([0.5, 0.5])), 1):
            m, v = 0.5 * m + 0.5 * g, 0.75 * v + 0.25 * g * g
            u = m / (1 - 0.5**t) / (np.sqrt(v / (1 - 0.75**t)) + 1e-8)
            for shift in (-1e-4, 1e-4):  # noise by which u is just positive, and just not
                before = [x.copy() for x in (state.momentum, state.squares)], state.steps
                signs = state.signs(adam, np.float32(g), nobody, np.float32(shift - u))
                self.assertEqual(signs.tolist(), [shift > 0] * 2, t)
                if shift < 0:
                    (state.momentum, state.squares), state.steps = before
        self.assertEqual(state.steps, 3)

    def test_an_envelope_per_tensor_is_its_largest_update(self):
        factors = direction.factors(training.Direction(kind=training.Direction.KIND_SIGNSGD,
                                                       envelope=training.Direction.ENVELOPE_TENSOR))
        g, none = np.float32([1, -4, 1, 0]), np.zeros(4, bool)
        for noise, want in ((-0.2, [True, False, True, False]), (-0.3, [False, False, True, False])):
            signs = direction.Direction(4).signs(factors, g, none, np.float32([noise] * 4), None, (2, 2))
            self.assertEqual(signs.tolist(), want)

    def test_noise_is_that_of_the_uniforms_and_grows_with_its_envelope(self):
        noise = direction.noise(7, 3, 2, 10)
        words = coins.uniform_words(7, 3, 2, np.arange(3, dtype=np.uint64))
        for i in range(10):
            k = int(words[i // 4]) >> 16 * (i % 4) & 0xFFFF
            self.assertEqual(float(noise[i]), (2 * k + 1) / 65536 - 1)
        factors = direction.factors(training.Direction(kind=training.Direction.KIND_STOSIGN, beta=0.5, envelope_decay=0.75,
                                                       envelope=training.Direction.ENVELOPE_COORDINATE))
        state = direction.Direction(4)
        none, sparse = np.zeros(4, bool), np.array([False, False, False, True])
        signs = state.signs(factors, np.array([8, -8, 0, 0], np.float32), none, np.float32([-.9, .9, .9, .9]), sparse)
        self.assertEqual(signs.tolist(), [True, False, False, False])
        self.assertEqual(state.envelope.tolist(), [4, 4, 0, 0])
        # u = 1 under an envelope of 3: the noise decides. The last one has no gradient and stays as it was.
        signs = state.signs(factors, np.array([-2, -2, 2, 0], np.float32), ~none, np.float32([-.7, .7, 0, .9]), sparse)
        self.assertEqual(signs.tolist(), [False, False, True, True])
        self.assertEqual(state.envelope.tolist(), [3, 3, 1, 0])

    def test_padding_bits_are_refused(self):
        with self.assertRaisesRegex(ValueError, "not zero"):
            bits.unpack(b"\xff", 7)
        with self.assertRaisesRegex(ValueError, "2 bytes for 8 bits"):
            bits.unpack(b"\xff\x00", 8)

    def test_pieces_of_a_state_move_only_at_their_round_until_all_are_level(self):
        whole = layout.Layout([layout.Tensor("w", (4,)), layout.Tensor("b", (2,), step_scale=0.5)])
        ahead = replica.Replica(whole, np.arange(6), x0=np.ones(6))
        pieces = []
        verdicts = [np.arange(6) % 2 == k % 2 for k in range(3)]
        for round_, verdict in enumerate(verdicts):
            pieces.append((round_, 2 * round_, ahead.values[2 * round_:2 * round_ + 2].copy()))
            ahead.step(round_, verdict, 0.25, rho=0.5)
        late = replica.Replica.fetched(whole, pieces, x0=np.ones(6))
        self.assertEqual((late.round, late.level), (0, False))
        for round_, verdict in enumerate(verdicts):
            late.step(round_, verdict, 0.25, rho=0.5)
            self.assertEqual(late.previous is None, round_ < 2)
        self.assertEqual((late.round, late.level, late.digest()), (3, True, ahead.digest()))

    def test_a_rewind_and_a_none_also_wait_for_the_pieces_that_stand_at_their_round(self):
        whole = layout.Layout([layout.Tensor("w", (4,))])
        pieces = [(0, 0, np.array([1, 2], np.float32)), (2, 2, np.array([3, 4], np.float32))]
        late = replica.Replica.fetched(whole, pieces, x0=np.full(4, 9))
        late.rewind(0)
        self.assertEqual((late.values.tolist(), late.round, late.level), ([9, 9, 3, 4], 1, False))
        late.none(1)
        self.assertEqual((late.values.tolist(), late.round, late.level), ([9, 9, 3, 4], 2, True))
        late.rewind(2)
        self.assertEqual((late.values.tolist(), late.round), ([9, 9, 9, 9], 3))

    def test_a_layouts_digest_tells_names_and_shapes_and_nothing_else(self):
        def digest(*tensors):
            return layout.Layout([layout.Tensor(*t) for t in tensors]).digest()

        one = digest(("a", (2, 3)), ("b", ()))
        self.assertEqual(one, digest(("b", (), 0.5, 0.25), ("a", (2, 3))))
        for other in (digest(("a", (3, 2)), ("b", ())), digest(("a", (6,)), ("b", ())), digest(("a", (2, 3))),
                      digest(("a", (2, 3)), ("c", ())), digest(("b", (2, 3)), ("a", ()))):
            self.assertNotEqual(one, other)
        with self.assertRaisesRegex(ValueError, "two of one"):
            digest(("a", ()), ("a", ()))

    def test_a_model_computes_the_same_in_another_order_of_its_tensors(self):
        config = {"features": 6, "hidden_size": 5, "classes": 3}
        own, other = mlp.Mlp(config), mlp.Mlp(config)
        other.adopt(layout.Layout(reversed(other.tensors)))
        batch = data.Synthetic(6, 3, rows=4).train(1, 0, 0)
        x, y = own.initial(3), other.initial(3)
        (loss, g), (same, h) = own.loss_and_gradient(x, batch), other.loss_and_gradient(y, batch)
        self.assertEqual(loss, same)
        for a, b in ((x, y), (g, h)):
            a, b = own.layout.views(a), other.layout.views(b)
            self.assertTrue(all((a[name] == b[name]).all() for name in a))

    def test_gradients_equal_finite_differences(self):
        model = mlp.Mlp({"features": 6, "hidden_size": 5, "classes": 3})
        x = model.initial(3) + np.float32(0.01)
        batch = data.Synthetic(6, 3, rows=4).train(1, 0, 0)
        _, gradient = model.loss_and_gradient(x, batch)
        for i in range(model.layout.coordinates):
            step = np.zeros_like(x)
            step[i] = 1e-3
            slope = (model.loss_and_gradient(x + step, batch)[0] - model.loss_and_gradient(x - step, batch)[0]) / 2e-3
            self.assertAlmostEqual(gradient[i], slope, delta=2e-3 * max(1, abs(slope)), msg=f"coordinate {i}")


if __name__ == "__main__":
    unittest.main(verbosity=2)
