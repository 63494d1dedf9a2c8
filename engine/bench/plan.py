"""What is measured: sizes and samples, all of them or a few."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is measured. `full` is the size that the bars are for."""

    sizes: tuple[int, ...] = (10, 100, 300, 500, 708, 2_000)
    full: int = 708
    cold_samples: int = 15
    warm_samples: int = 30
    peer_samples: int = 5
    failovers: int = 50
    hangs: int = 10


QUICK = Plan(sizes=(10, 100, 708), cold_samples=5, warm_samples=15, peer_samples=2, failovers=7, hangs=2)
