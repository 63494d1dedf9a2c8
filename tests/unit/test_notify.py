"""Hooks: a webhook on a real server, a command; none fails or holds up what it tells of."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from module_utils.notify_hooks import deliver
from tests.conftest import RunModule

NOTICE = {
    "event": "incident",
    "subject": "P1 in lab",
    "text": "V2 slow\nsince noon",
    "data": {"severity": "P1"},
}
TOKEN = "T0ken-of-the-hook"  # noqa: S105 - test data


class Server(ThreadingHTTPServer):
    """Keeps what it was sent."""

    daemon_threads = True
    seen: list[tuple[str, str, Any]]
    hang = threading.Event()


class Handler(BaseHTTPRequestHandler):
    """`/ok` takes it, `/no` refuses, `/hang` never answers, `/away` sends elsewhere."""

    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append((self.path, self.headers.get("Authorization", ""), json.loads(body)))
        if self.path == "/hang":
            self.server.hang.wait(30)
        self.send_response({"/no": 500, "/away": 307}.get(self.path, 204))
        if self.path == "/away":
            self.send_header("Location", "/ok")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server(("127.0.0.1", 0), Handler) as running:
        running.seen = []
        running.hang = threading.Event()
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.hang.set()
        running.shutdown()


def url(server: Server, path: str) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}{path}"


def test_a_webhook_gets_the_notice_and_its_token_from_a_file(
    server: Server, run_module: RunModule, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    hook = {"kind": "webhook", "url": url(server, "/ok"), "token_file": str(tmp_path / "token")}
    result = run_module("cfn_notify", hooks=[hook], **NOTICE)
    assert (result["sent"], result["unsent"]) == (["webhook to 127.0.0.1"], [])
    assert server.seen == [("/ok", f"Bearer {TOKEN}", NOTICE)]
    assert TOKEN not in json.dumps(result)


def test_a_token_and_a_url_that_were_given_are_in_no_result(server: Server, run_module: RunModule) -> None:
    hook = {"kind": "webhook", "url": url(server, "/no"), "token": TOKEN}
    result = run_module("cfn_notify", hooks=[hook], **NOTICE)
    assert result["unsent"] == ["webhook to 127.0.0.1: HTTPError: HTTP Error 500: Internal Server Error"]
    assert TOKEN not in json.dumps(result)
    assert "/no" not in json.dumps(result)


def test_a_token_is_not_carried_along_by_a_redirect(server: Server, run_module: RunModule) -> None:
    result = run_module(
        "cfn_notify", hooks=[{"kind": "webhook", "url": url(server, "/away"), "token": TOKEN}], **NOTICE
    )
    assert len(result["unsent"]) == 1
    assert [path for path, _, _ in server.seen] == ["/away"]


def test_a_hook_that_hangs_holds_up_nobody_beyond_its_limit(server: Server, tmp_path: Path) -> None:
    out = tmp_path / "out"
    slow = {"kind": "webhook", "name": "slow", "url": url(server, "/hang"), "timeout_s": 0.5}
    stuck = ["sh", "-c", "trap '' TERM; sleep 60 & wait"]
    hooks: list[dict[str, Any]] = [
        {**slow, "token": None, "token_file": None},
        {"kind": "command", "name": "stuck", "argv": stuck, "timeout_s": 0.5},
        {"kind": "command", "name": "quick", "argv": ["sh", "-c", f"cat > {out}"], "timeout_s": None},
    ]
    # The server would answer in the end, and the command end: then both were told.
    sent, unsent = deliver(hooks, NOTICE, 10.0)
    assert sent == ["quick"]
    assert json.loads(out.read_text()) == NOTICE
    assert [each.split(":")[0] for each in unsent] == ["slow", "stuck"]


def test_a_command_that_fails_says_why(run_module: RunModule) -> None:
    hook = {"kind": "command", "name": "pager", "argv": ["sh", "-c", "echo no line >&2; exit 3"]}
    result = run_module("cfn_notify", hooks=[hook], **NOTICE)
    assert result["unsent"] == ["pager: RuntimeError: exit code 3: no line"]
    assert not result.get("failed")


def test_hooks_may_ask_for_some_events_only(run_module: RunModule) -> None:
    hooks = [
        {"kind": "command", "name": "all", "argv": ["true"]},
        {"kind": "command", "name": "others", "argv": ["true"], "events": ["rolled_back"]},
        {"kind": "command", "name": "these", "argv": ["true"], "events": ["incident"]},
    ]
    assert sorted(run_module("cfn_notify", hooks=hooks, **NOTICE)["sent"]) == ["all", "these"]


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        ({"kind": "webhook", "name": "w"}, "w: url is missing"),
        ({"kind": "webhook", "name": "w", "url": "file:///etc/shadow"}, "w: url must begin with http"),
        ({"kind": "mail", "name": "m"}, "m: to is missing"),
        ({"kind": "mail", "name": "m", "to": ["a@example.org"], "user": "u"}, "m: user needs tls"),
        ({"kind": "command", "name": "c"}, "c: argv is missing"),
    ],
)
def test_a_hook_that_cannot_work_is_said_also_in_check_mode(
    run_module: RunModule, hook: dict[str, Any], problem: str
) -> None:
    for check_mode in (True, False):
        result = run_module("cfn_notify", check_mode=check_mode, hooks=[hook], **NOTICE)
        assert result["unsent"][0].startswith(problem)


def test_check_mode_tells_nobody(server: Server, run_module: RunModule) -> None:
    result = run_module(
        "cfn_notify", check_mode=True, hooks=[{"kind": "webhook", "url": url(server, "/ok")}], **NOTICE
    )
    assert (result["sent"], server.seen) == ([], [])
