"""Evidence that may be looked at as often as one likes: e-processes over time buckets.

An e-process is a nonnegative process that is at most 1 on average, whenever it is stopped, while the
null hypothesis holds; it exceeds 1/alpha with probability at most alpha, ever (Ville 1939; Howard,
Ramdas, McAuliffe, Sekhon, "Time-uniform, nonparametric, nonasymptotic confidence sequences", Annals
of Statistics 2021; Ramdas, Gruenwald, Vovk, Shafer, "Game-theoretic statistics and safe anytime-valid
inference", 2023). Two things are added to the likelihood ratios that the callers give:

- One bucket multiplies the evidence by at most e**MOST_PER_BUCKET. Cut off above, a ratio is still at
  most 1 on average, and a burst of some minutes is not yet a trend.
- The process begins anew every RESTART_BUCKETS (two hours of 5-minute buckets), each beginning with its
  part of the wealth, so that a late change is not drowned by a good past (a mixture of e-processes is
  one; compare the e-detectors of Shin, Ramdas, Rinaldo, 2022).
"""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

ALPHA_BROKEN = 0.05  # a limit that holds, or a V2 as good as V1, is called broken at most so often
ALPHA_KEPT = 0.025  # a limit that does not hold is called kept at most so often
MOST_PER_BUCKET = 1.0
RESTART_BUCKETS = 24


def running_log_e(increments: Floats) -> Floats:
    """The logarithm of the evidence after each bucket.

    `increments` has a row for each bucket and a column for each alternative: the logarithm of the
    likelihood ratio of that bucket alone. Alternatives have the same weight.
    """
    buckets, alternatives = increments.shape
    path = np.cumsum(np.minimum(increments, MOST_PER_BUCKET), axis=0)
    evidence = np.full(buckets, -np.inf)
    for number, start in enumerate(range(0, buckets, RESTART_BUCKETS)):
        before = path[start - 1] if start else np.zeros(alternatives)
        weight = -math.log((number + 1) * (number + 2))
        since = _log_mean_exp(path[start:] - before) + weight
        evidence[start:] = np.logaddexp(evidence[start:], since)
    return evidence


def first_proof(evidence: Floats, alpha: float) -> int | None:
    """The bucket after which the evidence first reached 1/alpha, or None: what the judge would have
    said had it been asked after every bucket, however often it really was."""
    reached = np.flatnonzero(evidence >= -math.log(alpha))
    return int(reached[0]) if reached.size else None


def _log_mean_exp(values: Floats) -> Floats:
    top = values.max(axis=1)
    mean: Floats = top + np.log(np.exp(values - top[:, None]).mean(axis=1))
    return mean
