"""What each command does, as (result for --json, text for a person)."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab import cgroup, host, inventory, names, proc, ssh, state
from lab import down as down_
from lab import up as up_
from lab.errors import UsageError
from lab.locks import locked
from lab.progress import Progress
from lab.state import HostState, LabState, Paths

Result = tuple[dict[str, Any], str]


def up(where: Paths, spec: Path | None, inventory_dir: Path | None, molecule: Path | None) -> Result:
    """``lab up``."""
    outputs: list[tuple[str, str]] = []
    if inventory_dir is not None:
        outputs.append(("inventory", str(inventory_dir.resolve() / inventory.INVENTORY_FILE)))
    if molecule is not None:
        outputs.append(("molecule", str(molecule.resolve())))
    progress = Progress()
    lab, actions = up_.up(where, spec, tuple(outputs), progress)
    hosts = [{**row, "action": actions[row["name"]].value} for row in _rows(where, lab)]
    result = {
        "lab": lab.name,
        "subnet": lab.subnet,
        "bridge": lab.bridge,
        "key": str(where.key),
        "known_hosts": str(where.known_hosts),
        "outputs": [path for _, path in lab.outputs],
        "seconds": round(progress.seconds, 2),
        "hosts": hosts,
    }
    counts = [f"{n} {action}" for action in dict.fromkeys(row["action"] for row in hosts)
              if (n := sum(row["action"] == action for row in hosts))]  # fmt: skip
    return result, f"lab {lab.name}: {', '.join(counts)} in {progress.seconds:.1f} s"


def ls(where: Paths) -> Result:
    """``lab ls``."""
    lab = state.load(where)
    rows = _rows(where, lab) if lab else []
    result = {"lab": where.name, "subnet": lab.subnet if lab else None, "hosts": rows}
    if lab is None:
        return result, f"no lab {where.name}: `lab up --name {where.name}` makes it"
    heads = ("name", "state", "address", "groups", "shm_mb", "nofile", "since")
    table = [heads, *(tuple(_cell(row[head]) for head in heads) for row in rows)]
    widths = [max(len(line[i]) for line in table) for i in range(len(heads))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
             for line in table]  # fmt: skip
    return result, "\n".join(lines)


def sh(where: Paths, name: str, words: Sequence[str]) -> int:
    """``lab sh``: becomes ssh, and does not return if the host runs."""
    _, one = _existing(where, name)
    now = host.status(where, name, cgroup.detect())
    if now is not host.Status.RUNNING:
        raise UsageError(f"{name} is {now.value}: `lab on {name} --name {where.name}` first")
    argv = ssh.argv(where, one.address)
    if words:
        argv.append(ssh.remote_command(words))
    sys.stdout.flush()
    os.execvp(argv[0], argv)  # noqa: S606 an argv list; no shell is wanted


def off(where: Paths, name: str) -> Result:
    """``lab off``."""
    with _changing(where, name):
        was_on = host.power_cut(where, name, cgroup.detect())
    text = "off" if was_on else "was off already"
    return {"lab": where.name, "host": name, "changed": was_on}, f"{name}: {text}"


def on(where: Paths, name: str) -> Result:
    """``lab on``."""
    with _changing(where, name) as (lab, one):
        layout = cgroup.detect()
        now = host.status(where, name, layout)
        result = {"lab": where.name, "host": name, "changed": now is host.Status.OFF}
        if now is host.Status.MISSING:
            raise UsageError(f"{name} has no files: `lab up --name {where.name}` makes it anew")
        if now is not host.Status.OFF:
            return result, f"{name}: was on already"
        up_.refresh(where, lab, layout)
        up_.start_and_wait(where, [one], layout, Progress(), "on")
    return result, f"{name}: on"


def rm(where: Paths, name: str) -> Result:
    """``lab rm``."""
    with _changing(where, name) as (former, _):
        layout = cgroup.detect()
        lab = down_.rm(where, former, name, layout)
        up_.refresh(where, lab, layout)
        inventory.write_outputs(where, lab)
    return {"lab": where.name, "host": name, "changed": True}, f"{name}: removed"


def down(where: Paths, *, images: bool) -> Result:
    """``lab down``."""
    progress = Progress()
    removed = down_.down(where, images=images, progress=progress)
    result = {"lab": where.name, **asdict(removed), "seconds": round(progress.seconds, 2)}
    if not removed.hosts and removed.bridge is None:
        return result, f"lab {where.name}: there was none"
    text = f"{len(removed.hosts)} hosts removed in {progress.seconds:.1f} s"
    return result, f"lab {where.name}: {text}"


@contextmanager
def _changing(where: Paths, name: str) -> Iterator[tuple[LabState, HostState]]:
    """The lab and the host, while no other command changes them."""
    _existing(where, name)
    with locked(where.lock, timeout_s=up_.LOCK_TIMEOUT_S, what=f"the lab {where.name}"):
        yield _existing(where, name)


def _existing(where: Paths, name: str) -> tuple[LabState, HostState]:
    lab = state.load(where)
    if lab is None:
        raise UsageError(f"there is no lab {where.name}: `lab up --name {where.name}` makes it")
    if name not in lab.hosts:
        known = ", ".join(lab.hosts) or "none"
        raise UsageError(f"there is no host {name} in the lab {where.name}: its hosts: {known}")
    return lab, lab.hosts[name]


def _rows(where: Paths, lab: LabState) -> list[dict[str, Any]]:
    layout = cgroup.detect()
    rows: list[dict[str, Any]] = []
    for one in lab.hosts.values():
        pid = host.leader(lab.lab_id, one.name, layout)
        began = proc.started_at(pid) if pid is not None else None
        since = datetime.fromtimestamp(began, UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if began else None
        rows.append({
            "name": one.name,
            "state": host.status(where, one.name, layout).value,
            "address": one.address,
            "groups": list(one.groups),
            "shm_mb": one.shm_mb,
            "nofile": one.nofile,
            "bash": one.bash,
            "since": since,
            "leader": pid,
            "link": names.link_name(lab.lab_id, one.name),
            "console": str(where.host(one.name) / "console.log"),
        })  # fmt: skip
    return rows


def _cell(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
