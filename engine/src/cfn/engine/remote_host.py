"""A coordinator as the conductor sees it: a host of teams behind a socket."""

import json
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from cfn.engine import team_calls
from cfn.engine.hosts import Told
from cfn.engine.lean.control import Channel
from cfn.engine.log import log
from cfn.engine.loop import READ, WRITE, Loop
from cfn.engine.teams import TeamOrder, TeamOutcome

Answered = Callable[[dict[str, Any], bytes], bool]  # True: that was the last answer


class RemoteHost:
    """One connected coordinator (hosts.Host). `gone` is called once, when the connection ends: what
    it was asked and has not answered is for its owner to ask somebody else."""

    def __init__(
        self, number: int, pid: int, channel: Channel, loop: Loop, gone: Callable[["RemoteHost", str], None]
    ) -> None:
        self.number = number
        self.pid = pid
        self.draining = False
        self.heard_s = time.monotonic()
        self.response_time_s = 0.0
        self.beat: dict[str, Any] = {}
        self._pidfd = os.pidfd_open(pid)
        self._channel = channel
        self._loop = loop
        self._gone = gone
        self._asked: dict[int, Answered] = {}
        self._parts = team_calls.Parts()
        self._last_ask = 0
        self._workers: dict[tuple[str, str], int] = {}
        self._open = True

    @property
    def workers(self) -> int:
        """Workers of all the teams that it was given."""
        return sum(self._workers.values())

    # hosts.Host

    def begin(
        self,
        order: TeamOrder,
        payload: bytes,
        *,
        begun: Callable[[float], None],
        done: Told,
        failed: Callable[[str], None],
    ) -> None:
        """As Host."""
        team = (order.swarm_id, order.team)
        if not order.kept:
            self._workers[team] = len(order.agents)
        sent_s = time.monotonic()

        def answered(head: dict[str, Any], tail: bytes) -> bool:
            if "begun" in head:
                self.response_time_s = time.monotonic() - sent_s
                begun(float(head["begun"]))
                return False
            if not order.kept:
                self._workers.pop(team, None)
            if "failed" in head:
                failed(str(head["failed"]))
                return True
            done(TeamOutcome.from_head(head["done"], tail))
            return True

        self._ask({"do": "begin", "order": order.as_json()}, answered, payload)

    def give_up(self, epoch: int, reason: str, told: Told) -> None:
        """As Host."""
        self._ask({"do": "give_up", "epoch": epoch, "reason": reason}, _outcome_to(told))

    def snapshot(self, epoch: int, told: Told) -> None:
        """As Host."""
        self._ask({"do": "snapshot", "epoch": epoch}, _outcome_to(told))

    def stop(self, epoch: int, *, gently: bool) -> None:
        """As Host."""
        self._ask({"do": "stop", "epoch": epoch, "gently": gently}, None)

    def open_team(
        self, swarm_id: str, team: str, shard: int, agents: Sequence[str], ready: Callable[[int], None]
    ) -> None:
        """As Host."""
        self._workers[swarm_id, team] = len(agents)

        def answered(head: dict[str, Any], _tail: bytes) -> bool:
            ready(int(head["live"]))
            return True

        call = {"do": "open_team", "swarm_id": swarm_id, "team": team, "shard": shard}
        self._ask({**call, "agents": list(agents)}, answered)

    def close_team(self, swarm_id: str, team: str, closed: Callable[[int], None]) -> None:
        """As Host."""
        self._workers.pop((swarm_id, team), None)

        def answered(head: dict[str, Any], _tail: bytes) -> bool:
            closed(int(head["undrained"]))
            return True

        self._ask({"do": "close_team", "swarm_id": swarm_id, "team": team}, answered)

    def hand_over(self, swarm_id: str, team: str, dropped: Callable[[], None]) -> None:
        """Let go of a team whose workers go on with another host."""
        self._workers.pop((swarm_id, team), None)

        def answered(_head: dict[str, Any], _tail: bytes) -> bool:
            dropped()
            return True

        self._ask({"do": "hand_over", "swarm_id": swarm_id, "team": team}, answered)

    def broadcast(self, swarm_id: str, team: str, kind: str, done: Callable[[int, int], None]) -> None:
        """As Host."""

        def answered(head: dict[str, Any], _tail: bytes) -> bool:
            done(int(head["sent"]), int(head["delivered"]))
            return True

        self._ask({"do": "broadcast", "swarm_id": swarm_id, "team": team, "kind": kind}, answered)

    def roll(self, swarm_id: str, team: str, told: Callable[[list[dict[str, Any]]], None]) -> None:
        """As Host."""

        def answered(_head: dict[str, Any], tail: bytes) -> bool:
            told(json.loads(tail))
            return True

        self._ask({"do": "roll", "swarm_id": swarm_id, "team": team}, answered)

    # The connection

    def tell(self, head: dict[str, Any], tail: bytes = b"") -> None:
        """Send what is not answered."""
        self._ask(head, None, tail)

    def ready(self, events: int) -> None:
        """Its socket has something to read, or takes more."""
        try:
            if events & WRITE:
                self._channel.flush()
            while self._open and (received := self._channel.receive()) is not None:
                for descriptor in received[1]:
                    os.close(descriptor)
                self._heard(received[0])
            self._watch()
        except (OSError, EOFError, *team_calls.MALFORMED) as error:
            self.close(str(error) or "it closed the connection")

    def kill(self) -> None:
        """SIGKILL its process: one that hangs is ended, never bypassed."""
        with suppress(OSError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def close(self, reason: str) -> None:
        """End the connection, once."""
        if self._open:
            self._open = False
            self._loop.remove(self._channel.socket.fileno())
            self._channel.close()
            os.close(self._pidfd)
            self._asked.clear()
            self._gone(self, reason)

    def _heard(self, raw: bytes) -> None:
        head, tail = team_calls.decode(raw)
        self.heard_s = time.monotonic()
        if "beat" in head:
            beat = head["beat"]
            self.beat = {
                "agents": int(beat["agents"]),
                "queue_depth": int(beat["queue_depth"]),
                "spawner": str(beat["spawner"]),
                "messages": dict(beat["messages"]),
            }
            return
        whole = self._parts.add(head, tail)
        answered = self._asked.get(head["ask"])
        if whole is not None and answered is not None and answered(head, whole):
            self._asked.pop(head["ask"], None)

    def _ask(self, head: dict[str, Any], answered: Answered | None, tail: bytes = b"") -> None:
        if not self._open:
            return
        if answered is not None:
            self._last_ask += 1
            head = {**head, "ask": self._last_ask}
            self._asked[self._last_ask] = answered
        try:
            team_calls.send(self._channel, head, tail)
            if self._channel.pending:
                self._watch()
        except OSError as error:
            log("coordinator does not take its orders", coordinator=self.number, reason=str(error))
            self._loop.at(time.monotonic(), lambda: self.close("it does not take its orders"))

    def _watch(self) -> None:
        if self._open:
            self._loop.change(self._channel.socket.fileno(), READ | WRITE if self._channel.pending else READ)


def _outcome_to(told: Told) -> Answered:
    def answered(head: dict[str, Any], tail: bytes) -> bool:
        if "outcome" in head:  # else it has ended meanwhile, and that is told
            told(TeamOutcome.from_head(head["outcome"], tail))
        return True

    return answered
