"""Packed bits: one bit per coordinate, least significant bit first; 1 means +1, 0 means -1."""

import numpy as np


def pack(bits):
    """The bytes of an array of booleans; unused high bits of the last byte are zero."""
    return np.packbits(np.asarray(bits, dtype=bool), bitorder="little").tobytes()


def count_planes(ballots):
    """How many planes a number between 0 and `ballots` needs."""
    return int(ballots).bit_length()


def unpack_counts(data, count, ballots):
    """How many of `ballots` ballots have bit 1, per coordinate: planes of packed bits, the one of weight 1 first."""
    size, planes = (count + 7) // 8, count_planes(ballots)
    if ballots < 1 or len(data) != planes * size:
        raise ValueError(f"{len(data)} bytes for the counts of {ballots} ballots on {count} coordinates")
    counts = np.zeros(count, dtype=np.int32)
    for plane in range(planes):
        counts += unpack(data[plane * size:(plane + 1) * size], count).astype(np.int32) << plane
    if (counts > ballots).any():
        raise ValueError(f"a coordinate has more ones than the {ballots} ballots counted")
    return counts


def narrow_bf16(values):
    """The nearest bfloat16 of finite fp32 values, ties to even, as little-endian bytes."""
    word = np.asarray(values, "<f4").view("<u4")
    return ((word + np.uint32(0x7FFF) + ((word >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype("<u2").tobytes()


def widen_bf16(data):
    return (np.frombuffer(data, "<u2").astype("<u4") << np.uint32(16)).view("<f4")


def unpack(data, count):
    """The first `count` bits as booleans. ValueError when the length is another or a padding bit is set."""
    packed = np.frombuffer(data, dtype=np.uint8)
    if len(packed) != (count + 7) // 8:
        raise ValueError(f"{len(packed)} bytes for {count} bits")
    bits = np.unpackbits(packed, bitorder="little").astype(bool)
    if bits[count:].any():
        raise ValueError("bits after the last coordinate are not zero")
    return bits[:count]
