"""Coins: seeded bits that decide ties and zeros, 64 at a time; and the domains that keep numbers for other purposes apart
from them. All arithmetic is modulo 2^64.
"""

import numpy as np


# Names of domains: eight ASCII bytes, read as a little-endian number.
UNIFORM, INITIAL, MINIBATCH = (int.from_bytes(name, "little") for name in (b"uniform1", b"xparams1", b"inbatch1"))


def _words(value):
    return np.atleast_1d(np.asarray(value, dtype=np.uint64))


def fin(z):
    """SplitMix64's finaliser with its increment, of an array of words."""
    z = _words(z) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def mix(a, b, c):
    return fin(fin(fin(a) ^ _words(b)) ^ _words(c))


def tie_words(seed, round_, words):
    """Tie coins of coordinates 64*word .. 64*word + 63, for each of `words`."""
    return mix(seed, round_, words)


def own_words(seed, round_, share, words):
    """A worker's own coins of the same coordinates."""
    return fin(mix(seed, round_, words) ^ _words(share + 1))


def domain_seed(domain, seed):
    """The seed of another domain than that of the coins, of the same seed."""
    return int(fin(seed ^ domain)[0])


def uniform_words(seed, round_, share, words):
    """A worker's 16-bit uniforms of coordinates 4*word .. 4*word + 3, the first in the low bits."""
    return own_words(domain_seed(UNIFORM, seed), round_, share, words)


def own_coins(seed, round_, share, count):
    """A worker's own coins of coordinates 0 .. count - 1, as booleans."""
    words = own_words(seed, round_, share, np.arange((count + 63) // 64, dtype=np.uint64))
    return np.unpackbits(words.astype("<u8").view(np.uint8), bitorder="little")[:count].astype(bool)
