"""The ordered list of trained tensors, and the digest by which a server knows that two workers train the same model."""

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

    @property
    def count(self):
        return math.prod(self.shape)


class Layout:
    def __init__(self, tensors):
        self.tensors = list(tensors)
        self.ranges = []  # of coordinates, one slice a tensor
        first = 0
        for tensor in self.tensors:
            self.ranges.append(slice(first, first + tensor.count))
            first += tensor.count
        self.coordinates = first

    def bytes(self):
        """What the digest is taken of."""
        out = [b"signvote-layout-1"]
        for tensor in self.tensors:
            name = tensor.name.encode()
            out.append(struct.pack("<I", len(name)) + name)
            out.append(struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape))
            out.append(struct.pack("<ff", tensor.step_scale, tensor.weight_decay))
        return b"".join(out)

    def digest(self):
        return xxh3(self.bytes())

    def views(self, values):
        """The tensors of a flat array, by name; they share its memory."""
        return {t.name: values[r].reshape(t.shape) for t, r in zip(self.tensors, self.ranges)}

    def step_scales(self):
        """step_scale of every coordinate, fp32."""
        return np.concatenate([np.full(t.count, t.step_scale, np.float32) for t in self.tensors])
