"""Criteria on what people recorded in the ledger: critical incidents and attestations."""

from cfn.judge.criterion import Criterion
from cfn.judge.figures import Figure
from cfn.judge.request import Facts
from cfn.judge.result import Result, hold
from cfn.judge.verdict import Verdict
from cfn.judge.window import Window


def evaluate_recorded(criterion: Criterion, layer: str, window: Window, facts: Facts | None) -> Result:
    """Judge one criterion. Without the ledger's facts it is held: nobody was asked, and nobody is blind."""
    if facts is None:
        reason = "the ledger's facts are not in the request"
        return hold(criterion, layer, window, reason, missing="the facts of the ledger")
    if criterion.metric == "attested":
        return _attested(criterion, layer, window, facts)
    value = float(facts.critical_incidents)
    names = f": {', '.join(facts.incidents)}" if facts.incidents else ""
    reason = f"{value:g} critical incidents count against V2{names}; the limit is {criterion.limit}"
    if not criterion.holds(value):
        return _result(criterion, layer, window, Verdict.FAIL, reason, value)
    if layer == "criterion" and not window.full:
        return hold(criterion, layer, window, f"{reason}, but the window is not full")
    return _result(criterion, layer, window, Verdict.PASS, reason, value)


def _attested(criterion: Criterion, layer: str, window: Window, facts: Facts) -> Result:
    found = facts.attested.get(criterion.item)
    if found is None:
        return hold(
            criterion, layer, window, f"nobody has attested {criterion.item} yet",
            missing=f"an attestation: attest.yml -e attest={criterion.item}",
        )  # fmt: skip
    value = float(found)
    if not criterion.holds(value):
        reason = f"{criterion.item} is attested as not holding"
        return _result(criterion, layer, window, Verdict.FAIL, reason, value)
    return _result(criterion, layer, window, Verdict.PASS, f"{criterion.item} is attested", value)


def _result(
    criterion: Criterion, layer: str, window: Window, verdict: Verdict, reason: str, value: float
) -> Result:
    return Result(
        criterion=criterion,
        layer=layer,
        window=window,
        verdict=verdict,
        reason=reason,
        observed=Figure(value, 1),
        where="the ledger",
    )
