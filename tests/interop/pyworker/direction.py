"""What a worker signs: u = a m + (1-a) g, then m <- c m + (1-c) g, under noise or not; docs/algorithms.md, "Directions".

In fp32 without a fused multiply-add: a sign of u may differ from the C++ worker's where u is within a rounding of zero.
Nothing that must agree depends on it.
"""

import dataclasses

import numpy as np

from . import coins
from .messages import training

UNKNOWN_NOISE = (training.Direction.ENVELOPE_TENSOR,)


@dataclasses.dataclass(frozen=True)
class Factors:
    """What a Direction message says, as far as this worker knows it."""
    a: float
    c: float
    envelope: int = training.Direction.ENVELOPE_UNSPECIFIED
    decay: float = 1.0


def factors(direction):
    """Of a Direction message. ValueError for what this worker does not know."""
    kinds = training.Direction
    beta, beta2 = direction.beta, direction.beta2
    known = {kinds.KIND_SIGNSGD: (0.0, 0.0), kinds.KIND_SIGNUM: (beta, beta), kinds.KIND_STOSIGN: (beta, beta),
             kinds.KIND_NESTEROV_SIGNUM: (beta * beta, beta), kinds.KIND_LION: (beta, beta2)}
    if direction.kind not in known:
        raise ValueError(f"direction {direction.kind} is unknown")
    if direction.error_feedback:
        raise ValueError("error feedback is unknown")
    if direction.state_element not in (training.StatePlane.ELEMENT_UNSPECIFIED, training.StatePlane.ELEMENT_FP32):
        raise ValueError(f"state in elements of kind {direction.state_element} is unknown")
    if direction.envelope in UNKNOWN_NOISE or direction.envelope > kinds.ENVELOPE_ONE:
        raise ValueError(f"noise with envelope {direction.envelope} is unknown")
    return Factors(*known[direction.kind], direction.envelope, direction.envelope_decay)


class Direction:
    def __init__(self, coordinates):
        self.momentum = np.zeros(coordinates, dtype=np.float32)
        self.envelope = np.zeros(coordinates, dtype=np.float32)

    def reset(self):
        """Its state as at the start: what a rewind does."""
        self.momentum[:] = 0
        self.envelope[:] = 0

    def signs(self, factors_, gradient, coins_, noise=None, sparse=None):
        """The ballot's bits: u > 0, the coin where u is zero; the momentum moves on. All of gradient must be finite. `noise`: of
        each coordinate, in (-1, 1); needed where the direction has an envelope. `sparse`: coordinates that cast the coin and
        stay as they are where their gradient is zero."""
        a, c = factors_.a, factors_.c
        moves = np.ones(len(gradient), bool) if sparse is None else ~(sparse & (gradient == 0))
        u = np.float32(a) * self.momentum + np.float32(1 - a) * gradient
        self.momentum = np.where(moves, np.float32(c) * self.momentum + np.float32(1 - c) * gradient, self.momentum)
        if factors_.envelope == training.Direction.ENVELOPE_COORDINATE:
            grown = np.maximum(np.float32(factors_.decay) * self.envelope, np.abs(u))
            self.envelope = np.where(moves, grown, self.envelope)
            u = u + self.envelope * noise
        elif factors_.envelope == training.Direction.ENVELOPE_ONE:
            u = u + noise
        u = np.where(moves, u, np.float32(0))
        return np.where(u != 0, u > 0, coins_)


def noise(seed, round_, share, count):
    """The noise of coordinates 0 .. count - 1: (2k + 1)/65536 - 1 of their uniforms k."""
    words = coins.uniform_words(seed, round_, share, np.arange((count + 3) // 4, dtype=np.uint64))
    k = words.astype("<u8").view("<u2")[:count].astype(np.float32)
    return (2 * k + 1) / np.float32(65536) - np.float32(1)
