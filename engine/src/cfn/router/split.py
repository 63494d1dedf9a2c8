"""The split: which version a task belongs to.

A task's bucket is fixed by its id and the environment's key, the same on every host, so the split
is stable, and monotone: what is on V2 at 10 % is on V2 at 50 %.
"""

import hashlib
import hmac
from decimal import Decimal
from typing import Literal

BUCKETS = 10_000

Version = Literal["v1", "v2"]


def bucket(split_key: str, task_id: str) -> int:
    """The bucket of a task, 0 to 9999: HMAC-SHA256 of the id under the key, its first eight bytes as
    a big-endian number, modulo 10,000."""
    digest = hmac.digest(split_key.encode(), task_id.encode(), hashlib.sha256)
    return int.from_bytes(digest[:8], "big") % BUCKETS


def ordered_version(configured: Version, traffic_pct: Decimal, task_bucket: int) -> Version:
    """The version that serves a bucket: V2 below the percentage, and only while V2 is configured.
    Exact at 0 (no bucket) and at 100 (every bucket)."""
    if configured == "v2" and task_bucket < traffic_pct * 100:
        return "v2"
    return "v1"
