"""The process that keeps one host running: ``python -m lab.keeper HOST_DIR``.

Started by host.py in a mount namespace of its own (``unshare --mount``), so the overlay it mounts
exists only for it and its host, and goes when they do: a kill -9 leaves no mount behind. It holds
``keeper.lock`` (as does nspawn, which inherits it) for as long as the host runs, and starts the
host again when it asks for a reboot. It ends when the host is off.

Exit codes: 0 the host went off or another keeper has it, 1 it could not be started (the reason
is in console.log).
"""

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

from lab import cgroup
from lab.errors import LabError
from lab.locks import try_lock
from lab.proc import run, start_time

# nspawn's exit code for "reboot", see systemd-nspawn(1).
REBOOT = 133
LOCK = "keeper.lock"
LAUNCH = "launch.json"


def overlay_options(lower: Path, host_dir: Path) -> str:
    """Mount options of a host's root: the image below, what the host writes above."""
    return f"lowerdir={lower},upperdir={host_dir / 'upper'},workdir={host_dir / 'work'}"


def main(host_dir: Path) -> int:
    """Run the host to its end. Blocks; see the module's text."""
    try:
        lock = try_lock(host_dir / LOCK)
    except FileNotFoundError:
        return 0  # the host was removed while this process started
    if lock is None:
        return 0
    os.truncate(lock, 0)
    os.write(lock, f"{os.getpid()} {start_time(os.getpid())}\n".encode())
    os.set_inheritable(lock, True)  # nspawn holds it too
    launch: dict[str, Any] = json.loads((host_dir / LAUNCH).read_text())
    cgroups = [Path(path) for path in launch["cgroups"]]
    image_dir = Path(launch["image_dir"])
    # Held until the end: the image must not be removed under a running host.
    image_use = os.open(image_dir / "used", os.O_RDONLY)
    fcntl.flock(image_use, fcntl.LOCK_SH)
    options = overlay_options(image_dir / "root", host_dir)
    run(["mount", "-t", "overlay", "-o", options, "overlay", str(host_dir / "root")])
    while True:
        cgroup.make(cgroups)
        code = _run_in(cgroups, launch["argv"])
        print(f"lab: nspawn ended with {code}", flush=True)
        if code != REBOOT:
            return 0


def _run_in(cgroups: list[Path], argv: list[str]) -> int:
    """Run *argv* in *cgroups* and return its exit code (negative: the signal that ended it).

    Enters them before it becomes nspawn, so no process of the host is ever outside.
    """
    pid = os.fork()
    if pid == 0:
        try:
            for path in cgroups:
                (path / "cgroup.procs").write_text("0")
            os.execvp(argv[0], argv)  # noqa: S606 an argv list; no shell is wanted
        except OSError as error:
            print(f"lab: cannot start {argv[0]}: {error}", flush=True)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    try:
        sys.exit(main(Path(sys.argv[1])))
    except (LabError, OSError, ValueError, KeyError) as failure:
        print(f"lab: {failure}", flush=True)
        sys.exit(1)
