"""What a simulated fleet is judged by: the stage table, or a few criteria of its kind without one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfn.errors import UsageError

WEEK_S = 604_800
# The kinds of criteria, for a look at how the judge behaves; the figures that count are the table's.
EXAMPLE: Mapping[str, Any] = {
    "window_s": WEEK_S,
    "criteria": [
        {"name": "coordination_time", "metric": "coordination_time_ms", "statistic": "p95", "compare": "lt",
         "threshold": 5_000, "unit": "ms", "min_samples": 50, "proved": True},
        {"name": "delivery_rate", "metric": "delivery_rate_pct", "statistic": "mean", "compare": "ge",
         "threshold": 95, "unit": "pct", "min_samples": 50, "proved": True},
        {"name": "error_rate", "metric": "error_rate_pct", "statistic": "mean", "compare": "le",
         "threshold": 1, "unit": "pct", "min_samples": 50, "proved": True},
        {"name": "error_vs_v1", "metric": "error_ratio", "statistic": "sequential", "compare": "le",
         "threshold": 1.25, "unit": "ratio", "min_samples": 1},
        {"name": "coordination_time_vs_v1", "metric": "coordination_time_ratio", "statistic": "p95",
         "compare": "le", "threshold": 1.25, "unit": "ratio", "min_samples": 1},
        {"name": "no_crash", "metric": "restarts", "statistic": "sum", "compare": "le", "threshold": 0,
         "unit": "count", "min_samples": 10, "scope": "worst_host", "settle_s": 0},
        {"name": "memory_no_leak", "metric": "memory_kb", "statistic": "slope", "compare": "le",
         "threshold": 0.5, "unit": "pct_per_window", "min_samples": 30, "scope": "worst_host"},
    ],
}  # fmt: skip


def of_table(path: Path, stage: str, kind: str) -> dict[str, Any]:
    """What a stage is judged by, from the stage table (`cfn_stages`), in JSON or YAML. Everything that
    it asks people for is taken as attested. Raises UsageError."""
    try:
        table = _load(path)["cfn_stages"]
        entry, judged = table[stage], table[stage][kind]
        attested = {each["item"]: True for each in judged["criteria"] if "item" in each}
        return {
            "stage": stage,
            "window_s": judged["window_s"],
            "criteria": judged["criteria"],
            "triggers": entry["triggers"],
            "facts": {"critical_incidents": 0, "incidents": [], "attested": attested},
        }
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"{path}: no {kind} of {stage} in it: {error!r}") from None


def _load(path: Path) -> Any:
    text = path.read_text()
    if path.suffix == ".json":
        return json.loads(text)
    try:
        import yaml  # on a controller it is there; a release has none
    except ImportError:
        raise UsageError(f"{path}: PyYAML is not installed here; give the table as JSON") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
