"""Canonical JSON: one text for one value, so that it can be hashed, compared and replayed."""

import hashlib
import json


def canonical(value: object) -> str:
    """Keys sorted, separators `,` and `:`, UTF-8 unescaped. Raises ValueError for NaN and infinity."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256(value: object) -> str:
    """SHA-256 of the canonical JSON, in hex. Raises ValueError also for a lone surrogate in a text."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()
