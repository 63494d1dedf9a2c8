"""A small synchronous client of the conductor."""

import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from cfn.errors import CfnError, DamagedError, NotRunningError

CONNECT_TIMEOUT_S = 5.0


class Client:
    """One connection, opened by `Client(path)` and closed by `close` or `with`.

    Raises NotRunningError when nobody answers at the socket.
    """

    def __init__(self, path: Path, *, timeout_s: float | None = None) -> None:
        """`timeout_s` bounds the wait for each answer; None waits for as long as the request takes."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(CONNECT_TIMEOUT_S)
        try:
            self._socket.connect(str(path))
        except OSError as error:
            self._socket.close()
            raise NotRunningError(
                f"the conductor does not answer at {path}: {error.strerror or error}"
            ) from error
        self._socket.settimeout(timeout_s)
        self._file = self._socket.makefile("rb")

    def request(self, value: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Send one request now and yield the answers as they come; the caller stops at the final one.

        Blocks between answers. Raises NotRunningError when the connection ends or times out first,
        DamagedError for an answer that is no JSON object.
        """
        try:
            with suppress(BrokenPipeError):  # a request that is cut off is answered all the same
                self._socket.sendall(json.dumps(value).encode() + b"\n")
        except OSError as error:
            raise NotRunningError(f"the conductor at {self._path} takes no request: {error}") from error
        return self._answers()

    def _answers(self) -> Iterator[dict[str, Any]]:
        try:
            while line := self._file.readline():
                yield _object(line)
        except OSError as error:
            raise NotRunningError(f"the conductor at {self._path} stopped answering: {error}") from error
        raise NotRunningError(f"the conductor at {self._path} closed the connection before it answered")

    def final(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """Send one request and return its final answer: the first that is not an interim state.

        Raises as `request`; an answer with `error` is returned, see `raise_error`.
        """
        for answer in self.request(value):
            if set(answer) != {"state", "task_id"}:
                return answer
        raise NotRunningError(f"the conductor at {self._path} closed the connection")

    def close(self) -> None:
        """Close the connection; a running request goes on without this caller."""
        self._file.close()
        self._socket.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def raise_error(answer: Mapping[str, Any]) -> None:
    """Raise an answer's `error` as a CfnError with its exit code; do nothing for other answers."""
    if "error" in answer:
        error = CfnError(str(answer["error"]))
        error.exit_code = int(answer.get("exit_code", error.exit_code))
        raise error


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise DamagedError(f"the conductor's answer is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise DamagedError("the conductor's answer is no JSON object")
    return value
