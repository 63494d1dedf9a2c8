"""What the commands that append have in common: where the ledger is, and what an entry may be."""

import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfn import paths
from cfn.config import parse
from cfn.errors import CfnError, UsageError
from cfn.ledger.chain import Entry
from cfn.ledger.store import LedgerStore
from cfn.metrics.times import format_ms
from cfn.rollout.records import check_data

NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")


def store_in(folder: Path) -> LedgerStore:
    """The ledger in a folder, which says on stderr what a person must know."""
    return LedgerStore(folder, lambda text: print(f"cfn ledger: {text}", file=sys.stderr))


def environment_of(named: str | None) -> str:
    """The environment that is named, or that the host's configuration names. Raises UsageError."""
    if named:
        return named
    source = paths.installed().config
    try:
        return parse(source.read_text(), source=str(source)).config.environment
    except (OSError, UnicodeDecodeError, CfnError) as error:
        raise UsageError(f"no --environment given, and {source} does not tell it: {error}") from None


def checked_entry(
    *,
    kind: str,
    stage: str,
    actor: str,
    environment: str,
    data: Mapping[str, Any],
    now_ms: int | None = None,
) -> Entry:
    """An entry of `now_ms`, or of the clock's time. Raises UsageError for names and data that are
    refused."""
    for name, value in (("stage", stage), ("environment", environment)):
        if not NAME.fullmatch(value):
            raise UsageError(f"{name} {value!r} is refused: a short name in lower case is allowed")
    if not actor.strip() or not actor.isprintable() or len(actor) > 256:
        raise UsageError("actor must be one line of 1 to 256 characters")
    check_data(kind, data)
    now = format_ms(time.time_ns() // 1_000_000 if now_ms is None else now_ms)
    return Entry(time=now, environment=environment, kind=kind, stage=stage, actor=actor, data=data)
