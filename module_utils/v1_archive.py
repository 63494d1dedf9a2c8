# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""V1's archive: what it holds, how it is made, and how a host is held against it.

A gzipped tar with `MANIFEST.json` first: every file with digest, mode and owner, V1's command and its
units. The same V1 gives the same archive, byte for byte, on whichever host: no times and no numbers of
accounts are in it. Its name carries the beginning of its digest. Needs nothing but Python on the host.

    python3 module_utils/v1_archive.py ARCHIVE SHA256     verify an archive where it lies
"""

from __future__ import annotations

import grp
import gzip
import hashlib
import io
import json
import os
import pwd
import shlex
import stat
import sys
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO

MANIFEST = "MANIFEST.json"
PIECE = 1 << 20
MIB = 1 << 20

# What is never V1's, nor is anything above it; what is below it may be.
_SYSTEM = (
    "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib64", "/usr/share", "/usr/local/bin", "/usr/local/sbin",
    "/usr/local/lib", "/etc/systemd/system", "/etc/ssh", "/etc/cron.d", "/etc/default", "/etc/init.d",
    "/var/lib/systemd", "/var/log/journal", "/var/spool/cron", "/root/.ssh",
)  # fmt: skip
# V2's own, and what no disk holds: nor what is below it.
_OTHERS = ("/opt/cfn", "/etc/cfn", "/var/lib/cfn", "/var/lib/cfn-v1-archive", "/var/log/cfn", "/coordination",
           "/run", "/dev", "/proc", "/sys", "/boot")  # fmt: skip


class ArchiveError(Exception):
    """The archive cannot be made, believed or put in place; the text says what, found and expected. `whole`:
    V1 is all there, and nothing was done to it."""

    def __init__(self, text: str, *, whole: bool = False) -> None:
        super().__init__(text)
        self.whole = whole


@dataclass(frozen=True, slots=True)
class Entry:
    """One path of V1: `kind` is file, directory or link. Owners are names, since numbers differ by host."""

    path: str
    kind: str
    mode: int
    owner: str
    group: str
    size: int = 0
    sha256: str = ""
    target: str = ""

    @property
    def words(self) -> str:
        """For a diff: owner and mode, and what of the content can be said in a line."""
        content = {"file": f"sha256 {self.sha256[:12]}", "link": f"to {self.target}"}.get(self.kind, "")
        return f"{self.kind} {self.owner}:{self.group} {self.mode:04o} {content}".rstrip()


@dataclass(frozen=True, slots=True)
class Unit:
    """A systemd unit of V1, as it was when V1 was archived."""

    name: str
    enabled: bool
    active: bool


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an archive holds: V1's `paths` as they were named, its `command`, units and entries."""

    paths: tuple[str, ...]
    command: str
    units: tuple[Unit, ...]
    entries: tuple[Entry, ...]

    def as_bytes(self) -> bytes:
        """Canonical JSON: the same V1 is always the same bytes."""
        return json.dumps({"v": 1, **asdict(self)}, sort_keys=True, indent=1).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Difference:
    """One path that is not as the manifest has it."""

    path: str
    found: str
    wanted: str


def read_manifest(data: bytes) -> Manifest:
    """The manifest in a JSON text. Raises ArchiveError for any other."""
    try:
        value: dict[str, Any] = json.loads(data)
        if value.pop("v") != 1:
            raise ValueError("it is of another version")
        return Manifest(
            paths=tuple(value["paths"]),
            command=value["command"],
            units=tuple(Unit(**each) for each in value["units"]),
            entries=tuple(Entry(**each) for each in value["entries"]),
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ArchiveError(f"{MANIFEST} cannot be read: {error}") from None


def path_problems(paths: Sequence[str]) -> list[str]:
    """What is wrong with the paths that are said to be V1's: they are archived, and then removed."""
    problems = [] if paths else ["cfn_v1_paths names nothing: it says what V1 consists of"]
    for path in paths:
        if not path.startswith("/") or os.path.normpath(path) != path or path.count("/") < 2:
            problems.append(f"{path!r} is refused: an absolute path at least two folders deep is allowed")
        elif _inside(path, _OTHERS) or any(_inside(own, [path]) for own in (*_SYSTEM, *_OTHERS)):
            problems.append(f"{path} is refused: it holds, or is, what is the system's or V2's")
        elif _inside(path, [other for other in paths if other != path]):
            problems.append(f"{path} is named twice: another of the paths holds it")
    return problems


def _inside(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def relocate(command: str, paths: Sequence[str], root: str) -> list[str]:
    """The words of V1's command, those that lie in its paths moved below `root`."""
    below = root.rstrip("/")
    return [below + word if _inside(word, paths) else word for word in shlex.split(command)]


def missing(paths: Sequence[str], root: str = "/") -> list[str]:
    """Which of the paths are not there."""
    return [path for path in paths if not os.path.lexists(_at(root, path))]


def collect(paths: Sequence[str], root: str = "/") -> tuple[Entry, ...]:
    """Every path of V1, in order. Reads all files. Raises ArchiveError naming all that cannot be archived."""
    found: list[Entry] = []
    problems: list[str] = []
    for path in _walk(paths, root):
        entry = look(path, root)
        if entry is None:
            problems.append(f"{path} is gone, or a socket, pipe or device")
        else:
            found.append(entry)
    if problems:
        raise ArchiveError(f"V1 cannot be archived: {'; '.join(problems)}")
    return tuple(found)


def _walk(paths: Sequence[str], root: str) -> Iterator[str]:
    """The paths and all that is below them, each folder before what it holds. Links are not followed."""
    for path in sorted(paths):
        yield path
        place = _at(root, path)
        if place.is_dir() and not place.is_symlink():
            yield from _walk([f"{path}/{name}" for name in _names(place)], root)


def _names(folder: Path) -> list[str]:
    return [place.name for place in folder.iterdir()]


def look(path: str, root: str = "/") -> Entry | None:
    """One path as it is now; None if it is absent, or nothing that an archive could hold."""
    place = _at(root, path)
    try:
        status = place.lstat()
        owned = {
            "path": path,
            "mode": stat.S_IMODE(status.st_mode),
            "owner": _name(pwd.getpwuid, status.st_uid),
            "group": _name(grp.getgrgid, status.st_gid),
        }
        if stat.S_ISDIR(status.st_mode):
            return Entry(kind="directory", **owned)  # type: ignore[arg-type]
        if stat.S_ISLNK(status.st_mode):
            return Entry(kind="link", target=str(place.readlink()), **owned)  # type: ignore[arg-type]
        if stat.S_ISREG(status.st_mode):
            return Entry(kind="file", size=status.st_size, sha256=sha256_of(place), **owned)  # type: ignore[arg-type]
    except FileNotFoundError:
        pass
    return None


def sha256_of(path: Path) -> str:
    """The digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Hashing(io.RawIOBase):
    """Passes bytes on and hashes them: read from `source`, or written to `sink`, which may be None."""

    def __init__(self, *, source: IO[bytes] | None = None, sink: IO[bytes] | None = None) -> None:
        self._source, self._sink = source, sink
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        piece = self._source.read(size) if self._source else b""
        self._hash.update(piece)
        return piece

    def write(self, piece: Any) -> int:
        self._hash.update(piece)
        if self._sink:
            self._sink.write(piece)
        return len(piece)

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


def build(manifest: Manifest, sink: BinaryIO | None, root: str = "/") -> str:
    """Write the archive (or only find out its digest, without a sink) and return its SHA-256.

    Raises ArchiveError if a file changes meanwhile.
    """
    out = _Hashing(sink=sink)
    with (
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=out, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        text = manifest.as_bytes()
        tar.addfile(_member(MANIFEST, 0o644, size=len(text)), io.BytesIO(text))
        for entry in manifest.entries:
            member = _member(entry.path.lstrip("/"), entry.mode, entry.owner, entry.group, entry.size)
            if entry.kind == "file":
                with _at(root, entry.path).open("rb") as file:
                    reading = _Hashing(source=file)
                    tar.addfile(member, reading)
                if reading.sha256 != entry.sha256:
                    raise ArchiveError(f"{entry.path} was changed while V1 was archived; archive it again")
            else:
                member.type = tarfile.DIRTYPE if entry.kind == "directory" else tarfile.SYMTYPE
                member.linkname = entry.target
                tar.addfile(member)
    return out.sha256


def _member(name: str, mode: int, owner: str = "root", group: str = "root", size: int = 0) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode, member.uname, member.gname, member.size, member.mtime = mode, owner, group, size, 0
    return member


def verify(archive: Path, expected: str) -> Manifest:
    """Read the whole archive: its digest (`expected` may be only the beginning of it), and every file
    against the manifest. Raises ArchiveError naming the file, and the digest found and expected."""
    try:
        found = sha256_of(archive)
    except OSError as error:
        raise ArchiveError(f"{archive} cannot be read: {error.strerror}") from None
    if len(expected) < 12 or not found.startswith(expected):
        raise ArchiveError(f"{archive} is damaged: its SHA-256 is {found}, expected {expected}")
    with opened(archive) as (manifest, members):
        wanted = {entry.path: entry for entry in manifest.entries if entry.kind == "file"}
        for path, content in members:
            if content is None:
                continue
            digest = hashlib.file_digest(content, "sha256").hexdigest()  # type: ignore[arg-type]
            entry = wanted.pop(path, None)
            if entry is None or digest != entry.sha256:
                said = entry.sha256 if entry else "no such file"
                raise ArchiveError(f"{archive} is damaged: {path} has SHA-256 {digest}, expected {said}")
        if wanted:
            raise ArchiveError(f"{archive} is damaged: it lacks {', '.join(sorted(wanted))}")
    return manifest


@contextmanager
def opened(archive: Path) -> Iterator[tuple[Manifest, Iterator[tuple[str, IO[bytes] | None]]]]:
    """The manifest, and then each member in turn: its path, and its content if it is a file."""
    try:
        with tarfile.open(archive, mode="r|gz") as tar:
            first = tar.next()
            content = tar.extractfile(first) if first and first.name == MANIFEST else None
            if content is None:
                raise ArchiveError(f"{archive} is no archive of V1: it does not begin with {MANIFEST}")
            yield read_manifest(content.read()), _members(tar)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise ArchiveError(f"{archive} cannot be read, or put in place: {error}") from None


def _members(tar: tarfile.TarFile) -> Iterator[tuple[str, IO[bytes] | None]]:
    while (member := tar.next()) is not None:
        yield f"/{member.name}", tar.extractfile(member) if member.isreg() else None


def differences(manifest: Manifest, root: str = "/") -> list[Difference]:
    """Every path that is missing, or differs from the manifest."""
    found = []
    for entry in manifest.entries:
        now = look(entry.path, root)
        if now != entry:
            found.append(Difference(entry.path, now.words if now else "absent", entry.words))
    return found


def unlisted(manifest: Manifest, root: str = "/") -> list[str]:
    """What is in V1's paths and not in the manifest."""
    known = {entry.path for entry in manifest.entries}
    there = [path for path in manifest.paths if os.path.lexists(_at(root, path))]
    return [path for path in _walk(there, root) if path not in known]


def missing_accounts(manifest: Manifest) -> list[str]:
    """Users and groups that own files of V1 and are not on this host."""
    users = {entry.owner for entry in manifest.entries}
    groups = {entry.group for entry in manifest.entries}
    return [f"user {name}" for name in sorted(users) if _number(pwd.getpwnam, name) is None] + [
        f"group {name}" for name in sorted(groups) if _number(grp.getgrnam, name) is None
    ]


def unpack(archive: Path, manifest: Manifest, root: str = "/") -> None:
    """Put every path in place, each file in one step, its content verified as it is written, with owner
    and mode. Raises ArchiveError if a file is not what the manifest says."""
    entries = {entry.path: entry for entry in manifest.entries}
    with opened(archive) as (_, members):
        for path, content in members:
            entry = entries.get(path)
            if entry is None:
                raise ArchiveError(f"{archive} is damaged: {path} is not in its manifest")
            place = _at(root, path)
            place.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
            if entry.kind == "directory":
                if place.is_symlink() or not place.is_dir():
                    place.unlink(missing_ok=True)
                    place.mkdir(mode=0o700)
                _own(place, entry)
                continue
            new = place.with_name(f".{place.name}.cfn-new")
            new.unlink(missing_ok=True)
            if entry.kind == "link":
                new.symlink_to(entry.target)
            else:
                _write(new, content, entry)
            _own(new, entry)
            new.replace(place)


def _write(place: Path, content: IO[bytes] | None, entry: Entry) -> None:
    with place.open("xb") as file:
        place.chmod(0o600)
        writing = _Hashing(sink=file)
        while piece := content.read(PIECE) if content else b"":
            writing.write(piece)
        file.flush()
        os.fsync(file.fileno())
    if writing.sha256 != entry.sha256:
        place.unlink()
        raise ArchiveError(f"{entry.path} has SHA-256 {writing.sha256}, expected {entry.sha256}")


def _own(place: Path, entry: Entry) -> None:
    user, group = _number(pwd.getpwnam, entry.owner), _number(grp.getgrnam, entry.group)
    if user is None or group is None:
        raise ArchiveError(f"{entry.path} belongs to {entry.owner}:{entry.group}, which is not on this host")
    os.chown(place, user, group, follow_symlinks=False)
    if entry.kind != "link":
        place.chmod(entry.mode)


def _at(root: str, path: str) -> Path:
    return Path(root) / path.lstrip("/")


def _name(lookup: Any, number: int) -> str:
    try:
        return str(lookup(number)[0])
    except KeyError:
        return str(number)


def _number(lookup: Any, name: str) -> int | None:
    """The number of an account; a name of digits is one that had no name where V1 was archived."""
    try:
        return int(lookup(name)[2])
    except KeyError:
        return int(name) if name.isdigit() else None


def main(argv: Sequence[str]) -> int:
    """Verify an archive; exit code 1, with the reason, if it is not to be believed."""
    if len(argv) != 2:
        print("usage: v1_archive.py ARCHIVE SHA256", file=sys.stderr)
        return 2
    try:
        manifest = verify(Path(argv[0]), argv[1])
    except ArchiveError as error:
        print(error, file=sys.stderr)
        return 1
    print(
        f"{argv[0]}: V1, {len(manifest.entries)} files and folders of {', '.join(manifest.paths)}, verified"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
