"""Ask a router over its Unix socket or over HTTP on a host, without an event loop."""

import http.client
import json
import socket
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from cfn.errors import CfnError, DamagedError, NotRunningError, UsageError

_AGAIN_S = 0.1


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
        status, answer = self._ask(
            "POST", "/v1/breaker", {"state": state, "reason": reason, "by": by}, self._timeout_s
        )
        if status != 200:
            raise CfnError(f"the router did not move the breaker: {answer.get('error', status)}")
        return answer

    def coordinate(self, request: Mapping[str, Any], *, answer_s: float) -> tuple[int, dict[str, Any]]:
        """Run a task and wait for its end, at most `answer_s`; asks again while it still runs.

        Returns the last status and object. Raises NotRunningError.
        """
        ends_s = time.monotonic() + answer_s
        status, answer = self._ask("POST", "/v1/coordinate", request, answer_s)
        while status == 202 and time.monotonic() < ends_s:
            time.sleep(_AGAIN_S)
            status, answer = self.get(f"/v1/coordinate/{request['task_id']}")
        return status, answer

    def _connection(self, timeout_s: float) -> http.client.HTTPConnection:
        if self.address.startswith("unix:/"):
            return _UnixConnection(self.address.removeprefix("unix:"), timeout_s)
        parts = urlsplit(self.address)
        if parts.scheme != "http" or not parts.hostname:
            raise UsageError(f"router {self.address!r}: unix:/PATH and http://HOST:PORT are allowed")
        return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=timeout_s)

    def _ask(
        self, method: str, path: str, value: Mapping[str, Any] | None, timeout_s: float
    ) -> tuple[int, dict[str, Any]]:
        connection = self._connection(timeout_s)
        try:
            body = None if value is None else json.dumps(value).encode()
            connection.request(method, path, body=body)
            response = connection.getresponse()
            return response.status, dict(json.loads(response.read()))
        except (OSError, http.client.HTTPException) as error:
            raise NotRunningError(
                f"the router does not answer at {self.address} ({error}); look at "
                "`systemctl status cfn-router.socket cfn-router.service` and start them"
            ) from error
        except ValueError as error:
            raise DamagedError(f"{self.address} answered what is not JSON: {error}") from error
        finally:
            connection.close()
