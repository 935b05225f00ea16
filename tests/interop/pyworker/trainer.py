"""One round's ballot and scalars: minibatch, gradient, probe, signs."""

import dataclasses
import math
import time

import numpy as np

from . import bits, coins
from . import direction as directions
from .direction import Direction
from .messages import training

# What compares gradients counts as the direction's does; sums of the gradient itself never do.
DENSE_VALUE_MAX = np.float32(1e18)  # of what is sent of a dense tensor
CLIPPED = (training.SCALAR_PROBE_L1, training.SCALAR_PREV_INNER, training.SCALAR_PROBE_INNER, training.SCALAR_GRADIENT_MAX,
           training.SCALAR_GRADIENT_MIN)


@dataclasses.dataclass
class Ballot:
    round: int
    packed: bytes | None   # whole, not yet cut into chunks; None: abstains, or has scalars alone
    scalars: dict          # fields of Scalars but round and attempt; empty: abstains
    abstain_reason: int = training.Abstain.REASON_UNSPECIFIED
    gradient: np.ndarray | None = None  # fp32, for the chunks that are dense; None: abstains


def takes_steps(open_):
    """Whether a RoundOpen asks for local steps; else for an ordinary vote."""
    return open_.local_steps > 1 or open_.start not in (training.RoundOpen.START_UNSPECIFIED, training.RoundOpen.START_REPLICA)


def local_stepsize(open_, h):
    """Of minibatch h: along a line, in double, rounded to fp32 once."""
    first, last = float(open_.eta_first), float(open_.eta_last)
    return np.float32(first + (last - first) * h / max(1, open_.local_steps - 1))


class Trainer:
    def __init__(self, model, data, now=time.monotonic):
        self.model, self.data, self.now = model, data, now
        # Where local steps ended, and of which round; None: the replica has moved since. Why they came to nothing, if they did.
        self.y, self.y_of, self.lost = None, None, None
        self.direction = Direction(model.layout.coordinates)
        self.norm_max = None  # of the gradient that the direction sees; None: the run does not clip
        self.losses = []

    def adopt(self, layout):
        """The run's order of coordinates. Called before the first vote, and with the same order after that."""
        self.model.adopt(layout)

    def rewound(self):
        """The replica went back to x0: so does what the direction remembers."""
        self.direction.reset()
        self.moved()

    def moved(self):
        """The replica is another: there is nothing to continue."""
        self.y = self.y_of = self.lost = None

    def vote(self, open_, seed, factors, replica):
        """The ballot for a RoundOpen, at a replica that stands at its round."""
        if takes_steps(open_):
            return self._local_steps(open_, seed, factors, replica)
        self.moved()
        batch = self.data.train(seed, open_.share, open_.data_step)
        loss, gradient = self.model.loss_and_gradient(replica.values, batch)
        self.losses.append(loss)
        if not math.isfinite(loss):
            return Ballot(open_.round, None, {}, training.Abstain.REASON_NONFINITE_LOSS)
        # No chunk is sent yet, so that all can be withdrawn; one that sends while it computes casts coins in those that went.
        if not np.isfinite(gradient).all():
            return Ballot(open_.round, None, {}, training.Abstain.REASON_NONFINITE_GRADIENT)
        own = coins.own_coins(seed, open_.round, open_.share, len(gradient))
        g = gradient.astype(np.float64)
        clip = self._clip(float(np.sqrt((g * g).sum())))
        noise = directions.noise(seed, open_.round, open_.share, len(gradient)) if factors.envelope else None
        clipped = gradient.astype(np.float32) * np.float32(clip)
        if (np.abs(clipped[replica.layout.dense()]) > DENSE_VALUE_MAX).any():
            return Ballot(open_.round, None, {}, training.Abstain.REASON_NONFINITE_GRADIENT)
        signs = self.direction.signs(factors, clipped, own, noise, replica.layout.sparse(),
                                     [tensor.count for tensor in replica.layout.tensors])
        return Ballot(open_.round, bits.pack(signs), {
            "loss": loss, "g_l1": float(np.abs(g).sum()), "g_l2_squared": float((g * g).sum()),
            "wanted": [clip * self._scalar(kind, g, batch, replica) if kind in CLIPPED
                       else self._scalar(kind, g, batch, replica) for kind in open_.wanted], "samples": len(batch.labels)},
            gradient=clipped)

    def _clip(self, norm):
        return self.norm_max / norm if self.norm_max is not None and norm > self.norm_max else 1.0

    def _local_steps(self, open_, seed, factors, replica):
        """The ballot of the displacement: docs/algorithms.md, "Local steps"."""
        ballot = self._displacement(open_, seed, factors, replica)
        if ballot.abstain_reason:
            self.lost, self.y_of = ballot.abstain_reason, open_.round
        return ballot

    def _displacement(self, open_, seed, factors, replica):
        begin, starts = self.now(), training.RoundOpen
        y, y_of, lost = self.y, self.y_of, self.lost
        self.moved()
        if open_.start == starts.START_X0:
            y = replica.x0.copy()
            self.direction.reset()
        elif open_.start != starts.START_CONTINUE:
            y = replica.values.copy()
        elif y is None or y_of != open_.round - 1:  # what would go on from what came to nothing ends so too
            reason = lost if lost is not None and y_of == open_.round - 1 else training.Abstain.REASON_OTHER
            return Ballot(open_.round, None, {}, reason)
        layout, sums = replica.layout, {"loss": 0.0, "g_l1": 0.0, "g_l2_squared": 0.0}
        taken = samples = 0
        inner = product = 0.0 if replica.x0 is not None else math.nan
        # A ballot of no step at all would say nothing.
        while taken < max(1, open_.local_steps) and not (
                taken and open_.steps_until_ms and self.now() - begin >= open_.steps_until_ms / 1e3):
            batch = self.data.train(seed, open_.share, open_.data_step + taken)
            loss, gradient = self.model.loss_and_gradient(y, batch)
            self.losses.append(loss)
            if not math.isfinite(loss):
                return Ballot(open_.round, None, {}, training.Abstain.REASON_NONFINITE_LOSS)
            if not np.isfinite(gradient).all():
                return Ballot(open_.round, None, {}, training.Abstain.REASON_NONFINITE_GRADIENT)
            g = gradient.astype(np.float64)
            square = float((g * g).sum())
            if replica.x0 is not None:
                way = replica.x0.astype(np.float64) - y
                inner += float((g * way).sum())
                product += math.sqrt(square) * math.sqrt(float((way * way).sum()))
            clipped = gradient.astype(np.float32) * np.float32(self._clip(math.sqrt(square)))
            u = self.direction.update(factors, clipped, sparse=layout.sparse())
            lengths = local_stepsize(open_, taken) * layout.step_scales().astype(np.float32)
            y = y - lengths * (u if factors.by_update else np.sign(u))
            for name, value in (("loss", loss), ("g_l1", float(np.abs(g).sum())), ("g_l2_squared", square)):
                sums[name] += value
            taken, samples = taken + 1, samples + len(batch.labels)
        self.y, self.y_of = y, open_.round
        way = replica.values - y
        own = coins.own_coins(seed, open_.round, open_.share, len(y))
        told = {training.SCALAR_LOCAL_INNER: inner, training.SCALAR_LOCAL_PRODUCT: product}
        silent = open_.start not in (starts.START_UNSPECIFIED, starts.START_REPLICA)  # a trial: nobody votes
        return Ballot(open_.round, None if silent else bits.pack(np.where(way != 0, way > 0, own)), {
            **{name: value / taken for name, value in sums.items()}, "samples": samples, "local_steps": taken,
            "displacement_mean": [float(np.abs(way[where]).astype(np.float64).mean()) for where in layout.ranges],
            "wanted": [told.get(kind, math.nan) for kind in open_.wanted]}, gradient=way.astype(np.float32))

    def _scalar(self, kind, g, batch, replica):
        """One that the round wants; NaN where this worker cannot tell."""
        if kind == training.SCALAR_PROBE_L1 and replica.previous is not None:
            _, probe = self.model.loss_and_gradient(replica.previous, batch)
            return float(np.abs(g - probe).sum())
        if kind == training.SCALAR_PREV_INNER and replica.verdict is not None:
            return float((replica.layout.step_scales() * g * np.where(replica.verdict, 1.0, -1.0)).sum())
        if kind == training.SCALAR_PROBE_INNER and replica.previous is not None and replica.verdict is not None:
            _, probe = self.model.loss_and_gradient(replica.previous, batch)
            return float((replica.layout.step_scales() * probe * np.where(replica.verdict, 1.0, -1.0)).sum())
        if kind in (training.SCALAR_GRADIENT_MAX, training.SCALAR_GRADIENT_MIN):
            return float(g.max() if kind == training.SCALAR_GRADIENT_MAX else g.min())
        if kind in (training.SCALAR_X0_INNER, training.SCALAR_X0_DISTANCE) and replica.x0 is not None:
            way = replica.x0.astype(np.float64) - replica.values
            return float((g * way).sum()) if kind == training.SCALAR_X0_INNER else float(np.sqrt((way * way).sum()))
        return math.nan
