"""Where a lab lives on disk, and what it remembers.

::

    STATE_ROOT/NAME.lock           held by the one command that changes the lab
    STATE_ROOT/NAME/state.json     this file's LabState
    STATE_ROOT/NAME/id_ed25519     the lab's key, and its .pub
    STATE_ROOT/NAME/known_hosts
    STATE_ROOT/NAME/hosts/HOST/    see host.py

The state file says what was asked for (addresses, groups, sizes). What *is* (running or not) is
always read from the system.
"""

import json
import os
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from lab import names
from lab.errors import LabError, UsageError
from lab.files import write_atomic

STATE_ROOT_ENV = "CFN_LAB_STATE"
CACHE_ROOT_ENV = "CFN_LAB_CACHE"
# Blanks, commas, colons and quotes separate things in ssh options and overlay options.
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9._/+@=-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """One host as it was made."""

    name: str
    address: str
    groups: tuple[str, ...]
    shm_mb: int
    nofile: int
    bash: str | None
    image: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LabState:
    """One lab. ``subnet`` is its /24, such as ``10.86.3.0/24``; the machine has the first address.

    ``outputs`` are the files written for others (kind and absolute path), removed by ``down``.
    """

    name: str
    lab_id: str
    subnet: str
    hosts: dict[str, HostState] = field(default_factory=dict)
    outputs: tuple[tuple[str, str], ...] = ()

    @property
    def bridge(self) -> str:
        return names.bridge_name(self.lab_id)

    def with_host(self, host: HostState) -> "LabState":
        return replace(self, hosts=self.hosts | {host.name: host})

    def without_host(self, name: str) -> "LabState":
        return replace(self, hosts={k: v for k, v in self.hosts.items() if k != name})


@dataclass(frozen=True, slots=True, kw_only=True)
class Paths:
    """The folders of one lab."""

    state_root: Path
    cache_root: Path
    name: str

    @property
    def lab_id(self) -> str:
        return names.lab_id(self.state_root, self.name)

    @property
    def lab(self) -> Path:
        return self.state_root / self.name

    @property
    def lock(self) -> Path:
        return self.state_root / f"{self.name}.lock"

    @property
    def state_file(self) -> Path:
        return self.lab / "state.json"

    @property
    def key(self) -> Path:
        return self.lab / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        return self.lab / "known_hosts"

    @property
    def hosts(self) -> Path:
        return self.lab / "hosts"

    def host(self, name: str) -> Path:
        return self.hosts / name


def paths(name: str) -> Paths:
    """The folders of the lab *name*, as the environment has them. Raises UsageError."""
    return Paths(
        state_root=_root(STATE_ROOT_ENV, "/var/lib/cfn-lab"),
        cache_root=_root(CACHE_ROOT_ENV, "/var/cache/cfn-lab"),
        name=names.check_name("lab", name),
    )


def _root(variable: str, default: str) -> Path:
    value = os.environ.get(variable) or default
    if not _PLAIN_PATH.fullmatch(value):
        raise UsageError(
            f"{variable}={value!r}: need an absolute path of letters, digits and ._/+@=- only "
            f"(it becomes part of mount and ssh options)"
        )
    return Path(os.path.realpath(value))


def to_json(state: LabState) -> str:
    return json.dumps(asdict(state), indent=2, sort_keys=True) + "\n"


def from_json(text: str) -> LabState:
    """The inverse of to_json. Raises KeyError, TypeError or ValueError on anything else."""
    raw: dict[str, Any] = json.loads(text)
    hosts = {
        name: HostState(**{**host, "groups": tuple(host["groups"])})
        for name, host in raw.pop("hosts").items()
    }
    outputs = tuple((kind, path) for kind, path in raw.pop("outputs"))
    return LabState(hosts=hosts, outputs=outputs, **raw)


def load(where: Paths) -> LabState | None:
    """What is remembered of a lab; None if there is none. Raises LabError if it is unreadable."""
    try:
        text = where.state_file.read_text()
    except FileNotFoundError:
        return None
    try:
        return from_json(text)
    except (KeyError, TypeError, ValueError) as error:
        raise LabError(
            f"{where.state_file} cannot be read ({error!r}): "
            f"run `python -m lab down --name {where.name}` and `up` again"
        ) from error


def save(where: Paths, state: LabState) -> None:
    write_atomic(where.state_file, to_json(state))
