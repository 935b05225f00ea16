"""One round's ballot and scalars: minibatch, gradient, probe, signs."""

import dataclasses
import math

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
    packed: bytes | None   # whole, not yet cut into chunks; None: abstains
    scalars: dict          # fields of Scalars but round and attempt
    abstain_reason: int = training.Abstain.REASON_UNSPECIFIED
    gradient: np.ndarray | None = None  # fp32, for the chunks that are dense; None: abstains


class Trainer:
    def __init__(self, model, data):
        self.model, self.data = model, data
        self.direction = Direction(model.layout.coordinates)
        self.norm_max = None  # of the gradient that the direction sees; None: the run does not clip
        self.losses = []

    def adopt(self, layout):
        """The run's order of coordinates. Called before the first vote, and with the same order after that."""
        self.model.adopt(layout)

    def rewound(self):
        """The replica went back to x0: so does what the direction remembers."""
        self.direction.reset()

    def vote(self, open_, seed, factors, replica):
        """The ballot for a RoundOpen, at a replica that stands at its round."""
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
        norm = float(np.sqrt((g * g).sum()))
        clip = self.norm_max / norm if self.norm_max is not None and norm > self.norm_max else 1.0
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
