"""Records of a ledger as the rollout makes them, and the plan of a small rollout."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from cfn.metrics.times import format_ms, parse_ms

TABLE = yaml.safe_load(
    (Path(__file__).resolve().parents[3] / "inventories/common/group_vars/all/stages.yml").read_text()
)["cfn_stages"]

T0 = parse_ms("2026-01-05T00:00:00.000Z")
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
RELEASE, TABLE_SHA = "1.0.0-0123456789ab", "ab" * 32

Record = dict[str, Any]


class Story:
    """Records in order; each call appends one, at an hour since T0."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def tell(self, hour: float, kind: str, stage: str, data: Mapping[str, Any]) -> Record:
        """Append a record of any kind."""
        record = {
            "time": format_ms(T0 + round(hour * HOUR_MS)),
            "environment": "production",
            "sequence": len(self.records) + 1,
            "kind": kind,
            "stage": stage,
            "actor": "a test",
            "data": dict(data),
        }
        self.records.append(record)
        return record

    def verdict(self, hour: float, stage: str, step: str, word: str, **changes: Any) -> Record:
        """A look whose criteria had the week before it as their window."""
        return self.tell(
            hour, "verdict", stage, {"request": {}, "verdict": verdict(hour, step, word, **changes)}
        )

    def flip(self, hour: float, stage: str, traffic_pct: float) -> Record:
        """A flip of one host."""
        hosts = {"one": {"changed": True, "after": {"traffic_pct": traffic_pct}}}
        return self.tell(hour, "flipped", stage, {"hosts": hosts})

    def back(self, hour: float, stage: str) -> Record:
        """A rollback."""
        return self.tell(hour, "rolled_back", stage, {"text": "V1 serves"})

    def attest(self, hour: float, stage: str, item: str, holds: bool = True) -> Record:
        """An attestation."""
        return self.tell(
            hour, "attested", stage, {"item": item, "holds": holds, "by": "someone", "note": "why"}
        )

    def incident(self, hour: float, stage: str, **changes: Any) -> Record:
        """A critical incident of V2."""
        data = {"incident": "i-1", "severity": "P0", "attributed_to": "v2", "state": "open", "by": "someone",
                "started": format_ms(T0 + round(hour * HOUR_MS)), "text": "it burns"}  # fmt: skip
        return self.tell(hour, "incident", stage, data | changes)


def verdict(hour: float, step: str, word: str, **changes: Any) -> dict[str, Any]:
    """What the judge says."""
    pct = "100" if step == "staging" else step
    window = {
        "from": format_ms(T0 + round((hour - 168) * HOUR_MS)),
        "to": format_ms(T0 + round(hour * HOUR_MS)),
        "full": True,
    }
    result = {"name": "delivery_rate", "metric": "delivery_rate_pct", "layer": "criterion", "dry_run": False,
              "verdict": word, "reason": "because", "window": window}  # fmt: skip
    return {
        "verdict": word,
        "step": step,
        "release": RELEASE,
        "stage_table_sha256": TABLE_SHA,
        "since": window["from"],
        "ordered": {"version": "v2", "traffic_pct": pct},
        "time_scale": {"factor": 1.0, "note": ""},
        "reasons": ["because"],
        "results": [result],
    } | changes


@pytest.fixture
def story() -> Story:
    """An empty ledger."""
    return Story()


Tell = Callable[..., Record]
