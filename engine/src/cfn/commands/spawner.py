"""`cfn spawner`: the process that forks workers; cfn-workers.service runs it."""

import os
import sys
from pathlib import Path
from socket import SOCK_SEQPACKET

import cfn
from cfn import paths
from cfn.engine.guard import one_at_a_time, own_folder, serve_at
from cfn.errors import UsageError

_LEAN = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from cfn.engine.lean.spawner import main; main(*sys.argv[2:])"
)


def main(argv: list[str]) -> int:
    """Check what has to be checked, then become a lean interpreter: every module of this one would be
    in each fork's page tables. What it listens on, and the lock, go along as descriptors."""
    if argv in (["-h"], ["--help"]):
        print(f"usage: cfn spawner\n\n{__doc__}")
        return 0
    if argv:
        raise UsageError(f"cfn spawner takes no argument, not {argv[0]!r}")
    here = paths.installed()
    for folder in (here.shm, here.run, here.claims, here.outputs):
        own_folder(folder)
    lock = one_at_a_time(here.run / "spawner.lock", "spawner")
    listener = serve_at(here.spawner_socket, SOCK_SEQPACKET)
    for descriptor in (lock, listener.fileno()):
        os.set_inheritable(descriptor, True)
    library = str(Path(cfn.__file__).parents[1])
    os.execve(  # noqa: S606 - an argv, no shell
        sys.executable,
        [sys.executable, "-IS", "-c", _LEAN, library, str(listener.fileno()), str(here.claims)],
        # Symbols are looked up once, here, and not again by every child that needs them first.
        {**os.environ, "LD_BIND_NOW": "1"},
    )
