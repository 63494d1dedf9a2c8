"""A load that costs little: HTTP requests of one shape over kept connections, each sent when the one
before it is answered. A process of its own, so that it shares no loop with what it measures.

    python http_load.py SOCKET CONCURRENCY REQUESTS PREFIX [SWARM]

Prints one JSON object: requests per second, latencies in ms, and answers that were not `done`.
"""

import asyncio
import json
import sys
import time
from typing import cast


class _Caller(asyncio.Protocol):
    """One connection. `send` has one request under way."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._incoming = b""
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._incoming += data
        head, separator, body = self._incoming.partition(b"\r\n\r\n")
        if not separator:
            return
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
        if len(body) >= length and self._answer is not None:
            self._incoming = b""
            self._answer.set_result(body)

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or EOFError("closed"))

    async def send(self, request: bytes) -> bytes:
        """The body of the answer."""
        assert self._transport is not None  # noqa: S101 - for the type checker
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._answer


def post(task_id: str, swarm: str = "") -> bytes:
    """A request for one agent."""
    extra = f',"swarm_id":"{swarm}"' if swarm else ""
    body = f'{{"task_id":"{task_id}","agents":1{extra}}}'
    return f"POST /v1/coordinate HTTP/1.1\r\nHost: r\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


async def connect(path: str) -> _Caller:
    """A kept connection to the router's Unix socket."""
    _, caller = await asyncio.get_running_loop().create_unix_connection(_Caller, path)
    return caller


async def main(path: str, concurrency: int, requests: int, prefix: str, swarm: str) -> dict[str, object]:
    """Send all and return the figures."""
    numbers = iter(range(requests))
    latencies_ms: list[float] = []
    not_done: list[str] = []

    async def call() -> None:
        caller = await connect(path)
        for number in numbers:
            request = post(f"{prefix}-{number}", swarm)
            began_s = time.perf_counter()
            answer = await caller.send(request)
            latencies_ms.append((time.perf_counter() - began_s) * 1000)
            if b'"outcome": "done"' not in answer:
                not_done.append(answer[:300].decode())

    began_s = time.perf_counter()
    await asyncio.gather(*(call() for _ in range(concurrency)))
    seconds = time.perf_counter() - began_s
    return {
        "per_s": requests / seconds,
        "latencies_ms": latencies_ms,
        "not_done": len(not_done),
        "example": not_done[:1],
        "cpu_s": time.process_time(),
    }


if __name__ == "__main__":
    socket_path, at_once, count, id_prefix, *warm = sys.argv[1:]
    print(json.dumps(asyncio.run(main(socket_path, int(at_once), int(count), id_prefix, "".join(warm)))))
