"""Verdicts, their order and their exit codes."""

from collections.abc import Iterable
from enum import StrEnum


class Verdict(StrEnum):
    """The answer of a gate, worst first. Only PASS advances."""

    FAIL = "FAIL"  # a criterion is broken on enough evidence
    ERROR = "ERROR"  # the query, the split or the judge itself failed
    NO_DATA = "NO_DATA"  # the collector's samples are missing or cover too little
    INCONCLUSIVE = "INCONCLUSIVE"  # not enough time, not enough evidence, or idle
    PASS = "PASS"  # noqa: S105 (a verdict, not a password)


# Apart from the codes of cfn.errors, so that a playbook tells a verdict from a command that failed.
EXIT_CODES = {
    Verdict.PASS: 0,
    Verdict.FAIL: 10,
    Verdict.INCONCLUSIVE: 11,
    Verdict.NO_DATA: 12,
    Verdict.ERROR: 13,
}

_WORST_FIRST = tuple(Verdict)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of some verdicts. ERROR of none at all: nothing judged is never PASS."""
    return min(verdicts, key=_WORST_FIRST.index, default=Verdict.ERROR)
