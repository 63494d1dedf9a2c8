"""Where everything lives on a host, in one place.

`CFN_ROOT` moves the whole tree below another folder, so that tests and a second instance run
beside a real one without privileges.
"""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Paths:
    """The tree of one installation. `root` is "/" on a host."""

    root: Path

    @property
    def config(self) -> Path:
        """What people edit."""
        return self.root / "etc/cfn/config.sh"

    @property
    def current_release(self) -> Path:
        """The link to the release in force; its own time is since when."""
        return self.root / "opt/cfn/current"

    @property
    def lab_marker(self) -> Path:
        """Exists on lab hosts only; fault switches are refused without it."""
        return self.root / "etc/cfn-lab.json"

    @property
    def run(self) -> Path:
        """Sockets and the rendered environment; gone at reboot."""
        return self.root / "run/cfn"

    @property
    def env(self) -> Path:
        """The configuration as systemd and bash read it, rendered from `config`."""
        return self.run / "env"

    @property
    def conductor_socket(self) -> Path:
        """Unix stream socket of the conductor's clients."""
        return self.run / "conductor.sock"

    @property
    def spawner_socket(self) -> Path:
        """Unix SEQPACKET socket between hubs (the conductor, coordinators) and the spawner."""
        return self.run / "spawner.sock"

    @property
    def coordinators_socket(self) -> Path:
        """Unix SEQPACKET socket on which the conductor awaits coordinators."""
        return self.run / "coordinators.sock"

    def bus_socket(self, hub: int) -> Path:
        """Unix SEQPACKET socket of a hub's agents, for their messages; hub 0 is the conductor."""
        return self.run / f"bus-{hub}.sock"

    def mesh_socket(self, hub: int) -> Path:
        """Unix SEQPACKET socket of a hub for the other hubs."""
        return self.run / f"mesh-{hub}.sock"

    @property
    def router_socket(self) -> Path:
        """Unix stream socket on which the router speaks HTTP."""
        return self.run / "router.sock"

    @property
    def v1_command(self) -> Path:
        """The built-in V1, unless the configuration names another."""
        return self.root / "opt/cfn-v1/bin/coordinate"

    @property
    def shm(self) -> Path:
        """The engine's part of tmpfs: journals, results, inboxes, latest metrics."""
        return self.root / "dev/shm/cfn"

    @property
    def claims(self) -> Path:
        """The arenas in which agents' claims are decided, one file for each shard."""
        return self.shm / "claims"

    @property
    def outputs(self) -> Path:
        """Agents' outputs that no claim record can hold, one folder for each request."""
        return self.shm / "outputs"

    @property
    def latest_metrics(self) -> Path:
        """The newest sample, replaced atomically."""
        return self.shm / "metrics/latest.json"

    @property
    def state(self) -> Path:
        """What survives a reboot: last good configuration, generations, the ledger."""
        return self.root / "var/lib/cfn"

    @property
    def ledger(self) -> Path:
        """The environment's ledger, on its control host."""
        return self.state / "ledger"

    @property
    def log(self) -> Path:
        """Events and samples."""
        return self.root / "var/log/cfn"

    @property
    def events(self) -> Path:
        """One JSON line for each coordination and each generation."""
        return self.log / "coordination-events.jsonl"

    @property
    def samples(self) -> Path:
        """One JSON line for each sample of the collector."""
        return self.log / "v2-metrics.jsonl"


def installed() -> Paths:
    """The tree in force: below `CFN_ROOT` if that is set, else the host's own."""
    return Paths(Path(os.environ.get("CFN_ROOT", "/")))
