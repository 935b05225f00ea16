"""The synthetic classification task, its counter-based generator and the order of a text's windows: docs/data.md."""

import dataclasses

import numpy as np

from . import checksums, coins

CENTRE_SEED = 0x63656E747265    # "centre"
HELD_OUT_SEED = 0x68656C646F7574  # "heldout"


def draws(seed, stream, count):
    """The first `count` words of a stream."""
    return coins.mix(seed, stream, np.arange(count, dtype=np.uint64))


def bell(words):
    """Bell-shaped doubles with mean 0 and deviation 1, of the sum of each word's four 16-bit parts."""
    parts = sum((words >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48))
    return (parts.astype(np.float64) - 131070.0) / 37837.22723720648


def below(words, bound):
    """floor(word * bound / 2^64), in halves so that it fits; bound < 2^32."""
    bound = np.uint64(bound)
    low = ((words & np.uint64(0xFFFFFFFF)) * bound) >> np.uint64(32)
    return ((words >> np.uint64(32)) * bound + low) >> np.uint64(32)


def turns(windows, shares, share):
    """How many of the first `windows` turns of so many shares are this one's."""
    return windows // shares + (share < windows % shares)


def own_parts(windows, share):
    """Share by share up to this one, the places with which each begins: what those before it leave to it, one from each in
    turn. As lists: for corpora of a few windows."""
    parts = [list(range(windows))]
    for newcomer in range(1, share + 1):
        left = [parts[i][turns(windows, newcomer + 1, i):turns(windows, newcomer, i)] for i in range(newcomer)]
        rows = range(max(map(len, left)))
        parts.append([places[row] for row in rows for places in left if row < len(places)])
    return parts


def place(windows, share, k):
    """The k-th place of a share's order, by the definition and not by its closed form."""
    own = own_parts(windows, share)[share] if share < windows else []  # of W/(share + 1) places
    if k < len(own):
        return own[k]
    start = int(f"{share:032b}"[::-1], 2) * windows >> 32
    at = {place: index for index, place in enumerate(own)}
    found = (start + k) % windows
    while found in at:
        found = (start + at[found]) % windows
    return found


def first_token(seed, share, k, tokens, length):
    """Where the k-th window of a share begins: docs/data.md, "Windows, exactly". In plain integers."""
    def mix(a, b, c):
        return int(coins.mix(a, b, c)[0])

    windows = max(1, tokens // length - 1)
    key = mix(coins.domain_seed(coins.MINIBATCH, seed), k // windows, windows)
    number = place(windows, share, k % windows)
    half = max(1, ((windows - 1).bit_length() + 1) // 2)
    while True:
        left, right = number >> half, number % (1 << half)
        for step in range(6):
            left, right = right, left ^ (mix(key, step, right) % (1 << half))
        number = left << half | right
        if number < windows:
            break
    offset = (mix(key, 6, 0) * min(length, tokens - windows * length)) >> 64
    return number * length + offset


def held_out_windows(tokens, length, targets):
    """Where the held-out windows of a part of so many tokens begin: docs/data.md, "Held out, exactly"."""
    whole = (tokens - 1) // length
    count = min(max(targets // length, 1), whole)
    return [k * whole // count * length for k in range(count)]


def held_out_hash(length, windows):
    """Of windows, each the bytes of what is measured: docs/wire_format.md, "Held-out windows"."""
    sizes = len(windows).to_bytes(8, "little") + length.to_bytes(8, "little")
    return checksums.xxh3(b"signvote-windows-1" + sizes + b"".join(windows))


@dataclasses.dataclass
class Batch:
    values: np.ndarray  # fp32 [rows, features]
    labels: np.ndarray  # [rows]


class Synthetic:
    def __init__(self, features=64, classes=10, rows=8):
        self.features, self.classes, self.rows = features, classes, rows
        centres = bell(draws(CENTRE_SEED, features, classes * features)) * 0.25
        self.centres = centres.astype(np.float32).reshape(classes, features)

    def train(self, seed, share, data_step, micro=0):
        """Minibatch = f(seed, share, data_step)."""
        stream = int(coins.mix(share + 1, data_step, micro)[0])
        return self._draw(coins.domain_seed(coins.MINIBATCH, seed), stream, self.rows)

    def held_out(self, index):
        """One sample."""
        return self._draw(HELD_OUT_SEED, index, rows=1)

    def _draw(self, seed, stream, rows):
        words = draws(seed, stream, rows * (1 + self.features)).reshape(rows, 1 + self.features)
        labels = below(words[:, 0], self.classes).astype(np.int64)
        return Batch(self.centres[labels] + bell(words[:, 1:]).astype(np.float32), labels)
