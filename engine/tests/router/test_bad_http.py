"""Callers that do not speak HTTP as they should: each hears an error or is dropped, and others are served."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator

import pytest

from cfn.paths import Paths
from cfn.router.connections import Connections

from .conftest import Caller, FakeConductor, StartRouter

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def caller(start_router: StartRouter, conductor: FakeConductor) -> Caller:
    assert conductor.server is not None
    return await start_router()


@contextlib.asynccontextmanager
async def connected(tree: Paths) -> AsyncIterator[Stream]:
    reader, writer = await asyncio.open_unix_connection(tree.router_socket, limit=1 << 24)
    try:
        yield reader, writer
    finally:
        writer.close()


def post(task_id: str, *extra: str) -> bytes:
    body = json.dumps({"task_id": task_id, "agents": 1})
    lines = ["POST /v1/coordinate HTTP/1.1", "Host: r", f"Content-Length: {len(body)}", *extra, "", body]
    return "\r\n".join(lines).encode()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of the next answer."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    return int(head.split(b" ")[1]), await reader.readexactly(length)


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"hello\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nA: " + b"x" * 20_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000 + b"\r\n",
        b"POST /v1/coordinate HTTP/1.1\r\nHost: r\r\nContent-Length: -1\r\n\r\n",
        b"POST /v1/coordinate HTTP/1.1\r\nHost: r\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        b"POST /v1/coordinate HTTP/1.1\r\nHost: r\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n",
    ],
)
async def test_what_is_no_http_is_refused(caller: Caller, tree: Paths, sent: bytes) -> None:
    async with asyncio.timeout(5), connected(tree) as (reader, writer):
        writer.write(sent)
        writer.write_eof()
        head = await reader.read(1 << 16)
    assert head == b"" or head.startswith((b"HTTP/1.0 400", b"HTTP/1.1 400")), head[:200]
    assert (await caller.post(task_id="t", agents=1))[1]["outcome"] == "done"
    assert len(caller.events()) == 1


async def test_pipelined_requests_are_answered_in_their_order(caller: Caller, tree: Paths) -> None:
    async with asyncio.timeout(5), connected(tree) as (reader, writer):
        writer.write(post("t-1") + post("t-2") + post("t-1") + post("t-3", "Connection: close"))
        found = [await answer(reader) for _ in range(4)]
        assert await reader.read() == b""
    assert [(status, json.loads(body)["task_id"]) for status, body in found] == [
        (200, "t-1"),
        (200, "t-2"),
        (200, "t-1"),
        (200, "t-3"),
    ]
    assert len(caller.events()) == 3


async def test_one_byte_at_a_time_is_given_up(
    caller: Caller, tree: Paths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfn.router.http.BODY_S", 0.3)
    async with asyncio.timeout(5), connected(tree) as (reader, writer):
        head, _, body = post("slow").partition(b"\r\n\r\n")
        writer.write(head + b"\r\n\r\n")
        for number in range(3):
            writer.write(body[number : number + 1])
            await asyncio.sleep(0.05)
            assert (await caller.post(task_id=f"t-{number}", agents=1))[0] == 200
        assert (await reader.readline()).startswith(b"HTTP/1.1 408")
    assert "slow" not in {event["task_id"] for event in caller.events()}


async def test_idle_and_slow_connections_are_closed_and_busy_ones_are_not(
    caller: Caller, tree: Paths, conductor: FakeConductor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfn.router.connections.IDLE_S", 0.2)
    monkeypatch.setattr("cfn.router.connections._EVERY_S", 0.05)
    conductor.end_s = 1.8
    async with asyncio.timeout(5), connected(tree) as idle, connected(tree) as slow:
        slow[1].write(b"POST /v1/coordinate HT")
        asked = asyncio.create_task(caller.post(task_id="t", agents=1))
        assert await idle[0].read() == b""
        assert await slow[0].read() == b""
        assert not asked.done()
        assert (await asked)[1]["outcome"] == "done"


async def test_two_thousand_idle_connections_hinder_nobody(caller: Caller, tree: Paths) -> None:
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(2_000):
            await stack.enter_async_context(connected(tree))
        assert (await caller.post(task_id="t", agents=1))[1]["outcome"] == "done"


async def test_of_too_many_connections_the_idlest_go_first(caller: Caller, tree: Paths) -> None:
    server = caller.router.server
    assert server is not None
    connections = Connections(limit=3)
    async with asyncio.timeout(5), contextlib.AsyncExitStack() as stack:
        streams = []
        for now_s in range(5):
            streams.append(await stack.enter_async_context(connected(tree)))
            await caller.get("/healthz")  # by now the router has taken it
            connections._limit = 99
            connections.sweep(server, float(now_s))
        connections._limit = 3
        connections.sweep(server, 5.0)
        assert [await stream[0].read() for stream in streams[:2]] == [b"", b""]
        for reader, writer in streams[3:]:
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: r\r\n\r\n")
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
