"""A real engine (conductor and spawner processes) below a folder of its own in tmpfs."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cfn.client import Client
from cfn.paths import Paths

SOURCE = Path(__file__).parents[2] / "src"
BIN = Path(__file__).parents[2] / "bin"


class Engine:
    """Starts, asks and kills. Everything that it starts carries CFN_ROOT, by which it is found again."""

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        self.environment = {**os.environ, "CFN_ROOT": str(root), "PYTHONPATH": str(SOURCE)}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.ran = root / "ran"

    def configure(self, **values: object) -> None:
        self.paths.config.parent.mkdir(parents=True, exist_ok=True)
        self.paths.config.write_text("".join(f'{key}="{value}"\n' for key, value in values.items()))

    def start(self, *names: str) -> None:
        for name in names or ("spawner", "conductor"):
            with (self.paths.root / f"{name}.log").open("ab") as log:
                self.processes[name] = subprocess.Popen(
                    [sys.executable, "-S", "-m", "cfn", name], env=self.environment, stdout=log, stderr=log
                )
        self.until(lambda: "error" not in self.ask(verb="health"), 5)

    def up(self) -> None:
        self.until(lambda: self.ask(verb="health").get("spawner") == "up", 5)

    def ask(self, **request: Any) -> dict[str, Any]:
        """One request, its final answer; a conductor that is away is asked again, as callers do."""
        limit = time.monotonic() + 15
        while True:
            try:
                with Client(self.paths.conductor_socket, timeout_s=15) as client:
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

    def agent(self, text: str) -> str:
        """The path of an agent command made of these bash lines; it notes each run first."""
        path = self.paths.root / "agent"
        path.write_text(f'#!/bin/bash\necho "$CFN_AGENT_ID" >> {self.ran}\n{text}\n')
        path.chmod(0o755)
        return str(path)

    def runs(self) -> list[str]:
        return self.ran.read_text().split() if self.ran.exists() else []

    def kill(self, name: str, number: int = signal.SIGKILL) -> None:
        self.processes[name].send_signal(number)
        self.processes[name].wait(15)

    def workers(self) -> list[int]:
        """Every process of this engine but conductor and spawner: workers and what they run."""
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

    def until(self, satisfied: Callable[[], bool], limit_s: float) -> None:
        limit = time.monotonic() + limit_s
        while not satisfied():
            assert time.monotonic() < limit, self.log()
            time.sleep(0.01)

    def log(self) -> str:
        return "\n".join(path.read_text()[-3000:] for path in self.paths.root.glob("*.log"))

    def stop(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()
        for pid in self.workers():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine with its folders, not started."""
    root = Path(tempfile.mkdtemp(prefix="cfn", dir="/dev/shm"))
    engine = Engine(root)
    engine.configure(CFN_MAX_AGENTS=100)
    try:
        yield engine
    finally:
        engine.stop()
        shutil.rmtree(root)


@pytest.fixture
def running(engine: Engine) -> Engine:
    """A started engine."""
    engine.start()
    return engine
