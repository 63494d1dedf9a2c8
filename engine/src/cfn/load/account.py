"""The account of a stream: what became of every request, without any I/O."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_REASONS_SHOWN = 5
_LATE_S = 0.05


@dataclass(slots=True)
class _Entry:
    """One task. `digest` identifies the first answer; `problem` is why there is none yet."""

    digest: int | None = None
    differs: bool = False
    failed: str = ""
    problem: str = ""
    lost: bool = False
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """What became of the requests that were sent.

    `answered_once` + `answered_twice` + `never` = `sent`. `failed` counts answers that are a
    refusal, an error, or in which no agent is done; `partial` those in which not every agent is.
    `retries` counts requests sent again since their connection had failed, `refused_connections` those
    of them that nobody had accepted.
    Times are in ms, by ordered version; shares in %, of the requests inside the split. `delivery_rate_pct`
    is the mean over answers of the ordered version's; None without any.
    """

    planned: int
    sent: int
    answered_once: int
    answered_twice: int
    never: int
    failed: int
    partial: int
    failures: Sequence[str]
    answered_by_asking: int
    retries: int
    refused_connections: int
    late_starts: int
    latest_start_ms: float
    seconds: float
    by_ordered: Mapping[str, int]
    by_served: Mapping[str, int]
    fallbacks: int
    over_capacity: int
    delivery_rate_pct: float | None
    observed_share_pct: float | None
    expected_share_pct: float | None
    generations: Mapping[str, Mapping[str, Any]]
    latency_ms: Mapping[str, Mapping[str, float]]

    @property
    def ok(self) -> bool:
        """Every request was answered exactly once, and every agent of it is done."""
        return self.answered_once == self.sent > 0 and not self.failed and not self.partial

    def as_json(self) -> dict[str, Any]:
        """The report as an object, with `ok`."""
        return {"ok": self.ok, **asdict(self)}


@dataclass(slots=True)
class Account:
    """Filled while the stream runs. Every task that is sent is opened once."""

    planned: int
    _entries: dict[str, _Entry] = field(default_factory=dict)
    _latencies_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _ordered: Counter[str] = field(default_factory=Counter)
    _served: Counter[str] = field(default_factory=Counter)
    _by_generation: dict[int, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    _ordered_pct: dict[int, float] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)
    _latest_s: float = 0.0
    _delivery_pct: float = 0.0

    def open(self, task_id: str, *, late_s: float) -> None:
        """A request is about to be sent, `late_s` after it was due."""
        self._entries[task_id] = _Entry()
        self._latest_s = max(self._latest_s, late_s)
        self._counts["late"] += late_s > _LATE_S

    def retried(self, task_id: str, *, refused: bool) -> None:
        """The connection failed, or was `refused`, and the same id is sent again."""
        self._entries[task_id].retries += 1
        self._counts["refused"] += refused

    def unanswered(self, task_id: str, problem: str) -> None:
        """The request ended without an answer, for now."""
        self._entries[task_id].problem = problem

    def answered(self, task_id: str, status: int, body: bytes, *, latency_s: float | None) -> None:
        """An answer came; `latency_s` is None if it was asked for afterwards."""
        entry = self._entries[task_id]
        if entry.digest is not None:
            entry.differs |= entry.digest != hash(body)
            return
        entry.digest = hash(body)
        self._counts["asked"] += latency_s is None
        try:
            answer = json.loads(body)
            outcome = answer["outcome"]
        except (ValueError, KeyError, TypeError):
            entry.failed = f"HTTP {status}: {body[:200].decode(errors='replace')}"
            return
        if outcome == "partial":
            self._counts["partial"] += 1
        elif outcome != "done":
            entry.failed = f"{outcome}: {answer.get('detail', '')}"
        self._count(answer, latency_s)

    def saw_generation(self, status: Mapping[str, Any]) -> None:
        """The router's `/status`, read now and then, says what each generation ordered."""
        share_pct = float(status["traffic_pct"]) if status["version"] == "v2" else 0.0
        self._ordered_pct[int(status["generation"])] = share_pct

    def not_known(self, task_id: str) -> None:
        """The router does not know the task. After an answer that only says that it has forgotten."""
        entry = self._entries[task_id]
        if entry.digest is None:
            entry.lost = True
            entry.problem = f"the router does not know it; {entry.problem}"

    def open_ids(self) -> list[str]:
        """The tasks to ask for: no answer yet, and one may still come."""
        return [
            task_id for task_id, entry in self._entries.items() if entry.digest is None and not entry.lost
        ]

    def answered_ids(self, sample: int) -> list[str]:
        """The tasks whose answer is worth a second look: all that were retried, and a sample."""
        answered = [task_id for task_id, entry in self._entries.items() if entry.digest is not None]
        retried = [task_id for task_id in answered if self._entries[task_id].retries]
        every = max(1, len(answered) // sample)
        return list(dict.fromkeys([*retried, *answered[::every]]))

    def progress(self) -> str:
        """One line for people."""
        done = sum(self._ordered.values())
        return (
            f"{len(self._entries)}/{self.planned} sent, {done} answered, "
            f"v1 {self._ordered['v1']}, v2 {self._ordered['v2']}, fallbacks {self._counts['fallbacks']}"
        )

    def report(self, seconds: float) -> LoadReport:
        """The account as it stands after `seconds`."""
        entries = self._entries
        reasons = [f"{task_id}: {entry.failed}" for task_id, entry in entries.items() if entry.failed]
        lost = [
            f"{task_id}: never answered: {entry.problem}"
            for task_id, entry in entries.items()
            if entry.digest is None
        ]
        twice = [task_id for task_id, entry in entries.items() if entry.differs]
        observed, expected = self._shares()
        return LoadReport(
            planned=self.planned,
            sent=len(entries),
            answered_once=len(entries) - len(lost) - len(twice),
            answered_twice=len(twice),
            never=len(lost),
            failed=len(reasons),
            partial=self._counts["partial"],
            failures=[
                *lost[:_REASONS_SHOWN],
                *(f"{task_id}: two answers that differ" for task_id in twice[:_REASONS_SHOWN]),
                *reasons[:_REASONS_SHOWN],
            ],
            answered_by_asking=self._counts["asked"],
            retries=sum(entry.retries for entry in entries.values()),
            refused_connections=self._counts["refused"],
            late_starts=self._counts["late"],
            latest_start_ms=round(self._latest_s * 1000, 3),
            seconds=round(seconds, 3),
            by_ordered=dict(self._ordered),
            by_served=dict(self._served),
            fallbacks=self._counts["fallbacks"],
            over_capacity=self._counts["over_capacity"],
            delivery_rate_pct=self._delivery(),
            observed_share_pct=observed,
            expected_share_pct=expected,
            generations={
                str(number): {
                    "ordered_pct": self._ordered_pct.get(number),
                    "observed_pct": _share_pct(counts),
                    **counts,
                }
                for number, counts in sorted(self._by_generation.items())
            },
            latency_ms={
                version: {"count": len(values)}
                | {f"p{p}": round(percentile(values, p) * 1000, 3) for p in (50, 95, 99)}
                for version, values in sorted(self._latencies_s.items())
            },
        )

    def _count(self, answer: Mapping[str, Any], latency_s: float | None) -> None:
        ordered = str(answer.get("ordered", "unknown"))
        self._ordered[ordered] += 1
        self._served[str(answer.get("served", "unknown"))] += 1
        self._counts["fallbacks"] += answer.get("fallback") is not None
        rate_pct = (answer.get("coordination") or {}).get("delivery_rate_pct")
        if isinstance(rate_pct, int | float):
            self._delivery_pct += rate_pct
            self._counts["delivery"] += 1
        if latency_s is not None:
            self._latencies_s[ordered].append(latency_s)
        if answer.get("reason") == "over_capacity":
            self._counts["over_capacity"] += 1
        elif isinstance(answer.get("generation"), int):
            self._by_generation[answer["generation"]][ordered] += 1

    def _delivery(self) -> float | None:
        count = self._counts["delivery"]
        return round(self._delivery_pct / count, 3) if count else None

    def _shares(self) -> tuple[float | None, float | None]:
        """V2's share as observed, and as the generations ordered it, weighted by their requests;
        None where nothing was observed, or a generation was never seen in `/status`."""
        total: Counter[str] = sum(self._by_generation.values(), Counter())
        requests = total.total()
        if not requests:
            return None, None
        if any(number not in self._ordered_pct for number in self._by_generation):
            return _share_pct(total), None
        ordered = sum(
            self._ordered_pct[number] * counts.total() for number, counts in self._by_generation.items()
        )
        return _share_pct(total), round(ordered / requests, 3)


def _share_pct(counts: Counter[str]) -> float | None:
    return round(100 * counts["v2"] / counts.total(), 3) if counts.total() else None


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest value that at least `percent` % of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]
