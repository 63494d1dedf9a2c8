"""A bridge and a /24 for each lab. No route, no address translation: hosts reach only each other
and this machine."""

import ipaddress
import json
import zlib
from collections.abc import Iterable
from pathlib import Path

from lab.errors import LabError
from lab.locks import locked
from lab.proc import run

# Labs of any state folder share the machine's addresses, so this lock is the machine's.
LOCK = Path("/run/cfn-lab-network.lock")
POOL = ipaddress.IPv4Network("10.86.0.0/16")
FIRST_HOST = 11
_INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")


def choose_subnet(lab_id: str, used: Iterable[str]) -> str:
    """A /24 of POOL that overlaps none of *used*: pure.

    The search starts at a place that depends on the lab, so a lab that is made again tends to
    get its old addresses. Raises LabError if all are taken.
    """
    taken = [ipaddress.IPv4Network(text, strict=False) for text in used]
    candidates = list(POOL.subnets(new_prefix=24))
    first = zlib.crc32(lab_id.encode()) % len(candidates)
    for candidate in candidates[first:] + candidates[:first]:
        if not any(candidate.overlaps(other) for other in taken):
            return str(candidate)
    raise LabError(f"no /24 of {POOL} is free on this machine: take a lab down first")


def gateway(subnet: str) -> str:
    """This machine's address on the bridge."""
    return str(ipaddress.IPv4Network(subnet)[1])


def choose_address(subnet: str, used: Iterable[str]) -> str:
    """The lowest free host address of *subnet*: pure. Raises LabError if there is none."""
    taken = set(used)
    for address in list(ipaddress.IPv4Network(subnet).hosts())[FIRST_HOST - 1 :]:
        if str(address) not in taken:
            return str(address)
    raise LabError(f"no address of {subnet} is free: remove a host with `lab rm` first")


def used_subnets(routes: str, addresses: str, but: str) -> list[str]:
    """The networks in `ip -json route` and `ip -json address`, without those of the link *but*."""
    found = [
        entry["dst"]
        for entry in json.loads(routes or "[]")
        if entry.get("dev") != but and entry.get("dst", "default") != "default"
    ]
    for link in json.loads(addresses or "[]"):
        if link.get("ifname") != but:
            found += [f"{a['local']}/{a['prefixlen']}" for a in link.get("addr_info", [])]
    return found


def ensure_bridge(bridge: str, lab_id: str, subnet: str | None) -> str:
    """Have *bridge* up, with the first address of the lab's /24; returns that /24.

    *subnet* is what the lab had before, or None. Blocks up to 30 s for the machine's lock.
    Raises LabError if the lab's former network now belongs to something else.
    """
    with locked(LOCK, timeout_s=30, what="the choice of a network"):
        used = used_subnets(
            run(["ip", "-json", "-4", "route", "show", "table", "all"]),
            run(["ip", "-json", "-4", "address"]),
            but=bridge,
        )
        if subnet is None:
            subnet = choose_subnet(lab_id, used)
        elif choose_subnet_clashes(subnet, used):
            raise LabError(
                f"the lab's network {subnet} is now used by something else on this machine "
                f"(see `ip route`): run `lab down`, then `lab up` for a new one"
            )
        if not Path("/sys/class/net", bridge).exists():
            run(["ip", "link", "add", bridge, "type", "bridge"])
        run(["ip", "address", "replace", f"{gateway(subnet)}/24", "dev", bridge])
        run(["ip", "link", "set", bridge, "up"])
    return subnet


def choose_subnet_clashes(subnet: str, used: Iterable[str]) -> bool:
    """Does *subnet* overlap one of *used*? Pure."""
    network = ipaddress.IPv4Network(subnet)
    return any(network.overlaps(ipaddress.IPv4Network(text, strict=False)) for text in used)


def remove_bridge(bridge: str) -> bool:
    """Remove *bridge* and every link plugged into it; whether there was one."""
    if not Path("/sys/class/net", bridge).exists():
        return False
    for port in sorted(Path("/sys/class/net", bridge, "brif").glob("*")):
        # A link of a host that is just going away may vanish in between.
        if Path("/sys/class/net", port.name).exists():
            try:
                run(["ip", "link", "delete", port.name])
            except LabError:
                if Path("/sys/class/net", port.name).exists():
                    raise
    run(["ip", "link", "delete", bridge])
    return True


def raise_inotify_limit(hosts: int) -> str | None:
    """Let *hosts* more systemd instances watch files; a note if the machine's limit was raised.

    systemd takes about six inotify instances per host and all hosts are one user (root) to the
    kernel; the usual limit of 128 is used up by some twenty hosts. It stays raised.
    """
    needed = 1024 + 16 * hosts
    limit = int(_INOTIFY.read_text())
    if limit >= needed:
        return None
    _INOTIFY.write_text(f"{needed}\n")
    return f"fs.inotify.max_user_instances raised from {limit} to {needed}"
