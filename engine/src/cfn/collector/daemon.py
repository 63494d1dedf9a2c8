"""The collector's life: read, write, wait, until it is told to stop."""

import json
import signal
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from cfn import release
from cfn.collector import output, probes
from cfn.collector.alarms import Growth, HealthChecks
from cfn.collector.exposition import Exposition
from cfn.collector.processes import Daemons, Host, Processes
from cfn.collector.sample import Readings, sample
from cfn.collector.tail import Ended, EventTail
from cfn.config_follower import ConfigFollower
from cfn.engine.log import log
from cfn.engine.notify import notify
from cfn.metrics.records import Coordinated, GenerationStarted, read_config
from cfn.metrics.times import parse_ms
from cfn.paths import Paths
from cfn.router.split import bucket, ordered_version

POLL_S = 0.5  # how soon a signal or a changed interval takes effect
DETAIL_SHARE = 6  # while details are logged, so many samples in place of one
SHORTEST_S = 0.5


class Collector:
    """One collector of one installation. `stop` may be called from a signal handler."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        state = paths.state / "collector"
        with suppress(OSError):  # then a restart beside a bad configuration falls back to the defaults
            state.mkdir(mode=0o750, parents=True, exist_ok=True)
        self._follower = ConfigFollower(paths.config, state / "config.last-good")
        self._tail = EventTail(paths.events, paths.shm / "metrics/collector.json")
        self._file = output.SamplesFile(paths.samples)
        self._processes = Processes()
        self._host = Host(state / "boot.json")
        self._starts = probes.UnitStarts()
        self._growth = Growth()
        self._checks = HealthChecks()
        self._host_name = socket.gethostname()
        self._release = release.version()
        self._detail = False
        self._stopping = False
        self._problem = ""
        self.exposition = Exposition()

    def stop(self) -> None:
        """End `run` within a moment."""
        self._stopping = True

    def run(self) -> None:
        """Sample until stopped. A sample that cannot be written is said once, and the next is tried."""
        self._serve()
        notify("READY=1")
        log("collector-started", release=self._release, interval_s=self._follower.config.metrics_interval_s)
        due_s = time.monotonic()
        while not self._stopping:
            wait_s = due_s - time.monotonic()
            if wait_s > 0:
                time.sleep(min(wait_s, POLL_S))
                if self._follower.poll():
                    self._serve()
                    due_s = min(due_s, time.monotonic() + self._interval_s())
                continue
            self._said(self.turn)
            # A turn that was late does not make the next ones hurry.
            due_s = max(due_s + self._interval_s(), time.monotonic())
        notify("STOPPING=1")
        log("collector-stopped")

    def _serve(self) -> None:
        config = self._follower.config
        self.exposition.serve(config.metrics_listen, config.metrics_port)

    def turn(self) -> dict[str, Any]:
        """Take one sample, expose it and write it. Raises OSError when a file cannot be written."""
        router = probes.router_status(self._paths.router_socket)
        readings = self._read(router)
        record = sample(readings)
        self.exposition.show(
            record, readings.ended or (), in_force=_in_force(router), as_ordered=self._as_ordered
        )
        self._file.append(record)  # first: that there is no room in tmpfs is to be seen afterwards
        output.replace_latest(self._paths.latest_metrics, record)
        return record

    def _as_ordered(self, event: Coordinated) -> bool:
        """Whether bucket and version of an event are what its configuration and the key make of it."""
        expected = bucket(self._follower.config.split_key, event.split_on)
        if event.reason == "over_capacity":
            return event.bucket == expected and event.ordered == "v1"
        ordered = ordered_version(event.config.version, event.config.traffic_pct, expected)
        return event.bucket == expected and event.ordered == ordered

    def _read(self, router: dict[str, Any] | None) -> Readings:
        health = probes.conductor_health(self._paths.conductor_socket)
        coordinators = probes.coordinators(health)
        daemons = Daemons(
            conductor=probes.count(health, "pid"),
            spawner=probes.count(health, "spawner_pid"),
            router=probes.count(router, "pid"),
            coordinators={each.name: each.pid for each in coordinators or () if each.pid},
        )
        processes = self._processes.read(daemons)
        answers = {"conductor": daemons.conductor, "router": daemons.router}
        ended = self._ended()
        self._detail = self._in_detail(router)
        return Readings(
            time_s=time.time(),
            host_name=self._host_name,
            release=self._release,
            tmpfs=probes.tmpfs_used(self._paths.shm.parent),
            active_agents=probes.count(health, "agents_active"),
            generation=probes.count(router, "generation"),
            queue_depth=_queued(health, coordinators),
            inbox_messages=probes.count(health, "queue_depths", "inboxes"),
            router_in_flight=probes.count(router, "in_flight"),
            v1_waiting=probes.count(router, "v1", "waiting"),
            failover_time_s=probes.number(health, "failover_time_s"),
            memory_growth_rate=self._growth.add(time.monotonic(), processes.get("memory_kb")),
            health_false_positive_pct=self._checks.add(
                answers, probes.count(health, "counters", "false_alarms")
            ),
            watch_age_s=self._watch_age_s(),
            starts=self._starts.read(),
            coordinators=coordinators,
            ended=ended,
            processes=processes,
            host=self._host.read(),
            detail=self._detail,
        )

    def _ended(self) -> list[Ended] | None:
        try:
            return self._tail.read()
        except OSError as error:  # events that cannot be read are absent, like a daemon that is
            log("events-not-read", error=error)
            return None

    def _in_detail(self, router: Mapping[str, Any] | None) -> bool:
        """Whether a flip to V2 is so fresh that details are logged: it switches them on, time off."""
        if not router or router.get("version") != "v2" or not router.get("traffic_pct"):
            return False
        try:
            age_s = time.time() - parse_ms(str(router.get("since"))) / 1_000
        except ValueError:
            return False
        return 0 <= age_s < float(self._follower.config.detail_time_s)

    def _watch_age_s(self) -> float | None:
        """Time since the watch was last heard of; None where there never was one."""
        try:
            value = json.loads((self._paths.state / "watch/heard.json").read_text())
            return max(0.0, time.time() - parse_ms(value["time"]) / 1_000)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _interval_s(self) -> float:
        interval_s = float(self._follower.config.metrics_interval_s)
        return max(min(interval_s, SHORTEST_S), interval_s / DETAIL_SHARE) if self._detail else interval_s

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


def _in_force(router: Mapping[str, Any] | None) -> GenerationStarted | None:
    """The configuration that the router runs; None if it does not say."""
    if router is None or not isinstance(router.get("generation"), int):
        return None
    try:
        config = read_config(router)
    except ValueError:
        return None
    return GenerationStarted(
        time_ms=0, generation=router["generation"], config=config, split_key_sha256="", max_agents=0
    )


def _queued(health: dict[str, Any] | None, coordinators: list[probes.Coordinator] | None) -> int | None:
    """Coordinations that wait in the conductor and in coordinators."""
    own = probes.count(health, "queue_depths", "coordinations")
    theirs = [each.queue_depth for each in coordinators or () if each.queue_depth is not None]
    return None if own is None else own + sum(theirs)


def run(paths: Paths) -> None:
    """Run a collector until SIGTERM or SIGINT."""
    collector = Collector(paths)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: collector.stop())
    collector.run()
