"""The daemons' log: one JSON line on standard output for each notable event, ids as fields."""

import json
import sys
import time
from contextlib import suppress


def log(event: str, **fields: object) -> None:
    """Write one line: the time (UTC, milliseconds), the event's name and its fields.

    A value that JSON lacks is written as text. Never raises: a full disk or a closed pipe below
    the log must not stop a coordination.
    """
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    line = json.dumps({"time": stamp, "event": event, **fields}, default=str, ensure_ascii=False)
    with suppress(OSError, ValueError):
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
