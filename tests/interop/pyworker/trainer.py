"""One round's ballot and scalars: minibatch, gradient, probe, signs."""

import dataclasses
import math

import numpy as np

from . import bits, coins
from .direction import Direction
from .messages import training


@dataclasses.dataclass
class Ballot:
    round: int
    packed: bytes | None   # whole, not yet cut into chunks; None: abstains
    scalars: dict          # fields of Scalars but round and attempt
    abstain_reason: int = training.Abstain.REASON_UNSPECIFIED


class Trainer:
    def __init__(self, model, data):
        self.model, self.data = model, data
        self.direction = Direction(model.layout.coordinates)
        self.losses = []

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
        signs = self.direction.signs(factors, gradient, own)
        g = gradient.astype(np.float64)
        scalars = {
            "loss": loss, "g_l1": float(np.abs(g).sum()), "g_l2_squared": float((g * g).sum()),
            "samples": len(batch.labels)}
        if open_.probe and replica.previous is not None:
            _, probe = self.model.loss_and_gradient(replica.previous, batch)
            scalars["probe_l1"] = float(np.abs(g - probe).sum())
        if replica.verdict is not None:
            b = np.where(replica.verdict, 1.0, -1.0)
            scalars["prev_inner"] = float((self.model.layout.step_scales() * g * b).sum())
        return Ballot(open_.round, bits.pack(signs), scalars)
