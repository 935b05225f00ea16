"""What a worker signs: u = a m + (1-a) g, then m <- c m + (1-c) g; docs/algorithms.md, "Directions".

In fp32 without a fused multiply-add: a sign of u may differ from the C++ worker's where u is within a rounding of zero.
Nothing that must agree depends on it.
"""

import numpy as np

from .messages import training


def factors(direction):
    """(a, c) of a Direction message. ValueError for a kind this worker does not know."""
    kinds = training.Direction
    beta, beta2 = direction.beta, direction.beta2
    if direction.kind == kinds.KIND_SIGNSGD:
        return 0.0, 0.0
    if direction.kind == kinds.KIND_SIGNUM:
        return beta, beta
    if direction.kind == kinds.KIND_NESTEROV_SIGNUM:
        return beta * beta, beta
    if direction.kind == kinds.KIND_LION:
        return beta, beta2
    raise ValueError(f"direction {direction.kind} is unknown")


class Direction:
    def __init__(self, coordinates):
        self.momentum = np.zeros(coordinates, dtype=np.float32)

    def reset(self):
        """Its state as at the start: what a rewind does."""
        self.momentum[:] = 0

    def signs(self, factors_, gradient, coins):
        """The ballot's bits: u > 0, the coin where u is zero; the momentum moves on. All of gradient must be finite."""
        a, c = factors_
        u = np.float32(a) * self.momentum + np.float32(1 - a) * gradient
        self.momentum = np.float32(c) * self.momentum + np.float32(1 - c) * gradient
        return np.where(u != 0, u > 0, coins)
