"""The conductor's kept swarms: made by `init`, ended by `shutdown`, with inboxes and guests.

A swarm is one file in tmpfs, so that a restarted conductor knows it; its workers come back from the
spawner.
"""

import base64
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from cfn.engine.broadcasts import Broadcast
from cfn.engine.clients import Client
from cfn.engine.external import ExternalAgent
from cfn.engine.hub import Hub
from cfn.engine.inbox import Inboxes, Message
from cfn.engine.log import log
from cfn.engine.members import Swarm
from cfn.engine.store import replace
from cfn.errors import RefusedError, UsageError
from cfn.ids import agent_ids

MAX_SWARMS = 8
READY_S = 10.0  # for all workers of an `init` to be there
ACKNOWLEDGE_S = 5.0  # for all agents to acknowledge a broadcast
STOP_S = 3.5  # for a shut-down swarm's agents to end; longer than the grace of what they run

Ready = Callable[[str, int, str], None]
Ended = Callable[[int, int], None]


class Swarms:
    """All kept swarms; the newest is the current one, which is meant when none is named."""

    def __init__(self, folder: Path, hub: Hub, generation: int) -> None:
        self._folder = folder / "swarms"
        self._inbox_folder = folder / "inboxes"
        self._hub = hub
        self._generation = generation
        self._made = 0
        self._inboxes: dict[str, Inboxes] = {}
        self._guests: dict[Client, ExternalAgent] = {}
        self._folder.mkdir(mode=0o750, exist_ok=True)
        for file in sorted(self._folder.glob("*.json"), key=lambda f: f.stat().st_mtime_ns):
            value = json.loads(file.read_text())
            swarm = hub.add_swarm(
                str(value["swarm_id"]), [str(agent) for agent in value["agents"]], kept=True
            )
            self._inboxes[swarm.swarm_id] = Inboxes(self._inbox_folder / swarm.swarm_id)

    @property
    def all(self) -> list[Swarm]:
        """The kept swarms that are not ending, oldest first."""
        return [swarm for swarm in self._hub.swarms.values() if swarm.kept and not swarm.ending]

    def named(self, swarm_id: str) -> Swarm:
        """A swarm, the current one for an empty name. Raises RefusedError."""
        found = [swarm for swarm in self.all if swarm_id in ("", swarm.swarm_id)]
        if not found:
            raise RefusedError(f"no swarm {swarm_id}".rstrip() + "; message-bus.sh init N makes one")
        return found[-1]

    def restore(self) -> None:
        """Replace what a crash took from the kept swarms. Call when the spawner has had time to
        hand out what it still holds."""
        for swarm in self.all:
            self._hub.spawn_missing(swarm)

    def initialise(self, agents: int, swarm_id: str, ready: Ready) -> None:
        """Make a swarm. `ready` is told its id, the live agents and a reason if some are missing."""
        if len(self.all) >= MAX_SWARMS:
            raise RefusedError(f"{MAX_SWARMS} swarms exist, their bound; shutdown ends one")
        if not swarm_id:
            self._made += 1
            swarm_id = f"swarm-{self._generation}-{self._made}"
        if swarm_id in self._hub.swarms or swarm_id.startswith("task:"):
            raise RefusedError(f"swarm {swarm_id} exists already, or its name is reserved")
        ids = agent_ids(agents)
        replace(self._folder / f"{swarm_id}.json", json.dumps({"swarm_id": swarm_id, "agents": ids}))
        self._inboxes[swarm_id] = Inboxes(self._inbox_folder / swarm_id)
        swarm = self._hub.add_swarm(swarm_id, ids, kept=True)
        self._hub.spawn_missing(swarm)
        log("swarm made", swarm_id=swarm_id, agents=agents)
        self._await_ready(swarm, ready, time.monotonic() + READY_S)

    def _await_ready(self, swarm: Swarm, ready: Ready, limit_s: float) -> None:
        live = sum(member.endpoint is not None for member in swarm.members.values())
        late = time.monotonic() >= limit_s
        if live == len(swarm.members) or late or swarm.ending:
            reason = f"{len(swarm.members) - live} agents are not there after {READY_S:.0f} s" if late else ""
            ready(swarm.swarm_id, live, reason)
        else:
            self._hub.later(0.005, lambda: self._await_ready(swarm, ready, limit_s))

    def broadcast(self, swarm: Swarm, kind: str, body: bytes, done: Callable[[int, int], None]) -> None:
        """Send to all; `done` is told how many were sent and how many acknowledged."""

        def finished(broadcast: Broadcast) -> None:
            done(broadcast.sent, broadcast.delivered)

        self._hub.broadcasts.send(swarm, _label(kind, body), body, limit_s=ACKNOWLEDGE_S, done=finished)

    def status(self, swarm: Swarm) -> list[dict[str, Any]]:
        """Each agent's standing."""
        inboxes = self._inboxes[swarm.swarm_id]
        return [
            {
                "agent": member.agent,
                "state": "up" if member.endpoint is not None else "down",
                "pid": member.endpoint.pid if member.endpoint is not None else 0,
                "inbox": inboxes.count(member.agent),
                "acknowledged": [f"{kind}:ack" for kind in member.acknowledged],
            }
            for member in swarm.members.values()
        ]

    # Messages between agents

    def send(self, swarm: Swarm, *, sender: str, receiver: str, kind: str, payload: bytes, bound: int) -> int:
        """Store a message; its number. Raises UsageError for a stranger, RefusedError over the bound."""
        for agent in (sender, receiver):
            self._member(swarm, agent)
        encoded = base64.b64encode(payload).decode()
        return self._inboxes[swarm.swarm_id].put(receiver, sender, kind, encoded, bound)

    def inbox(self, swarm: Swarm, agent: str) -> Sequence[Message]:
        """What waits for an agent."""
        self._member(swarm, agent)
        return self._inboxes[swarm.swarm_id].messages(agent)

    def drained(self, swarm: Swarm, agent: str, messages: Sequence[Message]) -> None:
        """They were answered: remove them."""
        if messages:
            self._inboxes[swarm.swarm_id].drained(agent)

    @property
    def waiting_messages(self) -> int:
        """Messages in all inboxes."""
        return sum(inboxes.count() for inboxes in self._inboxes.values())

    def _member(self, swarm: Swarm, agent: str) -> None:
        if agent not in swarm.members:
            raise UsageError(f"swarm {swarm.swarm_id} has no agent {agent}")

    # Agents from outside

    def join(self, swarm: Swarm, agent: str, client: Client, *, as_text: bool) -> None:
        """Take a connection in as an agent. Raises RefusedError when the name is taken."""
        if agent in swarm.members:
            raise RefusedError(f"swarm {swarm.swarm_id} has an agent {agent} already")
        if client in self._guests:
            raise UsageError("this connection is an agent already")
        guest = ExternalAgent(self._hub, swarm.swarm_id, agent, client, as_text=as_text)
        self._guests[client] = guest
        client.on_close.append(lambda: self._left(client))
        guest.joined()
        self._hub.add_guest(swarm, agent, guest)
        log("agent joined", swarm_id=swarm.swarm_id, agent=agent)

    def said(self, client: Client, value: Mapping[str, Any]) -> None:
        """What an agent that joined says about a task."""
        guest = self._guests.get(client)
        if guest is None:
            raise UsageError("join first")
        guest.said(value)
        client.pending -= 1

    def _left(self, client: Client) -> None:
        guest = self._guests.pop(client, None)
        if guest is not None:
            log("agent left", swarm_id=guest.swarm_id, agent=guest.agent)
            self._hub.lost(guest.swarm_id, guest.agent, guest)

    # The end

    def shutdown(self, swarm: Swarm, now_s: float, ended: Ended) -> None:
        """End a swarm: its agents stop, what they run is terminated, then killed. `ended` is told the
        number of agents and of messages that nobody took."""
        agents = len(swarm.members)
        undrained = self._inboxes[swarm.swarm_id].count()
        self._hub.stop_swarm(swarm)
        for task_id in self._hub.running_on(swarm):
            self._hub.give_up_unclaimed(task_id, "its swarm was shut down")
        self._await_end(swarm, now_s + STOP_S, lambda: ended(agents, undrained))

    def _await_end(self, swarm: Swarm, limit_s: float, ended: Callable[[], None]) -> None:
        live = any(member.endpoint is not None for member in swarm.members.values())
        if live and time.monotonic() < limit_s:
            self._hub.later(0.005, lambda: self._await_end(swarm, limit_s, ended))
            return
        inboxes = self._inboxes.pop(swarm.swarm_id, None)
        if inboxes is None:
            ended()  # another shutdown was first
            return
        log("swarm ended", swarm_id=swarm.swarm_id, agents=len(swarm.members), undrained=inboxes.count())
        self._hub.kill_swarm(swarm)
        self._hub.end_swarm(swarm.swarm_id)
        inboxes.remove()
        with suppress(FileNotFoundError):
            os.unlink(self._folder / f"{swarm.swarm_id}.json")  # noqa: PTH108 - one call
        ended()


def _label(kind: str, body: bytes) -> str:
    """How `status` names a message: its type, and its body when that is one short word."""
    text = body.decode(errors="replace")
    short = 0 < len(text) <= 32 and all(c.isascii() and (c.isalnum() or c in "._-") for c in text)
    return f"{kind}:{text}" if short else kind
