#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Install one release of the engine on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_release
short_description: Install one release of the engine, verified file by file
description:
  - Unpacks an artifact into its immutable release folder, creates the account and the directories
    that it declares, installs its units and makes it the release in force by an atomic switch.
  - Compares everything with the release's manifest, whose digest is part of the version, so that
    drift in any file, unit, owner or mode is reported and repaired.
  - Keeps the name of the release that was in force before, in C(/opt/cfn/previous). Going back to that
    one forgets it, so that going back twice is not going forth again.
  - Uses no network. Restarts nothing; C(changed_parts) tells the caller what to reload.
options:
  state:
    description: C(known) reads which releases are in force and before, and changes nothing.
    type: str
    choices: [present, known]
    default: present
  version:
    description: The release's version, as the build printed it. Needed if it is to be present.
    type: str
  archive:
    description: Path of the artifact on the host. Needed if the release is to be present.
    type: path
  keep:
    description: How many releases stay installed, the one in force and its predecessor included.
    type: int
    default: 3
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Install the release
  cfn_release:
    version: 0.1.0-0123456789ab
    archive: /opt/cfn/archives/cfn-0.1.0-0123456789ab.tar.gz
"""

RETURN = r"""
version:
  description: The release that is in force after this task.
  returned: always
  type: str
previous:
  description: >-
    The release that was in force before this task, or, if state is known, before the one that is; empty
    if none was.
  returned: always
  type: str
kept:
  description: The releases that are on the host.
  returned: when state is known
  type: list
  elements: str
changed_parts:
  description: What was changed, out of release, account, directory, unit and link.
  returned: always
  type: list
  elements: str
differences:
  description: Each thing that was not as it should be.
  returned: always
  type: list
  elements: dict
"""

import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.release_tree import (
    COMMANDS,
    CURRENT,
    OPT,
    UNITS,
    Difference,
    find_differences,
    release_differences,
    version_digest,
)

PREVIOUS = OPT / "previous"


def unpack(archive: Path, version: str) -> None:
    """Put the release folder in place in one step, verified first. Raises ValueError, OSError."""
    releases = OPT / "releases"
    releases.mkdir(mode=0o755, parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".unpack-", dir=releases))
    try:
        with tarfile.open(archive) as tar:
            extract(tar, scratch)
        scratch.chmod(0o755)
        wrong = list(release_differences(scratch, version))
        if wrong:
            raise ValueError(
                f"the archive is damaged: {wrong[0].path}: {wrong[0].found}, not {wrong[0].wanted}"
            )
        target = releases / version
        if target.exists():
            target.rename(scratch.with_name(f"{scratch.name}-replaced"))
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.rmtree(scratch.with_name(f"{scratch.name}-replaced"), ignore_errors=True)


def extract(tar: tarfile.TarFile, target: Path) -> None:
    """Unpack plain files and folders that stay inside `target`; anything else is refused."""
    for member in tar.getmembers():
        inside = not member.name.startswith("/") and ".." not in Path(member.name).parts
        if not inside or not (member.isreg() or member.isdir()):
            raise ValueError(f"member {member.name!r} is refused")
    tar.extractall(target)  # noqa: S202 - every member was checked just above


def install_copies(source: Path, target: Path) -> None:
    """Copy each file of `source` to `target`, root's own and readable by all, each in one step."""
    target.mkdir(mode=0o755, parents=True, exist_ok=True)
    for file in sorted(source.iterdir()):
        temporary = target / f".{file.name}.new"
        temporary.write_bytes(file.read_bytes())
        temporary.chmod(0o644)
        os.chown(temporary, 0, 0)
        temporary.replace(target / file.name)


def switch(link: Path, target: str) -> None:
    """Point a link elsewhere in one step."""
    temporary = link.with_name(f".{link.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(target)
    temporary.replace(link)


def apply(version: str, archive: Path, parts: set[str]) -> None:
    """Mend the given parts, in an order that never leaves a link to something incomplete."""
    folder = OPT / "releases" / version
    if "release" in parts:
        unpack(archive, version)
    install_copies(folder / "sysusers.d", Path("/etc/sysusers.d"))
    subprocess.run(["systemd-sysusers", "/etc/sysusers.d/cfn.conf"], check=True, capture_output=True)
    install_copies(folder / "tmpfiles.d", Path("/etc/tmpfiles.d"))
    subprocess.run(
        ["systemd-tmpfiles", "--create", "/etc/tmpfiles.d/cfn.conf"], check=True, capture_output=True
    )
    install_copies(folder / "systemd", UNITS)
    remember(version)
    switch(CURRENT, f"releases/{version}")
    switch(COMMANDS, str(CURRENT / "bin"))


def remember(version: str) -> None:
    """Keep which release was in force before `version`; forget it on the way back to it."""
    before = CURRENT.readlink().name if CURRENT.is_symlink() else ""
    if before in ("", version):
        return
    if predecessor() == version:
        PREVIOUS.unlink()
    else:
        switch(PREVIOUS, f"releases/{before}")


def predecessor() -> str:
    """The release before the one in force, empty if none is kept."""
    name = PREVIOUS.readlink().name if PREVIOUS.is_symlink() else ""
    return name if name and (OPT / "releases" / name).is_dir() else ""


def prune(keep: int, in_force: str, previous: str) -> None:
    """Remove the oldest releases beyond `keep`; never the one in force or its predecessor."""
    releases = sorted((OPT / "releases").glob("[!.]*"), key=lambda path: path.stat().st_mtime, reverse=True)
    spare = [path for path in releases if path.name not in (in_force, previous)]
    for path in spare[max(0, keep - 2) :]:
        shutil.rmtree(path)


def lines(differences: list[Difference], side: str) -> Iterator[str]:
    """One side of the diff that is shown."""
    for difference in differences:
        yield f"{difference.path}: {getattr(difference, side)}\n"


def main() -> None:
    """Compare, show the difference, apply it."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "known"], "default": "present"},
            "version": {"type": "str"},
            "archive": {"type": "path"},
            "keep": {"type": "int", "default": 3},
        },
        required_if=[("state", "present", ["version", "archive"])],
        supports_check_mode=True,
    )
    if module.params["state"] == "known":
        in_force = CURRENT.readlink().name if CURRENT.is_symlink() else ""
        kept = sorted(path.name for path in (OPT / "releases").glob("*") if path.is_dir())
        module.exit_json(changed=False, version=in_force, previous=predecessor(), kept=kept)
    version: str = module.params["version"]
    archive = Path(module.params["archive"])
    try:
        version_digest(version)
    except ValueError as error:
        module.fail_json(msg=str(error))
    previous = CURRENT.readlink().name if CURRENT.is_symlink() else ""
    differences = find_differences(version)
    result = {
        "changed": bool(differences),
        "version": version,
        "previous": previous,
        "changed_parts": sorted({difference.part for difference in differences}),
        "differences": [vars(difference) for difference in differences],
        "diff": {
            "before": "".join(lines(differences, "found")),
            "after": "".join(lines(differences, "wanted")),
        },
    }
    if not differences or module.check_mode:
        module.exit_json(**result)
    try:
        apply(version, archive, {difference.part for difference in differences})
        prune(module.params["keep"], version, predecessor() or previous)
    except (OSError, ValueError, tarfile.TarError, subprocess.CalledProcessError) as error:
        module.fail_json(
            msg=f"release {version} could not be installed from {archive}: {error}; "
            "the release in force before is untouched unless the link had moved already",
            **result,
        )
    left = find_differences(version)
    if left:
        module.fail_json(
            msg=f"{left[0].path} is still {left[0].found}, not {left[0].wanted}, after the installation",
            **result,
        )
    module.exit_json(**result)


if __name__ == "__main__":
    main()
