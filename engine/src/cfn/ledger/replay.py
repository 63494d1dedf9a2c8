"""Judge again what a verdict was made from, offline, and hold the answer against the record."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cfn.errors import CfnError, UsageError
from cfn.judge.judge import JUDGE_VERSION, judge
from cfn.judge.request import read_request
from cfn.ledger.canonical import canonical


@dataclass(frozen=True, slots=True)
class Replayed:
    """Sequence numbers: the `same` byte for byte, `different`, and of `other_judges`, which this one
    cannot replay."""

    same: tuple[int, ...]
    different: tuple[int, ...]
    other_judges: tuple[int, ...]

    @property
    def text(self) -> str:
        """The answer for a person."""
        parts = [f"{len(self.same)} verdicts are the same, byte for byte"]
        if self.different:
            numbers = ", ".join(map(str, self.different))
            parts.append(f"DIFFERENT when judged again: record {numbers}")
        if self.other_judges:
            numbers = ", ".join(map(str, self.other_judges))
            parts.append(
                f"not replayed, made by another version of the judge than {JUDGE_VERSION}: record {numbers} "
                "(replay with the release that the record names)"
            )
        return "; ".join(parts)


def replay(records: Iterable[Mapping[str, Any]], sequence: int | None) -> Replayed:
    """Replay one record, or every verdict. Raises UsageError if there is no such verdict."""
    same, different, others = [], [], []
    for record in records:
        if record["kind"] != "verdict" or sequence not in (None, record["sequence"]):
            continue
        number, data = record["sequence"], record["data"]
        verdict = data.get("verdict")
        if not isinstance(verdict, dict) or "request" not in data:
            different.append(number)
        elif verdict.get("judge_version") != JUDGE_VERSION:
            others.append(number)
        elif _judged(data["request"]) == canonical(verdict):
            same.append(number)
        else:
            different.append(number)
    if not (same or different or others):
        wanted = "the ledger holds no verdict" if sequence is None else f"record {sequence} is no verdict"
        raise UsageError(f"{wanted}: there is nothing to replay")
    return Replayed(tuple(same), tuple(different), tuple(others))


def _judged(request: object) -> str:
    try:
        return canonical(judge(read_request(request)))
    except CfnError:
        return ""  # no verdict can come of such a request
