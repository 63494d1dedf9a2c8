"""The client of a router, over its Unix socket or over HTTP, without an event loop.

router = RouterClient("unix:/run/cfn/router.sock")
status, answer = router.coordinate({"task_id": "nightly-7", "agents": 3}, answer_s=600)
assert answer["outcome"] == "done"
"""

import http.client
import json
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from cfn.errors import CfnError, DamagedError, NotRunningError, UsageError

_AGAIN_S = 0.1
# How long one question waits for news of a running task.
_NEWS_MS = 1_000
_GRACE_S = 5.0

Progress = Callable[[Mapping[str, Any]], None]


class AnswerLostError(NotRunningError):
    """The connection ended after the request was sent: the task may run, and can be asked for."""


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class RouterClient:
    """A router at `address`: `unix:/run/cfn/router.sock` or `http://HOST:PORT`.

    Each call makes one connection and blocks, at most `timeout_s` for each answer.
    """

    def __init__(self, address: str, *, timeout_s: float = 5.0) -> None:
        self.address = address
        self._timeout_s = timeout_s

    def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and JSON object. Raises NotRunningError if the router does not answer."""
        return self._ask("GET", path, None, self._timeout_s)

    def move_breaker(self, state: str, *, reason: str, by: str) -> dict[str, Any]:
        """Open or close the breaker. Raises NotRunningError, and CfnError if it is not allowed."""
        value = {"state": state, "reason": reason, "by": by}
        status, answer = self._ask("POST", "/v1/breaker", value, self._timeout_s)
        if status != 200:
            raise CfnError(f"the router did not move the breaker: {answer.get('error', status)}")
        return answer

    def coordinate(
        self,
        request: Mapping[str, Any],
        *,
        answer_s: float,
        sticky_key: str | None = None,
        progress: Progress | None = None,
    ) -> tuple[int, dict[str, Any]]:
        """Run a task and wait for its end, at most `answer_s`. `request` is the body of
        `POST /v1/coordinate` (docs/reference/router.md).

        Returns the last status and object: 200 with the answer, 202 if the task still runs, 400, 413,
        429 or 503 if it was refused and nothing was started. `progress` is called with what is known
        while it runs, about each second. If the router goes away meanwhile, the same id is asked for
        again, which starts nothing twice. Raises NotRunningError if nothing was sent, AnswerLostError
        if the router did not come back, DamagedError for what is no JSON.
        """
        headers = {} if sticky_key is None else {"X-Cfn-Sticky-Key": sticky_key}
        ends_s = time.monotonic() + answer_s
        sent = False
        while True:
            news_ms = max(0, min(_NEWS_MS, round((ends_s - time.monotonic()) * 1000)))
            path = f"/v1/coordinate?wait_ms={news_ms}"
            try:
                status, answer = self._ask("POST", path, request, news_ms / 1000 + _GRACE_S, headers)
                sent = True
                if status != 202 or time.monotonic() >= ends_s:
                    return status, answer
                if progress:
                    progress(answer)
            except NotRunningError as error:
                sent = sent or isinstance(error, AnswerLostError)
                if not sent:
                    raise
                if time.monotonic() >= ends_s:
                    raise AnswerLostError(str(error)) from error
                if progress:
                    progress({"task_id": request.get("task_id"), "state": "the router does not answer"})
                time.sleep(_AGAIN_S)

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self.address.startswith("unix:/"):
            return _UnixConnection(self.address.removeprefix("unix:"), timeout_s)
        parts = urlsplit(self.address)
        if parts.scheme != "http" or not parts.hostname:
            raise UsageError(f"router {self.address!r}: unix:/PATH and http://HOST:PORT are allowed")
        return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout_s)

    def _ask(
        self,
        method: str,
        path: str,
        value: Mapping[str, Any] | None,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[int, dict[str, Any]]:
        connection = self._connection(timeout_s)
        failed: type[NotRunningError] = NotRunningError
        try:
            connection.connect()
            failed = AnswerLostError
            body = None if value is None else json.dumps(value).encode()
            connection.request(method, path, body=body, headers=dict(headers or {}))
            response = connection.getresponse()
            return response.status, dict(json.loads(response.read()))
        except (OSError, http.client.HTTPException) as error:
            raise failed(
                f"the router does not answer at {self.address} ({error}); look at "
                "`systemctl status cfn-router.socket cfn-router.service` and start them"
            ) from error
        except ValueError as error:
            raise DamagedError(f"{self.address} answered what is not JSON: {error}") from error
        finally:
            connection.close()
