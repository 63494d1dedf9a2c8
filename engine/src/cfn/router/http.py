"""The router's HTTP interface. Handlers read, ask the service and write; they decide nothing."""

import asyncio
import json
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from cfn.coordination import Coordination
from cfn.errors import CfnError, UsageError
from cfn.ids import check_id
from cfn.router import control
from cfn.router.breaker import State
from cfn.router.connections import BODY_S, Connections
from cfn.router.job import Answer
from cfn.router.request import Request, check_override, check_sticky_key, parse_request
from cfn.router.service import Running, Service

MAX_BODY_BYTES = 1024 * 1024
MAX_WAIT_MS = 3_600_000
# Beyond the deadline, so that what the deadline itself ends is still answered at once.
_WAIT_GRACE_S = 2.0
# Progress is told as far as V2 says it within this.
_PROGRESS_S = 0.5
_REASON_CHARS = 500


def application(
    service: Service, connections: Connections, status: Callable[[], dict[str, Any]]
) -> web.Application:
    """The application; `status` gives the object of `/status`."""
    handlers = _Handlers(service, connections, status)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_around(connections)])
    app.add_routes(
        [
            web.post("/v1/coordinate", handlers.coordinate),
            web.get("/v1/coordinate/{task_id}", handlers.result),
            web.post("/v1/breaker", handlers.breaker),
            web.get("/healthz", handlers.healthy),
            web.get("/readyz", handlers.ready),
            web.get("/status", handlers.status),
            web.get("/metrics", handlers.metrics),
        ]
    )
    return app


class _Handlers:
    def __init__(
        self, service: Service, connections: Connections, status: Callable[[], dict[str, Any]]
    ) -> None:
        self._service = service
        self._connections = connections
        self._status = status

    async def coordinate(self, http: web.Request) -> web.Response:
        config = self._service.generation.config
        request = parse_request(await _body(http), max_payload_bytes=config.max_payload_bytes)
        request = self._with_headers(http, request)
        deadline_s = (request.deadline_ms or config.coordination_deadline_ms) / 1000
        wait_s = _wait_s(http, deadline_s + _WAIT_GRACE_S)
        while True:
            known = self._service.submit(request)
            if isinstance(known, Answer):
                return _answered(known)
            # The last process may never have got to start it: then this request is its first.
            response = await self._awaited(known, wait_s)
            if response is not None:
                return response

    async def result(self, http: web.Request) -> web.Response:
        task_id = check_id("task", http.match_info["task_id"])
        known = self._service.find(task_id)
        if isinstance(known, Running):
            response = await self._awaited(known, _wait_s(http, 0.0))
            if response is not None:
                return response
        elif known is not None:
            return _answered(known)
        # Not through this router, or longer ago than it remembers: the conductor may know.
        coordination = await self._service.v2.known(task_id)
        if coordination is None:
            return _json({"error": f"task {task_id} is not known here", "task_id": task_id}, status=404)
        value = {"task_id": task_id, "state": coordination.as_json()["state"], "served": "v2"}
        return _json(
            value | {"coordination": coordination.as_json()}, status=200 if coordination.complete else 202
        )

    async def breaker(self, http: web.Request) -> web.Response:
        """Somebody's decision about the breaker."""
        if not control.may_control(control.peer_uid(http)):
            text = "only root and the router's user may move the breaker, over the Unix socket"
            return _json({"error": text}, status=403)
        state, reason, by = _decision(await _body(http))
        changed = self._service.breaker.order(state, reason, by)
        return _json({"changed": changed, "breaker": self._service.breaker.as_json()})

    async def healthy(self, _: web.Request) -> web.Response:
        return _json({"healthy": True})

    async def ready(self, _: web.Request) -> web.Response:
        """Ready while a task would be served by at least one version."""
        config = self._service.generation.config
        v1 = self._service.v1.command(config)[0]
        v1_there = config.v1_enabled and os.access(v1, os.X_OK) and Path(v1).is_file()
        try:
            await self._service.v2.ask({"verb": "health"})
            v2_there = True
        except (OSError, EOFError, CfnError):
            v2_there = False
        ready = v1_there or v2_there
        return _json({"ready": ready, "v1": v1_there, "v2": v2_there}, status=200 if ready else 503)

    async def status(self, _: web.Request) -> web.Response:
        return _json(self._status())

    async def metrics(self, _: web.Request) -> web.Response:
        service = self._service
        text = service.stats.exposition(
            {
                "v1_running": service.v1.gate.running,
                "v1_waiting": service.v1.gate.waiting,
                "v1_capacity": service.v1.capacity_per_s(service.generation.config),
                "events_lost": service.events.lost + service.notes.lost,
                "answers_lost": service.answers.lost,
                "config_problem": 1 if self._status()["config_problem"] else 0,
                "engine_silent_seconds": service.engine.silent_s,
                "connections": self._connections.open,
            },
            breaker=service.breaker.breaker.state,
            breaker_moves=service.breaker.moves,
            shadow=service.shadow.results,
        )
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    def _with_headers(self, http: web.Request, request: Request) -> Request:
        sticky_key = http.headers.get("X-Cfn-Sticky-Key")
        if sticky_key is not None:
            request = replace(request, sticky_key=check_sticky_key(sticky_key))
        override = http.headers.get("X-Cfn-Version")
        if override is None:
            return request
        allowed = self._service.generation.config.override_peers
        if not control.may_override(control.peer_uid(http), allowed):
            raise web.HTTPForbidden(reason="X-Cfn-Version is not allowed to this peer (CFN_OVERRIDE_PEERS)")
        return replace(request, override=check_override(override))

    async def _awaited(self, running: Running, wait_s: float) -> web.Response | None:
        """The answer of a task under way, or how far it is after `wait_s`; None if it never began."""
        if not running.run.done():
            await asyncio.wait([running.run], timeout=wait_s)
        if running.run.done() and not running.run.cancelled():
            answer = running.run.result()
            return None if answer is None else _answered(answer)
        task_id = running.job.task_id
        value: dict[str, Any] = {"task_id": task_id, "state": "running", "ask": f"/v1/coordinate/{task_id}"}
        value["elapsed_ms"] = round((asyncio.get_running_loop().time() - running.since_s) * 1000)
        states = await self._progress(task_id)
        return _json(value | ({"states": states} if states else {}), status=202)

    async def _progress(self, task_id: str) -> dict[str, int] | None:
        """How many agents are in each state so far, as far as that can be told."""
        states = self._service.v1.progress(task_id)
        if states is None and not self._service.engine.hangs:
            coordination = await self._service.v2.known(task_id, timeout_s=_PROGRESS_S)
            states = _counts(coordination) if coordination else None
        return states


def _around(connections: Connections) -> Middleware:
    @web.middleware
    async def around(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Every error is one JSON object, whoever raised it."""
        with connections.answering(request):
            try:
                return await handler(request)
            except UsageError as error:
                return _json({"error": str(error)}, status=400)
            except web.HTTPRequestEntityTooLarge:
                return _json({"error": f"the body is too large; allowed: {MAX_BODY_BYTES} bytes"}, status=413)
            except web.HTTPException as error:
                return _json({"error": error.reason}, status=error.status)

    return around


async def _body(http: web.Request) -> bytes:
    if http.content.is_eof():  # the usual case: it came with the head
        return await http.read()
    try:
        async with asyncio.timeout(BODY_S):
            return await http.read()
    except TimeoutError:
        raise web.HTTPRequestTimeout(reason=f"the body did not arrive within {BODY_S:g} s") from None


def _counts(coordination: Coordination) -> dict[str, int]:
    return dict(Counter(str(result.state) for result in coordination.results))


def _wait_s(http: web.Request, default_s: float) -> float:
    """How long the caller wants to wait (`wait_ms`). Raises UsageError."""
    text = http.query.get("wait_ms")
    if text is None:
        return default_s
    if not text.isdecimal() or len(text) > len(str(MAX_WAIT_MS)) or int(text) > MAX_WAIT_MS:
        raise UsageError(f"wait_ms is {text[:80]!r}; allowed: a whole number from 0 to {MAX_WAIT_MS}")
    return int(text) / 1000


def _decision(body: bytes) -> tuple[State, str, str]:
    """The state ordered, why and by whom. Raises UsageError."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"the body is not JSON: {error}") from error
    if not isinstance(value, dict) or set(value) != {"state", "reason", "by"}:
        raise UsageError("the body is not an object of state, reason and by")
    if value["state"] not in (State.OPEN, State.CLOSED):
        raise UsageError(f"state is {str(value['state'])[:80]!r}; allowed: open or closed")
    for field in ("reason", "by"):
        if not isinstance(value[field], str) or not 1 <= len(value[field].strip()) <= _REASON_CHARS:
            raise UsageError(f"{field}: a text of 1 to {_REASON_CHARS} characters is needed")
    return State(value["state"]), value["reason"], value["by"]


def _answered(answer: Answer) -> web.Response:
    response = web.Response(body=answer.body, status=answer.status, content_type="application/json")
    if answer.retry_after_s:
        response.headers["Retry-After"] = str(answer.retry_after_s)
    return response


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(value).encode(), status=status, content_type="application/json")
