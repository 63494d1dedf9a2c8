"""The judge: one request in, one verdict out. Pure, deterministic, and closed on failure.

The verdict is a JSON object that depends on nothing but the request, so that it can be recomputed
from a ledger record byte for byte.
"""

from collections.abc import Sequence
from typing import Any

from cfn.judge.criterion import Criterion
from cfn.judge.evaluate import Result, evaluate
from cfn.judge.hosts import Host, read_hosts
from cfn.judge.request import Request
from cfn.judge.verdict import EXIT_CODES, Verdict, worst
from cfn.judge.window import plan, window_of
from cfn.metrics.times import format_ms

JUDGE_VERSION = 1


def judge(request: Request) -> dict[str, Any]:
    """The verdict on a request. Never raises: what goes wrong inside is the verdict ERROR."""
    try:
        hosts = read_hosts(request)
        results = [_evaluate(each, "guardrail", hosts, request) for each in request.triggers]
        results += [_evaluate(each, "criterion", hosts, request) for each in request.criteria]
        return _compose(request, hosts, results)
    except Exception as error:
        return _head(request, Verdict.ERROR) | {"reasons": [f"the judge failed: {error!r}"], "results": []}


def _evaluate(criterion: Criterion, layer: str, hosts: Sequence[Host], request: Request) -> Result:
    window = window_of(criterion, request.since_ms, request.now_ms)
    try:
        return evaluate(criterion, layer, hosts, window)
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
    waiting = [each.ask_again_ms for each in counted if each.ask_again_ms is not None]
    return _head(request, verdict) | {
        "reasons": reasons if verdict is not Verdict.PASS else [f"all {len(counted)} criteria hold"],
        "ask_again_at": format_ms(max(waiting)) if waiting else None,
        "missing": sorted({f"{each.criterion.name}: {each.missing}" for each in counted if each.missing}),
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
        "time_scale": {"factor": request.scale.factor, "note": request.scale.note()},
        "ordered": {
            "version": request.ordered.version,
            "traffic_pct": format(request.ordered.traffic_pct, "f"),
        },
        "release": request.release,
        "stage_table_sha256": request.stage_table_sha256,
        "request_sha256": request.sha256,
    }


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
        "over_capacity": sum(host.over_capacity(starts) for host in hosts),
    }


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
