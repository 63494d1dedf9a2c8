"""What the figures have to reach, as data, and whether they do."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.bench.table import Row, refused


@dataclass(frozen=True, slots=True)
class Bar:
    """A field of the row with this name is at most so much, or at least (`max` is the worst sample)."""

    row: str
    field: str
    bound: float
    least: bool = False

    def met(self, value: float) -> bool:
        """Whether a figure reaches it."""
        return value >= self.bound if self.least else value <= self.bound


BARS = (
    Bar("cold, 708 agents, hybrid", "ratio_to_limit", 5),
    Bar("cold, 708 agents, hybrid", "ratio_to_redis", 1 / 8),
    Bar("cold, 708 agents, hybrid", "ratio_to_nats", 1 / 8),
    Bar("warm, 708 agents, hybrid", "ratio_to_limit", 4),
    Bar("warm, 708 agents, hybrid", "ratio_to_redis", 1 / 10),
    Bar("warm, 708 agents, hybrid", "ratio_to_nats", 1 / 10),
    Bar("message-bus.sh coordinate 708, beyond cold", "value", 25),
    Bar("cold, hybrid, time per agent, 2000 against 100", "value", 1.5),
    Bar("warm, hybrid, time per agent, 2000 against 100", "value", 1.5),
    Bar("messages, agent to agent, unbatched", "ratio_to_limit", 0.3, least=True),
    Bar("message latency, p99", "value", 1),
    Bar("failover, SIGKILL of a coordinator, 708 agents, p99", "value", 1_000),
    Bar("failover, SIGSTOP of a coordinator, 708 agents", "max", 5_000),
    Bar("shown by health, SIGKILL of a coordinator, 708 agents", "max", 1_000),
    Bar("memory (PSS) of a worker, 708 agents, hybrid", "max", 1),
    Bar("memory (PSS) of a coordinator, 708 agents, hybrid", "max", 60),
    Bar("memory (PSS) of all processes, 708 agents, hybrid", "value", 700),
    Bar("descriptors of all processes, 708 agents, hybrid", "value", 5_000),
    Bar("tmpfs used, 708 agents, hybrid", "value", 50),
)


def verdicts(rows: Sequence[Row], bars: Sequence[Bar] = BARS) -> Iterator[str]:
    """One line for each bar; a row that is not there, or has no figure, meets none."""
    found = {row.name: row for row in rows}
    for bar in bars:
        row = found.get(bar.row, refused(bar.row, "not asked for"))
        value: float | None = getattr(row, bar.field)
        if value is None:
            word, figure = "not measured", "-"
        else:
            word, figure = "met" if bar.met(value) else "NOT MET", f"{value:,.4g}"
        side = "at least" if bar.least else "at most"
        yield f"{word:12} {bar.row}: {bar.field} {figure}, {side} {bar.bound:,.4g}"
