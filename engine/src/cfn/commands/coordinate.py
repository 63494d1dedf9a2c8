"""`cfn coordinate`: run one coordination through the router, or directly on one version.

While there is no router it is run on V1 directly, once, unless --when-down says otherwise.
"""

import argparse
import asyncio
import base64
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cfn import paths
from cfn.config import Config, parse
from cfn.coordination import Coordination
from cfn.errors import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_NOT_DELIVERED,
    EXIT_REFUSED,
    CfnError,
    NotRunningError,
    UsageError,
)
from cfn.ids import agent_ids, check_id
from cfn.router import direct
from cfn.router.client import AnswerLostError, RouterClient
from cfn.router.decision import outcome_of
from cfn.router.request import MAX_AGENTS, Request, check_sticky_key
from cfn.router.v1 import V1
from cfn.router.v2 import V2


def main(argv: list[str]) -> int:
    """Exit code 0 when every agent is done, 4 when not all were delivered, 5 when it was refused,
    1 when agents failed or are unknown."""
    installed = paths.installed()
    parser = argparse.ArgumentParser(prog="cfn coordinate", description=__doc__)
    parser.add_argument("task", metavar="TASK", help="the task's id; a known id returns its first answer")
    parser.add_argument("--agents", type=int, required=True, metavar="N")
    parser.add_argument("--payload", help="text that every agent reads on its standard input")
    parser.add_argument("--payload-file", type=Path, help="the same from a file; - is the standard input")
    parser.add_argument("--deadline-ms", type=int, help="by when every agent must have started")
    parser.add_argument(
        "--router", default=f"unix:{installed.router_socket}", help="where the router answers"
    )
    parser.add_argument("--sticky-key", help="what the split is made on, instead of the task's id")
    parser.add_argument("--swarm", default="", help="a kept swarm of V2's that runs it, made by `init`")
    parser.add_argument(
        "--when-down",
        choices=("v1", "fail"),
        help="while there is no router: run it on V1 directly (the default on this host), or fail",
    )
    parser.add_argument("--direct", choices=("v1", "v2"), help="past the router, on this version only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    check_id("task", options.task)
    if not 1 <= options.agents <= MAX_AGENTS:
        raise UsageError(f"--agents {options.agents}: a whole number from 1 to {MAX_AGENTS} is allowed")
    config = _config(installed)
    payload = _payload(options.payload, options.payload_file)
    deadline_ms = options.deadline_ms or config.coordination_deadline_ms
    # An agent that began at the deadline may still take its whole time.
    answer_s = (deadline_ms + config.agent_timeout_ms) / 1000 + 30
    request = Request(
        task_id=options.task,
        agents=options.agents,
        payload=payload,
        deadline_ms=options.deadline_ms,
        swarm_id=options.swarm,
        sticky_key=check_sticky_key(options.sticky_key) if options.sticky_key is not None else None,
    )
    if options.direct:
        answer = asyncio.run(_directly(installed, config, options, payload, deadline_ms, answer_s))
    else:
        answer = _routed(installed, config, options, request, deadline_ms, answer_s)
    if options.json:
        print(json.dumps(answer))
    else:
        _show(answer)
    return _exit_code(answer)


def _routed(
    installed: paths.Paths,
    config: Config,
    options: argparse.Namespace,
    request: Request,
    deadline_ms: int,
    answer_s: float,
) -> dict[str, Any]:
    """Through the router; on V1 directly if there is none."""
    value: dict[str, Any] = {"task_id": request.task_id, "agents": request.agents}
    if request.payload:
        value["payload_b64"] = base64.b64encode(request.payload).decode()
    if request.deadline_ms:
        value["deadline_ms"] = request.deadline_ms
    if request.swarm_id:
        value["swarm_id"] = request.swarm_id
    progress = _Progress()
    try:
        status, answer = RouterClient(options.router).coordinate(
            value, answer_s=answer_s, sticky_key=request.sticky_key, progress=progress.show
        )
    except AnswerLostError as error:
        raise AnswerLostError(f"{error}. The task may run: the same command asks for it") from error
    except NotRunningError as error:
        own = options.router == f"unix:{installed.router_socket}"
        if (options.when_down or ("v1" if own else "fail")) == "fail":
            raise
        progress.end()
        return asyncio.run(
            direct.coordinate(installed, config, request, why=str(error), deadline_ms=deadline_ms)
        )
    finally:
        progress.end()
    if status in (400, 413):
        raise UsageError(answer["error"])
    if status not in (200, 429, 503):
        raise CfnError(f"the router answered {status}: {answer.get('error') or answer.get('state')}")
    return answer


class _Progress:
    """One line on a terminal for as long as a task runs; nothing where nobody looks."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()
        self._shown = False

    def show(self, news: Mapping[str, Any]) -> None:
        """What the router says of the running task."""
        if not sys.stderr.isatty():
            return
        self._shown = True
        states = news.get("states") or {}
        said = ", ".join(f"{count} {state}" for state, count in states.items()) or news.get(
            "state", "running"
        )
        seconds = time.monotonic() - self._began_s
        print(f"\r\033[K{news.get('task_id')}: {seconds:.0f} s, {said}", end="", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Leave the line clean for what comes."""
        if self._shown:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._shown = False


async def _directly(
    installed: paths.Paths,
    config: Config,
    options: argparse.Namespace,
    payload: bytes,
    deadline_ms: int,
    answer_s: float,
) -> dict[str, Any]:
    if options.direct == "v2":
        question: dict[str, Any] = {
            "verb": "coordinate",
            "task_id": options.task,
            "agents": options.agents,
            "deadline_ms": deadline_ms,
        }
        if payload:
            question["payload_b64"] = base64.b64encode(payload).decode()
        if options.swarm:
            question["swarm_id"] = options.swarm
        reply = await V2(installed.conductor_socket).ask(question, timeout_s=answer_s)
        coordination, detail = Coordination.from_json(reply), ""
    else:
        now = asyncio.get_running_loop().time()
        result = await V1(installed).run(
            options.task,
            agent_ids(options.agents),
            payload=payload,
            config=config,
            arrived_s=now,
            deadline_s=now + deadline_ms / 1000,
        )
        coordination, detail = result.coordination, result.problem
    return {
        "task_id": options.task,
        "outcome": outcome_of(coordination),
        "served": options.direct,
        "detail": detail,
        "coordination": coordination.as_json(),
    }


def _config(installed: paths.Paths) -> Config:
    """What is configured; the defaults where nothing is."""
    try:
        return parse(installed.config.read_text(), source=str(installed.config)).config
    except (OSError, UnicodeDecodeError):
        return Config()


def _payload(text: str | None, file: Path | None) -> bytes:
    if text is not None and file is not None:
        raise UsageError("--payload and --payload-file are both set; one of them is allowed")
    if file is None:
        return (text or "").encode()
    try:
        return sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()
    except OSError as error:
        raise UsageError(f"--payload-file {file}: {error}") from error


def _show(answer: dict[str, Any]) -> None:
    coordination = answer["coordination"]
    states = ", ".join(f"{count} {state}" for state, count in coordination["states"].items() if count)
    print(
        f"{answer['task_id']}: {answer['outcome']}, {states}, served by {answer['served']} "
        f"in {coordination['total_time_ms']:.0f} ms"
    )
    if answer.get("detail"):
        print(f"  {answer['detail']}")
    # The line that the reference's tools read.
    print(
        f"delivery_rate={coordination['delivery_rate_pct']:.1f} agents_coordinated={coordination['agents']} "
        f"coordination_time_ms={coordination['coordination_time_ms']:.0f}"
    )


def _exit_code(answer: dict[str, Any]) -> int:
    if answer["outcome"] == "done":
        return EXIT_DONE
    if answer["outcome"] == "refused":
        return EXIT_REFUSED
    return EXIT_NOT_DELIVERED if answer["coordination"]["delivery_rate_pct"] < 100 else EXIT_FAILED
