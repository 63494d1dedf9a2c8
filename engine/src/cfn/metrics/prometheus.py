"""Asking a Prometheus, and believing nothing but a complete answer."""

import json
import math
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Any

from cfn.errors import CfnError, UsageError
from cfn.metrics import checks

MAX_ANSWER_BYTES = 268_435_456
MAX_POINTS = 10_000  # a Prometheus refuses more than 11,000 of a series

Labels = tuple[tuple[str, str], ...]
# By instance and the other labels that were asked for: the value at each moment, in ms since 1970.
Matrix = dict[str, dict[Labels, dict[int, float]]]


class PrometheusError(CfnError):
    """The source did not answer, or its answer cannot be trusted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A Prometheus. The token is read from its file for each query and never shown."""

    url: str
    token_file: Path | None = None
    ca_file: Path | None = None
    timeout_s: float = 30.0

    def __post_init__(self) -> None:
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise UsageError(f"{self.url!r} is refused: an http or https address of a Prometheus is allowed")
        if parts.username or parts.password:
            raise UsageError("a user or password in the address is refused: put a token into a file")
        if not 0 < self.timeout_s <= 600:
            raise UsageError(
                f"timeout of {self.timeout_s:g} s is refused: above 0, at most 600 s are allowed"
            )

    def query_range(
        self, query: str, *, labels: tuple[str, ...], start_ms: int, end_ms: int, step_ms: int
    ) -> Matrix:
        """The values of a query at each step, by `instance` and `labels`.

        Blocks up to the timeout for every MAX_POINTS steps. Raises PrometheusError; also for a warning
        (the answer may be partial) and for two series where the labels allow one. NaN and infinities
        are kept: the caller counts them.
        """
        found: Matrix = {}
        while start_ms <= end_ms:
            last_ms = min(end_ms, start_ms + (MAX_POINTS - 1) * step_ms)
            answer = self._ask(
                {
                    "query": query,
                    "start": f"{start_ms / 1_000:.3f}",
                    "end": f"{last_ms / 1_000:.3f}",
                    "step": f"{step_ms / 1_000:g}",
                    "timeout": f"{self.timeout_s:g}s",
                }
            )
            _merge(found, answer, labels, query)
            start_ms = last_ms + step_ms
        return found

    def _ask(self, parameters: Mapping[str, str]) -> list[Any]:
        request = urllib.request.Request(  # noqa: S310 - the scheme was checked
            f"{self.url.rstrip('/')}/api/v1/query_range",
            data=urllib.parse.urlencode(parameters).encode(),
            headers=self._headers(),
        )
        opener = urllib.request.build_opener(
            urllib.request.HTTPSHandler(context=self._context()), _NoRedirect()
        )
        try:
            with opener.open(request, timeout=self.timeout_s) as response:
                content = response.read(MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            detail = _reason(error.read(65_536))
            raise PrometheusError(f"{self.url} answered {error.code}: {detail or error.reason}") from None
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise PrometheusError(f"{self.url} did not answer: {reason}") from None
        if len(content) > MAX_ANSWER_BYTES:
            raise PrometheusError(f"{self.url} answered with more than {MAX_ANSWER_BYTES} bytes")
        return self._checked(content)

    def _checked(self, content: bytes) -> list[Any]:
        try:
            answer = json.loads(content)
            if not isinstance(answer, dict) or answer.get("status") != "success":
                raise ValueError("not a success")
            if answer.get("warnings"):
                raise ValueError(f"it warns: {'; '.join(map(str, answer['warnings']))[:500]}")
            data = checks.mapping(answer.get("data"), "data")
            checks.one_of(data.get("resultType"), "resultType", ("matrix",))
            return checks.sequence(data.get("result"), "result")
        except (ValueError, RecursionError) as error:
            shown = content[:120].decode(errors="replace")
            raise PrometheusError(
                f"{self.url} gave an answer that cannot be trusted: {error}; it begins {shown!r}"
            ) from None

    def _headers(self) -> dict[str, str]:
        if self.token_file is None:
            return {}
        try:
            token = self.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise PrometheusError(f"{self.token_file}: the token cannot be read: {error}") from None
        if not token or not token.isascii() or not token.isprintable():
            raise PrometheusError(f"{self.token_file} holds no token: one line of printable text is allowed")
        return {"Authorization": f"Bearer {token}"}

    def _context(self) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))
        except OSError as error:
            raise PrometheusError(f"{self.ca_file}: the certificates cannot be read: {error}") from None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token elsewhere."""

    def redirect_request(
        self,
        req: urllib.request.Request,  # noqa: ARG002
        fp: IO[bytes],  # noqa: ARG002
        code: int,  # noqa: ARG002
        msg: str,  # noqa: ARG002
        headers: HTTPMessage,  # noqa: ARG002
        newurl: str,  # noqa: ARG002
    ) -> None:
        return None


def _reason(content: bytes) -> str:
    """What the Prometheus says is wrong."""
    try:
        return str(json.loads(content).get("error", ""))[:500]
    except (ValueError, AttributeError, RecursionError):
        return ""


def _merge(found: Matrix, result: list[Any], labels: tuple[str, ...], query: str) -> None:
    seen: set[tuple[str, Labels]] = set()
    try:
        for each in result:
            metric = checks.mapping(each.get("metric"), "metric")
            instance = checks.text(metric.get("instance"), "instance")
            key = tuple((name, checks.text(metric.get(name), f"label {name}")) for name in labels)
            if (instance, key) in seen:
                what = ", ".join(f"{name}={value}" for name, value in (("instance", instance), *key))
                raise ValueError(f"two series where one is expected, of {what}")
            seen.add((instance, key))
            values = found.setdefault(instance, {}).setdefault(key, {})
            for moment, value in checks.sequence(each.get("values"), "values"):
                values[round(checks.number(moment, "moment") * 1_000)] = float(checks.text(value, "value"))
    except (ValueError, TypeError, AttributeError) as error:
        raise PrometheusError(f"the answer to {query} cannot be trusted: {error}") from None


def finite(values: Mapping[int, float]) -> dict[int, float]:
    """The values that are values."""
    return {moment: value for moment, value in values.items() if math.isfinite(value)}
