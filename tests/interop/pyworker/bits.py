"""Packed bits: one bit per coordinate, least significant bit first; 1 means +1, 0 means -1."""

import numpy as np


def pack(bits):
    """The bytes of an array of booleans; unused high bits of the last byte are zero."""
    return np.packbits(np.asarray(bits, dtype=bool), bitorder="little").tobytes()


def unpack(data, count):
    """The first `count` bits as booleans. ValueError when the length is another or a padding bit is set."""
    packed = np.frombuffer(data, dtype=np.uint8)
    if len(packed) != (count + 7) // 8:
        raise ValueError(f"{len(packed)} bytes for {count} bits")
    bits = np.unpackbits(packed, bitorder="little").astype(bool)
    if bits[count:].any():
        raise ValueError("bits after the last coordinate are not zero")
    return bits[:count]
