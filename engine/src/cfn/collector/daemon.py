"""The collector's life: read, write, wait, until it is told to stop."""

import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from cfn import release
from cfn.collector import output, probes
from cfn.collector.sample import Readings, sample
from cfn.collector.tail import EventTail
from cfn.config_follower import ConfigFollower
from cfn.engine.log import log
from cfn.engine.notify import notify
from cfn.paths import Paths

POLL_S = 0.5  # how soon a signal or a changed interval takes effect


class Collector:
    """One collector of one installation. `stop` may be called from a signal handler."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        state = paths.state / "collector"
        with suppress(OSError):  # then a restart beside a bad configuration falls back to the defaults
            state.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._follower = ConfigFollower(paths.config, state / "config.last-good")
        self._tail = EventTail(paths.events, paths.shm / "metrics/collector.json")
        self._processes = probes.Processes()
        self._starts = probes.UnitStarts()
        self._host = socket.gethostname()
        self._release = release.version()
        self._stopping = False
        self._problem = ""

    def stop(self) -> None:
        """End `run` within a moment."""
        self._stopping = True

    def run(self) -> None:
        """Sample until stopped. A sample that cannot be written is said once, and the next is tried."""
        notify("READY=1")
        log("collector-started", release=self._release, interval_s=self._follower.config.metrics_interval_s)
        due_s = time.monotonic()
        while not self._stopping:
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                time.sleep(min(wait_s, POLL_S))
                if self._follower.poll():
                    due_s = min(due_s, time.monotonic() + self._interval_s())
                continue
            self._said(self.turn)
            # A turn that was late does not make the next ones hurry.
            due_s = max(due_s + self._interval_s(), time.monotonic())
        notify("STOPPING=1")
        log("collector-stopped")

    def turn(self) -> dict[str, Any]:
        """Take one sample and write it. Raises OSError when a file cannot be written."""
        record = sample(self._read())
        output.replace_latest(self._paths.latest_metrics, record)
        output.append(self._paths.samples, record)
        return record

    def _read(self) -> Readings:
        health = probes.conductor_health(self._paths.conductor_socket)
        router = probes.router_status(self._paths.router_socket)
        usage = self._processes.read(
            probes.count(health, "pid"), probes.count(health, "spawner_pid"), probes.count(router, "pid")
        )
        return Readings(
            time_s=time.time(),
            host=self._host,
            release=self._release,
            memory_kb=usage[0] if usage else None,
            fd_count=usage[1] if usage else None,
            tmpfs_pct=probes.tmpfs_used_pct(self._paths.shm.parent),
            active_agents=probes.count(health, "agents_active"),
            generation=probes.count(router, "generation"),
            starts=self._starts.read(),
            coordinations=self._tail.read(),
        )

    def _interval_s(self) -> float:
        return float(self._follower.config.metrics_interval_s)

    def _said(self, work: Callable[[], object]) -> None:
        """Do `work`; log the begin and the end of a problem with the files, not every turn of it."""
        try:
            work()
        except OSError as error:
            if str(error) != self._problem:
                log("sample-lost", error=error)
            self._problem = str(error)
        else:
            if self._problem:
                log("samples-again")
            self._problem = ""


def run(paths: Paths) -> None:
    """Run a collector until SIGTERM or SIGINT."""
    collector = Collector(paths)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: collector.stop())
    collector.run()
