"""The chain, without files: how a record is made, and how a changed one is found.

The format is docs/reference/records.md. A chain shows a record that was changed, put in or taken out
of the middle. What was cut off its end, or a chain that was rewritten as a whole, shows only against
a head that was kept elsewhere.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cfn.ledger.canonical import canonical, sha256
from cfn.metrics import checks
from cfn.metrics.times import parse_ms

RECORD_VERSION = 1
KINDS = (
    "started", "deployed", "flipped", "smoked", "verdict", "holding", "rolled_back", "failed",
    "locked", "unlocked", "override", "imported", "attested", "incident", "learned",
    "escalated", "watch", "outcome", "rehearsed",
    "trial", "failover", "capacity", "cleaned", "soaked", "stressed",
    "archived", "decommissioned", "restored",
)  # fmt: skip
NO_HASH = "0" * 64
_FIELDS = frozenset(
    ("v", "time", "environment", "sequence", "kind", "stage", "actor", "data", "previous", "hash")
)


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain: the last sequence number (0 of an empty one) and its record's hash."""

    sequence: int = 0
    hash: str = NO_HASH


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is to be recorded. `data` is any JSON object."""

    time: str
    environment: str
    kind: str
    stage: str
    actor: str
    data: Mapping[str, Any]


def next_record(head: Head, entry: Entry) -> dict[str, Any]:
    """The record that follows `head`. Raises ValueError if the entry is no valid record."""
    record: dict[str, Any] = {
        "v": RECORD_VERSION,
        "time": entry.time,
        "environment": entry.environment,
        "sequence": head.sequence + 1,
        "kind": entry.kind,
        "stage": entry.stage,
        "actor": entry.actor,
        "data": dict(entry.data),
        "previous": head.hash,
    }
    record["hash"] = sha256(record)
    check_record(record, head)
    return record


def check_record(record: Mapping[str, Any], head: Head) -> Head:
    """The head after `record`, which must follow `head`. Raises ValueError saying what is wrong."""
    if set(record) != _FIELDS:
        raise ValueError(f"its fields are {', '.join(sorted(record))}")
    if isinstance(record["v"], bool) or record["v"] != RECORD_VERSION:
        raise ValueError(f"its version {record['v']!r} is not {RECORD_VERSION}")
    parse_ms(checks.text(record["time"], "time"))
    for name in ("environment", "stage", "actor"):
        checks.text(record[name], name)
    checks.one_of(record["kind"], "kind", KINDS)
    checks.mapping(record["data"], "data")
    if checks.whole(record["sequence"], "sequence", low=1) != head.sequence + 1:
        raise ValueError(f"its sequence is {record['sequence']}: one is missing, doubled or out of place")
    if record["previous"] != head.hash:
        raise ValueError("it does not follow the record before it")
    found = sha256({key: value for key, value in record.items() if key != "hash"})
    if record["hash"] != found:
        raise ValueError("its content is not what its hash was made of")
    return Head(record["sequence"], found)


def read_line(line: bytes, head: Head) -> tuple[dict[str, Any], Head]:
    """The record in a line of the ledger, and the head after it. Raises ValueError.

    The line itself must be canonical: a changed space would not change the hash, and a record that
    is not byte for byte what was written was not written by us.
    """
    record = checks.load_object(line.decode())
    if canonical(record).encode() != line:
        raise ValueError("it is not in canonical form")
    return record, check_record(record, head)


def head_of(line: bytes) -> tuple[dict[str, Any], Head]:
    """The record in a line, and the head that it makes, without the record before it: its own content
    is checked, its place in the chain is not. Raises ValueError."""
    record = checks.load_object(line.decode())
    sequence = checks.whole(record.get("sequence"), "sequence", low=1)
    before = Head(sequence - 1, checks.text(record.get("previous"), "previous"))
    return read_line(line, before)


@dataclass(frozen=True, slots=True)
class Anchor:
    """A head that was kept elsewhere, and where. `sequence` is None if only its hash is known."""

    where: str
    hash: str
    sequence: int | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """What verification found: how many records are sound, the head after them, the first damage (""
    if there is none), and the anchors that the chain does not hold."""

    head: Head
    problem: str = ""
    missing: tuple[Anchor, ...] = ()


def verify(lines: Iterable[bytes], anchors: Sequence[Anchor] = ()) -> Finding:
    """Check a whole ledger, given as lines without their newline.

    Each anchor's hash must be that of some record, of the one with its sequence if that is known.
    After the first damage nothing more is checked: no later record can be trusted.
    """
    head = Head()
    open_anchors = {anchor for anchor in anchors if anchor.hash != NO_HASH}
    for number, line in enumerate(lines, start=1):
        try:
            _, head = read_line(line, head)
        except (ValueError, RecursionError) as error:
            return Finding(head, f"record {number} cannot be trusted: {error}")
        open_anchors = {each for each in open_anchors if not _holds(each, head)}
    if not open_anchors:
        return Finding(head)
    missing = tuple(anchor for anchor in anchors if anchor in open_anchors)
    first = missing[0]
    named = f"{first.hash} (record {first.sequence})" if first.sequence else first.hash
    problem = (
        f"the head {named} that {first.where} keeps is not in the ledger, which ends at record "
        f"{head.sequence}: records were cut off its end, or the whole chain was rewritten"
    )
    return Finding(head, problem, missing)


def _holds(anchor: Anchor, head: Head) -> bool:
    return anchor.hash == head.hash and anchor.sequence in (None, head.sequence)
