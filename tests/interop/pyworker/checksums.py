"""XXH3-64 of bytes, and what is made of it: a replica's digest and the hash of a commit's payload."""

import struct

import numpy as np
import xxhash

DIGEST_BLOCK = 4096  # coordinates


def xxh3(data, seed=0):
    return xxhash.xxh3_64_intdigest(data, seed=seed)


def replica_digest(values):
    """Sum modulo 2^64 of the blocks' hashes, block j with seed j."""
    data = np.ascontiguousarray(values, dtype="<f4")
    blocks = range(0, len(data), DIGEST_BLOCK)
    return sum(xxh3(data[first:first + DIGEST_BLOCK].tobytes(), seed=j) for j, first in enumerate(blocks)) % 2**64


def payload_hash(counted, checksums):
    """Of a commit's payload: of each chunk, in order, how many ballots it counts and its checksum."""
    return xxh3(b"".join(struct.pack("<QQ", *pair) for pair in zip(counted, checksums, strict=True)))
