# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Times of playbooks in seconds."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def epoch_s(moment: datetime) -> float:
    """Seconds since 1970 at what `now(utc=true)` says. It has no zone, so that its own `timestamp()` would
    take it for the local time of whoever runs the playbook."""
    return moment.replace(tzinfo=UTC).timestamp()


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {"cfn_epoch_s": epoch_s}
