"""The counts of a scenario: requests and bad requests by bucket, host and version."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cfn.simulate.scenario import Scenario

BUCKET_S = 300
PER_HOUR = 3_600 // BUCKET_S
PER_DAY = 24 * PER_HOUR

Counts = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Stream:
    """`requests` and `bad` have the shape (buckets, hosts, 2): V1, then V2."""

    requests: Counts
    bad: Counts


def stream(scenario: Scenario, rng: np.random.Generator | None = None) -> Stream:
    """Draw the counts. The same scenario and generator give the same counts."""
    rng = rng or np.random.default_rng(scenario.seed)
    buckets = round(scenario.hours * PER_HOUR)
    hours = np.arange(buckets) / PER_HOUR
    day = 1 + scenario.daily_cycle * np.sin(2 * math.pi * hours / 24)
    day[(hours >= scenario.idle_from_h) & (scenario.idle_from_h >= 0)] = 0.0
    share = scenario.traffic_pct / 100
    rate = scenario.requests_per_h / PER_HOUR / scenario.hosts * day
    requests = rng.poisson(
        rate[:, None, None] * np.array([1 - share, share]) * np.ones((buckets, scenario.hosts, 1))
    )
    v2 = np.full(buckets, float(scenario.v2_error_factor))
    v2 *= 1 + scenario.drift_pct_per_day / 100 * hours / 24
    if scenario.step_at_h >= 0:
        v2[hours >= scenario.step_at_h] *= scenario.step_factor
    factors = np.stack([np.ones(buckets), v2], axis=1)[:, None, :]
    shares = scenario.error_pct / 100 * _bursts(scenario, buckets, rng)[:, None, None] * factors
    shares = np.clip(shares * _noise(scenario, buckets, rng), 0, 1)
    return Stream(requests, _bad(requests, shares, scenario.clustering, rng))


def _bursts(scenario: Scenario, buckets: int, rng: np.random.Generator) -> Floats:
    """The factor of each bucket, shared by all hosts and both versions."""
    factor = np.ones(buckets)
    for _ in range(rng.poisson(scenario.bursts_per_day * buckets / PER_DAY)):
        start = int(rng.integers(buckets))
        length = 1 + int(rng.geometric(min(1.0, BUCKET_S / 60 / max(scenario.burst_minutes, 1))))
        factor[start : start + length] *= rng.uniform(1, max(1.0, scenario.burst_factor))
    return factor


def _noise(scenario: Scenario, buckets: int, rng: np.random.Generator) -> Floats:
    """The factor of each bucket, host and version: lognormal with mean 1, wandering as AR(1)."""
    shape = (buckets, scenario.hosts, 2)
    if not scenario.host_noise:
        return np.ones(shape)
    kept = scenario.noise_correlation
    steps = rng.normal(size=shape) * math.sqrt(1 - kept**2)
    level = np.empty(shape)
    level[0] = rng.normal(size=shape[1:])
    for number in range(1, buckets):
        level[number] = kept * level[number - 1] + steps[number]
    wandering: Floats = np.exp(scenario.host_noise * level - scenario.host_noise**2 / 2)
    return wandering


def _bad(requests: Counts, shares: Floats, clustering: float, rng: np.random.Generator) -> Counts:
    if clustering:
        spread = 1 / clustering - 1
        inside = np.clip(shares, 1e-9, 1 - 1e-9)
        shares = rng.beta(inside * spread, (1 - inside) * spread)
    return rng.binomial(requests, shares)
