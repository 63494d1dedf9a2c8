"""What a caller may ask for: the body of `POST /v1/coordinate`, checked once, here."""

import base64
import binascii
import json
import re
from dataclasses import dataclass
from typing import Any

from cfn.errors import UsageError
from cfn.ids import check_id
from cfn.router.split import Version

MAX_AGENTS = 2_000
MAX_DEADLINE_MS = 3_600_000

_FIELDS = ("task_id", "agents", "payload", "payload_b64", "deadline_ms", "swarm_id")
_STICKY_KEY = re.compile(r"[!-~]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One coordination as asked for. `deadline_ms` of None means the configured one; `swarm_id` names a
    kept swarm of V2's; `sticky_key` is split on instead of the task's id; `override` is a tester's
    choice of version."""

    task_id: str
    agents: int
    payload: bytes = b""
    deadline_ms: int | None = None
    swarm_id: str = ""
    sticky_key: str | None = None
    override: Version | None = None


def parse_request(body: bytes, *, max_payload_bytes: int) -> Request:
    """Read a request's JSON. Raises UsageError naming the field, what was found and what is allowed."""
    try:
        value = json.loads(body.decode())  # UTF-8 alone, and no time spent on guessing
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise UsageError(f"the body is {_found(value)}; allowed: a JSON object")
    unknown = sorted(value.keys() - set(_FIELDS))
    if unknown:
        raise UsageError(f"unknown field {_found(unknown[0])}; allowed: {', '.join(_FIELDS)}")
    task_id = value.get("task_id")
    if not isinstance(task_id, str):
        raise UsageError(f"task_id is {_found(task_id)}; allowed: text")
    return Request(
        task_id=check_id("task", task_id),
        agents=_integer(value, "agents", MAX_AGENTS),
        payload=_payload(value, max_payload_bytes),
        deadline_ms=_integer(value, "deadline_ms", MAX_DEADLINE_MS) if "deadline_ms" in value else None,
        swarm_id=_swarm(value),
    )


def check_sticky_key(text: str) -> str:
    """The value of `X-Cfn-Sticky-Key`. Raises UsageError."""
    if not _STICKY_KEY.fullmatch(text):
        raise UsageError(f"X-Cfn-Sticky-Key is {_found(text)}; allowed: 1 to 128 visible ASCII characters")
    return text


def check_override(text: str) -> Version:
    """The value of `X-Cfn-Version`. Raises UsageError."""
    if text not in ("v1", "v2"):
        raise UsageError(f"X-Cfn-Version is {_found(text)}; allowed: v1 or v2")
    return "v2" if text == "v2" else "v1"


def _integer(value: dict[str, Any], field: str, highest: int) -> int:
    number = value.get(field)
    # In Python True is an int.
    if type(number) is not int or not 1 <= number <= highest:
        raise UsageError(f"{field} is {_found(number)}; allowed: a whole number from 1 to {highest}")
    return number


def _swarm(value: dict[str, Any]) -> str:
    found = value.get("swarm_id", "")
    if not isinstance(found, str):
        raise UsageError(f"swarm_id is {_found(found)}; allowed: text")
    return check_id("swarm", found) if "swarm_id" in value else ""


def _payload(value: dict[str, Any], limit: int) -> bytes:
    text, encoded = value.get("payload", ""), value.get("payload_b64", "")
    if not isinstance(text, str) or not isinstance(encoded, str):
        raise UsageError("payload and payload_b64 are text")
    if text and encoded:
        raise UsageError("payload and payload_b64 are both set; allowed: one of them")
    try:
        payload = base64.b64decode(encoded, validate=True) if encoded else text.encode()
    except (binascii.Error, ValueError) as error:
        raise UsageError(f"the payload cannot be read: {error}") from error
    if len(payload) > limit:
        raise UsageError(f"the payload has {len(payload)} bytes; allowed: at most {limit} (CFN_MAX_PAYLOAD)")
    return payload


def _found(value: object) -> str:
    """The value as a message shows it: short, whatever was sent."""
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:80]}... ({len(text)} characters)"
