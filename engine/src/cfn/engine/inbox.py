"""Agents' inboxes: bounded, in tmpfs, so that an accepted message survives the conductor.

One file for each agent, one JSON line for each message. A line that a crash tore is dropped: its
sender was never told that it was stored. `recv` removes what it read after it has answered, so a
crash in between repeats a message (its number is the same) and loses none.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfn.errors import RefusedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One stored message. `number` is unique in its swarm's inboxes."""

    number: int
    sender: str
    kind: str
    payload_b64: str

    def as_json(self) -> dict[str, Any]:
        """As sockets and the file carry it."""
        return {
            "message": self.number,
            "from": self.sender,
            "type": self.kind,
            "payload_b64": self.payload_b64,
        }


class Inboxes:
    """The inboxes of one swarm, below a folder that this object makes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._messages: dict[str, list[Message]] = {}
        for file in folder.iterdir():
            self._messages[file.name] = _load(file)
        self._last = max((m.number for box in self._messages.values() for m in box), default=0)

    def put(self, receiver: str, sender: str, kind: str, payload_b64: str, bound: int) -> int:
        """Store a message and return its number. Raises RefusedError when the inbox is full, OSError
        without room."""
        box = self._messages.setdefault(receiver, [])
        if len(box) >= bound:
            raise RefusedError(
                f"the inbox of {receiver} holds {len(box)} messages, its bound "
                "(CFN_MAX_INBOX); recv empties it"
            )
        message = Message(number=self._last + 1, sender=sender, kind=kind, payload_b64=payload_b64)
        line = json.dumps(message.as_json()).encode() + b"\n"
        path = self._folder / receiver
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640
        )
        try:
            size = os.fstat(descriptor).st_size
            if os.write(descriptor, line) != len(line):
                os.ftruncate(descriptor, size)
                raise OSError("no room in tmpfs for the message")
        finally:
            os.close(descriptor)
        self._last = message.number
        box.append(message)
        return message.number

    def messages(self, receiver: str) -> Sequence[Message]:
        """What an inbox holds, oldest first."""
        return tuple(self._messages.get(receiver, ()))

    def drained(self, receiver: str) -> None:
        """An inbox was read: empty it."""
        self._messages.pop(receiver, None)
        (self._folder / receiver).unlink(missing_ok=True)

    def count(self, receiver: str | None = None) -> int:
        """Messages in one inbox, or in all."""
        if receiver is not None:
            return len(self._messages.get(receiver, ()))
        return sum(map(len, self._messages.values()))

    def remove(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


def _load(file: Path) -> list[Message]:
    found = []
    raw = file.read_bytes()
    whole = raw.rfind(b"\n") + 1
    if whole != len(raw):
        os.truncate(file, whole)  # else the next message would be glued to the torn one
    for line in raw[:whole].splitlines():
        try:
            value = json.loads(line)
            found.append(
                Message(
                    number=value["message"],
                    sender=value["from"],
                    kind=value["type"],
                    payload_b64=value["payload_b64"],
                )
            )
        except (ValueError, KeyError, TypeError):
            continue
    return found
