"""An engine as plain processes below a folder of its own in /dev/shm, for quick work.

Daemons that end are started again, as their units would.
"""

import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cfn.cli import COMMANDS
from cfn.paths import Paths
from engine.bench import processes
from engine.bench.engine import COORDINATORS, Engine, base_configuration

RESTART_S = 0.05  # the units' RestartSec
STOP_S = 20.0  # the units' TimeoutStopSec
BIN = Path(__file__).parents[1] / "bin"


def daemons() -> dict[str, list[str]]:
    """The daemons of this source tree and how each is started: the one place that knows."""
    start = [sys.executable, "-m", "cfn"]
    found = {name: [*start, name] for name in ("spawner", "conductor")}
    if "coordinator" in COMMANDS:
        found |= {
            f"coordinator {number}": [*start, "coordinator", str(number)]
            for number in range(1, COORDINATORS + 1)
        }
    return found


class Local:
    """The place; `close` ends every daemon."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        self.namespace = processes.namespace()
        self.environment = f"CFN_ROOT={root}".encode()
        self.commands = str(BIN)
        for folder in (
            self.paths.run,
            self.paths.shm,
            self.paths.state,
            self.paths.log,
            self.paths.config.parent,
        ):
            folder.mkdir(parents=True, mode=0o750)
        lines = (f'{key}="{value}"\n' for key, value in base_configuration().items())
        self.paths.config.write_text("".join(lines))
        self._log = (root / "daemons.log").open("ab")
        self._closing = threading.Event()
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._keepers = [
            threading.Thread(target=self._keep, args=(name, argv)) for name, argv in daemons().items()
        ]
        for keeper in self._keepers:
            keeper.start()

    def argv(self, words: Sequence[str]) -> list[str]:
        return ["env", self.environment.decode(), *words]

    def restart_conductor(self) -> None:
        conductor = self._running["conductor"]
        conductor.terminate()
        conductor.wait(STOP_S)

    def close(self) -> None:
        """The conductor first: it ends what lives, and needs the others for that."""
        self._closing.set()
        for name in ("conductor", *(name for name in self._running if name != "conductor")):
            self._running[name].terminate()
            self._running[name].wait(STOP_S)
        for keeper in self._keepers:
            keeper.join()
        self._log.close()

    def _keep(self, name: str, argv: Sequence[str]) -> None:
        environment = os.environ | {"CFN_ROOT": str(self.paths.root)}
        while True:
            self._running[name] = subprocess.Popen(
                argv, env=environment, stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log
            )
            self._running[name].wait()
            if self._closing.wait(RESTART_S):
                return


@contextmanager
def local() -> Iterator[Engine]:
    """A ready engine; it is ended and its tree removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="cfn-bench-", dir="/dev/shm") as root:
        place = Local(Path(root))
        try:
            engine = Engine(place)
            engine.until(engine.ready, "the engine did not start")
            yield engine
        finally:
            place.close()
