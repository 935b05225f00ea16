"""The list of trained tensors in the run's order, and the digest by which a server knows that two workers train the same
model, in whichever order each of them has its tensors.
"""

import dataclasses
import math
import struct

import numpy as np

from .checksums import xxh3


@dataclasses.dataclass(frozen=True)
class Tensor:
    name: str
    shape: tuple
    step_scale: float = 1.0    # fp32
    weight_decay: float = 0.0  # fp32
    sparse: bool = False       # a gradient of exactly zero casts a coin and leaves the direction's state
    dense: bool = False        # moves by an update of its mean gradient, and is not voted on

    @property
    def count(self):
        return math.prod(self.shape)


class Layout:
    """ValueError: a tensor without a name, or two of one name."""

    def __init__(self, tensors):
        self.tensors = list(tensors)
        names = {t.name for t in self.tensors}
        if len(names) != len(self.tensors) or "" in names:
            raise ValueError("the layout has a tensor without a name, or two of one")
        self.ranges = []  # of coordinates, one slice a tensor
        first = 0
        for tensor in self.tensors:
            self.ranges.append(slice(first, first + tensor.count))
            first += tensor.count
        self.coordinates = first

    def bytes(self):
        """What the digest is taken of: names and shapes, in order of the names, so that the order of coordinates and what
        the run says of scales and decays do not matter.
        """
        out = [b"signvote-layout-2", struct.pack("<I", len(self.tensors))]
        for name, shape in sorted((t.name.encode(), t.shape) for t in self.tensors):
            out.append(struct.pack("<I", len(name)) + name)
            out.append(struct.pack(f"<I{len(shape)}Q", len(shape), *shape))
        return b"".join(out)

    def digest(self):
        return xxh3(self.bytes())

    def views(self, values):
        """The tensors of a flat array, by name; they share its memory."""
        return {t.name: values[r].reshape(t.shape) for t, r in zip(self.tensors, self.ranges)}

    def step_scales(self):
        """step_scale of every coordinate, fp32."""
        return np.concatenate([np.full(t.count, t.step_scale, np.float32) for t in self.tensors])

    def dense(self):
        """Whether each coordinate is of a dense tensor."""
        return np.concatenate([np.full(t.count, t.dense) for t in self.tensors])

    def sparse(self):
        """Whether each coordinate is of a sparse tensor."""
        return np.concatenate([np.full(t.count, t.sparse) for t in self.tensors])
