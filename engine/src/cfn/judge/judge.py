"""The judge: one request in, one verdict out. Pure, deterministic, and closed on failure.

The verdict is a JSON object that depends on nothing but the request, so that it can be recomputed
from a ledger record byte for byte.
"""

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from cfn.judge.criterion import Criterion
from cfn.judge.evaluate import evaluate
from cfn.judge.fleet import Fleet
from cfn.judge.hosts import Host, read_hosts
from cfn.judge.measures import Origin
from cfn.judge.recorded import evaluate_recorded
from cfn.judge.request import Request
from cfn.judge.result import Result
from cfn.judge.verdict import EXIT_CODES, Verdict, worst
from cfn.judge.versus import Latencies, compare_latencies, evaluate_comparison
from cfn.judge.window import Window, plan, window_of
from cfn.metrics.arm import Arm
from cfn.metrics.times import format_ms

JUDGE_VERSION = 2


def judge(request: Request) -> dict[str, Any]:
    """The verdict on a request. Never raises: what goes wrong inside is the verdict ERROR."""
    try:
        hosts = read_hosts(request)
        fleet = Fleet(hosts)
        asked = [(each, "guardrail") for each in request.triggers]
        asked += [(each, "criterion") for each in request.criteria]
        latencies = compare_latencies(
            ((each, _window(each, request)) for each, _ in asked),
            fleet,
            int(request.sha256[:16], 16),
        )
        results = [_evaluate(each, layer, fleet, request, latencies) for each, layer in asked]
        return _compose(request, hosts, results)
    except Exception as error:
        return _head(request, Verdict.ERROR) | {
            "advice": "hold", "reasons": [f"the judge failed: {error!r}"], "results": []
        }  # fmt: skip


def _window(criterion: Criterion, request: Request) -> Window:
    return window_of(criterion, request.since_ms, request.now_ms)


def _evaluate(
    criterion: Criterion, layer: str, fleet: Fleet, request: Request, latencies: Latencies
) -> Result:
    window = _window(criterion, request)
    try:
        if criterion.origin is Origin.LEDGER:
            return evaluate_recorded(criterion, layer, window, request.facts)
        if criterion.origin is Origin.COMPARISON and window.starts:
            history = request.v1_history
            return evaluate_comparison(criterion, layer, fleet, window, latencies, history)
        return evaluate(criterion, layer, fleet, window)
    except Exception as error:
        return Result(
            criterion=criterion,
            layer=layer,
            window=window,
            verdict=Verdict.ERROR,
            reason=f"its evaluation failed: {error!r}",
        )


def _compose(request: Request, hosts: Sequence[Host], results: Sequence[Result]) -> dict[str, Any]:
    counted = [result for result in results if not result.criterion.dry_run]
    verdict = worst([host.verdict for host in hosts] + [result.verdict for result in counted])
    if not counted:
        verdict = worst([verdict, Verdict.ERROR])
    reasons = [host.reason for host in hosts if host.verdict is verdict and host.reason]
    reasons += [f"{each.criterion.name}: {each.reason}" for each in counted if each.verdict is verdict]
    if not counted:
        reasons.append("every criterion is a dry run: nothing was judged")
    held = [] if verdict is Verdict.FAIL else counted  # nothing that is still to come mends a FAIL
    waiting = [each.ask_again_ms for each in held if each.ask_again_ms is not None]
    blind = _blind(request, hosts)
    return _head(request, verdict) | {
        "advice": _advice(verdict, blind, request),
        "blind": blind,
        "reasons": reasons if verdict is not Verdict.PASS else [f"all {len(counted)} criteria hold"],
        "ask_again_at": format_ms(max(waiting)) if waiting else None,
        "missing": sorted({f"{each.criterion.name}: {each.missing}" for each in held if each.missing}),
        "observed": _observed(request, hosts),
        "arms": {
            "checked": sum(host.evidence.arms.checked for host in hosts if host.evidence),
            "unrecorded": sum(host.evidence.arms.unrecorded for host in hosts if host.evidence),
        },
        "hosts": {host.name: _host(host, request) for host in hosts},
        "results": [_result(each) for each in results],
    }


def _head(request: Request, verdict: Verdict) -> dict[str, Any]:
    return {
        "v": 1,
        "judge_version": JUDGE_VERSION,
        "verdict": str(verdict),
        "exit_code": EXIT_CODES[verdict],
        "environment": request.environment,
        "stage": request.stage,
        "step": request.step,
        "asked_by": request.asked_by,
        "now": format_ms(request.now_ms),
        "since": format_ms(request.since_ms),
        "retrospective": request.retrospective,
        "libraries": _libraries(),
        "time_scale": {"factor": request.scale.factor, "note": request.scale.note()},
        "ordered": {
            "version": request.ordered.version,
            "traffic_pct": format(request.ordered.traffic_pct, "f"),
        },
        "release": request.release,
        "stage_table_sha256": request.stage_table_sha256,
        "request_sha256": request.sha256,
    }


def _libraries() -> dict[str, str]:
    """The versions of what computes: another one may round another way."""
    return {name: version(name) for name in ("numpy", "scipy")}


def _blind(request: Request, hosts: Sequence[Host]) -> dict[str, Any]:
    """How long no sample of a host has been seen, of the worst one; hosts without usable evidence are
    only named, since how long they have been so is not in the evidence."""
    unseen_s: dict[str, float] = {}
    starts = _starts(request)
    for host in hosts:
        if host.evidence is None:
            continue
        seen = [start for start in host.evidence.sampled if start in starts]
        last_ms = max(seen) + request.bucket_ms if seen else starts.start
        unseen_s[host.name] = max(0, request.now_ms - last_ms) / 1_000
    longest_s = max(unseen_s.values(), default=0.0)
    return {
        "for_s": longest_s,
        "limit_s": request.blind_limit_s,
        "exceeded": longest_s > request.blind_limit_s,
        "host": max(unseen_s, key=lambda name: unseen_s[name]) if longest_s else None,
        "without_evidence": [host.name for host in hosts if host.evidence is None],
    }


def _advice(verdict: Verdict, blind: dict[str, Any], request: Request) -> str:
    """What the asker should do: advance, roll_back, hold, or fall_back to V1. A retrospective run and a
    look at V1 alone never ask for a change of traffic."""
    if request.retrospective:
        return "hold"
    if verdict is Verdict.FAIL:
        return "roll_back"
    if verdict is Verdict.PASS:
        return "advance"
    serving = request.ordered.version == "v2" and request.ordered.traffic_pct > 0
    if verdict in (Verdict.NO_DATA, Verdict.ERROR) and serving and blind["exceeded"]:
        return "fall_back"
    return "hold"


def _starts(request: Request) -> range:
    wanted = plan(request)
    return range(wanted.since_ms, wanted.until_ms, wanted.bucket_ms)


def _observed(request: Request, hosts: Sequence[Host]) -> dict[str, Any]:
    """The share of V2 as it came out, over the widest window; over-capacity requests stay outside."""
    starts = _starts(request)
    counts = {
        name: sum(arm.requests for host in hosts for _, arm in host.arms(name, starts))
        for name in ("v1", "v2")
    }
    total = counts["v1"] + counts["v2"]
    return {
        "v1_requests": counts["v1"],
        "v2_requests": counts["v2"],
        "v2_share_pct": round(100 * counts["v2"] / total, 3) if total else None,
        "v1": _v1(hosts, starts),
        "over_capacity": sum(host.over_capacity(starts) for host in hosts),
    }


def _v1(hosts: Sequence[Host], starts: range) -> dict[str, Any] | None:
    """V1's totals, for the comparison after it has gone (`v1_history` of a later request)."""
    total = Arm()
    for host in hosts:
        for _, arm in host.arms("v1", starts):
            total.merge(arm)
    return total.as_json() if total.requests else None


def _host(host: Host, request: Request) -> dict[str, Any]:
    if host.evidence is None:
        return {"verdict": str(host.verdict), "reason": host.reason}
    starts = _starts(request)
    cells = host.samples(starts)
    return {
        "verdict": str(host.verdict),
        "releases": sorted(host.evidence.releases),
        "samples": sum(cell.samples for cell in cells),
        "coverage": round(sum(cell.samples > 0 for cell in cells) / len(cells), 4),
        "damaged": {
            name: {kind: count for kind, count in source.damaged.items() if count}
            for name, source in (("events", host.evidence.events), ("samples", host.evidence.samples))
        },
        "left_out": {str(generation): count for generation, count in sorted(host.left_out.items())},
    }


def _result(result: Result) -> dict[str, Any]:
    criterion = result.criterion
    value = result.observed.value
    return {
        "name": criterion.name,
        "layer": result.layer,
        "verdict": str(result.verdict),
        "dry_run": criterion.dry_run,
        "metric": criterion.metric,
        "statistic": criterion.statistic,
        "arm": criterion.arm,
        "item": criterion.item,
        "scope": criterion.scope,
        "where": result.where,
        "observed": None if value is None else round(value, 6),
        "samples": result.observed.samples,
        "compare": criterion.compare,
        "threshold": criterion.threshold,
        "unit": criterion.unit,
        "per": {"kind": criterion.per.kind, "n": criterion.per.n, "m": criterion.per.m},
        "window": {
            "from": format_ms(result.window.start_ms),
            "to": format_ms(result.window.end_ms),
            "bucket_s": result.window.bucket_ms / 1_000,
            "full": result.window.full,
        },
        "reason": result.reason,
        "ask_again_at": None if result.ask_again_ms is None else format_ms(result.ask_again_ms),
        "missing": result.missing,
        "proof": result.proof,
    }
