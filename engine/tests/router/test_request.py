"""What a caller may ask for, as a table."""

import base64
import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfn.errors import UsageError
from cfn.router.request import Request, parse_request

LIMIT = 100


def parse(**value: object) -> Request:
    return parse_request(json.dumps(value).encode(), max_payload_bytes=LIMIT)


@pytest.mark.parametrize("agents", [0, -1, 2_001, "x", "3", 1.0, True, None, [1]])
def test_agents_out_of_range_are_refused_with_what_was_found(agents: object) -> None:
    with pytest.raises(UsageError) as caught:
        parse(task_id="t", agents=agents)
    assert json.dumps(agents) in str(caught.value)
    assert "1 to 2000" in str(caught.value)


@pytest.mark.parametrize("task_id", ["", "a/b", "..", "a..b", "-a", "a\n", "é", "x" * 10_000, 7, None])
def test_bad_task_ids_are_refused(task_id: object) -> None:
    with pytest.raises(UsageError) as caught:
        parse(task_id=task_id, agents=1)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("payload", "x" * (LIMIT + 1), "101 bytes; allowed: at most 100"),
        ("payload", "é" * (LIMIT // 2 + 1), "102 bytes"),
        ("payload", 7, "text"),
        ("payload_b64", "***", "cannot be read"),
        ("payload", "\ud800", "cannot be read"),
        ("deadline_ms", 0, "deadline_ms is 0"),
        ("deadline_ms", None, "deadline_ms is null"),
        ("deadline_ms", 3_600_001, "1 to 3600000"),
        ("agent", 1, 'unknown field "agent"'),
        ("x" * 10_000, 1, "unknown field"),
    ],
)
def test_bad_fields_are_refused(field: str, value: object, says: str) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        parse(**{"task_id": "t", "agents": 1, field: value})
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"task_id":'])
def test_what_is_not_a_json_object_is_refused(body: bytes) -> None:
    with pytest.raises(UsageError, match="the body is"):
        parse_request(body, max_payload_bytes=LIMIT)


def test_two_payloads_are_refused() -> None:
    with pytest.raises(UsageError, match="both set"):
        parse(task_id="t", agents=1, payload="a", payload_b64="YQ==")


@given(payload=st.binary(max_size=LIMIT))
def test_any_bytes_travel_as_base64(payload: bytes) -> None:
    request = parse(task_id="t", agents=3, payload_b64=base64.b64encode(payload).decode(), deadline_ms=5)
    assert request == Request(task_id="t", agents=3, payload=payload, deadline_ms=5)


@given(body=st.binary(max_size=200))
def test_no_body_raises_anything_else(body: bytes) -> None:
    with contextlib.suppress(UsageError):
        parse_request(body, max_payload_bytes=LIMIT)
