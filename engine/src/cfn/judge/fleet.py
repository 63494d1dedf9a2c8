"""The hosts' evidence, merged as the criteria ask for it, each merge done once."""

from collections.abc import Iterable, Sequence

from cfn.judge.hosts import Host
from cfn.judge.window import Window
from cfn.metrics.arm import Arm


class Fleet:
    """The hosts whose evidence can be used. Merges are remembered: do not change what is returned."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.hosts = [host for host in hosts if host.evidence is not None]
        self._buckets: dict[tuple[str, int, int], dict[int, Arm]] = {}
        self._totals: dict[tuple[str, str, int, int], Arm] = {}

    def by_bucket(self, name: str, window: Window) -> dict[int, Arm]:
        """The arm ("v1" or "v2") of the whole fleet in each bucket that had requests."""
        key = (name, window.start_ms, window.end_ms)
        if key not in self._buckets:
            merged: dict[int, Arm] = {}
            for host in self.hosts:
                for start, arm in host.arms(name, window.starts):
                    merged.setdefault(start, Arm()).merge(arm)
            self._buckets[key] = dict(sorted(merged.items()))
        return self._buckets[key]

    def total(self, name: str, window: Window) -> Arm:
        """The arm of the whole fleet over the window."""
        return self._total("", name, window, self.by_bucket(name, window).values())

    def total_of(self, host: Host, name: str, window: Window) -> Arm:
        """The arm of one host over the window."""
        return self._total(host.name, name, window, (arm for _, arm in host.arms(name, window.starts)))

    def _total(self, where: str, name: str, window: Window, arms: Iterable[Arm]) -> Arm:
        key = (where, name, window.start_ms, window.end_ms)
        if key not in self._totals:
            total = Arm()
            for arm in arms:
                total.merge(arm)
            self._totals[key] = total
        return self._totals[key]
