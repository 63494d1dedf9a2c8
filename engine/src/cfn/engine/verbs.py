"""What a client can ask the conductor, one function for each verb, and how answers read as text."""

import base64
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from cfn.config import MAX_RETENTION_S
from cfn.engine import requests
from cfn.engine.clients import Client
from cfn.engine.messages.datagram import REASONS, Header
from cfn.errors import EXIT_DONE, EXIT_FAILED, EXIT_NOT_DELIVERED, RefusedError, UsageError

if TYPE_CHECKING:
    from cfn.engine.conductor import Conductor

Value = Mapping[str, Any]


def as_text(outcome: Mapping[str, Any]) -> str:
    """A coordination as `message-bus.sh coordinate` prints it; other programs parse this line."""
    agents = outcome["agents"] * outcome["delivery_rate_pct"] / 100
    return (
        f"delivery_rate={outcome['delivery_rate_pct']:.1f} agents_coordinated={agents:.0f} "
        f"coordination_time_ms={outcome['coordination_time_ms']:.1f}"
    )


def exit_code(outcome: Mapping[str, Any]) -> int:
    """0 when every agent claimed the task, 4 otherwise."""
    return EXIT_DONE if outcome["delivery_rate_pct"] == 100.0 else EXIT_NOT_DELIVERED


def _finish(client: Client, value: Value, outcome: bytes) -> None:
    if value.get("format") == "text":
        read = json.loads(outcome)
        client.finish(read, text=as_text(read), exit_code=exit_code(read))
    else:
        client.finish_raw(outcome)


def coordinate(conductor: "Conductor", client: Client, value: Value) -> None:
    """Run a coordination, or join a known one."""
    conductor.accepting()
    asked = requests.coordinate(value, conductor.config, time.monotonic())
    answers: list[bytes] = []

    def gone() -> None:
        conductor.coordinations.forget(asked.task_id, told)

    def told(outcome: bytes) -> None:
        if said:
            client.on_close.remove(gone)
            _finish(client, value, outcome)
        else:
            answers.append(outcome)

    said = False
    state = conductor.coordinations.coordinate(asked, told)
    if value.get("format") != "text":
        client.say({"state": "accepted" if state == "running" else state, "task_id": asked.task_id})
    said = True
    if answers:
        _finish(client, value, answers[0])
    else:
        client.on_close.append(gone)


def result(conductor: "Conductor", client: Client, value: Value) -> None:
    """A request's states as of now."""
    task_id = requests.text_id(value, "task_id", "task")
    if not conductor.coordinations.now(task_id, lambda outcome: _finish(client, value, outcome)):
        _unknown(client, value, task_id)


def revoke(conductor: "Conductor", client: Client, value: Value) -> None:
    """Let nothing more of a request start, and tell what had started."""
    task_id = requests.text_id(value, "task_id", "task")
    if not conductor.coordinations.revoke(task_id, lambda outcome: _finish(client, value, outcome)):
        _unknown(client, value, task_id)


def _unknown(client: Client, value: Value, task_id: str) -> None:
    error = f"task {task_id} is not known here"
    text = error if value.get("format") == "text" else None
    client.finish(
        {"error": error, "exit_code": EXIT_FAILED, "absent": True}, text=text, exit_code=EXIT_FAILED
    )


def health(conductor: "Conductor", client: Client, _value: Value) -> None:
    """How the engine stands; the collector, the router and `cfn status` read it."""
    client.finish(conductor.health())


def initialise(conductor: "Conductor", client: Client, value: Value) -> None:
    """Make a swarm that is kept."""
    conductor.accepting()
    agents = requests.count(value)
    requests.within_stage(agents, conductor.config)
    swarm_id = requests.text_id(value, "swarm_id", "swarm", "")

    def ready(found: str, live: int, reason: str) -> None:
        answer = {"swarm_id": found, "agents": agents, "live": live, "reason": reason}
        text = f"swarm_id={found} agents={live}" + (f"\n{reason}" if reason else "")
        code = EXIT_DONE if live == agents else EXIT_NOT_DELIVERED
        client.finish(answer, text=text if value.get("format") == "text" else None, exit_code=code)

    conductor.swarms.initialise(agents, swarm_id, ready)


def broadcast(conductor: "Conductor", client: Client, value: Value) -> None:
    """Send a message to every agent of a swarm."""
    swarm = conductor.swarms.named(requests.text_id(value, "swarm_id", "swarm", ""))
    kind = requests.text_id(value, "type", "message type")
    body = requests.body(value, "body_b64", conductor.config.max_payload_bytes)

    def done(sent: int, delivered: int) -> None:
        answer = {"swarm_id": swarm.swarm_id, "type": kind, "sent": sent, "delivered": delivered}
        code = EXIT_DONE if sent == delivered else EXIT_NOT_DELIVERED
        text = f"sent={sent} delivered={delivered}" if value.get("format") == "text" else None
        client.finish(answer, text=text, exit_code=code)

    conductor.swarms.broadcast(swarm, kind, body, done)


def status(conductor: "Conductor", client: Client, value: Value) -> None:
    """One line for each agent of a swarm."""
    swarm = conductor.swarms.named(requests.text_id(value, "swarm_id", "swarm", ""))

    def told(agents: list[dict[str, Any]]) -> None:
        text = None
        if value.get("format") == "text":
            text = "\n".join(
                " ".join([row["agent"], row["state"], f"inbox={row['inbox']}", *row["acknowledged"]])
                for row in agents
            )
        client.finish({"swarm_id": swarm.swarm_id, "agents": agents}, text=text)

    conductor.swarms.status(swarm, told)


def send(conductor: "Conductor", client: Client, value: Value) -> None:
    """Put a message into an agent's inbox."""
    swarm = conductor.swarms.named(requests.text_id(value, "swarm_id", "swarm", ""))

    def decided(number: int, reason: int) -> None:
        if reason:
            client.refuse(RefusedError(REASONS[reason]), as_text=value.get("format") == "text")
        else:
            text = f"message={number}" if value.get("format") == "text" else None
            client.finish({"message": number}, text=text)

    conductor.messages.put(
        swarm.swarm_id,
        sender=requests.text_id(value, "from", "agent"),
        receiver=requests.text_id(value, "to", "agent"),
        kind=requests.text_id(value, "type", "message type"),
        payload=requests.body(value, "payload_b64", conductor.config.max_payload_bytes),
        decided=decided,
    )


def receive(conductor: "Conductor", client: Client, value: Value) -> None:
    """Take everything out of an agent's inbox: what was handed over is removed after it was answered, so
    that a crash in between repeats it under the same numbers."""
    swarm_id = conductor.swarms.named(requests.text_id(value, "swarm_id", "swarm", "")).swarm_id
    agent = requests.text_id(value, "agent", "agent")

    def taken(reason: int, raws: Sequence[bytes], first: int) -> None:
        if reason:
            text = REASONS.get(reason, "its hub does not answer now")
            client.refuse(RefusedError(f"inbox of {agent}: {text}"), as_text=value.get("format") == "text")
            return
        rows = [_row(number, raw) for number, raw in enumerate(raws, start=first)]
        lines = (f"{r['message']} {r['from']} {r['type']} {r['payload_b64']}".rstrip() for r in rows)
        printed = "\n".join(lines) if value.get("format") == "text" else None
        client.finish({"agent": agent, "messages": rows}, text=printed)
        if rows:
            conductor.messages.confirm(swarm_id, agent, first + len(rows) - 1)

    conductor.messages.take(swarm_id, agent, taken)


def _row(number: int, raw: bytes) -> dict[str, Any]:
    header = Header(raw)
    return {
        "message": number,
        "from": header.sender.decode(),
        "type": header.type.decode(),
        "payload_b64": base64.b64encode(raw[header.end :]).decode(),
    }


def shutdown(conductor: "Conductor", client: Client, value: Value) -> None:
    """End a swarm."""
    swarm = conductor.swarms.named(requests.text_id(value, "swarm_id", "swarm", ""))

    def ended(agents: int, undrained: int) -> None:
        answer = {"swarm_id": swarm.swarm_id, "agents": agents, "undrained": undrained}
        text = f"swarm_id={swarm.swarm_id} agents={agents} undrained={undrained}"
        client.finish(answer, text=text if value.get("format") == "text" else None)

    conductor.swarms.shutdown(swarm, ended)


def join(conductor: "Conductor", client: Client, value: Value) -> None:
    """Become an agent of a swarm over this connection (external.py)."""
    conductor.accepting()
    swarm = conductor.swarms.named(requests.text_id(value, "swarm_id", "swarm", ""))
    conductor.swarms.join(
        swarm, requests.text_id(value, "agent", "agent"), client, as_text=value.get("format") == "text"
    )


def task(conductor: "Conductor", client: Client, value: Value) -> None:
    """What an agent that joined says about its task: `claim` or `result`."""
    conductor.swarms.said(client, value)


def failover(conductor: "Conductor", client: Client, value: Value) -> None:
    """Take a coordinator's teams away: `how` is dead (end it), drain (for maintenance) or resume."""
    how, number = value.get("how", "dead"), requests.count(value, "coordinator")
    hands = {
        "dead": conductor.fleet.fail_over,
        "drain": conductor.fleet.drain,
        "resume": conductor.fleet.resume,
    }
    hand = hands.get(how) if isinstance(how, str) else None
    if hand is None:
        raise UsageError(f"how: {how!r} is refused; dead, drain or resume are allowed")
    before = time.monotonic()
    hand(number)
    conductor.swarms.balance()

    def told() -> None:
        taken_ms = (time.monotonic() - before) * 1000
        states = [row["state"] for row in conductor.fleet.health() if row["id"] == number]
        state = states[0] if states else "down"  # the configuration has it no more
        answer = {"coordinator": number, "how": how, "time_ms": round(taken_ms, 3), "state": state}
        text = f"coordinator={number} how={how} state={state} time_ms={taken_ms:.1f}"
        client.finish(answer, text=text if value.get("format") == "text" else None)

    conductor.fleet.when_settled(told)


def sweep(conductor: "Conductor", client: Client, value: Value) -> None:
    """Remove what has outlived its retention now; `cfn cleanup` asks for it."""
    retention = value.get("retention_s", conductor.config.retention_s)
    if isinstance(retention, bool) or not isinstance(retention, int) or not 0 <= retention <= MAX_RETENTION_S:
        raise UsageError(f"retention_s: a whole number from 0 to {MAX_RETENTION_S} is needed")
    client.finish(asdict(conductor.keeper.sweep(retention)))


VERBS: Mapping[str, Callable[["Conductor", Client, Value], None]] = {
    "broadcast": broadcast,
    "coordinate": coordinate,
    "failover": failover,
    "health": health,
    "init": initialise,
    "join": join,
    "recv": receive,
    "result": result,
    "revoke": revoke,
    "send": send,
    "shutdown": shutdown,
    "status": status,
    "sweep": sweep,
    "task": task,
}


def serve(conductor: "Conductor", client: Client, value: Value) -> None:
    """Handle one request. Raises CfnError for what is refused, OSError when resources are out."""
    verb = value.get("verb")
    handler = VERBS.get(verb) if isinstance(verb, str) else None
    if handler is None:
        raise UsageError(f"verb {verb!r} is unknown; known: {', '.join(VERBS)}")
    handler(conductor, client, value)
