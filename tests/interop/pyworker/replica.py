"""The parameters, and at which round each part of them stands.

While a run goes on, the pieces of a fetched state stand at different rounds: a commit moves only those that stand at its
round. After the highest of them all are level.
"""

import numpy as np

from .apply import apply_step
from .checksums import replica_digest


class Replica:
    def __init__(self, layout, values, round_=0):
        self.layout = layout
        self.values = np.array(values, dtype=np.float32)
        self.rounds = np.full(layout.coordinates, round_, dtype=np.uint64)  # of each coordinate
        # What the scalars of the next round refer to; None: unknown (nothing applied yet, or not to all coordinates).
        self.previous = None  # the values before the last commit
        self.verdict = None   # its bits

    @classmethod
    def fetched(cls, layout, pieces):
        """From (round, first, values) of every StateChunk."""
        replica = cls(layout, np.zeros(layout.coordinates))
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

    def apply(self, round_, bits, gamma):
        was_level = self.level
        before = self.values.copy()
        for tensor, where in zip(self.layout.tensors, self.layout.ranges):
            moved = apply_step(self.values[where], bits[where], gamma, tensor.step_scale, tensor.weight_decay)
            due = self.rounds[where] == round_
            self.values[where] = np.where(due, moved, self.values[where])
        self.rounds[self.rounds == round_] = round_ + 1
        self.previous, self.verdict = (before, bits) if was_level else (None, None)

    def digest(self):
        return replica_digest(self.values)
