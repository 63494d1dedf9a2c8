"""The conductor's journal of requests: ACCEPT and COMPLETE, one folder and one file for each.

    journal/<task>/accept.json    the request, written before anybody is told "accepted"
    journal/<task>/claims         the agents' claims (claims.py)
    journal/<task>/output-<n>     outputs too long for a record
    results/<task>.json           the outcome, written before the caller is told; then the folder goes

Every file appears whole, by a rename, so a SIGKILL leaves nothing torn. No fsync: tmpfs has no disk.
"""

import base64
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from cfn.coordination import Coordination
from cfn.engine import claims
from cfn.engine.log import log
from cfn.errors import DamagedError


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One accepted coordination. Times are seconds on the monotonic clock, which all processes of
    a host share and which ends with tmpfs, at a reboot. `swarm_id` is empty for a swarm of its own."""

    task_id: str
    agents: tuple[str, ...]
    payload: bytes
    deadline_ms: int
    swarm_id: str
    accepted_at_s: float

    @property
    def deadline_at_s(self) -> float:
        """When what is not claimed will be given up."""
        return self.accepted_at_s + self.deadline_ms / 1000


class Store:
    """The journal below one folder. A task id is a valid identifier, so it is a file name as it is."""

    def __init__(self, folder: Path) -> None:
        self._journal = folder / "journal"
        self._results = folder / "results"
        for part in (self._journal, self._results):
            part.mkdir(mode=0o750, exist_ok=True)

    def folder(self, task_id: str) -> Path:
        """Where the request's claims are."""
        return self._journal / task_id

    def accept(self, request: Request) -> None:
        """Journal a request. From the return of this call on it will end, whoever dies.

        Raises OSError when tmpfs has no room; nothing is left then.
        """
        folder = self.folder(request.task_id)
        try:
            folder.mkdir(mode=0o750)
            claims.create(folder, len(request.agents))
            value = {
                "task_id": request.task_id,
                "agents": request.agents,
                "payload_b64": base64.b64encode(request.payload).decode(),
                "deadline_ms": request.deadline_ms,
                "swarm_id": request.swarm_id,
                "accepted_at_s": request.accepted_at_s,
            }
            replace(folder / "accept.json", json.dumps(value))
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def complete(self, outcome: Coordination) -> None:
        """Store an outcome and forget the request behind it. Raises OSError without room."""
        replace(self._results / f"{outcome.task_id}.json", json.dumps(outcome.as_json()))
        shutil.rmtree(self.folder(outcome.task_id), ignore_errors=True)

    def result(self, task_id: str) -> Coordination | None:
        """The stored outcome of a request, or None. Raises DamagedError."""
        try:
            text = (self._results / f"{task_id}.json").read_text()
        except FileNotFoundError:
            return None
        try:
            return Coordination.from_json(json.loads(text))
        except ValueError as error:
            raise DamagedError(f"the stored result of {task_id} cannot be read: {error}") from error

    def open_requests(self) -> list[Request]:
        """The requests that a crash left open, oldest first. Removes what was never accepted, and
        what was complete but for its folder's removal."""
        found = []
        for folder in self._journal.iterdir():
            if (self._results / f"{folder.name}.json").exists():
                shutil.rmtree(folder, ignore_errors=True)
                continue
            try:
                found.append(_request(json.loads((folder / "accept.json").read_text())))
            except FileNotFoundError:
                shutil.rmtree(folder, ignore_errors=True)
            except (ValueError, DamagedError) as error:  # left as it is, for a person to look at
                log("accepted request cannot be read", folder=str(folder), reason=str(error))
        return sorted(found, key=lambda request: request.accepted_at_s)


def _request(value: dict[str, object]) -> Request:
    try:
        agents = value["agents"]
        if not isinstance(agents, list):
            raise TypeError(agents)
        return Request(
            task_id=str(value["task_id"]),
            agents=tuple(map(str, agents)),
            payload=base64.b64decode(str(value["payload_b64"])),
            deadline_ms=int(str(value["deadline_ms"])),
            swarm_id=str(value["swarm_id"]),
            accepted_at_s=float(str(value["accepted_at_s"])),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedError(f"not an accepted request: {error!r}") from error


def replace(path: Path, text: str) -> None:
    """Put `text` at `path` in one step."""
    temporary = path.with_name(f".{path.name[:200]}.new")
    descriptor = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640
    )
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
