"""Redis: N client processes wait for a task, one publisher sends it to all and counts the answers.

    python -m engine.bench.peers.redis cold|warm N

Persistence off, Unix socket, hiredis parser, the client library's own API with one connection for
each client. Each client blocks on a list of its own, the publisher fills all of them in one pipeline
and empties the list of answers with BLMPOP, as many as there are at a time: nothing is lost when a
client comes late, which PUBLISH does not give, and it is not slower. (Commands written by hand on a
bare connection, past the library's API, take half the time.) Cold: forked from a process that has
imported all, and connected, in the round. Warm: connected before.
"""

import gc
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from engine.bench.peers import common

try:
    import redis
except ImportError:
    common.skip(f"the client library redis is not installed ({common.INSTALL})")


def connect(path: str) -> Any:
    """A client with one connection, no handshake, and no limit to its patience."""
    return redis.Redis(
        unix_socket_path=path,
        single_connection_client=True,
        protocol=2,
        driver_info=None,
        socket_timeout=None,
    )


def main() -> None:
    """Server, clients, rounds."""
    warm, count = common.arguments()
    server = common.need("redis-server")
    with tempfile.TemporaryDirectory(prefix="bench-redis-", dir="/dev/shm") as folder:
        path = Path(folder) / "redis.sock"
        process = subprocess.Popen(
            [server, "--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no",
             "--maxclients", str(count + 100), "--dir", folder],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            common.wait_for(lambda: common.is_socket(path))
            rounds(str(path), warm=warm, count=count)
        finally:
            process.terminate()
            process.wait()


def rounds(path: str, *, warm: bool, count: int) -> None:
    """Serve rounds until the end of the input."""
    publisher = connect(path)

    def client(number: int) -> None:
        connection = connect(path)
        if warm:
            connection.rpush("answers", "connected")
        while connection.blpop(f"task:{number}")[1] == common.TASK:
            connection.rpush("answers", number)
            if not warm:
                return

    def publish(task: bytes) -> None:
        pipeline = publisher.pipeline(transaction=False)
        for number in range(count):
            pipeline.rpush(f"task:{number}", task)
        pipeline.execute()

    def collect() -> None:
        answered = 0
        while answered < count:
            answers = publisher.blmpop(common.LIMIT_S, 1, "answers", direction="LEFT", count=count)
            if answers is None:
                raise TimeoutError(f"{answered} of {count} clients answered")
            answered += len(answers[1])

    def one_round() -> None:
        publish(common.TASK)
        if not warm:
            children.extend(common.fork(client, number) for number in range(count))
        collect()

    gc.disable()
    gc.freeze()
    children: list[int] = []
    if warm:
        children.extend(common.fork(client, number) for number in range(count))
        collect()
    common.serve(one_round, lambda: None if warm else common.reap(children))
    if warm:
        publish(b"end")
        common.reap(children)


if __name__ == "__main__":
    main()
