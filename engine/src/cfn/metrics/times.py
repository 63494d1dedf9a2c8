"""Times as the records write them: UTC, RFC 3339, milliseconds.

Inside, a time is a whole number of milliseconds since 1970, so that no rounding ever moves a
record from one bucket to the next.
"""

import re
from datetime import UTC, datetime

from cfn.errors import UsageError

_RECORD_TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d{1,6})?(Z|[+-]\d{2}:\d{2})")
_EPOCH_SECONDS = re.compile(r"\d{1,11}(\.\d{1,3})?")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def parse_ms(text: str) -> int:
    """Milliseconds since 1970 of a record's time. Raises ValueError; a time without zone is refused."""
    if not _RECORD_TIME.fullmatch(text):
        raise ValueError(f"{text!r} is not a time such as 2026-01-31T12:00:00.000Z")
    since = datetime.fromisoformat(text) - _EPOCH
    return since.days * 86_400_000 + since.seconds * 1_000 + since.microseconds // 1_000


def format_ms(milliseconds: int) -> str:
    """A time as the records write it. Raises OverflowError outside the years 1 to 9999."""
    moment = datetime.fromtimestamp(milliseconds // 1_000, UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{milliseconds % 1_000:03d}Z"


def read_argument(text: str) -> int:
    """A time as a person or a playbook gives it: RFC 3339, or seconds since 1970. Raises UsageError."""
    if _EPOCH_SECONDS.fullmatch(text):
        return round(float(text) * 1_000)
    try:
        return parse_ms(text)
    except ValueError as error:
        raise UsageError(f"{error}, nor seconds since 1970") from None
