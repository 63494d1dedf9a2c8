"""A real engine, all its processes below a folder of its own in tmpfs, and what plays systemd for it."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cfn.client import Client
from cfn.paths import Paths

SOURCE = Path(__file__).parents[2] / "src"
BIN = Path(__file__).parents[2] / "bin"

Process = subprocess.Popen[bytes]


class Engine:
    """Starts, asks and kills. Daemons are named "conductor", "spawner" and "coordinator-N". Everything
    that it starts carries CFN_ROOT, by which it is found again."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        self.environment = {**os.environ, "CFN_ROOT": str(root), "PYTHONPATH": str(SOURCE)}
        self.processes: dict[str, Process] = {}
        self.ran = root / "ran"
        self.patience_s = 15.0  # of a caller whose conductor is away
        self.python = sys.executable
        self.user: int | None = None  # whose the daemons are, if not this process's

    def configure(self, **values: object) -> None:
        self.paths.config.parent.mkdir(parents=True, exist_ok=True)
        self.paths.config.write_text("".join(f'{key}="{value}"\n' for key, value in values.items()))

    # Daemons

    def start(self, *names: str) -> None:
        for name in names or ("spawner", "conductor"):
            self.launch(name)
        self.until(lambda: "error" not in self.ask(verb="health"), 15)

    def start_hybrid(self, coordinators: int) -> None:
        """All daemons, and wait until they are connected."""
        self.start("spawner", "conductor", *coordinator_names(coordinators))
        self.up()
        self.connected(*range(1, coordinators + 1))

    def launch(self, name: str) -> Process:
        """Start one daemon and wait for nothing."""
        with self.logged(name).open("ab") as log:
            process = subprocess.Popen(
                [self.python, "-S", "-m", "cfn", *name.split("-")],
                env=self.environment,
                stdout=log,
                stderr=log,
                user=self.user,
                group=self.user,
                extra_groups=None if self.user is None else [],
            )
        self.processes[name] = process
        return process

    def logged(self, name: str) -> Path:
        """Where a daemon's log goes."""
        return self.paths.root / f"{name}.log"

    def up(self) -> None:
        self.until(lambda: self.ask(verb="health").get("spawner") == "up", 15)

    def coordinator(self, number: int) -> dict[str, Any]:
        """What health says of a coordinator."""
        rows: list[dict[str, Any]] = self.ask(verb="health")["coordinators"]
        return next(row for row in rows if row["id"] == number)

    def connected(self, *numbers: int) -> None:
        """Wait until these coordinators are up, and their spawner too."""
        for number in numbers:
            self.until(
                lambda number=number: (  # type: ignore[misc]  # bound at once
                    (row := self.coordinator(number))["state"] == "up"
                    and row["pid"] == self.processes[f"coordinator-{number}"].pid
                    and row.get("spawner") == "up"
                ),
                10,
            )

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        """Send a signal that ends a daemon, and wait for its end."""
        self.processes[name].send_signal(number)
        self.processes[name].wait(15)

    # Requests

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, its final answer; a conductor that is away is asked again, as callers do."""
        limit = time.monotonic() + self.patience_s
        while True:
            try:
                with Client(self.paths.conductor_socket, timeout_s=self.patience_s) as client:
                    return client.final(request)
            except Exception:
                if time.monotonic() > limit:
                    raise
                time.sleep(0.01)

    def begin(self, **request: Any) -> Client:
        """Send a coordination and return once it is accepted; the caller closes the client."""
        client = Client(self.paths.conductor_socket, timeout_s=15)
        assert next(client.request({"verb": "coordinate", **request}))["state"] == "accepted"
        return client

    # Agents

    def agent(self, text: str) -> str:
        """The path of an agent command made of these bash lines; it notes each run first."""
        path = self.paths.root / "agent"
        path.write_text(f'#!/bin/bash\necho "$CFN_AGENT_ID" >> {self.ran}\n{text}\n')
        path.chmod(0o755)
        return str(path)

    def runs(self) -> list[str]:
        return self.ran.read_text().split() if self.ran.exists() else []

    def pids(self, swarm_id: str = "") -> dict[str, int]:
        """The process of each agent of a kept swarm that has one, as its hub knows it."""
        rows = self.ask(verb="status", swarm_id=swarm_id)["agents"]
        return {row["agent"]: row["pid"] for row in rows if row["pid"]}

    def workers(self) -> list[int]:
        """Every process of this engine but its daemons: workers and what they run."""
        known = {process.pid for process in self.processes.values()}
        mine = f"CFN_ROOT={self.paths.root}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                if (
                    entry.name.isdigit()
                    and int(entry.name) not in known
                    and mine in (entry / "environ").read_bytes()
                ):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def leaders(self) -> list[int]:
        """The workers themselves: each leads a session."""
        found = []
        for pid in self.workers():
            try:
                if os.getsid(pid) == pid:
                    found.append(pid)
            except ProcessLookupError:
                continue
        return found

    # The end

    def until(self, satisfied: Callable[[], bool], limit_s: float) -> None:
        limit = time.monotonic() + limit_s
        while not satisfied():
            assert time.monotonic() < limit, self.log()
            time.sleep(0.01)

    def log(self) -> str:
        return "\n".join(
            f"== {path.stem}\n{path.read_text()[-3000:]}" for path in self.paths.root.glob("*.log")
        )

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        for pid in self.workers():
            send_signal(pid, signal.SIGKILL)


class Supervisor:
    """What systemd does for the units: starts again what ended, and ends by SIGKILL what stays stopped
    for longer than `stopped_s` (WatchdogSec, with a shorter bound). Use with `with`."""

    def __init__(self, engine: Engine, *, stopped_s: float) -> None:
        self.restarts = 0
        self.killed = 0
        self._down_s = 0.0
        self._down_since_s = 0.0  # 0: it is up
        self._engine = engine
        self._stopped_s = stopped_s
        self._seen_stopped: dict[int, float] = {}
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Supervisor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    @property
    def down_s(self) -> float:
        """For how long there was no conductor that runs: dead, stopped, or not yet listening again."""
        since_s = self._down_since_s
        return self._down_s + (time.monotonic() - since_s if since_s else 0.0)

    @property
    def down(self) -> bool:
        """There is no conductor that runs now."""
        return self._down_since_s > 0

    def _run(self) -> None:
        conductor = self._engine.processes["conductor"].pid
        while not self._end.wait(0.005):
            now_s = time.monotonic()
            process = self._engine.processes["conductor"]
            if process.pid != conductor or process.poll() is not None or state_of(conductor) == "T":
                conductor = process.pid
                self._down_since_s = self._down_since_s or now_s
            elif self._down_since_s and listens(self._engine.paths.conductor_socket):
                self._down_s += now_s - self._down_since_s
                self._down_since_s = 0.0
            for name, process in list(self._engine.processes.items()):
                if process.poll() is not None:
                    self._engine.launch(name)
                    self.restarts += 1
                elif state_of(process.pid) != "T":
                    self._seen_stopped.pop(process.pid, None)
                elif now_s - self._seen_stopped.setdefault(process.pid, now_s) > self._stopped_s:
                    process.kill()
                    process.wait()
                    self.killed += 1


def listens(path: Path) -> bool:
    """Whether somebody accepts connections at a Unix stream socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


def coordinator_names(count: int) -> list[str]:
    return [f"coordinator-{number}" for number in range(1, count + 1)]


def send_signal(pid: int, number: int) -> bool:
    """Signal one process; False if it is gone. Never a group: 0 and less are refused."""
    assert pid > 1, pid
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def state_of(pid: int) -> str:
    """A process's state letter, empty when it is gone: T is stopped."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat[stat.rindex(")") + 2]
