# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""How units of systemd are on a host, and which of them wait for a restart. Only reads."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

WANTED = "enabled/active"


@dataclass(frozen=True)
class Unit:
    """How a unit is: `state`, such as `enabled/active`, and when it last became active, in seconds since
    1970; 0 if it never was."""

    state: str
    active_since_s: float


def parse_units(names: Sequence[str], output: str) -> dict[str, Unit]:
    """What `systemctl show` printed for these units, in their order, a block of KEY=VALUE for each."""
    found = {}
    for name, block in zip(names, output.strip().split("\n\n"), strict=True):
        values = dict(line.partition("=")[::2] for line in block.splitlines())
        since = values["ActiveEnterTimestamp"].removeprefix("@")
        state = f"{values['UnitFileState'] or 'not-found'}/{values['ActiveState']}"
        found[name] = Unit(state, float(since) if since else 0.0)
    return found


def read_units(module: AnsibleModule, names: Sequence[str]) -> dict[str, Unit]:
    """How each unit is; `not-found/inactive` if it does not exist."""
    if not names:
        return {}
    keys = "UnitFileState,ActiveState,ActiveEnterTimestamp"
    asked = ["systemctl", "show", "--timestamp=unix", f"--property={keys}", *names]
    _, output, _ = module.run_command(asked, check_rc=True)
    return parse_units(names, output)


def surplus(module: AnsibleModule, patterns: Sequence[str], names: Sequence[str]) -> list[str]:
    """The units of these patterns that are running or enabled and not named."""
    if not patterns:
        return []
    found = set()
    for listing in (["list-units", "--state=active,activating,reloading,failed"],
                    ["list-unit-files", "--state=enabled"]):  # fmt: skip
        _, output, _ = module.run_command(["systemctl", "--plain", "--no-legend", *listing, *patterns])
        found |= {line.split()[0] for line in output.splitlines() if line.split()}
    return sorted(found - set(names))


def stale(units: Mapping[str, Unit], paths: Sequence[str]) -> list[str]:
    """The services that started before one of these files and links was last changed.

    systemd tells whole seconds.
    """
    changed_s = last_change_s(paths)
    return [
        name
        for name, unit in units.items()
        if name.endswith(".service") and 0 < unit.active_since_s <= changed_s - 1
    ]


def last_change_s(paths: Sequence[str]) -> float:
    """When the newest of these files was changed, or of these links; 0 if there is none."""
    return max((Path(path).lstat().st_mtime for path in paths if os.path.lexists(path)), default=0.0)
