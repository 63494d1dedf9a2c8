"""``lab doctor``: which Debian packages are missing. Standard library only, needs no root."""

import os
import shlex
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

# Where root's programs are, for those whose PATH lacks them.
_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin", "/usr/bin", "/bin"])


@dataclass(frozen=True, slots=True)
class Need:
    """A program or file, the Debian package that brings it, and what it is for."""

    what: str
    package: str
    why: str


NEEDS = (
    Need("mmdebstrap", "mmdebstrap", "unpacks the hosts' image"),
    Need(
        "/usr/share/keyrings/debian-archive-keyring.gpg",
        "debian-archive-keyring",
        "checks the signature of the image's packages",
    ),
    Need("systemd-nspawn", "systemd-container", "runs the hosts"),
    Need("ip", "iproute2", "makes the bridge"),
    Need("ssh", "openssh-client", "reaches the hosts"),
    Need("ssh-keygen", "openssh-client", "makes the keys of lab and hosts"),
    Need("unshare", "util-linux", "keeps mounts and processes together"),
    Need("setpriv", "util-linux", "ends an image build with its parent"),
    Need("mount", "mount", "mounts the hosts' files"),
)


def missing(needs: tuple[Need, ...] = NEEDS) -> list[Need]:
    """The needs that this machine does not meet."""
    return [need for need in needs if not _present(need.what)]


def _present(what: str) -> bool:
    return Path(what).exists() if what.startswith("/") else bool(shutil.which(what, path=_PATH))


def install_command(needs: list[Need]) -> list[str]:
    """The command that installs what is missing; empty if nothing is."""
    packages = sorted({need.package for need in needs})
    return ["apt-get", "install", "-y", *packages] if packages else []


def report(needs: list[Need]) -> str:
    """What is missing, for a person."""
    if not needs:
        return "all packages that the lab needs are installed"
    lines = [f"{need.what} is missing: package {need.package} ({need.why})" for need in needs]
    return "\n".join([*lines, f"install them with: {shlex.join(install_command(needs))}"])


def as_json(needs: list[Need]) -> dict[str, object]:
    """The same for a program."""
    return {
        "ok": not needs,
        "missing": [asdict(need) for need in needs],
        "install": install_command(needs),
    }
