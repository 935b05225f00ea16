"""Apply: how a commit moves a replica. fp32, each line of the definition one rounding."""

import numpy as np


def fma32(x, y, z):
    """fma(x, y, z) of fp32 arrays, exact: numpy has no fused multiply-add.

    The product of two fp32 is exact in double. The sum with z is not: it is rounded to odd, by the residue of TwoSum, so
    that the one rounding to fp32 that follows sees on which side of a tie the exact sum lies (Boldo, Melquiond 2008).
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        product = np.asarray(x, np.float32).astype(np.float64) * np.asarray(y, np.float32).astype(np.float64)
        addend = np.asarray(z, np.float32).astype(np.float64)
        product, addend = np.broadcast_arrays(np.atleast_1d(product), np.atleast_1d(addend))
        total = product + addend
        part = total - product
        residue = (product - (total - part)) + (addend - part)
        # An even last bit with a residue: the odd neighbour is on the residue's side.
        even = (total.view(np.uint64) & np.uint64(1)) == 0
        inexact = np.isfinite(residue) & (residue != 0)
        odd = np.where(even & inexact, np.nextafter(total, np.copysign(np.inf, residue)), total)
        return odd.astype(np.float32)


def mean_signs(counts, ballots):
    """The mean of the ballots' signs where `counts` of them have bit 1: one rounding."""
    return (2 * np.asarray(counts, np.int64) - ballots).astype(np.float32) / np.float32(ballots)


def apply_step(x, signs, gamma, step_scale, weight_decay, decay_step=None, scale=None):
    """The new values of coordinates of one tensor, after rescale() where rho is not 1.

    signs: a verdict's bits as booleans, or mean_signs(). decay_step: None for gamma. scale: the commit's of this tensor, None when it has none.
    """
    gamma, step_scale = np.float32(gamma), np.float32(step_scale)
    decay_step = gamma if decay_step is None else np.float32(decay_step)
    with np.errstate(over="ignore", under="ignore"):
        a, decayed = gamma * step_scale, decay_step * step_scale
        if scale is not None:
            a = a * np.float32(scale)
        w = np.where(signs, np.float32(1), np.float32(-1)) if np.asarray(signs).dtype == bool else signs
        t = -(a * w)  # exact where w is 1 or -1
    c = fma32(-decayed, weight_decay, 1)[0]
    return fma32(x, c, t)


def rescale(x, x0, rho):
    """What comes before the step when rho is not 1."""
    with np.errstate(over="ignore", invalid="ignore"):
        delta = np.asarray(x, np.float32) - np.asarray(x0, np.float32)
    return fma32(rho, delta, x0)
