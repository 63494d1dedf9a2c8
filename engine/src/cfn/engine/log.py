"""The daemons' log: one JSON line on standard output for each notable event, ids as fields."""

import sys
import time

_ESCAPES = {number: f"\\u{number:04x}" for number in (*range(32), 34, 92)}


def log(event: str, **fields: object) -> None:
    """Write one line: the time (UTC, milliseconds), the event's name and its fields.

    What is no number, text or truth value is written as text. Never raises: a full disk or a closed
    pipe below the log must not stop a coordination.
    """
    now = time.time()
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
    values: dict[str, object] = {"time": stamp, "event": event, **fields}
    line = ", ".join(f'"{name}": {_json(value)}' for name, value in values.items())
    try:
        sys.stdout.write("{" + line + "}\n")
        sys.stdout.flush()
    except (OSError, ValueError):
        return


def _json(value: object) -> str:
    """A scalar as JSON. The `json` module is not imported: see the package."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float) and value == value and abs(value) != float("inf"):
        return repr(value)
    return '"' + str(value).translate(_ESCAPES) + '"'
