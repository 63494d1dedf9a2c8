"""Latency of V2 against V1 at the end of the window, once: paired in time, so that what slows both
(a busy hour, a noisy neighbour) cancels out.

In every bucket that both served, the ratio of V2's figure (a quantile or the mean) to V1's; its
logarithm averaged over blocks of an hour, since successive buckets are alike. Is the mean above the
margin? A permutation test that flips the signs of the blocks around the margin
(`scipy.stats.permutation_test` with `permutation_type="samples"`; Fisher's paired test), corrected
over all comparisons of the request by Holm's method (Scandinavian Journal of Statistics, 1979). The
Mann-Whitney test, unpaired, is shown beside it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cfn.metrics.arm import Arm

ALPHA = 0.01
MIN_REQUESTS = 3  # of each arm, for a bucket to say anything
BLOCK_BUCKETS = 12
MIN_BLOCKS = 8  # 2**-8 is below alpha: fewer could never reject
RESAMPLES = 9_999


@dataclass(frozen=True, slots=True)
class Latency:
    """`ratio` is the geometric mean of the blocks' ratios; `p_value` of "at most the margin" (None below
    MIN_BLOCKS); `mann_whitney_p` of "V2 is not slower", unpaired."""

    ratio: float | None
    buckets: int
    blocks: int
    p_value: float | None = None
    mann_whitney_p: float | None = None


def figure(arm: Arm, statistic: str) -> float | None:
    """The statistic of one arm's coordination times, in ms."""
    if statistic == "mean":
        return arm.time_sum_us / 1_000 / arm.requests if arm.requests else None
    return arm.times_ms.quantile(int(statistic[1:]) / 100)


def latency(
    v1: Mapping[int, Arm],
    v2: Mapping[int, Arm],
    starts: Sequence[int],
    statistic: str,
    margin: float,
    seed: int,
) -> Latency:
    """Compare the arms, given by bucket."""
    blocks: dict[int, list[tuple[float, float]]] = {}
    for number, start in enumerate(starts):
        pair = [
            figure(arms[start], statistic)
            for arms in (v1, v2)
            if start in arms and arms[start].requests >= MIN_REQUESTS
        ]
        if len(pair) == 2 and pair[0] and pair[1]:
            blocks.setdefault(number // BLOCK_BUCKETS, []).append((math.log(pair[0]), math.log(pair[1])))
    buckets = sum(len(block) for block in blocks.values())
    if not blocks:
        return Latency(None, 0, 0)
    means = np.array([np.mean(block, axis=0) for block in blocks.values()])
    differences = means[:, 1] - means[:, 0]
    ratio = float(math.exp(differences.mean()))
    if len(blocks) < MIN_BLOCKS:
        return Latency(ratio, buckets, len(blocks))
    from scipy.stats import mannwhitneyu, permutation_test  # a second of imports, once a window

    tested = permutation_test(
        (differences - math.log(margin),),
        np.mean,
        permutation_type="samples",
        alternative="greater",
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(seed),
    )
    shown = mannwhitneyu(means[:, 1], means[:, 0], alternative="greater")
    return Latency(ratio, buckets, len(blocks), float(tested.pvalue), float(shown.pvalue))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Each p-value adjusted for all of them."""
    adjusted: dict[str, float] = {}
    highest = 0.0
    for number, (name, value) in enumerate(sorted(p_values.items(), key=lambda item: (item[1], item[0]))):
        highest = max(highest, min(1.0, (len(p_values) - number) * value))
        adjusted[name] = highest
    return adjusted
