"""Redis: N client processes wait for a task, one publisher sends it to all and counts the answers.

    python -m engine.bench.peers.redis cold|warm N

Persistence off, Unix socket, hiredis parser, the client library's bare connection (no pool, no
handshake). Each client blocks on a list of its own, the publisher fills all of them in one pipeline
and empties the list of answers with BLMPOP, as many as there are at a time: nothing is lost when a
client comes late, which PUBLISH does not give. Cold: forked from a process that has imported all,
and connected, in the round. Warm: connected before.
"""

import gc
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from engine.bench.peers import common

try:
    import redis
    import redis.connection
except ImportError:
    common.skip(f"the client library redis is not installed ({common.INSTALL})")


def connect(path: str) -> Any:
    """One connection that sends nothing of its own."""
    connection = redis.connection.UnixDomainSocketConnection(
        path=path, protocol=2, driver_info=None, socket_timeout=None
    )
    connection.connect()
    return connection


def ask(connection: Any, *words: object) -> Any:
    """One command and its answer."""
    connection.send_command(*words)
    return connection.read_response()


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
    tasks = publisher.pack_commands([("RPUSH", f"task:{number}", common.TASK) for number in range(count)])

    def client(number: int) -> None:
        connection = connect(path)
        if warm:
            ask(connection, "RPUSH", "answers", "connected")
        while ask(connection, "BLPOP", f"task:{number}", 0)[1] == common.TASK:
            ask(connection, "RPUSH", "answers", number)
            if not warm:
                return

    def collect() -> None:
        answered = 0
        while answered < count:
            answers = ask(publisher, "BLMPOP", common.LIMIT_S, 1, "answers", "LEFT", "COUNT", count)
            if answers is None:
                raise TimeoutError(f"{answered} of {count} clients answered")
            answered += len(answers[1])

    def one_round() -> None:
        publisher.send_packed_command(tasks)
        if not warm:
            children.extend(common.fork(client, number) for number in range(count))
        for _ in range(count):
            publisher.read_response()
        collect()

    gc.disable()
    gc.freeze()
    children: list[int] = []
    if warm:
        children.extend(common.fork(client, number) for number in range(count))
        collect()
    common.serve(one_round, lambda: None if warm else common.reap(children))
    if warm:
        for number in range(count):
            ask(publisher, "RPUSH", f"task:{number}", "end")
        common.reap(children)


if __name__ == "__main__":
    main()
