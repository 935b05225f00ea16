"""What a worker signs: u = a m + w(a) g, then m <- c m + w(c) g, or Adam's update, under noise or not; w(a) is 1 - a, and 1 of
a sum. docs/algorithms.md, "Directions".

In fp32 without a fused multiply-add: a sign of u may differ from the C++ worker's where u is within a rounding of zero.
Nothing that must agree depends on it.
"""

import dataclasses

import numpy as np

from . import coins
from .messages import training

ADAM_EPSILON = np.float32(1e-8)


@dataclasses.dataclass(frozen=True)
class Factors:
    """What a Direction message says, as far as this worker knows it."""
    a: float
    c: float
    envelope: int = training.Direction.ENVELOPE_UNSPECIFIED
    decay: float = 1.0
    sums: bool = False         # momentum SGD
    squares: float | None = None  # Adam: decay of the squares' mean
    stepped: bool = False      # local steps are made of it

    @property
    def by_update(self):
        """A local step goes along the update itself, not along its sign."""
        return self.sums or self.squares is not None

    def weight(self, decay):
        """How a gradient counts beside what decays."""
        return np.float32(1 if self.sums else 1 - decay)


def factors(direction):
    """Of a Direction message. ValueError for what this worker does not know."""
    kinds = training.Direction
    beta, beta2 = direction.beta, direction.beta2
    known = {kinds.KIND_SIGNSGD: (0.0, 0.0), kinds.KIND_SIGNUM: (beta, beta), kinds.KIND_STOSIGN: (beta, beta),
             kinds.KIND_NESTEROV_SIGNUM: (beta * beta, beta), kinds.KIND_LION: (beta, beta2),
             kinds.KIND_MOMENTUM_SGD: (beta, beta), kinds.KIND_ADAM: (0.0, beta)}
    if direction.kind not in known:
        raise ValueError(f"direction {direction.kind} is unknown")
    if direction.error_feedback:
        raise ValueError("error feedback is unknown")
    if direction.state_element not in (training.StatePlane.ELEMENT_UNSPECIFIED, training.StatePlane.ELEMENT_FP32):
        raise ValueError(f"state in elements of kind {direction.state_element} is unknown")
    if direction.envelope not in kinds.Envelope.values():
        raise ValueError(f"noise with envelope {direction.envelope} is unknown")
    stepped = direction.envelope == kinds.ENVELOPE_UNSPECIFIED and direction.kind != kinds.KIND_STOSIGN
    return Factors(*known[direction.kind], direction.envelope, direction.envelope_decay, direction.kind == kinds.KIND_MOMENTUM_SGD,
                   beta2 if direction.kind == kinds.KIND_ADAM else None, stepped)


class Direction:
    def __init__(self, coordinates):
        self.momentum = np.zeros(coordinates, dtype=np.float32)
        self.squares = np.zeros(coordinates, dtype=np.float32)
        self.envelope = np.zeros(coordinates, dtype=np.float32)
        self.steps = 0

    def reset(self):
        """Its state as at the start: what a rewind does."""
        self.momentum[:] = 0
        self.squares[:] = 0
        self.envelope[:] = 0
        self.steps = 0

    def signs(self, factors_, gradient, coins_, noise=None, sparse=None, counts=None):
        """The ballot's bits: what update() gives > 0, the coin where that is zero."""
        u = self.update(factors_, gradient, noise, sparse, counts)
        return np.where(u != 0, u > 0, coins_)

    def update(self, factors_, gradient, noise=None, sparse=None, counts=None):
        """What is signed; the momentum moves on. All of gradient must be finite. `noise`: of each coordinate, in (-1, 1); needed
        where the direction has an envelope. `sparse`: coordinates that have nothing to sign and stay as they are where their
        gradient is zero. `counts`: coordinates of each tensor, for an envelope per tensor."""
        a, c = factors_.a, factors_.c
        moves = np.ones(len(gradient), bool) if sparse is None else ~(sparse & (gradient == 0))
        u = np.float32(a) * self.momentum + factors_.weight(a) * gradient
        momentum = np.float32(c) * self.momentum + factors_.weight(c) * gradient
        if factors_.squares is not None:
            self.steps += 1
            decay = np.float32(factors_.squares)
            squares = decay * self.squares + (1 - decay) * gradient * gradient
            mean, square = (np.float32(1 / (1 - d**self.steps)) for d in (c, factors_.squares))
            u = momentum * mean / (np.sqrt(squares * square) + ADAM_EPSILON)
            self.squares = np.where(moves, squares, self.squares)
        self.momentum = np.where(moves, momentum, self.momentum)
        if factors_.envelope == training.Direction.ENVELOPE_COORDINATE:
            grown = np.maximum(np.float32(factors_.decay) * self.envelope, np.abs(u))
            self.envelope = np.where(moves, grown, self.envelope)
            u = u + self.envelope * noise
        elif factors_.envelope == training.Direction.ENVELOPE_TENSOR:
            parts = np.split(np.where(moves, np.abs(u), np.float32(0)), np.cumsum(counts)[:-1])
            u = u + np.concatenate([np.full(len(part), part.max(), np.float32) for part in parts]) * noise
        elif factors_.envelope == training.Direction.ENVELOPE_ONE:
            u = u + noise
        return np.where(moves, u, np.float32(0))


def noise(seed, round_, share, count):
    """The noise of coordinates 0 .. count - 1: (2k + 1)/65536 - 1 of their uniforms k."""
    words = coins.uniform_words(seed, round_, share, np.arange((count + 3) // 4, dtype=np.uint64))
    k = words.astype("<u8").view("<u2")[:count].astype(np.float32)
    return (2 * k + 1) / np.float32(65536) - np.float32(1)
