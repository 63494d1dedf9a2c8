"""The files that make one host differ from the image: pure, path to content and mode."""

import json
from collections.abc import Iterable

from lab.state import HostState

MARKER = "/etc/cfn-lab.json"
HOSTS_BEGIN = "# lab: begin (rewritten by the lab; add your own lines outside)"
HOSTS_END = "# lab: end"

_NETWORK = """\
[Match]
Name=host0

[Network]
Address={address}/24
LinkLocalAddressing=no
IPv6AcceptRA=no
"""

# Reports an older version wherever a version is looked up by running bash; all else is the real
# bash. BASH_VERSINFO is read-only in bash, so `-c` code is given another array in its place; a
# script file that reads it still sees the real one.
_OLD_BASH = """\
#!/bin/bash
# Lab shim: this host pretends to have bash {version}.
case "$1" in
--version)
    echo "GNU bash, version {version}.57(1)-release (x86_64-pc-linux-gnu)"
    ;;
-c)
    code=${{2//BASH_VERSINFO/LAB_VERSINFO}}
    prelude='BASH_VERSION="{version}.57(1)-release"; LAB_VERSINFO=({words} 57 1 release)'
    shift 2
    exec /bin/bash -c "$prelude
$code" "$@"
    ;;
*)
    exec /bin/bash "$@"
    ;;
esac
"""


def host_files(
    lab: str, host: HostState, *, public_key: str, host_key: tuple[str, str], machine_id: str
) -> dict[str, tuple[str, int]]:
    """Path to (content, mode). *host_key* is the private and the public part of sshd's key."""
    files = {
        MARKER: (json.dumps({"lab": lab, "host": host.name}) + "\n", 0o644),
        "/etc/hostname": (f"{host.name}\n", 0o644),
        "/etc/machine-id": (f"{machine_id}\n", 0o444),
        "/etc/systemd/network/10-lab.network": (_NETWORK.format(address=host.address), 0o644),
        "/etc/ssh/ssh_host_ed25519_key": (host_key[0], 0o600),
        "/etc/ssh/ssh_host_ed25519_key.pub": (host_key[1], 0o644),
        # Not below the home directory: the key is the lab's, and a role may recreate the home.
        "/etc/ssh/authorized_keys.deploy": (public_key, 0o644),
    }
    if host.bash is not None:
        words = host.bash.replace(".", " ")
        shim = _OLD_BASH.format(version=host.bash, words=words)
        files["/usr/local/bin/bash"] = (shim, 0o755)
    return files


def etc_hosts(current: str, hosts: Iterable[HostState]) -> str:
    """*current* with the lab's lines replaced by those for *hosts*; the rest stays as it is."""
    kept: list[str] = []
    inside = False
    for line in current.splitlines():
        if line == HOSTS_BEGIN:
            inside = True
        elif line == HOSTS_END:
            inside = False
        elif not inside:
            kept.append(line)
    if not any(line.split()[:1] == ["127.0.0.1"] for line in kept):
        kept.insert(0, "127.0.0.1 localhost")
    block = [HOSTS_BEGIN, *(f"{host.address} {host.name}" for host in hosts), HOSTS_END]
    return "\n".join([*kept, *block]) + "\n"
