"""Reaching hosts as in production: an unprivileged user, a key, checked host keys."""

import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lab.files import write_atomic
from lab.proc import run
from lab.recipe import USER
from lab.state import HostState, Paths

PORT = 22


def options(known_hosts: Path) -> list[str]:
    """ssh options that check the host's key against the lab's own list: pure."""
    return [
        "-o", f"UserKnownHostsFile={known_hosts}",
        "-o", "GlobalKnownHostsFile=/dev/null",
        "-o", "StrictHostKeyChecking=yes",
        "-o", "IdentitiesOnly=yes",
    ]  # fmt: skip


def argv(where: Paths, address: str, *extra: str) -> list[str]:
    """ssh to *address* as the lab's user: pure. The person's own ssh configuration is not read."""
    return [
        "ssh", "-F", "none", "-i", str(where.key), *options(where.known_hosts),
        "-o", "LogLevel=ERROR", *extra, f"{USER}@{address}",
    ]  # fmt: skip


def remote_command(words: Sequence[str]) -> str:
    """What the remote shell is given: one word is a shell line as it stands, several are quoted."""
    return words[0] if len(words) == 1 else shlex.join(words)


def make_key(path: Path, comment: str) -> None:
    """Make an ed25519 key pair at *path* and *path*.pub, if there is none."""
    if path.with_name(f"{path.name}.pub").exists():
        return
    path.unlink(missing_ok=True)  # half a pair, from an interrupted run
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", comment, "-f", str(path)])


def known_hosts(keys: Iterable[tuple[HostState, str]]) -> str:
    """The lines of a known_hosts file, from each host and its public key: pure."""
    return "".join(f"{host.address},{host.name} {' '.join(key.split()[:2])}\n" for host, key in keys)


def write_known_hosts(where: Paths, hosts: Iterable[HostState]) -> None:
    """Rewrite the lab's known_hosts from the keys on disk of the hosts that have been made."""
    keys = []
    for host in hosts:
        path = where.host(host.name) / "upper/etc/ssh/ssh_host_ed25519_key.pub"
        if path.exists():
            keys.append((host, path.read_text()))
    write_atomic(where.known_hosts, known_hosts(keys))


def wait_ready(
    where: Paths,
    hosts: Iterable[HostState],
    *,
    timeout_s: float,
    ready: Callable[[HostState], None],
    tick: Callable[[Sequence[HostState]], None],
) -> list[HostState]:
    """Block until every host lets the lab's user in, at most *timeout_s* seconds.

    Returns those that did not. *ready* is called for each as it answers, *tick* about every 50 ms
    with those that do not yet; *tick* may raise if it sees that waiting is in vain.
    """
    pending = list(hosts)
    logins: dict[str, subprocess.Popen[bytes]] = {}
    deadline = time.monotonic() + timeout_s
    try:
        while pending and time.monotonic() < deadline:
            tick(pending)
            for host in list(pending):
                login = logins.get(host.name)
                if login is None:
                    if _listens(host.address):
                        logins[host.name] = _start_login(where, host.address)
                elif login.poll() == 0:
                    pending.remove(host)
                    ready(host)
                elif login.returncode is not None:
                    del logins[host.name]
            if pending:
                time.sleep(0.05)
        return pending
    finally:
        for login in logins.values():
            if login.poll() is None:
                login.kill()
            login.wait()


def _start_login(where: Paths, address: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*argv(where, address, "-n", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5"), "true"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _listens(address: str) -> bool:
    try:
        with socket.create_connection((address, PORT), timeout=0.2) as connection:
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False
