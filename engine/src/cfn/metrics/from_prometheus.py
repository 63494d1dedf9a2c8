"""Evidence of many hosts from one Prometheus: the same cells as from the files, but for the width of the
histogram's buckets (a quarter; cfn.metrics.series.BOUNDS_S holds every limit of the stage table).

Every query is a range query with one step for each bucket, evaluated a millisecond before its end and
reaching back to its begin, so that a scrape belongs to the bucket that a sample of the same moment
would. Counters become what they rose by from the last scrape of one bucket to the last of the next; where
the collector began anew in between, by what it counted since: what came after the last scrape before that
is in no counter. Prometheus' own `increase` would extrapolate.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from itertools import pairwise
from typing import Any

from cfn.metrics import series
from cfn.metrics.arm import MICRO, Arm, RateSum
from cfn.metrics.evidence import UNKNOWN_RELEASE, Evidence, Gauge, RequestCell, SampleCell
from cfn.metrics.packing import pack
from cfn.metrics.prometheus import Labels, Matrix, PrometheusError, Source, finite
from cfn.metrics.records import LEVEL_RATES, RATES, Ordered, read_config
from cfn.metrics.reduce import HOST, REBOOT_TOLERANCE_S, restarts_since

SPREAD = 8  # values that the counts of one bucket of a histogram are spread over

Increments = dict[Labels, dict[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """[since, until) in buckets, in milliseconds."""

    since_ms: int
    until_ms: int
    bucket_ms: int

    @property
    def starts(self) -> range:
        """The start of each bucket."""
        return range(self.since_ms, self.until_ms, self.bucket_ms)


def evidence_by_host(
    source: Source, instances: Mapping[str, str], window: Window
) -> dict[str, dict[str, Any]]:
    """The packed evidence of each host, whose series have the label `instance` given for it; or, where
    something went wrong, `{"error": TEXT}`. Blocks for some hundred queries."""
    try:
        answers = _Answers(source, instances, window)
    except PrometheusError as error:
        return {host: {"error": str(error)} for host in instances}
    found: dict[str, dict[str, Any]] = {}
    for host, instance in instances.items():
        try:
            evidence = answers.evidence(host, instance)
            Evidence.from_json(evidence.as_json())  # so that what contradicts itself is told here
            found[host] = pack(evidence.head(), evidence.cells())
        except (PrometheusError, ValueError, LookupError) as error:  # LookupError: answers that do not agree
            found[host] = {"error": f"its series cannot be trusted: {error}"}
    return found


class _Answers:
    """Everything that was asked, for all hosts at once."""

    def __init__(self, source: Source, instances: Mapping[str, str], window: Window) -> None:
        self._source = source
        self._window = window
        self._pattern = "|".join(re.escape(each) for each in sorted(instances.values()))
        self._scrapes = self._ask("count_over_time", series.SAMPLED_AT)
        self._newest = self._ask("max_over_time", series.SAMPLED_AT)
        self._counters: dict[str, Matrix] = {}
        for name, labels in _counters():
            self._counters[name] = self._ask("last_over_time", name, labels)
        self._counted_since = self._ask("last_over_time", series.COUNTED_SINCE)
        self._configurations = self._ask("last_over_time", series.CONFIGURATION, ("version", "traffic_pct"))
        self._starts = self._ask("last_over_time", series.UNIT_STARTS, ("unit",))
        self._most_starts = self._ask("max_over_time", series.UNIT_STARTS, ("unit",))
        self._booted = self._ask("last_over_time", series.BOOTED_AT)
        self._gauges = {
            (gauge, how): self._ask(f"{how}_over_time", _shown(gauge))
            for gauge in series.GAUGE_SERIES
            for how in ("count", "min", "max", "avg", "last")
        }

    def evidence(self, host: str, instance: str) -> Evidence:
        """One host's. Raises ValueError for what contradicts itself or is no number."""
        window = self._window
        evidence = Evidence(
            host=host,
            since_ms=window.since_ms,
            until_ms=window.until_ms,
            bucket_ms=window.bucket_ms,
            source="prometheus",
            releases={UNKNOWN_RELEASE},
        )
        self._add_samples(evidence, instance)
        self._add_configurations(evidence, instance)
        increments = {name: self._increments(name, instance) for name, _ in _counters()}
        for start in window.starts:
            cell = _cell({name: _at(each, start) for name, each in increments.items()})
            served = cell.v1.requests + cell.v2.requests + cell.over_capacity
            if not served:
                continue
            evidence.requests[start, self._generation(evidence, instance, start)] = cell
            evidence.events.records += served
        evidence.events.present = bool(self._counters[f"{series.COORDINATIONS}_total"].get(instance))
        evidence.arms.checked = _total(increments[f"{series.CHECKED}_total"])
        evidence.arms.mismatches = _total(increments[f"{series.MISMATCHES}_total"])
        if evidence.arms.mismatches:
            evidence.arms.examples.append("counted by the collector; its events file names the tasks")
        return evidence

    def _ask(self, how: str, selector: str, labels: tuple[str, ...] = ()) -> Matrix:
        """By the start of each bucket, and of the one before the window."""
        window = self._window
        name, _, inside = selector.partition("{")
        inside = f"{inside.rstrip('}')}," if inside else ""
        query = f"{how}({name}{{{inside}instance=~{json.dumps(self._pattern)}}}[{window.bucket_ms - 1}ms])"
        found = self._source.query_range(
            query,
            labels=labels,
            start_ms=window.since_ms - 1,
            end_ms=window.until_ms - 1,
            step_ms=window.bucket_ms,
        )
        return {
            instance: {
                key: {moment + 1 - window.bucket_ms: value for moment, value in values.items()}
                for key, values in each.items()
            }
            for instance, each in found.items()
        }

    def _increments(self, name: str, instance: str) -> Increments:
        """What a counter rose by in each bucket. Raises ValueError for what no counter can be."""
        window = self._window
        scraped = self._scrapes.get(instance, {}).get((), {})
        anew = self._began_anew(instance)
        found: Increments = {}
        for key, values in self._counters[name].get(instance, {}).items():
            if len(finite(values)) != len(values) or min(values.values()) < 0:
                raise ValueError(f"{name} is not a count")
            before = values.get(window.since_ms - window.bucket_ms)
            if before is None and window.since_ms - window.bucket_ms in scraped:
                before = 0.0  # the collector was there, and had nothing to count yet
            for start in window.starts:
                if start not in values:
                    continue
                now = values[start]
                if start in anew:
                    found.setdefault(key, {})[start] = now
                elif before is not None:
                    if now < before:
                        raise ValueError(f"{name} went down, and its collector did not begin anew")
                    found.setdefault(key, {})[start] = now - before
                before = now
        return found

    def _began_anew(self, instance: str) -> set[int]:
        """The buckets in which the collector began to count again."""
        since = self._counted_since.get(instance, {}).get((), {})
        known = sorted(since)
        return {later for earlier, later in pairwise(known) if since[later] != since[earlier]}

    def _add_samples(self, evidence: Evidence, instance: str) -> None:
        scrapes = self._scrapes.get(instance, {}).get((), {})
        newest = self._newest.get(instance, {}).get((), {})
        evidence.samples.present = bool(scrapes)
        earlier = self._window.since_ms - self._window.bucket_ms
        before = {unit: values[earlier] for ((_, unit),), values in self._unit_starts(instance, earlier)}
        booted = self._booted.get(instance, {}).get((), {}).get(earlier)
        for start in self._window.starts:
            # A collector that hangs is scraped on: its sample is then of an earlier bucket.
            if start not in scrapes or not newest[start] * 1_000 >= start:
                continue
            cell = SampleCell(samples=round(scrapes[start]))
            evidence.sampled[start] = cell
            evidence.samples.records += cell.samples
            for gauge in series.GAUGE_SERIES:
                self._add_gauge(evidence, cell, gauge, instance, start)
            for ((_, unit),), values in self._unit_starts(instance, start):
                cell.starts_samples = cell.samples
                now = round(values[start])
                most = round(self._most_starts[instance][("unit", unit),][start])
                known = round(before.get(unit, values[start]))
                # A deliberate restart later in the bucket puts back what an automatic one had raised.
                cell.restarts[unit] = max(0, most - known) + (restarts_since(most, now) if now < most else 0)
                before[unit] = now
            at = self._booted.get(instance, {}).get((), {}).get(start)
            if at is not None and math.isfinite(at):
                if booted is not None and math.isfinite(booted) and at > booted + REBOOT_TOLERANCE_S:
                    cell.restarts[HOST] = cell.restarts.get(HOST, 0) + 1
                booted = at

    def _unit_starts(self, instance: str, start: int) -> Iterator[tuple[Labels, dict[int, float]]]:
        """Each unit that was counted in a bucket."""
        for labels, values in self._starts.get(instance, {}).items():
            if math.isfinite(values.get(start, math.nan)):
                yield labels, values

    def _add_gauge(self, evidence: Evidence, cell: SampleCell, gauge: str, instance: str, start: int) -> None:
        asked = [
            self._gauges[gauge, how].get(instance, {}).get((), {}).get(start)
            for how in ("count", "min", "max", "avg", "last")
        ]
        if asked[0] is None:
            return
        values = [each for each in asked if each is not None and math.isfinite(each)]
        if len(values) != len(asked):
            evidence.samples.damaged["not_finite"] += round(asked[0])
            return
        count, low, high, mean, last = values
        scale = series.GAUGE_SERIES[gauge].scale
        low, high, mean, last = (round(each / scale, 6) for each in (low, high, mean, last))
        cell.gauges[gauge] = Gauge(
            samples=round(count), low=low, high=high, total=mean * round(count), last=last
        )

    def _add_configurations(self, evidence: Evidence, instance: str) -> None:
        for labels, values in self._configurations.get(instance, {}).items():
            config = read_config(dict(labels))
            for start, value in values.items():
                if not math.isfinite(value) or value < 1:
                    raise ValueError(f"generation {value}")
                number = round(value)
                if start >= evidence.since_ms:
                    evidence.generations[number] = config
                    evidence.latest_generation = max(evidence.latest_generation or 0, number)

    def _generation(self, evidence: Evidence, instance: str, start: int) -> int:
        """The generation of a bucket; of one in which it changed, the older one, so that what cannot be
        told apart is not counted for the new one. Raises ValueError where none is known."""
        numbers = [
            round(values[start])
            for values in self._configurations.get(instance, {}).values()
            if start in values
        ]
        if not numbers:
            raise ValueError("coordinations, and no configuration that they were ordered by")
        number = min(numbers)
        evidence.generations.setdefault(number, _UNKNOWN)
        return number


_UNKNOWN = Ordered(version="v1", traffic_pct=Decimal(0))


def _counters() -> Iterator[tuple[str, tuple[str, ...]]]:
    """Every counter by the name of its series, with its labels."""
    yield f"{series.COORDINATIONS}_total", ("ordered", "outcome")
    yield f"{series.AGENTS}_total", ("ordered",)
    yield f"{series.FALLBACK}_total", ("cause",)
    for rate in (*RATES, *LEVEL_RATES):
        for name in series.rate_series(rate):
            yield f"{name}_total", ("ordered",)
    for name in (series.DURATION, series.LARGE_DURATION):
        yield f"{name}_bucket", ("ordered", "le")
    yield f"{series.DURATION}_sum", ("ordered",)
    for name in (series.OUTSIDE, series.CHECKED, series.MISMATCHES):
        yield f"{name}_total", ()


def _shown(gauge: str) -> str:
    shown = series.GAUGE_SERIES[gauge]
    return shown.series if shown.label is None else f'{shown.series}{{{shown.label[0]}="{shown.label[1]}"}}'


def _at(increments: Increments, start: int) -> dict[tuple[str, ...], float]:
    return {
        tuple(value for _, value in key): each[start] for key, each in increments.items() if start in each
    }


def _total(increments: Increments) -> int:
    return round(sum(sum(each.values()) for each in increments.values()))


def _cell(rises: Mapping[str, Mapping[tuple[str, ...], float]]) -> RequestCell:
    """The cell of one bucket, from what each counter rose by."""
    outside = rises[f"{series.OUTSIDE}_total"].get((), 0.0)
    arms = [_arm(rises, version) for version in series.VERSIONS]
    for (cause,), count in rises[f"{series.FALLBACK}_total"].items():
        if round(count):
            arms[1].fallbacks[cause] = round(count)
    return RequestCell(v1=arms[0], v2=arms[1], over_capacity=round(outside))


def _arm(rises: Mapping[str, Mapping[tuple[str, ...], float]], version: str) -> Arm:
    arm = Arm()
    for (ordered, outcome), count in rises[f"{series.COORDINATIONS}_total"].items():
        if ordered == version and round(count):
            arm.outcomes[outcome] = round(count)
    arm.requests = sum(arm.outcomes.values())
    if not arm.requests:
        return arm
    one = (version,)
    arm.agents = round(rises[f"{series.AGENTS}_total"].get(one, 0.0))
    for rate in (*RATES, *LEVEL_RATES):
        total, rated, bad = (rises[f"{name}_total"].get(one, 0.0) for name in series.rate_series(rate))
        if round(rated):
            arm.rates[rate] = RateSum(
                rated=round(rated), sum_micropct=round(total * 100 * MICRO), bad=round(bad)
            )
    arm.time_sum_us = round(rises[f"{series.DURATION}_sum"].get(one, 0.0) * MICRO)
    _add_durations(arm, rises[f"{series.DURATION}_bucket"], version, large=False)
    _add_durations(arm, rises[f"{series.LARGE_DURATION}_bucket"], version, large=True)
    return arm


def _add_durations(arm: Arm, rises: Mapping[tuple[str, ...], float], version: str, *, large: bool) -> None:
    """Each count as so many times spread over its bucket, evenly on a logarithmic scale. Raises ValueError
    if the bounds are not those that the collector exposes."""
    cumulative = {float(le): round(rise) for (ordered, le), rise in rises.items() if ordered == version}
    histogram = arm.large_times_ms if large else arm.times_ms
    below, lower = 0, 0.0
    for bound in sorted(cumulative):
        count = cumulative[bound] - below
        if count < 0 or (math.isfinite(bound) and bound not in series.BOUNDS_S):
            raise ValueError(f"the histogram of durations contradicts itself at {bound:g} s")
        if count:
            upper = bound if math.isfinite(bound) else lower * 1.25
            parts = min(count, SPREAD)
            for part in range(parts):
                share = (part + 1) * count // parts - part * count // parts
                at = (part + 0.5) / parts
                histogram.add(1_000 * (lower * (upper / lower) ** at if lower else upper * at), share)
        below, lower = cumulative[bound], bound
