"""How one criterion stands."""

from dataclasses import dataclass, field
from typing import Any

from cfn.judge.criterion import Criterion
from cfn.judge.figures import Figure
from cfn.judge.verdict import Verdict
from cfn.judge.window import Window
from cfn.metrics.times import format_ms

FLEET = "the fleet"
NOTHING = Figure(None, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The verdict on one criterion, and a reason that can be read without the code.

    `ask_again_ms` is set when waiting is what is missing; `proof` holds the counts and the strength of
    the evidence where it was weighed.
    """

    criterion: Criterion
    layer: str
    window: Window
    verdict: Verdict
    reason: str
    observed: Figure = NOTHING
    where: str = FLEET
    ask_again_ms: int | None = None
    missing: str = ""
    proof: dict[str, Any] = field(default_factory=dict)


def hold(
    criterion: Criterion,
    layer: str,
    window: Window,
    reason: str,
    *,
    observed: Figure = NOTHING,
    where: str = FLEET,
    missing: str = "",
    proof: dict[str, Any] | None = None,
) -> Result:
    """INCONCLUSIVE, with the time at which asking again makes sense."""
    full_at = window.full_at_ms if layer == "criterion" and not window.full else None
    again = full_at or window.end_ms + window.bucket_ms
    return Result(
        criterion=criterion,
        layer=layer,
        window=window,
        verdict=Verdict.INCONCLUSIVE,
        reason=reason,
        observed=observed,
        where=where,
        ask_again_ms=again,
        missing=missing or f"time until {format_ms(again)}",
        proof=proof or {},
    )
