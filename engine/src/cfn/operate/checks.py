"""What was found, held against what is allowed: pure, and the same for trials, soak and stress."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cfn.errors import UsageError

_HOLDS = {
    "lt": lambda found, allowed: found < allowed,
    "le": lambda found, allowed: found <= allowed,
    "ge": lambda found, allowed: found >= allowed,
    "gt": lambda found, allowed: found > allowed,
}
_WORDS = {"lt": "below", "le": "at most", "ge": "at least", "gt": "above"}

Limits = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What a figure may be, as the stage table says it."""

    compare: str
    threshold: float
    unit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One figure. `found` is None where it could not be measured, which never holds."""

    name: str
    found: float | None
    limit: Limit
    advice: str

    @property
    def holds(self) -> bool:
        """Whether the figure is what it may be."""
        return self.found is not None and _HOLDS[self.limit.compare](self.found, self.limit.threshold)

    @property
    def text(self) -> str:
        """The figure in a line; what to do next only if it does not hold."""
        unit = f" {self.limit.unit}" if self.limit.unit else ""
        found = "not measured" if self.found is None else f"{_number(self.found)}{unit}"
        allowed = f"{_WORDS[self.limit.compare]} {_number(self.limit.threshold)}{unit}"
        line = f"{self.name}: {found}, allowed {allowed}"
        return line if self.holds else f"{line}. {self.advice}"

    def as_json(self) -> dict[str, Any]:
        """As an object, with `holds` and `text`."""
        return {
            "name": self.name,
            "found": self.found,
            "compare": self.limit.compare,
            "allowed": self.limit.threshold,
            "unit": self.limit.unit,
            "holds": self.holds,
            "text": self.text,
        }


def _number(value: float) -> str:
    """Without an exponent, and without decimals that say nothing."""
    return f"{value:.12g}"


def limits_of(value: object) -> dict[str, Limit]:
    """Limits by metric, of an object `{metric: {compare, threshold, unit}}`. Raises UsageError."""
    if not isinstance(value, Mapping):
        raise UsageError("limits: an object {metric: {compare, threshold, unit}} is needed")
    found = {}
    for metric, fields in value.items():
        try:
            limit = Limit(
                compare=str(fields["compare"]),
                threshold=float(fields["threshold"]),
                unit=str(fields.get("unit", "")),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UsageError(f"limit of {metric}: compare, threshold and unit are needed") from None
        if limit.compare not in _HOLDS:
            raise UsageError(f"limit of {metric}: compare {limit.compare!r}; {', '.join(_HOLDS)} are allowed")
        found[str(metric)] = limit
    return found


def hold(
    measured: Mapping[str, float | None], limits: Mapping[str, Limit], advice: Mapping[str, str]
) -> list[Check]:
    """A check for every figure that was measured. Raises UsageError where no limit is given for one."""
    missing = [name for name in measured if name not in limits]
    if missing:
        raise UsageError(f"no limit is given for {', '.join(missing)}")
    return [
        Check(name=name, found=found, limit=limits[name], advice=advice.get(name, ""))
        for name, found in measured.items()
    ]


def verdict(checks: Sequence[Check]) -> dict[str, Any]:
    """`ok`, the checks, and a line for each."""
    return {
        "ok": all(check.holds for check in checks),
        "checks": [check.as_json() for check in checks],
        "summary": [check.text for check in checks],
    }
