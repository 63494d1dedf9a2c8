# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Call hooks: a webhook, a mail, a command. Each in a thread of its own, so that one that hangs holds up
nobody; standard library only."""

from __future__ import annotations

import json
import os
import queue
import signal
import smtplib
import ssl
import subprocess
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email.message import EmailMessage
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

NEEDS = {"webhook": "url", "mail": "to", "command": "argv"}
SHOWN_CHARS = 300

Hook = Mapping[str, Any]


def title(hook: Hook) -> str:
    """What a hook is called in messages; never its whole URL, which may hold a secret."""
    if hook["name"]:
        return str(hook["name"])
    if hook["kind"] == "webhook":
        return f"webhook to {urlsplit(hook['url'] or '').hostname or 'nowhere'}"
    if hook["kind"] == "mail":
        return f"mail to {', '.join(hook['to'] or [])}"
    return f"command {(hook['argv'] or ['?'])[0]}"


def problems(hook: Hook) -> list[str]:
    """Why a hook cannot be called at all, in words."""
    needed = NEEDS[hook["kind"]]
    found = [] if hook[needed] else [f"{needed} is missing"]
    if hook["kind"] == "webhook" and hook["url"] and not hook["url"].startswith(("http://", "https://")):
        found.append("url must begin with http:// or https://")
    if hook["kind"] == "mail" and hook["user"] and not hook["tls"]:
        found.append("user needs tls: true, or the password crosses the network in clear")
    return found


def deliver(
    hooks: Sequence[Hook], notice: Mapping[str, Any], timeout_s: float
) -> tuple[list[str], list[str]]:
    """Call all of them at once: which took it, and which did not and why. Blocks as long as the longest
    timeout at most, whatever a hook does; a thread that hangs ends with the process."""
    done: queue.Queue[tuple[int, str]] = queue.Queue()
    started_s = time.monotonic()
    limits_s = [float(hook["timeout_s"] or timeout_s) for hook in hooks]

    def call(number: int) -> None:
        hook = hooks[number]
        try:
            _CALLS[hook["kind"]](hook, notice, limits_s[number])
        except Exception as error:  # whatever a hook does, the others are called
            done.put((number, _why(hook, error)))
        else:
            done.put((number, ""))

    for number in range(len(hooks)):
        threading.Thread(target=call, args=(number,), daemon=True).start()
    answers: dict[int, str] = {}
    while len(answers) < len(hooks):
        waiting = [limits_s[number] for number in range(len(hooks)) if number not in answers]
        # A command is killed at its limit and says so itself; this is for what cannot be interrupted.
        left_s = started_s + max(waiting) + 0.5 - time.monotonic()
        try:
            number, why = done.get(timeout=max(0.0, left_s))
        except queue.Empty:
            break
        answers[number] = why
    whys = {
        number: answers.get(number, f"no end within {limits_s[number]:g} s") for number in range(len(hooks))
    }
    sent = [title(hooks[number]) for number, why in whys.items() if not why]
    return sent, [f"{title(hooks[number])}: {why}" for number, why in whys.items() if why]


def _why(hook: Hook, error: Exception) -> str:
    words = " ".join(f"{type(error).__name__}: {error}".split())[:SHOWN_CHARS]
    url = hook.get("url")
    return words.replace(url, "its url") if url else words


def _secret(hook: Hook, value: str, file: str) -> str:
    if hook.get(value):
        return str(hook[value])
    return Path(hook[file]).read_text().strip() if hook.get(file) else ""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry the token to another host."""

    def redirect_request(self, *_arguments: object, **_named: object) -> None:
        """Follow none."""


def _webhook(hook: Hook, notice: Mapping[str, Any], timeout_s: float) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "cfn-rollout"}
    token = _secret(hook, "token", "token_file")
    if token:
        headers["Authorization"] = f"Bearer {token}"
    request = urllib.request.Request(  # noqa: S310 - only http and https get here
        hook["url"], data=json.dumps(notice).encode(), headers=headers, method="POST"
    )
    opener = urllib.request.build_opener(_NoRedirect)
    with opener.open(request, timeout=timeout_s):
        pass


def _mail(hook: Hook, notice: Mapping[str, Any], timeout_s: float) -> None:
    message = EmailMessage()
    message["Subject"] = " ".join(notice["subject"].split())
    message["From"], message["To"] = hook["sender"], ", ".join(hook["to"])
    message.set_content(notice["text"])
    host, _, port = hook["smtp"].partition(":")
    with smtplib.SMTP(host, int(port or 25), timeout=timeout_s) as server:
        if hook["tls"]:
            server.starttls(context=ssl.create_default_context())  # the default one believes anybody
        if hook["user"]:
            server.login(hook["user"], _secret(hook, "password", "password_file"))
        server.send_message(message)


def _command(hook: Hook, notice: Mapping[str, Any], timeout_s: float) -> None:
    process = subprocess.Popen(
        hook["argv"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        cwd="/",
    )
    try:
        _, errors = process.communicate(json.dumps(notice).encode(), timeout=timeout_s)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its children too
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {errors.decode(errors='replace').strip()}")


_CALLS = {"webhook": _webhook, "mail": _mail, "command": _command}
