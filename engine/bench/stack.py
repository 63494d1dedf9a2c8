"""A whole host's daemons in a tree of their own below /dev/shm: conductor, spawner and router. The
router's sockets are held here, as systemd holds them, so that they outlive it."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cfn.errors import NotRunningError
from cfn.paths import Paths
from cfn.router.client import RouterClient

V1_COMMAND = Path(__file__).parents[1] / "v1/coordinate"
START_S = 15.0
_AS_SYSTEMD = 'exec 3<&"$1" 4<&"$2"; shift 2; LISTEN_PID=$$ LISTEN_FDS=2 exec "$@"'

Process = subprocess.Popen[bytes]


class Stack:
    """The daemons below `root`, which has to exist and to have a short path. Ended by `close`."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        for folder in (self.paths.run, self.paths.shm, self.paths.state, self.paths.log):
            folder.mkdir(parents=True, mode=0o750, exist_ok=True)
        for folder in (self.paths.config.parent, self.paths.v1_command.parent):
            folder.mkdir(parents=True, exist_ok=True)
        shutil.copy2(V1_COMMAND, self.paths.v1_command)
        self._log = (root / "daemons.log").open("ab")
        self._unix = socket.socket(socket.AF_UNIX)
        self._unix.bind(str(self.paths.router_socket))
        self._unix.listen(4_096)
        self._loopback = socket.create_server(("127.0.0.1", 0), backlog=4_096)
        self.address = f"unix:{self.paths.router_socket}"
        self.daemons: dict[str, Process] = {}

    def configure(self, **values: object) -> None:
        """Write the configuration (keys without CFN_) in one step: all on V2 unless `values` say else."""
        keys = {"COORDINATION_VERSION": "v2", "TRAFFIC_PERCENTAGE": 100} | values
        fresh = self.paths.config.with_suffix(".new")
        fresh.write_text("".join(f'CFN_{name}="{value}"\n' for name, value in keys.items()))
        fresh.replace(self.paths.config)

    def start(self, word: str, *, source: Path | None = None) -> Process:
        """Start `cfn WORD`, from another folder of sources if one is given, and return at once."""
        command = [sys.executable, "-m", "cfn", word]
        passed: tuple[int, ...] = ()
        if word == "router":
            passed = (self._unix.fileno(), self._loopback.fileno())
            command = ["bash", "-c", _AS_SYSTEMD, "bash", *map(str, passed), *command]
        process = subprocess.Popen(
            command,
            env={**os.environ, "CFN_ROOT": str(self.paths.root)}
            | ({"PYTHONPATH": str(source)} if source else {}),
            stdout=self._log,
            stderr=self._log,
            pass_fds=passed,
        )
        self.daemons[word] = process
        return process

    def start_all(self) -> None:
        """Start the three, and wait until they serve."""
        for word in ("spawner", "conductor", "router"):
            self.start(word)
        self.wait_ready()

    def wait_ready(self) -> None:
        """Block until the router says that V2 could serve. Raises NotRunningError after START_S."""
        ends_s = time.monotonic() + START_S
        client = RouterClient(self.address, timeout_s=START_S)
        while not client.get("/readyz")[1].get("v2"):
            if time.monotonic() > ends_s:
                raise NotRunningError((self.paths.root / "daemons.log").read_text()[-3_000:])
            time.sleep(0.05)

    def kill(self, word: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a daemon and wait for its end."""
        self.daemons[word].send_signal(number)
        self.daemons[word].wait(timeout=30)

    def workers(self) -> list[int]:
        """The process ids of the workers that live now."""
        spawner = self.daemons["spawner"].pid
        with contextlib.suppress(OSError):
            return [int(pid) for pid in Path(f"/proc/{spawner}/task/{spawner}/children").read_text().split()]
        return []

    def close(self) -> None:
        """End what runs and give the sockets back; the tree stays."""
        for word in ("router", "conductor", "spawner"):
            daemon = self.daemons.get(word)
            if daemon is None:
                continue
            if daemon.poll() is None:
                daemon.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                daemon.wait(timeout=20)
            if daemon.poll() is None:
                daemon.kill()
                daemon.wait()
        for pid in self.workers():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._unix.close()
        self._loopback.close()
        self._log.close()


@contextmanager
def stack(**values: object) -> Iterator[Stack]:
    """A configured stack that runs; ended and removed afterwards."""
    root = Path(tempfile.mkdtemp(prefix="cfn-", dir="/dev/shm"))
    running = Stack(root)
    try:
        running.configure(**values)
        running.start_all()
        yield running
    finally:
        running.close()
        shutil.rmtree(root)
