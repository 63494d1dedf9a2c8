# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""What a release should look like on a host, what is there, and the difference.

A release is installed as a distribution's package would be: its folder, verified file by file
against its manifest; its account (sysusers.d); its directories (tmpfiles.d); copies of its units;
and the links that make it the one in force. Finding the differences only reads; applying them is
the module's part. Needs nothing but Python on the host.
"""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

OPT = Path("/opt/cfn")
CURRENT = OPT / "current"
COMMANDS = Path("/coordination")
UNITS = Path("/etc/systemd/system")


@dataclass(frozen=True)
class Difference:
    """One thing that is not as it should be: `path`, and what is `found` and `wanted` there.

    `part` says who mends it: `release`, `account`, `directory`, `unit`, `link` or `file`.
    """

    part: str
    path: str
    found: str
    wanted: str


@dataclass(frozen=True)
class Directory:
    """One `d` line of a tmpfiles.d file."""

    path: str
    mode: int
    user: str
    group: str


def version_digest(version: str) -> str:
    """The manifest's digest that a version carries: `0.1.0-0123456789ab[-...]`. Raises ValueError."""
    parts = version.split("-")
    if len(parts) < 2 or len(parts[1]) != 12:
        raise ValueError(f"version {version!r} does not carry a digest: expected NUMBER-TWELVEHEXDIGITS")
    return parts[1]


def read_manifest(folder: Path, version: str) -> dict[str, tuple[str, int]]:
    """File name to (SHA-256, mode), from a manifest that itself matches `version`.

    Raises ValueError when it is missing or is not the one that was built.
    """
    try:
        text = (folder / "MANIFEST").read_bytes()
    except OSError as error:
        raise ValueError(f"{folder}/MANIFEST cannot be read: {error}") from error
    digest = hashlib.sha256(text).hexdigest()
    if digest[:12] != version_digest(version):
        raise ValueError(f"{folder}/MANIFEST has digest {digest[:12]}, not {version_digest(version)}")
    entries = {}
    for line in text.decode().splitlines():
        sha256, mode, name = line.split(" ", 2)
        entries[name] = (sha256, int(mode, 8))
    return entries


def find_differences(version: str) -> list[Difference]:
    """Everything on this host that is not as the release wants it. Raises ValueError for no version."""
    folder = OPT / "releases" / version
    found = list(release_differences(folder, version))
    found += account_differences("cfn")
    if not any(difference.path == str(folder) for difference in found):
        found += directory_differences(parse_tmpfiles((folder / "tmpfiles.d/cfn.conf").read_text()))
        found += copy_differences(folder / "systemd", UNITS, "unit")
        found += copy_differences(folder / "tmpfiles.d", Path("/etc/tmpfiles.d"), "directory")
        found += copy_differences(folder / "sysusers.d", Path("/etc/sysusers.d"), "account")
    found += link_difference(CURRENT, f"releases/{version}")
    found += link_difference(COMMANDS, str(CURRENT / "bin"))
    return found


def file_differences(
    path: Path, sha256: str, mode: int, user: str = "root", group: str = "root", ignoring: str = ""
) -> Iterator[Difference]:
    """One file that no release holds, if it is missing, has another content, or another owner or mode.

    What matches the regular expression `ignoring` is no part of the content.
    """
    if not path.is_file() or path.is_symlink():
        yield Difference("file", str(path), "absent", f"sha256 {sha256[:12]}")
        return
    content = path.read_bytes()
    found = hashlib.sha256(re.sub(ignoring.encode(), b"", content) if ignoring else content).hexdigest()
    if found != sha256:
        yield Difference("file", str(path), f"sha256 {found[:12]}", f"sha256 {sha256[:12]}")
    yield from owned(path, mode, user, group, "file")


def release_differences(folder: Path, version: str) -> Iterator[Difference]:
    """Every file of the release folder that is missing, changed, extra, or of another owner or mode."""
    if not folder.is_dir():
        yield Difference("release", str(folder), "absent", f"release {version}")
        return
    try:
        manifest = read_manifest(folder, version)
    except ValueError as error:
        yield Difference("release", str(folder), str(error), f"release {version}")
        return
    extra = {"MANIFEST": 0o644, "release.json": 0o644}
    expected = {name: mode for name, (_, mode) in manifest.items()} | extra
    for base, directories, files in os.walk(folder):
        directories.sort()
        yield from owned(Path(base), 0o755, "root", "root", "release")
        for name in sorted(files):
            path = Path(base) / name
            relative = str(path.relative_to(folder))
            mode = expected.pop(relative, None)
            if mode is None:
                yield Difference("release", str(path), "present", "absent")
                continue
            yield from owned(path, mode, "root", "root", "release")
            if relative in manifest:
                found = hashlib.sha256(path.read_bytes()).hexdigest()
                if found != manifest[relative][0]:
                    yield Difference("release", str(path), f"sha256 {found[:12]}", manifest[relative][0][:12])
    for relative in sorted(expected):
        yield Difference("release", str(folder / relative), "absent", "present")


def owned(path: Path, mode: int, user: str, group: str, part: str) -> Iterator[Difference]:
    """The difference in mode or owner of one existing path, if any."""
    status = path.lstat()
    found = f"{_user(status.st_uid)}:{_group(status.st_gid)} {stat.S_IMODE(status.st_mode):04o}"
    wanted = f"{user}:{group} {mode:04o}"
    if found != wanted:
        yield Difference(part, str(path), found, wanted)


def parse_tmpfiles(text: str) -> list[Directory]:
    """The `d` lines of a tmpfiles.d file; a release uses no other kind."""
    found = []
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == "d":
            found.append(Directory(words[1], int(words[2], 8), words[3], words[4]))
    return found


def directory_differences(wanted: list[Directory]) -> Iterator[Difference]:
    """Every directory that is missing, is not one, or has another owner or mode."""
    for directory in wanted:
        path = Path(directory.path)
        text = f"{directory.user}:{directory.group} {directory.mode:04o}"
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            yield Difference("directory", directory.path, "not a directory", text)
        elif not path.exists():
            yield Difference("directory", directory.path, "absent", text)
        else:
            yield from owned(path, directory.mode, directory.user, directory.group, "directory")


def account_differences(name: str) -> Iterator[Difference]:
    """The engine's account, if it is missing."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        yield Difference("account", name, "absent", "system account")


def copy_differences(source: Path, target: Path, part: str) -> Iterator[Difference]:
    """Each file of `source` whose copy in `target` is missing, differs, or has another owner or mode."""
    for file in sorted(source.iterdir()):
        copy = target / file.name
        if not copy.is_file() or copy.is_symlink():
            yield Difference(part, str(copy), "absent", f"copy of {file}")
        elif copy.read_bytes() != file.read_bytes():
            yield Difference(part, str(copy), "edited", f"copy of {file}")
        else:
            yield from owned(copy, 0o644, "root", "root", part)


def link_difference(link: Path, target: str) -> Iterator[Difference]:
    """The link, if it is missing or points elsewhere."""
    found = str(link.readlink()) if link.is_symlink() else "not a link" if link.exists() else "absent"
    if found != target:
        yield Difference("link", str(link), found, target)


@cache
def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


@cache
def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
