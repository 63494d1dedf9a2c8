"""`/metrics`: the newest sample and the counters since the collector's start, for Prometheus.

Names carry base units (seconds, bytes, ratios of 1). A field that the newest sample lacks has no series.
"""

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from wsgiref.simple_server import WSGIServer

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector as PrometheusCollector

from cfn.collector.tail import Ended
from cfn.engine.log import log
from cfn.metrics.records import Coordinated, GenerationStarted
from cfn.metrics.series import Totals


@dataclass(frozen=True, slots=True)
class Exposed:
    """How a field of a sample is exposed: value times `scale`, with a label if it has one."""

    field: str
    name: str
    help: str
    scale: float = 1.0
    label: tuple[str, str] | None = None


_MS, _PCT, _KB, _MB = 0.001, 0.01, 1_024.0, 1_048_576.0

EXPOSED = (
    Exposed("timestamp", "cfn_sample_timestamp_seconds", "When the newest sample was taken."),
    Exposed("boot_time_s", "cfn_host_boot_timestamp_seconds", "When the host booted."),
    Exposed("generation", "cfn_generation", "Number of the configuration that the router runs."),
    Exposed("active_agents", "cfn_active_agents", "Agents that live now."),
    Exposed("memory_kb", "cfn_memory_bytes", "Resident memory of the engine's processes.", _KB),
    Exposed("memory_growth_rate", "cfn_memory_growth_bytes_per_minute",
            "Robust slope of that memory over the last hour.", _KB),
    Exposed("memory_coordinator_kb", "cfn_coordinator_memory_max_bytes",
            "Resident memory of the largest coordinator.", _KB),
    Exposed("memory_worker_kb", "cfn_worker_memory_max_bytes", "Resident memory of the largest worker.", _KB),
    Exposed("fd_count", "cfn_open_fds", "Open file descriptors of the engine's processes."),
    Exposed("engine_cpu_pct", "cfn_cpu_ratio", "CPU of the engine's processes, in cores.", _PCT),
    Exposed("engine_read_bytes_s", "cfn_read_bytes_per_second", "Bytes that the daemons read from storage."),
    Exposed("engine_write_bytes_s", "cfn_write_bytes_per_second", "Bytes that the daemons wrote to storage."),
    Exposed("host_cpu_pct", "cfn_host_cpu_ratio", "Busy share of all cores of the host.", _PCT),
    Exposed("host_memory_available_kb", "cfn_host_memory_available_bytes",
            "Memory that the host could give without swapping.", _KB),
    Exposed("host_read_bytes_s", "cfn_host_read_bytes_per_second", "Bytes that the host read from storage."),
    Exposed("host_write_bytes_s", "cfn_host_write_bytes_per_second", "Bytes that the host wrote to storage."),
    Exposed("tmpfs_pct", "cfn_tmpfs_used_ratio", "Used share of /dev/shm.", _PCT),
    Exposed("tmpfs_used_mb", "cfn_tmpfs_used_bytes", "Used bytes of /dev/shm.", _MB),
    Exposed("coordination_time", "cfn_coordination_time_seconds",
            "Coordination time of V2 since the sample before, by quantile.", _MS, ("quantile", "0.5")),
    Exposed("coordination_time_p95", "cfn_coordination_time_seconds", "", _MS, ("quantile", "0.95")),
    Exposed("coordination_time_p99", "cfn_coordination_time_seconds", "", _MS, ("quantile", "0.99")),
    Exposed("delivery_rate", "cfn_delivery_ratio",
            "Delivery of V2 since the sample before; level all, mesh or worker.", _PCT, ("level", "all")),
    Exposed("mesh_delivery_rate", "cfn_delivery_ratio", "", _PCT, ("level", "mesh")),
    Exposed("worker_delivery_rate", "cfn_delivery_ratio", "", _PCT, ("level", "worker")),
    Exposed("completion_rate", "cfn_completion_ratio", "Completion of V2 since the sample before.", _PCT),
    Exposed("error_rate", "cfn_error_ratio", "Error rate of V2 since the sample before.", _PCT),
    Exposed("v1_share_pct", "cfn_traffic_ratio", "Share of the requests since the sample before.", _PCT,
            ("ordered", "v1")),
    Exposed("v2_share_pct", "cfn_traffic_ratio", "", _PCT, ("ordered", "v2")),
    Exposed("team_coordination_time_ms", "cfn_team_coordination_time_seconds",
            "Coordination time of the slowest team since the sample before.", _MS),
    Exposed("coordinator_health", "cfn_coordinators_up", "Coordinators that are up."),
    Exposed("coordinator_response_time_ms", "cfn_coordinator_response_time_seconds",
            "Response time of the slowest coordinator.", _MS),
    Exposed("worker_imbalance_pct", "cfn_worker_imbalance_ratio",
            "Largest distance of a coordinator's number of agents from the mean, as a share of it.", _PCT),
    Exposed("failover_time_s", "cfn_failover_time_seconds", "Length of the last failover."),
    Exposed("health_false_positive_pct", "cfn_health_false_positive_ratio",
            "Share of false alarms in the last health checks.", _PCT),
    Exposed("queue_depth", "cfn_queue_depth", "Coordinations that wait in the engine."),
    Exposed("inbox_messages", "cfn_inbox_messages", "Messages that wait in agents' inboxes."),
    Exposed("router_in_flight", "cfn_requests_in_flight", "Coordinations under way in the router."),
    Exposed("v1_waiting", "cfn_v1_waiting", "Coordinations that wait for a V1 slot."),
    Exposed("watch_age_s", "cfn_watch_age_seconds", "Time since the watch was last heard of here."),
)  # fmt: skip

UNIT_STARTS = ("cfn_unit_starts", "1 and the times that systemd restarted the unit by itself.")


class Exposition(PrometheusCollector):
    """What one collector exposes. `show` may be called while another thread is being answered."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._newest: Mapping[str, Any] = {}
        self._totals = Totals(self.registry, since_s=time.time())
        self._place: tuple[str, int] | None = None
        self._server: WSGIServer | None = None
        self.registry.register(self)

    def show(
        self,
        record: Mapping[str, Any],
        ended: Sequence[Ended],
        *,
        in_force: GenerationStarted | None,
        as_ordered: Callable[[Coordinated], bool],
    ) -> None:
        """Expose a sample and the configuration in force, and count the coordinations that ended since
        the one before; `as_ordered` says whether one's version is what is recomputed."""
        with self._lock:
            self._newest = record
        if in_force is not None:
            self._totals.put_in_force(in_force)
        for each in ended:
            self._totals.add(each.event, as_ordered=as_ordered(each.event))

    def collect(self) -> Iterable[Metric]:
        """The families of the newest sample."""
        with self._lock:
            record = self._newest
        families: dict[str, GaugeMetricFamily] = {}
        for each in EXPOSED:
            if each.field not in record:
                continue
            family = families.get(each.name)
            if family is None:
                labels = [each.label[0]] if each.label else []
                family = families[each.name] = GaugeMetricFamily(each.name, _help(each), labels=labels)
            family.add_metric([each.label[1]] if each.label else [], record[each.field] * each.scale)
        if "starts" in record:
            starts = families["starts"] = GaugeMetricFamily(*UNIT_STARTS, labels=["unit"])
            for unit, count in record["starts"].items():
                starts.add_metric([unit], count)
        return families.values()

    def serve(self, address: str, port: int) -> bool:
        """Answer Prometheus here, in a thread of its own, and nowhere else any more; port 0 ends it. False,
        and said in the log, when the address cannot be had: samples go on without."""
        if (address, port) == self._place:
            return True
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
        self._place = self._server = None
        if port:
            try:
                self._server, _ = start_http_server(port, addr=address, registry=self.registry)
            except OSError as error:
                log("metrics-not-served", address=address, port=port, error=error)
                return False
        self._place = (address, port)
        return True


def _help(exposed: Exposed) -> str:
    return next(each.help for each in EXPOSED if each.name == exposed.name and each.help)
