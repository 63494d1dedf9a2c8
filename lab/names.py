"""Names derived from a lab's name: pure.

Everything the lab makes outside its own folder (bridge, cgroups, links) carries a name that is a
function of the lab's name and its folder, so that ``lab down`` can find it without a state file
and two labs, even two of the same name in different state folders, never share one.
"""

import hashlib
import re
from pathlib import Path

from lab.errors import UsageError

# The kernel allows 15 characters for an interface; nspawn names the host's end "vb-MACHINE".
IFNAME_MAX = 15
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,30}[a-z0-9])?")


def check_name(kind: str, name: str) -> str:
    """Return *name* if it can be the name of a lab or a host; raise UsageError otherwise."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{kind} name {name!r} is not allowed: 1 to 32 lower-case letters, digits and dashes, "
            f"starting with a letter and not ending with a dash"
        )
    return name


def _hash(text: str, length: int) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def lab_id(state_root: Path, lab: str) -> str:
    """The lab's name on the whole machine: its name, and where its state lives."""
    return f"{lab}-{_hash(f'{state_root}/{lab}', 6)}"


def bridge_name(lab_id: str) -> str:
    """At most 15 characters, readable at the front, unique at the end."""
    return f"cl-{lab_id[:5].rstrip('-')}-{_hash(lab_id, 6)}"


def machine_name(lab_id: str, host: str) -> str:
    """The name nspawn knows a host by; short, so that the link's name is not cut."""
    return f"{host[:5].rstrip('-')}-{_hash(f'{lab_id}/{host}', 6)}"


def link_name(lab_id: str, host: str) -> str:
    """The machine's end of a host's cable: take it down to pull the cable."""
    return f"vb-{machine_name(lab_id, host)}"
