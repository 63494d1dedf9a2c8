"""Limits proved under any number of looks: an e-process for the mean of values in [0, 1].

For requests with bad fractions x_1, x_2, ... in [0, 1] and a limit p0, the likelihood ratio of
Bernoulli(p1) against Bernoulli(p0), with fractions in the exponents,

    L(p1) = (p1 / p0)^S ((1 - p1) / (1 - p0))^(n - S),   S = x_1 + ... + x_n,

is a nonnegative supermartingale while the mean of each request, given those before, is at most p0
(p1 > p0) or at least p0 (p1 < p0): each factor is convex in x, hence at most its chord, whose mean is
at most 1. So is a fixed mixture over p1 (Waudby-Smith, Ramdas, "Estimating means of bounded random
variables by betting", JRSS B 2024). It needs only S and n of each bucket. A limit on a quantile is one
on a share: p95 below 5 s says that at most 5 % of the requests take longer.

FAIL needs proof that the mean is above (cfn.judge.sequential: with its cut against bursts, and its
restarts), in buckets in which V1 was not over the limit too: what hits both is not V2's. PASS needs
proof that it is below, over everything since the traffic came.
"""

import math

import numpy as np
from numpy.typing import NDArray

from cfn.judge.sequential import ALPHA_KEPT, Floats, running_log_e

_ABOVE = (1.15, 1.3, 1.6, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)  # alternatives, in multiples of the limit
_BELOW = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_HIGHEST = 0.95
_NONE_BAD_WEIGHT = 0.75  # of the alternative p1 = 0, so that a perfect V2 is proved soonest


def log_e_above(bad: Floats, requests: Floats, limit: float) -> Floats:
    """Logarithm of the evidence, after each bucket, that the mean bad fraction is above `limit`
    (0 < limit < 1). `bad` is the sum of bad fractions of each bucket, `requests` their number."""
    alternatives = np.array([limit * each for each in _ABOVE if limit * each < _HIGHEST])
    if not alternatives.size:
        alternatives = np.array([(1 + limit) / 2])
    ratios = np.outer(bad, np.log(alternatives / limit))
    ratios += np.outer(requests - bad, np.log((1 - alternatives) / (1 - limit)))
    return running_log_e(ratios)


def shared(bad: Floats, requests: Floats, limit: float) -> NDArray[np.bool_]:
    """The buckets in which V1 (its bad fractions and requests are given) was over the limit itself."""
    over: NDArray[np.bool_] = bad > limit * requests
    return over


def log_e_below(bad: float, requests: int, limit: float) -> float:
    """Logarithm of the evidence that the mean bad fraction is below `limit` (0 < limit < 1)."""
    ratios = [
        bad * math.log(part) + (requests - bad) * math.log((1 - limit * part) / (1 - limit))
        for part in _BELOW
    ]
    top = max(ratios)
    mixed = top + math.log(sum(math.exp(each - top) for each in ratios) / len(ratios))
    mixed += math.log(1 - _NONE_BAD_WEIGHT)
    if bad > 0:
        return mixed
    perfect = math.log(_NONE_BAD_WEIGHT) - requests * math.log1p(-limit)
    return max(mixed, perfect) + math.log1p(math.exp(-abs(mixed - perfect)))


def kept(log_e: float, alpha: float = ALPHA_KEPT) -> bool:
    """Whether evidence of this strength proves that the limit is kept."""
    return log_e >= -math.log(alpha)


def perfect_requests_needed(limit: float, alpha: float = ALPHA_KEPT) -> int:
    """How many requests without any fault prove a mean below `limit`: about ln(1/alpha) / limit, and
    a little more for the mixture."""
    low, high = 0, 1
    while not kept(log_e_below(0.0, high, limit), alpha):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if kept(log_e_below(0.0, middle, limit), alpha) else (middle, high)
    return high


def more_requests_needed(bad: float, requests: int, limit: float, alpha: float = ALPHA_KEPT) -> int | None:
    """How many more requests as good as those so far prove the limit kept; 0 if they do already, None
    if no number would (the mean so far is not below the limit)."""
    if kept(log_e_below(bad, requests, limit), alpha):
        return 0
    if requests == 0 or bad == 0:
        return max(1, perfect_requests_needed(limit, alpha) - requests)
    if bad >= limit * requests:
        return None
    low, high = 1, 2
    while not kept(log_e_below(bad * high, requests * high, limit), alpha):
        low, high = high, high * 2
        if high > 2**40:
            return None
    factor_low, factor_high = float(low), float(high)
    for _ in range(40):
        middle = (factor_low + factor_high) / 2
        if kept(log_e_below(bad * middle, round(requests * middle), limit), alpha):
            factor_high = middle
        else:
            factor_low = middle
    return math.ceil(requests * factor_high) - requests
