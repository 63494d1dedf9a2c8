"""Criteria that compare V2 with V1. They can only FAIL: where there is nothing to tell, or nothing to
compare with, the absolute limits decide.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from cfn.judge import comparison
from cfn.judge.criterion import Criterion
from cfn.judge.figures import Figure
from cfn.judge.fleet import Fleet
from cfn.judge.latency import ALPHA, Latency, figure, holm, latency
from cfn.judge.measures import COMPARED_RATES, Origin
from cfn.judge.result import Result, hold
from cfn.judge.sequential import ALPHA_BROKEN, Floats, first_proof
from cfn.judge.verdict import Verdict
from cfn.judge.window import Window
from cfn.metrics.arm import Arm
from cfn.metrics.times import format_ms


@dataclass(frozen=True, slots=True)
class Latencies:
    """The latency comparisons of a request by criterion, and their p-values after Holm."""

    found: dict[str, Latency]
    adjusted: dict[str, float]


def compare_latencies(criteria: Iterable[tuple[Criterion, Window]], fleet: Fleet, seed: int) -> Latencies:
    """Every latency comparison whose window is full; all of them share one correction."""
    found = {
        criterion.name: latency(
            fleet.by_bucket("v1", window),
            fleet.by_bucket("v2", window),
            window.starts,
            criterion.statistic,
            criterion.threshold,
            seed,
        )
        for criterion, window in criteria
        if criterion.metric == "coordination_time_ratio" and window.full
    }
    tested = {name: each.p_value for name, each in found.items() if each.p_value is not None}
    return Latencies(found, holm(tested))


def evaluate_comparison(
    criterion: Criterion,
    layer: str,
    fleet: Fleet,
    window: Window,
    latencies: Latencies,
    history: Arm | None,
) -> Result:
    """Judge one comparison. `history` is V1's past, shown where V1 serves no more."""
    assert criterion.origin is Origin.COMPARISON  # noqa: S101 - the caller's contract
    v1, v2 = fleet.total("v1", window), fleet.total("v2", window)
    if not v1.requests:
        return _off(criterion, layer, window, v2, history)
    if criterion.metric in COMPARED_RATES:
        return _sequential(criterion, layer, fleet, window)
    if not window.full:
        return hold(criterion, layer, window, "looked at once, when the window is full")
    return _latency(criterion, layer, window, latencies)


def strata(fleet: Fleet, window: Window, rate: str) -> tuple[Floats, Floats]:
    """Bad requests and requests, each of shape (buckets, hosts, 2): V1, then V2."""
    shape = (len(window.starts), len(fleet.hosts), 2)
    bad, requests = np.zeros(shape), np.zeros(shape)
    for column, host in enumerate(fleet.hosts):
        for index, name in enumerate(("v1", "v2")):
            for start, arm in host.arms(name, window.starts):
                row = (start - window.start_ms) // window.bucket_ms
                requests[row, column, index] = arm.requests
                bad[row, column, index] = arm.rates[rate].bad
    return bad, requests


def _sequential(criterion: Criterion, layer: str, fleet: Fleet, window: Window) -> Result:
    bad, requests = strata(fleet, window, COMPARED_RATES[criterion.metric])
    evidence = comparison.log_e_worse(bad, requests, criterion.threshold)
    proved = first_proof(evidence, ALPHA_BROKEN)
    value = comparison.ratio(bad, requests)
    served = [(int(bad[..., arm].sum()), int(requests[..., arm].sum())) for arm in (0, 1)]
    counts = {
        "alpha": ALPHA_BROKEN,
        "margin": criterion.threshold,
        "v1": {"bad": served[0][0], "requests": served[0][1]},
        "v2": {"bad": served[1][0], "requests": served[1][1]},
        "log_e_worse": round(float(evidence[-1]), 6),
        "highest_log_e_worse": round(float(evidence.max()), 6),
    }
    of = "{} of {} requests of V2 were bad, {} of {} of V1".format(*served[1], *served[0])
    said = f"the ratio is {value:.3g} ({of})" if value is not None else f"no ratio yet ({of})"
    observed = Figure(value, int(requests.sum()))
    if proved is not None:
        at = format_ms(window.starts[proved] + window.bucket_ms)
        reason = f"V2 is proved worse than {criterion.threshold:g} times V1 since {at}; {said}"
        return _result(criterion, layer, window, Verdict.FAIL, reason, observed, counts)
    if layer == "criterion" and not window.full:
        return hold(
            criterion, layer, window, f"nothing says that V2 is worse so far; {said}",
            observed=observed, proof=counts,
        )  # fmt: skip
    reason = f"nothing says that V2 is worse than {criterion.threshold:g} times V1; {said}"
    return _result(criterion, layer, window, Verdict.PASS, reason, observed, counts)


def _latency(criterion: Criterion, layer: str, window: Window, latencies: Latencies) -> Result:
    found = latencies.found[criterion.name]
    adjusted = latencies.adjusted.get(criterion.name)
    proof = {
        "alpha": ALPHA,
        "margin": criterion.threshold,
        "blocks": found.blocks,
        "p_value": _rounded(found.p_value),
        "p_value_holm": _rounded(adjusted),
        "mann_whitney_p": _rounded(found.mann_whitney_p),
    }
    observed = Figure(found.ratio, found.buckets)
    if found.ratio is None or adjusted is None:
        reason = f"too few buckets that both served ({found.buckets}) to compare {criterion.statistic}"
        return _result(criterion, layer, window, Verdict.PASS, reason, observed, proof)
    said = (
        f"{criterion.statistic} of V2 is {found.ratio:.4g} times that of V1 on {found.buckets} buckets "
        f"that both served; p {adjusted:.2g} after Holm that it is at most {criterion.threshold:g}"
    )
    broken = adjusted <= ALPHA and found.ratio > criterion.threshold
    verdict = Verdict.FAIL if broken else Verdict.PASS
    return _result(criterion, layer, window, verdict, said, observed, proof)


def _off(criterion: Criterion, layer: str, window: Window, v2: Arm, history: Arm | None) -> Result:
    """V1 served nothing: there is nothing to compare with, and its past is only shown."""
    proof: dict[str, Any] = {}
    reason = "off: V1 served nothing in this window"
    if history is not None and history.requests and v2.requests:
        before, after = _before_after(criterion, history), _before_after(criterion, v2)
        proof = {"before_after": {"v1": before, "v2": after, "v1_requests": history.requests}}
        reason += f"; before_after, shown only: V1 had {before}, V2 has {after}"
    if layer == "criterion" and not window.full:
        return hold(criterion, layer, window, reason, proof=proof)
    return _result(criterion, layer, window, Verdict.PASS, reason, Figure(None, 0), proof)


def _before_after(criterion: Criterion, arm: Arm) -> float | None:
    if criterion.metric in COMPARED_RATES:
        return _rounded(arm.rate_pct(COMPARED_RATES[criterion.metric]))
    return _rounded(figure(arm, criterion.statistic))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 6)


def _result(
    criterion: Criterion,
    layer: str,
    window: Window,
    verdict: Verdict,
    reason: str,
    observed: Figure,
    proof: dict[str, Any],
) -> Result:
    return Result(
        criterion=criterion,
        layer=layer,
        window=window,
        verdict=verdict,
        reason=reason,
        observed=observed,
        proof=proof,
    )
