"""The router's HTTP interface. Handlers read, ask the service and write; they decide nothing."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from cfn.errors import CfnError, UsageError
from cfn.ids import check_id
from cfn.router.job import is_refusal
from cfn.router.request import parse_request
from cfn.router.service import Service

MAX_BODY_BYTES = 1024 * 1024
# Beyond the deadline, so that what the deadline itself ends is still answered at once.
_WAIT_GRACE_S = 2.0


def application(service: Service, status: Callable[[], dict[str, Any]]) -> web.Application:
    """The application; `status` gives the object of `/status`."""
    handlers = _Handlers(service, status)
    app = web.Application(client_max_size=MAX_BODY_BYTES, middlewares=[_errors])
    app.add_routes(
        [
            web.post("/v1/coordinate", handlers.coordinate),
            web.get("/v1/coordinate/{task_id}", handlers.result),
            web.get("/healthz", handlers.healthy),
            web.get("/readyz", handlers.ready),
            web.get("/status", handlers.status),
            web.get("/metrics", handlers.metrics),
        ]
    )
    return app


class _Handlers:
    def __init__(self, service: Service, status: Callable[[], dict[str, Any]]) -> None:
        self._service = service
        self._status = status

    async def coordinate(self, http: web.Request) -> web.Response:
        config = self._service.generation.config
        request = parse_request(await http.read(), max_payload_bytes=config.max_payload_bytes)
        deadline_ms = request.deadline_ms or config.coordination_deadline_ms
        while True:
            known = self._service.submit(request)
            if isinstance(known, bytes):
                return _answered(known)
            done, _ = await asyncio.wait([known], timeout=deadline_ms / 1000 + _WAIT_GRACE_S)
            if not done or known.cancelled():
                return _running(request.task_id)
            body = known.result()
            if body is not None:
                return _answered(body)
            # The last process never got to start it, so this request is its first.

    async def result(self, http: web.Request) -> web.Response:
        task_id = check_id("task", http.match_info["task_id"])
        known = self._service.find(task_id)
        if isinstance(known, bytes):
            return _answered(known)
        if known is not None:
            return _running(task_id)
        # Not through this router, or longer ago than it remembers: the conductor may know.
        coordination = await self._service.v2.known(task_id)
        if coordination is None:
            return _json({"error": f"task {task_id} is not known here", "task_id": task_id}, status=404)
        value = {"task_id": task_id, "state": coordination.as_json()["state"], "served": "v2"}
        return _json(
            value | {"coordination": coordination.as_json()}, status=200 if coordination.complete else 202
        )

    async def healthy(self, _: web.Request) -> web.Response:
        return _json({"healthy": True})

    async def ready(self, _: web.Request) -> web.Response:
        """Ready while a task would be served by at least one version."""
        v1 = self._service.v1.command(self._service.generation.config)[0]
        v1_there = os.access(v1, os.X_OK) and Path(v1).is_file()
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
            v1_running=service.v1.gate.running,
            v1_waiting=service.v1.gate.waiting,
            events_lost=service.events.lost,
            answers_lost=service.answers.lost,
            config_problem=1 if self._status()["config_problem"] else 0,
        )
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error is one JSON object, whoever raised it."""
    try:
        return await handler(request)
    except UsageError as error:
        return _json({"error": str(error)}, status=400)
    except web.HTTPRequestEntityTooLarge:
        return _json({"error": f"the body is too large; allowed: {MAX_BODY_BYTES} bytes"}, status=413)
    except web.HTTPException as error:
        return _json({"error": error.reason}, status=error.status)


def _answered(body: bytes) -> web.Response:
    status = 503 if is_refusal(body) else 200
    return web.Response(body=body, status=status, content_type="application/json")


def _running(task_id: str) -> web.Response:
    value = {"task_id": task_id, "state": "running", "ask": f"/v1/coordinate/{task_id}"}
    return _json(value, status=202)


def _json(value: object, *, status: int = 200) -> web.Response:
    return web.Response(body=json.dumps(value).encode(), status=status, content_type="application/json")
