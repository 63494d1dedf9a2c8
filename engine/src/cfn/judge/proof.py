"""Limits proved under any number of looks: an e-process for the mean of values in [0, 1].

For requests with bad fractions x_1, x_2, ... in [0, 1] and a limit p0, the likelihood ratio of
Bernoulli(p1) against Bernoulli(p0), with fractions in the exponents,

    L(p1) = (p1 / p0)^S ((1 - p1) / (1 - p0))^(n - S),   S = x_1 + ... + x_n,

is a nonnegative supermartingale while the mean of each request, given those before, is at most p0
(p1 > p0) or at least p0 (p1 < p0): each factor is convex in x, hence at most its chord, whose mean is
at most 1. So is a fixed mixture over p1, and by Ville's inequality it ever exceeds 1/alpha with
probability at most alpha, however often one looks (Howard, Ramdas, McAuliffe, Sekhon, 2021;
Waudby-Smith, Ramdas, 2024). It needs only S and n, which add up over buckets and hosts.

The price: bursts, where one bad request makes the next likelier to be bad than the limit allows,
break the assumption. n and S are exact; nothing is sampled.
"""

import math

ALPHA = 0.05
_STEPS = 32
_NONE_BAD_WEIGHT = 0.5  # of the alternative p1 = 0, so that a perfect V2 is proved soonest


def log_e_above(bad: float, requests: int, limit: float) -> float:
    """Logarithm of the evidence that the mean bad fraction is above `limit` (0 < limit < 1)."""
    grid = [limit + (1 - limit) * step / (_STEPS + 1) for step in range(1, _STEPS + 1)]
    return _log_mean_exp([_log_ratio(bad, requests, p1, limit) for p1 in grid])


def log_e_below(bad: float, requests: int, limit: float) -> float:
    """Logarithm of the evidence that the mean bad fraction is below `limit` (0 < limit < 1)."""
    grid = [limit * step / (_STEPS + 1) for step in range(1, _STEPS + 1)]
    mixed = _log_mean_exp([_log_ratio(bad, requests, p1, limit) for p1 in grid])
    mixed += math.log(1 - _NONE_BAD_WEIGHT)
    if bad > 0:
        return mixed
    perfect = math.log(_NONE_BAD_WEIGHT) - requests * math.log1p(-limit)
    return max(mixed, perfect) + math.log1p(math.exp(-abs(mixed - perfect)))


def proved(log_e: float, alpha: float = ALPHA) -> bool:
    """Whether evidence of this strength proves its claim at level `alpha`."""
    return log_e >= -math.log(alpha)


def perfect_requests_needed(limit: float, alpha: float = ALPHA) -> int:
    """How many requests without any fault prove a mean below `limit`: about ln(1/alpha) / limit, and
    a little more for the mixture."""
    low, high = 0, 1
    while not proved(log_e_below(0.0, high, limit), alpha):
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if proved(log_e_below(0.0, middle, limit), alpha) else (middle, high)
    return high


def _log_ratio(bad: float, requests: int, p1: float, p0: float) -> float:
    return bad * math.log(p1 / p0) + (requests - bad) * math.log((1 - p1) / (1 - p0))


def _log_mean_exp(values: list[float]) -> float:
    top = max(values)
    return top + math.log(sum(math.exp(value - top) for value in values) / len(values))
