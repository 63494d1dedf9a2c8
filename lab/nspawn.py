"""The command line of one host: pure."""

import json
from pathlib import Path

from lab import cgroup, names, recipe
from lab.state import HostState


def argv(lab_id: str, host: HostState, root: Path) -> list[str]:
    """systemd-nspawn for *host* with its files at *root*."""
    return [
        "systemd-nspawn",
        "--quiet",
        f"--directory={root}",
        f"--machine={names.machine_name(lab_id, host.name)}",
        f"--hostname={host.name}",
        f"--network-bridge={names.bridge_name(lab_id)}",
        # Process 1 need not be systemd here, so no one to register with; cgroups are ours.
        "--register=no",
        "--keep-unit",
        "--link-journal=no",
        "--resolv-conf=off",
        "--timezone=off",
        "--kill-signal=SIGRTMIN+3",
        "--console=read-only",
        # Without this capability root inside the host cannot lift the limit again.
        "--drop-capability=CAP_SYS_RESOURCE",
        f"--rlimit=RLIMIT_NOFILE={host.nofile}",
        f"--tmpfs=/dev/shm:mode=1777,size={host.shm_mb}M",
        # Not --boot: recipe.INIT prepares the cgroup file systems, then becomes systemd.
        recipe.INIT,
    ]


def scoped(argv: list[str], lab_id: str, host: str) -> list[str]:
    """*argv* in a scope of its own, where process 1 is systemd.

    Written from the documentation: the machines this was developed on have another process 1.
    """
    return [
        "systemd-run", "--scope", "--quiet", "--collect", "--property=Delegate=yes",
        "--slice=system.slice", f"--unit={cgroup.scope_unit(lab_id, host)}",
        *argv,
    ]  # fmt: skip


def launch_file(lab_id: str, host: HostState, host_dir: Path, image_dir: Path, layout: cgroup.Layout) -> str:
    """What keeper.py needs to run the host, as JSON."""
    command = argv(lab_id, host, host_dir / "root")
    dirs = layout.host_dirs(lab_id, host.name)
    return json.dumps(
        {
            "image_dir": str(image_dir),
            "argv": scoped(command, lab_id, host.name) if layout.systemd else command,
            # Where systemd makes the scope, there is nothing to enter by hand.
            "cgroups": [] if layout.systemd else [str(path) for path in dirs],
        },
        indent=2,
    )
