"""Times as records write them."""

from datetime import UTC, datetime
from functools import lru_cache


@lru_cache(maxsize=64)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def utc_text(seconds: float) -> str:
    """Seconds since 1970 as RFC 3339 in UTC with milliseconds."""
    whole, part = divmod(int(seconds * 1000), 1000)
    return f"{_second(whole)}.{part:03d}Z"
