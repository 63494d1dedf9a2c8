"""Which release this code belongs to, and the fault that a lab release may carry.

A release folder holds `release.json` beside `bin/` and `lib/`; a checkout has none, and is
release "source".
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from cfn.errors import ConfigError
from cfn.paths import Paths

SOURCE = "source"

_FAULT = re.compile(r"(?P<kind>slow|lose):(?P<amount>[0-9]{1,6})")


@dataclass(frozen=True, slots=True, kw_only=True)
class LabFault:
    """A deliberate defect of V2. `slow_ms` delays each agent's claim; `lose_pct` is the share of
    task deliveries that vanish."""

    slow_ms: int = 0
    lose_pct: int = 0


def folder() -> Path:
    """The release folder with every symbolic link resolved: a daemon must go on using the release
    it started from after `current` has moved."""
    return Path(__file__).resolve().parents[2]


def version() -> str:
    """The version written in release.json, or "source" in a checkout."""
    try:
        return str(json.loads((folder() / "release.json").read_text())["version"])
    except FileNotFoundError:
        return SOURCE


def parse_fault(text: str) -> LabFault:
    """`slow:MS` or `lose:PERCENT`. Raises ConfigError."""
    match = _FAULT.fullmatch(text)
    if match is None:
        raise ConfigError(f"lab fault {text!r}: slow:MILLISECONDS or lose:PERCENT are allowed")
    amount = int(match["amount"])
    if match["kind"] == "slow":
        return LabFault(slow_ms=amount)
    if amount > 100:
        raise ConfigError(f"lab fault {text!r}: 0 to 100 percent can be lost")
    return LabFault(lose_pct=amount)


def lab_fault(paths: Paths, release: Path | None = None) -> LabFault:
    """The fault that this release carries; none in an ordinary one.

    Raises ConfigError when a faulty release is started outside the lab: it must not serve there.
    """
    switch = (release or folder()) / "lab-fault"
    if not switch.exists():
        return LabFault()
    if not paths.lab_marker.exists():
        raise ConfigError(
            f"this release carries a lab fault ({switch.read_text().strip()}) and {paths.lab_marker} "
            "does not exist: it starts on lab hosts only; install an ordinary release"
        )
    return parse_fault(switch.read_text().strip())
