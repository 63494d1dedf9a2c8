#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Archive V1, verify the archive, put it in place again, or remove V1."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_v1
short_description: Archive V1, verify the archive, put it in place again, or remove V1
description:
  - V1 is what C(paths) names. Its archive is a gzipped tar with a manifest of every file's digest, mode
    and owner; the same V1 gives the same archive, whose name carries the beginning of its digest.
  - Removes V1 only if every file of it is in the archive, as it is. Nothing outside of the archived paths
    is ever removed or replaced.
  - Needs nothing on the host but Python, and systemd for V1's units if it has any.
options:
  state:
    description:
      - C(read) tells what is there.
      - C(archived) writes the archive into C(folder).
      - C(verified) reads the whole C(archive) and holds it against C(sha256) and its manifest.
      - C(restored) puts the archive in place below C(root), and starts V1's units if that is C(/).
      - C(removed) stops V1's units and removes the paths of C(archive).
    type: str
    choices: [read, archived, verified, restored, removed]
    default: read
  paths:
    description: What V1 consists of, files and folders; for C(read) and C(archived).
    type: list
    elements: str
    default: []
  units:
    description: V1's own systemd units; their files are among the paths.
    type: list
    elements: str
    default: []
  command:
    description: V1's command, kept in the archive.
    type: str
    default: ""
  folder:
    description: Where the archive is written; made with mode 0700 if it is not there.
    type: path
  label:
    description: A word for the archive's name, such as the host's.
    type: str
    default: ""
  archive:
    description: The archive.
    type: path
  sha256:
    description: Its digest, or the first twelve digits of it or more.
    type: str
  root:
    description: Below which folder the archive is put in place; another than C(/) is for a rehearsal.
    type: path
    default: /
  max_mb:
    description: The largest V1 that is archived, in MB of its files; what is larger is data.
    type: int
    default: 200
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Archive V1
  cfn_v1:
    state: archived
    paths: [/opt/cfn-v1]
    command: /opt/cfn-v1/bin/coordinate
    folder: /var/lib/cfn-v1-archive/host1
  register: v1_archived

- name: Put V1 in place again
  cfn_v1:
    state: restored
    archive: /var/lib/cfn-v1-archive/host1/v1-0123456789ab.tar.gz
    sha256: 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef
"""

RETURN = r"""
whole:
  description: All of V1 is there, and nothing was done to it.
  returned: on failure
  type: bool
left:
  description: The paths that are there.
  returned: when state is read
  type: list
  elements: str
missing:
  description: The paths that are not.
  returned: when state is read
  type: list
  elements: str
name:
  description: Name of the archive's file.
  returned: when state is archived
  type: str
sha256:
  description: Its digest.
  returned: when state is archived, verified or restored
  type: str
files:
  description: How many paths it holds.
  returned: when state is archived, verified or restored
  type: int
manifest:
  description: V1's C(paths), C(command) and C(units), as they were archived.
  returned: when state is verified or restored
  type: dict
differences:
  description: Each path that was not as it should be.
  returned: when state is restored
  type: list
  elements: dict
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.v1_archive import (
    MIB,
    ArchiveError,
    Manifest,
    Unit,
    build,
    collect,
    differences,
    missing,
    missing_accounts,
    path_problems,
    sha256_of,
    unlisted,
    unpack,
    verify,
)

NEEDED = [
    ("state", "archived", ["folder"]),
    ("state", "verified", ["archive", "sha256"]),
    ("state", "restored", ["archive", "sha256"]),
    ("state", "removed", ["archive", "sha256"]),
]


def systemctl(*arguments: str) -> bool:
    """Whether `systemctl ARGUMENT ...` said yes, or did it."""
    return subprocess.run(["systemctl", *arguments], capture_output=True, check=False).returncode == 0


def unit_now(name: str) -> Unit:
    """A unit as it is now."""
    return Unit(name, systemctl("is-enabled", "--quiet", name), systemctl("is-active", "--quiet", name))


def read(module: AnsibleModule) -> dict[str, Any]:
    """What is there."""
    paths = module.params["paths"]
    gone = missing(paths)
    return {"changed": False, "missing": gone, "left": [path for path in paths if path not in gone]}


def archived(module: AnsibleModule) -> dict[str, Any]:
    """Make the archive, or find that it is there already."""
    asked = module.params
    gone = missing(asked["paths"])
    if gone:
        raise ArchiveError(f"V1 cannot be archived: {', '.join(gone)} is not there")
    entries = collect(asked["paths"])
    size_mb = sum(entry.size for entry in entries) / MIB
    if size_mb > asked["max_mb"]:
        raise ArchiveError(
            f"V1's paths hold {size_mb:.0f} MB, at most {asked['max_mb']} MB are archived: name V1's program "
            "and configuration in cfn_v1_paths, and keep its data elsewhere"
        )
    units = tuple(unit_now(name) for name in sorted(asked["units"]))
    manifest = Manifest(tuple(sorted(asked["paths"])), asked["command"], units, entries)
    folder = Path(asked["folder"])
    digest = build(manifest, None)
    name = "-".join(part for part in ("v1", asked["label"], f"{digest[:12]}.tar.gz") if part)
    place = folder / name
    there = place.is_file() and sha256_of(place) == digest
    if not there and not module.check_mode:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".new-", delete=False) as file:
            written = build(manifest, file)
            file.flush()
            os.fsync(file.fileno())
        if written != digest:
            Path(file.name).unlink()
            raise ArchiveError("V1 was changed while it was archived; archive it again")
        Path(file.name).replace(place)
    return {
        "changed": not there,
        "name": name,
        "sha256": digest,
        "files": len(entries),
        "diff": {"before": "" if there else "absent\n", "after": "" if there else f"{place}\n"},
    }


def verified(module: AnsibleModule) -> dict[str, Any]:
    """The archive, believed."""
    archive = Path(module.params["archive"])
    return {"changed": False, **told(archive, verify(archive, module.params["sha256"]))}


def told(archive: Path, manifest: Manifest) -> dict[str, Any]:
    """What is said of an archive that was verified."""
    return {
        "sha256": sha256_of(archive),
        "files": len(manifest.entries),
        "manifest": {
            "paths": list(manifest.paths),
            "command": manifest.command,
            "units": [unit.name for unit in manifest.units],
        },
    }


def restored(module: AnsibleModule) -> dict[str, Any]:
    """Put V1 in place, verified before and after."""
    archive, root = Path(module.params["archive"]), module.params["root"]
    if module.check_mode and not archive.exists():  # it would have been brought by then
        nothing = {"paths": [], "command": "", "units": []}
        return {"changed": True, "sha256": "", "files": 0, "manifest": nothing, "differences": [],
                "diff": {"before": "", "after": f"V1, as {archive.name} holds it\n"}}  # fmt: skip
    manifest = verify(archive, module.params["sha256"])
    strangers = missing_accounts(manifest)
    if strangers:
        raise ArchiveError(f"V1's files belong to accounts that this host lacks; make them first: "
                           f"{', '.join(strangers)}. Nothing was touched.")  # fmt: skip
    wrong = differences(manifest, root)
    units = [unit for unit in manifest.units if root == "/" and unit_now(unit.name) != unit]
    result = {
        "changed": bool(wrong or units),
        **told(archive, manifest),
        "differences": [{"path": each.path, "found": each.found, "wanted": each.wanted} for each in wrong],
        "diff": {
            side: "".join(f"{each.path}: {getattr(each, name)}\n" for each in wrong)
            + "".join(f"{unit.name}: {words(unit_now(unit.name) if side == 'before' else unit)}\n"
                      for unit in units)
            for side, name in (("before", "found"), ("after", "wanted"))
        },
    }  # fmt: skip
    if module.check_mode or not result["changed"]:
        return result
    if wrong:
        Path(root).mkdir(mode=0o755, exist_ok=True)
        unpack(archive, manifest, root)
    left = differences(manifest, root)
    if left:
        raise ArchiveError(
            f"{left[0].path} is {left[0].found}, expected {left[0].wanted}, after V1 was restored"
        )
    start(manifest, units)
    return result


def words(unit: Unit) -> str:
    """A unit's state in words."""
    return f"{'enabled' if unit.enabled else 'disabled'}, {'running' if unit.active else 'stopped'}"


def start(manifest: Manifest, units: list[Unit]) -> None:
    """Bring units into the state in which they were archived."""
    if manifest.units:
        systemctl("daemon-reload")
    for unit in units:
        systemctl("enable" if unit.enabled else "disable", "--quiet", unit.name)
        if not systemctl("start" if unit.active else "stop", unit.name):
            raise ArchiveError(f"{unit.name} does not start: systemctl status {unit.name}")


def removed(module: AnsibleModule) -> dict[str, Any]:
    """Remove V1, if all of it is in the archive. What a run before removed already is no difference."""
    archive = Path(module.params["archive"])
    if module.check_mode and not archive.exists():  # it would have been made by then
        there = [path for path in module.params["paths"] if not missing([path])]
        return {
            "changed": bool(there),
            "diff": {"before": "".join(f"{path}\n" for path in there), "after": ""},
        }
    manifest = verify(archive, module.params["sha256"])
    problems = path_problems(manifest.paths)
    if problems:
        raise ArchiveError("; ".join(problems))
    there = [path for path in manifest.paths if not missing([path])]
    found = differences(manifest)
    kept = [f"{path} is not in the archive" for path in unlisted(manifest)]
    kept += [
        f"{each.path} was changed since: {each.found}, in the archive {each.wanted}"
        for each in found
        if each.found != "absent"
    ]
    if kept:
        raise ArchiveError(
            f"V1 is not removed: {'; '.join(kept)}. Archive it again: ansible-playbook decommission_v1.yml",
            whole=all(each.found != "absent" for each in found),
        )
    units = [unit.name for unit in manifest.units if systemctl("cat", unit.name)]
    if not module.check_mode:
        for name in units:
            systemctl("disable", "--quiet", "--now", name)
        for path in there:
            place = Path(path)
            shutil.rmtree(place) if place.is_dir() and not place.is_symlink() else place.unlink()
        if manifest.units:
            systemctl("daemon-reload")
    return {"changed": bool(there), "diff": {"before": "".join(f"{path}\n" for path in there), "after": ""}}


def main() -> None:
    """Do what the state says, and turn what cannot be into an error."""
    states = {"read": read, "archived": archived, "verified": verified, "restored": restored,
              "removed": removed}  # fmt: skip
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": list(states), "default": "read"},
            "paths": {"type": "list", "elements": "str", "default": []},
            "units": {"type": "list", "elements": "str", "default": []},
            "command": {"type": "str", "default": ""},
            "folder": {"type": "path"},
            "label": {"type": "str", "default": ""},
            "archive": {"type": "path"},
            "sha256": {"type": "str"},
            "root": {"type": "path", "default": "/"},
            "max_mb": {"type": "int", "default": 200},
        },
        required_if=NEEDED,
        supports_check_mode=True,
    )
    if module.params["state"] in ("read", "archived"):
        problems = path_problems(module.params["paths"])
        if problems:
            module.fail_json(msg="; ".join(problems))
    try:
        module.exit_json(**states[module.params["state"]](module))
    except (ArchiveError, OSError) as error:
        module.fail_json(msg=str(error), whole=getattr(error, "whole", False))


if __name__ == "__main__":
    main()
