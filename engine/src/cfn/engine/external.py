"""An agent outside of the spawner: any program that joined a swarm over the conductor's socket.

It cannot lock the journal itself, so the hub claims on its behalf: the agent is told of a task,
asks to claim it, and starts only after "go". If its connection ends before its result, the task is
*unknown*.

    agent  -> {"verb":"join","agent":A}            <- {"joined":A,"swarm_id":S}
    hub    -> {"task":T,"epoch":E,"payload_b64":P,"swarm_id":S,"team":M,"timeout_ms":N,"max_output_bytes":N}
    agent  -> {"verb":"task","say":"claim","task_id":T,"epoch":E}     <- {"go":T} or {"skip":T}
    agent  -> {"verb":"task","say":"result","task_id":T,"epoch":E,"exit_code":N,"output_b64":O}

As text: `joined A S`, `task T E S M TIMEOUT_MS MAX_OUTPUT PAYLOAD_B64` (`-` for none), `go T`, `skip T`.
"""

import base64
from collections.abc import Mapping
from typing import Any

from cfn.engine import requests
from cfn.engine.claims import Ended
from cfn.engine.clients import Client
from cfn.engine.hub import Hub
from cfn.engine.lean import records, wire
from cfn.errors import UsageError


class ExternalAgent:
    """One joined connection (hub.Endpoint). Closing it ends the connection."""

    pid = 0

    def __init__(self, hub: Hub, swarm_id: str, agent: str, client: Client, *, as_text: bool) -> None:
        self.swarm_id = swarm_id
        self.agent = agent
        self._hub = hub
        self._client = client
        self._as_text = as_text
        self._offered: dict[str, tuple[int, int]] = {}  # task: index and epoch, once for each offer
        self._claimed: set[str] = set()

    def joined(self) -> None:
        """Tell the agent that it is in."""
        self._say({"joined": self.agent, "swarm_id": self.swarm_id}, f"joined {self.agent} {self.swarm_id}")

    def send(self, datagram: bytes) -> bool:
        """Turn the hub's datagram into a line."""
        kind = datagram[0]
        if kind == wire.ASSIGN:
            self._offer(wire.read_assignment(datagram))
        elif kind == wire.MESSAGE:  # to have it is to acknowledge it
            answer = wire.answer(wire.RECEIVED, 0, wire.message_number(datagram))
            self._hub.later(0, lambda: self._hub.received(self.swarm_id, self.agent, answer))
        elif kind == wire.STOP:
            self._client.close()
        return True

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def said(self, value: Mapping[str, Any]) -> None:
        """A line of the agent about a task. Raises UsageError for what makes no sense now."""
        task_id = requests.text_id(value, "task_id", "task")
        offered = self._offered.get(task_id)
        if offered is None or value.get("epoch") != offered[1]:
            raise UsageError(f"task {task_id} was not offered to {self.agent} under this epoch")
        if value.get("say") == "claim":
            self._claim(task_id, *offered)
        elif value.get("say") == "result" and task_id in self._claimed:
            self._result(task_id, offered[0], offered[1], value)
        else:
            raise UsageError("say: claim, and after go, result")

    def _offer(self, order: wire.Assignment) -> None:
        task = order.task
        if task.task_id in self._claimed:
            return
        self._offered[task.task_id] = (order.index, order.epoch)
        payload = base64.b64encode(order.payload).decode()
        offer = {
            "task": task.task_id,
            "epoch": order.epoch,
            "swarm_id": task.swarm_id,
            "team": task.team,
            "timeout_ms": task.timeout_ms,
            "max_output_bytes": task.max_output_bytes,
            "payload_b64": payload,
        }
        words = [task.task_id, order.epoch, task.swarm_id, task.team, task.timeout_ms, task.max_output_bytes]
        self._say(offer, " ".join(["task", *map(str, words), payload or "-"]))

    def _claim(self, task_id: str, index: int, epoch: int) -> None:
        taken = self._hub.claim_for(epoch, self.agent)
        if taken:
            self._claimed.add(task_id)
            self._hub.received(self.swarm_id, self.agent, wire.answer(wire.CLAIMED, index, epoch))
        word = "go" if taken else "skip"
        self._say({word: task_id}, f"{word} {task_id}")

    def _result(self, task_id: str, index: int, epoch: int, value: Mapping[str, Any]) -> None:
        code = value.get("exit_code")
        if isinstance(code, bool) or not isinstance(code, int) or not -255 <= code <= 255:
            raise UsageError(f"exit_code: {code!r} is refused")
        output = requests.body(value, "output_b64", requests.MAX_BODY_BYTES)
        reason = records.NONE if code == 0 else records.EXIT if code > 0 else records.SIGNAL
        if value.get("timed_out") is True:
            reason = records.TIMED_OUT
        self._hub.end_for(epoch, self.agent, Ended(reason=reason, exit_code=code, output=output))
        del self._offered[task_id]
        self._claimed.discard(task_id)
        answer = wire.answer(wire.RESULT, index, epoch, reason=reason, exit_code=code, output=output)
        self._hub.received(self.swarm_id, self.agent, answer)

    def _say(self, value: Mapping[str, Any], text: str) -> None:
        if self._as_text:
            self._client.say_text(text)
        else:
            self._client.say(value)
