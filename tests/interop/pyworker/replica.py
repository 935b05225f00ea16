"""The parameters, and at which round each part of them stands; with a second plane, x0, where the run's rule needs it.

While a run goes on, the pieces of a fetched state stand at different rounds: a commit moves only those that stand at its
round. After the highest of them all are level.
"""

import numpy as np

from .apply import apply_step, rescale
from .checksums import replica_digest


class Replica:
    """layout: the run's. x0: the parameters that the run started with, None where nobody needs them."""

    def __init__(self, layout, values, round_=0, x0=None):
        self.layout = layout
        self.values = np.array(values, dtype=np.float32)
        self.x0 = None if x0 is None else np.array(x0, dtype=np.float32)
        self.rounds = np.full(layout.coordinates, round_, dtype=np.uint64)  # of each coordinate
        # What the scalars of the next round refer to; None: unknown (nothing applied yet, or not to all coordinates).
        self.previous = None  # the values before the last step
        self.verdict = None   # its bits; None also where it was no verdict

    @classmethod
    def fetched(cls, layout, pieces, x0=None):
        """From (round, first, values) of every StateChunk of the replica."""
        replica = cls(layout, np.zeros(layout.coordinates), x0=x0)
        for round_, first, values in pieces:
            replica.values[first:first + len(values)] = values
            replica.rounds[first:first + len(values)] = round_
        return replica

    @property
    def round(self):
        """It holds all commits before this round."""
        return int(self.rounds.min())

    @property
    def level(self):
        return bool((self.rounds == self.rounds[0]).all())

    def step(self, round_, signs, gamma, rho=1.0, decay_step=None, scales=None):
        """A commit of kind step. signs: a verdict's bits, or the mean of the ballots' signs (apply.mean_signs)."""
        was_level = self.level
        before = self.values.copy()
        scales = scales or [None] * len(self.layout.tensors)
        for tensor, where, scale in zip(self.layout.tensors, self.layout.ranges, scales, strict=True):
            moved = before[where] if rho == 1 else rescale(before[where], self.x0[where], rho)
            moved = apply_step(moved, signs[where], gamma, tensor.step_scale, tensor.weight_decay, decay_step, scale)
            due = self.rounds[where] == round_
            self.values[where] = np.where(due, moved, self.values[where])
        self._passed(round_)
        self.previous = before if was_level else None
        self.verdict = signs if was_level and signs.dtype == bool else None

    def rewind(self, round_):
        """A commit of kind rewind: back to x0. No step lies between this replica and another: nothing to refer to."""
        self.values = np.where(self.rounds == round_, self.x0, self.values)
        self._passed(round_)
        self.previous = self.verdict = None

    def none(self, round_):
        """A commit of kind none: no coordinate moves, and no step lies between this replica and another."""
        self._passed(round_)
        self.previous = self.verdict = None

    def digest(self):
        return replica_digest(self.values)

    def _passed(self, round_):
        self.rounds[self.rounds == round_] = round_ + 1
