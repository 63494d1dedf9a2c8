"""A conductor that does nothing but answer, to measure what the router alone can do.

python -m engine.bench.peer SOCKET
"""

import asyncio
import json
import sys

from cfn.coordination import AgentResult, AgentState, Coordination
from cfn.ids import agent_ids


class _Peer(asyncio.Protocol):
    """Answers each line with a finished coordination."""

    def __init__(self) -> None:
        self._transport: asyncio.BaseTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        for line in data.splitlines():
            question = json.loads(line)
            answer = {"spawner": "up"} if question["verb"] == "health" else _done(question)
            if isinstance(self._transport, asyncio.WriteTransport):
                self._transport.write(json.dumps(answer, separators=(",", ":")).encode() + b"\n")


def _done(question: dict[str, object]) -> dict[str, object]:
    agents = agent_ids(int(str(question["agents"])))
    results = tuple(AgentResult(agent=agent, state=AgentState.DONE, exit_code=0) for agent in agents)
    task_id = str(question["task_id"])
    return Coordination(
        task_id=task_id, coordination_time_ms=0.1, total_time_ms=0.1, results=results
    ).as_json()


async def main(path: str) -> None:
    """Serve until killed."""
    server = await asyncio.get_running_loop().create_unix_server(_Peer, path, backlog=4_096)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
