"""What Ansible and Molecule need to reach the hosts: pure rendering, and the files' life."""

from pathlib import Path
from typing import Any

import yaml

from lab import ssh
from lab.errors import UsageError
from lab.files import write_atomic
from lab.recipe import USER
from lab.state import HostState, LabState, Paths

# These groups are always there, if empty: playbooks name them.
GROUPS = ("cfn", "control", "monitoring")
INVENTORY_FILE = "hosts.yml"


def marker(lab: str) -> str:
    """The first line of every file written for others: only such a file is replaced or removed."""
    return f"# Written by the lab {lab}; `lab down --name {lab}` removes it."


def render_inventory(lab: str, hosts: list[HostState], key: Path, known_hosts: Path) -> str:
    """An Ansible inventory with each host's groups."""
    groups: dict[str, Any] = {name: {"hosts": {}} for name in GROUPS}
    for host in hosts:
        for group in host.groups:
            groups.setdefault(group, {"hosts": {}})["hosts"][host.name] = {}
    top = {
        "all": {
            "hosts": {host.name: {"ansible_host": host.address} for host in hosts},
            "vars": {
                "ansible_user": USER,
                "ansible_ssh_private_key_file": str(key),
                "ansible_ssh_common_args": " ".join(ssh.options(known_hosts)),
                "ansible_python_interpreter": "/usr/bin/python3",
            },
            "children": groups,
        }
    }
    return f"---\n{marker(lab)}\n" + yaml.safe_dump(top, sort_keys=False)


def render_molecule(lab: str, hosts: list[HostState], key: Path) -> str:
    """A Molecule instance config."""
    instances = [
        {
            "instance": host.name,
            "address": host.address,
            "user": USER,
            "port": ssh.PORT,
            "identity_file": str(key),
        }
        for host in hosts
    ]
    return f"---\n{marker(lab)}\n" + yaml.safe_dump(instances, sort_keys=False)


def check_output(lab: str, path: Path) -> None:
    """Raise UsageError if *path* holds something that this lab did not write."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return
    if marker(lab) not in text.splitlines()[:2]:
        raise UsageError(
            f"{path} was not written by the lab {lab} and is left as it is: "
            f"choose another place, or remove it first"
        )


def write_outputs(where: Paths, state: LabState) -> list[str]:
    """Write every file that was asked for, each in one step; returns those that changed."""
    changed: list[str] = []
    hosts = list(state.hosts.values())
    for kind, name in state.outputs:
        text = (
            render_inventory(state.name, hosts, where.key, where.known_hosts)
            if kind == "inventory"
            else render_molecule(state.name, hosts, where.key)
        )
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        check_output(state.name, path)
        if not path.exists() or path.read_text() != text:
            # Names no secret, only where the key is; the key itself is root's.
            write_atomic(path, text, mode=0o644)
            changed.append(name)
    return changed


def remove_outputs(state: LabState) -> list[str]:
    """Remove the files that were written, unless someone has put something else there."""
    removed: list[str] = []
    for _, name in state.outputs:
        try:
            check_output(state.name, Path(name))
            Path(name).unlink()
            removed.append(name)
        except (UsageError, FileNotFoundError):
            continue
    return removed
