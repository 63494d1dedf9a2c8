"""NATS: N client processes wait for a task, one publisher sends it to all and counts the answers.

    python -m engine.bench.peers.nats cold|warm N

Core NATS (nothing is stored), loopback, the client library as it is. Warm: every client has
subscribed before, the publisher publishes once with an address for the answers. Cold: forked from a
process that has imported all, and connected, in the round; core NATS forgets what nobody listens
for, so a client asks for its task (request and reply), then answers.
"""

import asyncio
import gc
import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from engine.bench.peers import common

try:
    import nats
except ImportError:
    common.skip(f"the client library nats-py is not installed ({common.INSTALL})")


class Publisher:
    """Sends tasks and counts answers; its loop runs only while it is asked to do something."""

    def __init__(self, url: str, count: int) -> None:
        self._loop = asyncio.new_event_loop()
        self._count = count
        self._answered = 0
        self._all = asyncio.Event()
        self._connection: Any = None
        self._loop.run_until_complete(self._connect(url))

    async def _connect(self, url: str) -> None:
        self._connection = await nats.connect(url, pending_size=1 << 24)
        await self._connection.subscribe("answers", cb=self._answer)
        await self._connection.subscribe("wanted", cb=self._give)
        await self._connection.flush()

    async def _answer(self, _message: object) -> None:
        self._answered += 1
        if self._answered == self._count:
            self._all.set()

    async def _give(self, message: Any) -> None:
        await message.respond(common.TASK)

    def publish(self, task: bytes) -> None:
        """Send the task to every client that listens."""
        self._loop.run_until_complete(self._connection.publish("task", task, reply="answers"))

    def collect(self) -> None:
        """Block until every client has answered. Raises TimeoutError."""
        self._loop.run_until_complete(asyncio.wait_for(self._all.wait(), common.LIMIT_S))
        self._all.clear()
        self._answered = 0

    def close(self) -> None:
        """Send what is left, and disconnect."""
        self._loop.run_until_complete(self._connection.drain())


async def ask_for_task(url: str, number: int) -> None:
    """A cold client's life."""
    connection = await nats.connect(url)
    task = await connection.request("wanted", b"%d" % number, timeout=60)
    if task.data == common.TASK:
        await connection.publish("answers", b"%d" % number)
        await connection.flush()


async def wait_for_tasks(url: str, number: int) -> None:
    """A warm client's life."""
    connection = await nats.connect(url)
    tasks = await connection.subscribe("task")
    await connection.flush()
    await connection.publish("answers", b"connected")
    while (task := await tasks.next_msg(timeout=None)).data == common.TASK:
        await task.respond(b"%d" % number)


def main() -> None:
    """Server, clients, rounds."""
    warm, count = common.arguments()
    server = common.need("nats-server")
    with tempfile.TemporaryDirectory(prefix="bench-nats-", dir="/dev/shm") as folder:
        ports = Path(folder)
        process = subprocess.Popen(
            [server, "--addr", "127.0.0.1", "--port", "-1", "--ports_file_dir", folder],
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            common.wait_for(lambda: bool(address(ports)))
            rounds(address(ports), warm=warm, count=count)
        finally:
            process.terminate()
            process.wait()


def address(folder: Path) -> str:
    """Where the server listens (the first free port was taken), from the file that it writes there;
    empty until it is whole."""
    try:
        return str(json.loads(next(folder.glob("*.ports")).read_text())["nats"][0])
    except (StopIteration, ValueError):
        return ""


def rounds(url: str, *, warm: bool, count: int) -> None:
    """Serve rounds until the end of the input."""
    publisher = Publisher(url, count)

    def client(number: int) -> None:
        asyncio.run((wait_for_tasks if warm else ask_for_task)(url, number))

    def one_round() -> None:
        if warm:
            publisher.publish(common.TASK)
        else:
            children.extend(common.fork(client, number) for number in range(count))
        publisher.collect()

    gc.disable()
    gc.freeze()
    children: list[int] = []
    if warm:
        children.extend(common.fork(client, number) for number in range(count))
        publisher.collect()
    common.serve(one_round, lambda: None if warm else common.reap(children))
    if warm:
        publisher.publish(b"end")
        common.reap(children)
    publisher.close()


if __name__ == "__main__":
    main()
