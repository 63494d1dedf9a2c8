"""Prometheus as the source: what is refused, and that a real one gives the verdicts that the files give."""

import json
import math
import random
import re
import shutil
import socket
import subprocess
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import yaml
from prometheus_client import CollectorRegistry

from cfn.commands.metrics import collect, main
from cfn.errors import UsageError
from cfn.judge.judge import judge
from cfn.judge.request import read_request
from cfn.judge.window import plan
from cfn.metrics import series
from cfn.metrics.evidence import Evidence
from cfn.metrics.from_prometheus import Window, evidence_by_host
from cfn.metrics.packing import pack, unpack
from cfn.metrics.prometheus import Matrix, PrometheusError, Source
from cfn.metrics.records import GAUGES, Coordinated, Ordered, read_event
from cfn.metrics.reduce import HOST
from cfn.metrics.series import Totals
from cfn.metrics.times import format_ms
from cfn.paths import Paths
from cfn.simulate.criteria import EXAMPLE, of_table
from cfn.simulate.files import write_files
from cfn.simulate.request import SINCE_MS
from cfn.simulate.scenario import Scenario

TABLE = Path(__file__).parents[3] / "inventories/common/group_vars/all/stages.yml"
HOUR_MS = 3_600_000
BUCKET_MS = 300_000
SCRAPE_MS = 60_000

# What is refused


class _Server(HTTPServer):
    content: bytes = b""
    status: int = 200
    delay_s: float = 0.0
    seen: list[str]


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        self.server.seen.append(self.headers.get("Authorization", ""))
        time.sleep(self.server.delay_s)
        self.send_response(self.server.status)
        if self.server.status == 302:
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.seen = []
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def source(server: _Server, **options: Any) -> Source:
    return Source(url=f"http://127.0.0.1:{server.server_port}", **options)


def ask(source: Source) -> Any:
    return source.query_range("up", labels=(), start_ms=0, end_ms=1_000, step_ms=1_000)


def answer(result: Any, **more: Any) -> bytes:
    return json.dumps(
        {"status": "success", "data": {"resultType": "matrix", "result": result}} | more
    ).encode()


ONE = {"metric": {"instance": "a"}, "values": [[0, "1"]]}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<html><body>Please log in</body></html>", "begins '<html>"),
        (b"", "cannot be trusted"),
        (b"[]", "not a success"),
        (b'{"status": "error", "error": "overloaded"}', "not a success"),
        (answer([], warnings=["only part of the data was read"]), "it warns: only part"),
        (answer([ONE])[:-9], "cannot be trusted"),
        (answer([ONE, ONE]), "two series where one is expected, of instance=a"),
        (answer([{"metric": {}, "values": []}]), "instance is not a text"),
        (answer([{"metric": {"instance": "a"}, "values": [["x", "1"]]}]), "moment is not a number"),
        (answer([{"metric": {"instance": "a"}, "values": [[0, "many"]]}]), "cannot be trusted"),
        (answer([{"metric": {"instance": "a"}}]), "values is not a list"),
        (b'{"status": "success", "data": {"resultType": "vector", "result": []}}', "resultType is 'vector'"),
    ],
)
def test_an_answer_that_is_not_complete_is_refused(server: _Server, content: bytes, said: str) -> None:
    server.content = content
    with pytest.raises(PrometheusError, match=said):
        ask(source(server))


def test_one_that_is_down_slow_or_refuses_is_told(server: _Server) -> None:
    with pytest.raises(PrometheusError, match="did not answer"):
        ask(Source(url="http://127.0.0.1:1"))
    server.status, server.content = 503, b'{"status": "error", "error": "query timed out"}'
    with pytest.raises(PrometheusError, match="answered 503: query timed out"):
        ask(source(server))
    server.status, server.content, server.delay_s = 200, answer([ONE]), 1.0
    with pytest.raises(PrometheusError, match="timed out"):
        ask(source(server, timeout_s=0.2))


def test_a_token_is_sent_and_goes_nowhere_else(server: _Server, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    server.content = answer([ONE])
    assert ask(source(server, token_file=file)) == {"a": {(): {0: 1.0}}}
    server.status = 302
    with pytest.raises(PrometheusError, match="answered 302") as caught:
        ask(source(server, token_file=file))
    assert server.seen == ["Bearer s3cret", "Bearer s3cret"]
    assert "s3cret" not in str(caught.value) + repr(source(server, token_file=file))
    file.write_text("two\nlines")
    with pytest.raises(PrometheusError, match="holds no token"):
        ask(source(server, token_file=file))
    with pytest.raises(PrometheusError, match="cannot be read"):
        ask(source(server, token_file=tmp_path / "missing"))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"url": "ftp://prometheus"}, "http or https"),
        ({"url": "file:///etc/passwd"}, "http or https"),
        ({"url": "https://user:password@prometheus"}, "token into a file"),
        ({"url": "http://prometheus", "timeout_s": 0}, "timeout of 0"),
        ({"url": "http://prometheus", "timeout_s": float("nan")}, "timeout of nan"),
    ],
)
def test_a_source_that_cannot_be_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Source(**options)


def test_what_goes_wrong_is_the_evidence_of_every_host_and_never_a_pass(
    server: _Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.content = b"<html>"
    found = main(
        ["--since", "0", "--until", "300", "--bucket-s", "300", "--prometheus", source(server).url,
         "--instance", "a=a:1", "--instance", "b=b:1"]
    )  # fmt: skip
    hosts = json.loads(capsys.readouterr().out)
    assert (found, set(hosts)) == (0, {"a", "b"})
    assert all("cannot be trusted" in each["error"] for each in hosts.values())
    with pytest.raises(UsageError, match="--instance HOST=LABEL"):
        main(["--since", "0", "--until", "300", "--bucket-s", "300", "--prometheus", "http://x"])


class _Scraped:
    """In place of a Prometheus: what was scraped, by series and labels, with its moment in ms."""

    FUNCTIONS: ClassVar[dict[str, Callable[[list[float]], float]]] = {
        "count_over_time": len,
        "max_over_time": max,
        "min_over_time": min,
        "avg_over_time": lambda values: sum(values) / len(values),
        "last_over_time": lambda values: values[-1],
    }

    def __init__(self) -> None:
        self.points: dict[str, dict[tuple[tuple[str, str], ...], list[tuple[int, float]]]] = {}

    def add(self, moment_ms: int, name: str, value: float, **labels: str) -> None:
        of_name = self.points.setdefault(name, {})
        of_name.setdefault(tuple(sorted(labels.items())), []).append((moment_ms, value))

    def scrape(self, moment_ms: int, totals: Totals) -> None:
        for family in totals.collect():
            for each in family.samples:
                self.add(moment_ms, each.name, each.value, **each.labels)
        self.add(moment_ms, series.SAMPLED_AT, moment_ms / 1_000)

    def query_range(
        self, query: str, *, labels: tuple[str, ...], start_ms: int, end_ms: int, step_ms: int
    ) -> Matrix:
        asked = re.fullmatch(r"(\w+)\((\w+)\{.*\}\[(\d+)ms\]\)", query)
        assert asked is not None, query
        found: Matrix = {}
        for key, points in self.points.get(asked[2], {}).items():
            values = {}
            for moment in range(start_ms, end_ms + 1, step_ms):
                inside = [value for at, value in points if moment - int(asked[3]) <= at <= moment]
                if inside:
                    values[moment] = float(self.FUNCTIONS[asked[1]](inside))
            found.setdefault("i", {})[tuple((name, dict(key)[name]) for name in labels)] = values
        return found

    def evidence(self, buckets: int = 1) -> Evidence:
        window = Window(since_ms=FIRST_MS, until_ms=FIRST_MS + buckets * BUCKET_MS, bucket_ms=BUCKET_MS)
        found = evidence_by_host(cast(Source, self), {"h": "i"}, window)["h"]
        assert "error" not in found, found
        return Evidence.from_json(unpack(found))


FIRST_MS = 3_000_000


def test_a_restart_in_the_first_bucket_is_counted() -> None:
    scraped = _Scraped()
    for moment_ms, starts, booted in ((FIRST_MS - 1_000, 1, 10), (FIRST_MS + 1_000, 2, 3_600)):
        scraped.add(moment_ms, series.SAMPLED_AT, moment_ms / 1_000)
        scraped.add(moment_ms, series.UNIT_STARTS, starts, unit="router")
        scraped.add(moment_ms, series.BOOTED_AT, booted)
    assert scraped.evidence().sampled[FIRST_MS].restarts == {"router": 1, HOST: 1}


@pytest.mark.parametrize(
    ("starts", "restarts"), [((1, 2, 1), 1), ((1, 1, 1), 0), ((3, 4, 2), 2), ((3, 1, 1), 0), ((1, 2, 3), 2)]
)
def test_a_deliberate_restart_hides_no_crash_of_the_same_bucket(
    starts: tuple[int, int, int], restarts: int
) -> None:
    scraped = _Scraped()
    for moment_ms, count in zip((FIRST_MS - 1_000, FIRST_MS + 1_000, FIRST_MS + 2_000), starts, strict=True):
        scraped.add(moment_ms, series.SAMPLED_AT, moment_ms / 1_000)
        scraped.add(moment_ms, series.UNIT_STARTS, count, unit="router")
    assert scraped.evidence().sampled[FIRST_MS].restarts == {"router": restarts}


def test_answers_that_do_not_agree_are_an_error_of_that_host() -> None:
    scraped = _Scraped()
    scraped.add(FIRST_MS + 1_000, series.SAMPLED_AT, FIRST_MS / 1_000 + 1)
    scraped.add(FIRST_MS + 1_000, series.UNIT_STARTS, 1, unit="router")
    really = scraped.query_range

    def partly(query: str, **asked: Any) -> Matrix:
        return {} if query.startswith(f"max_over_time({series.UNIT_STARTS}") else really(query, **asked)

    scraped.query_range = partly  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="cannot be trusted"):
        scraped.evidence()


def counted(totals: Totals, number: int, *, failed: bool = False) -> None:
    rates = (0.0, 0.0, 100.0) if failed else (100.0, 100.0, 0.0)
    for _ in range(number):
        event = Coordinated(
            time_ms=0, release="1", task_id="t", split_on="t", agents=1, bucket=1, generation=1,
            config=Ordered(version="v2", traffic_pct=Decimal(100)), ordered="v2", reason="split",
            fallback=None, outcome="failed" if failed else "done", coordination_time_ms=50.0, rates_pct=rates,
        )  # fmt: skip
        totals.add(event, as_ordered=True)


@pytest.mark.parametrize(
    ("before", "after"), [((100, 0), (120, 0)), ((90, 10), (110, 10)), ((3_000, 3), (96, 4))]
)
def test_a_collector_that_begins_anew_has_counted_what_it_saw_since(
    before: tuple[int, int], after: tuple[int, int]
) -> None:
    """Also where its new counts are above the old ones, for some or all series."""
    scraped, old, new = _Scraped(), Totals(since_s=1), Totals(since_s=FIRST_MS / 1_000 + 15)
    scraped.scrape(FIRST_MS - 250_000, old)
    for totals, counts, moment_ms in ((old, before, FIRST_MS - 1_000), (new, after, FIRST_MS + 250_000)):
        counted(totals, counts[0])
        counted(totals, counts[1], failed=True)
        scraped.scrape(moment_ms, totals)
    (cell,) = scraped.evidence().requests.values()
    assert (cell.v2.requests, cell.v2.outcomes.get("failed", 0)) == (sum(after), after[1])


def test_a_count_that_goes_down_by_itself_is_not_trusted() -> None:
    scraped = _Scraped()
    for moment_ms, number in ((FIRST_MS - 1_000, 5), (FIRST_MS + 1_000, 3)):
        totals = Totals(since_s=1)
        counted(totals, number)
        scraped.scrape(moment_ms, totals)
    with pytest.raises(AssertionError, match="went down"):
        scraped.evidence()


@pytest.mark.parametrize(("v1_ms", "v2_ms"), [(1_200, 1_300), (3_900, 4_100), (3_700, 4_150)])
def test_times_on_both_sides_of_a_bound_are_not_a_bound_apart(v1_ms: int, v2_ms: int) -> None:
    """A bucket of the histogram is as wide as the margin of a comparison."""
    scraped = _Scraped()
    totals = Totals(since_s=1)
    scraped.scrape(FIRST_MS - 1_000, totals)
    randomness = random.Random(5)  # noqa: S311
    for version, median_ms in (("v1", v1_ms), ("v2", v2_ms)):
        for _ in range(300):
            event = Coordinated(
                time_ms=0, release="1", task_id="t", split_on="t", agents=1, bucket=1, generation=1,
                config=Ordered(version="v2", traffic_pct=Decimal(50)), ordered=cast(Any, version),
                reason="split", fallback=None, outcome="done",
                coordination_time_ms=median_ms * randomness.lognormvariate(0, 0.05),
                rates_pct=(100.0, 100.0, 0.0),
            )  # fmt: skip
            totals.add(event, as_ordered=True)
    scraped.scrape(FIRST_MS + 1_000, totals)
    (cell,) = scraped.evidence().requests.values()
    found = [arm.times_ms.quantile(0.5) or 0.0 for arm in (cell.v1, cell.v2)]
    assert found[1] / found[0] == pytest.approx(v2_ms / v1_ms, rel=0.1)


# Series


def test_every_gauge_of_the_samples_has_a_series() -> None:
    assert set(series.GAUGE_SERIES) == set(GAUGES)


def test_every_limit_on_a_time_is_a_bound_of_the_histogram() -> None:
    table = yaml.safe_load(TABLE.read_text())["cfn_stages"]
    limits = [
        criterion["threshold"]
        for stage in table.values()
        for criterion in [
            *stage["triggers"],
            *(each for kind in ("staging", "production") for each in stage.get(kind, {}).get("criteria", [])),
        ]
        if criterion["unit"] == "ms"
    ]
    assert limits
    assert all(limit / 1_000 in series.BOUNDS_S for limit in limits)


# A real Prometheus


def needs_prometheus() -> tuple[str, str]:
    found = shutil.which("prometheus"), shutil.which("promtool")
    if not all(found):
        pytest.skip("Debian's package prometheus is not installed: make setup lists it")
    return str(found[0]), str(found[1])


def exposition(tree: Paths, hours: int, damage: Callable[[str, int], bool]) -> dict[str, list[str]]:
    """What a collector with these files would have exposed each minute, by family, with its time."""
    registry = CollectorRegistry()
    totals = Totals(registry, since_s=SINCE_MS / 1_000 - 3_600)
    events = [read_event(line) for line in tree.events.read_bytes().splitlines()]
    samples = [json.loads(line) for line in tree.samples.read_text().splitlines()]
    families: dict[str, list[str]] = {}
    for scrape_ms in range(SINCE_MS - SCRAPE_MS, SINCE_MS + hours * HOUR_MS, SCRAPE_MS):
        # A scrape sees what ended before it; the last of a bucket is a moment before the bucket's end.
        seen_ms = scrape_ms + SCRAPE_MS - 1
        while events and events[0].time_ms <= seen_ms:
            event = events.pop(0)
            if isinstance(event, Coordinated):
                totals.add(event, as_ordered=True)
            else:
                totals.put_in_force(event)
        while len(samples) > 1 and samples[1]["timestamp"] * 1_000 <= seen_ms:
            samples.pop(0)
        if damage("down", scrape_ms):
            continue
        for family in registry.collect():
            lines = families.setdefault(f"{family.name} {family.type}", [])
            for each in family.samples:
                lines.append(line(each.name, dict(each.labels), each.value, seen_ms))
        if samples[0]["timestamp"] * 1_000 > seen_ms:
            continue
        for name, labels, value in shown(samples[0]):
            if damage(name, scrape_ms):
                value = math.nan
            families.setdefault(f"{name} gauge", []).append(line(name, labels, value, seen_ms))
    return families


def shown(sample: dict[str, Any]) -> Iterator[tuple[str, dict[str, str], float]]:
    yield series.SAMPLED_AT, {}, sample["timestamp"]
    yield series.BOOTED_AT, {}, sample["boot_time_s"]
    for unit, starts in sample["starts"].items():
        yield series.UNIT_STARTS, {"unit": unit}, starts
    for gauge, how in series.GAUGE_SERIES.items():
        if gauge in sample:
            yield how.series, dict([how.label] if how.label else []), sample[gauge] * how.scale


def line(name: str, labels: dict[str, str], value: float, at_ms: int) -> str:
    inside = ",".join(f'{key}="{each}"' for key, each in {"instance": "HOST", **labels}.items())
    return f"{name}{{{inside}}} {value!r} {at_ms / 1_000:.3f}"


@contextmanager
def prometheus(folder: Path, hosts: dict[str, dict[str, list[str]]]) -> Iterator[str]:
    """A real Prometheus that holds these series, on a port of its own; ended and waited for."""
    server, tool = needs_prometheus()
    text = folder / "series.txt"
    merged: dict[str, list[str]] = {}
    for host, families in hosts.items():
        for family, lines in families.items():
            merged.setdefault(family, []).extend(each.replace("HOST", host) for each in lines)
    with text.open("w") as file:
        for family, lines in merged.items():
            name, kind = family.split()
            file.write(f"# TYPE {name} {kind}\n" + "\n".join(lines) + "\n")
        file.write("# EOF\n")
    data = folder / "data"
    subprocess.run([tool, "tsdb", "create-blocks-from", "openmetrics", "--quiet", text, data], check=True)
    (folder / "prometheus.yml").write_text("global: {}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [server, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={data}",
         "--storage.tsdb.retention.time=10y", f"--web.listen-address=127.0.0.1:{port}", "--log.level=error"]
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(200):
            try:
                urllib.request.urlopen(f"{url}/-/ready", timeout=1).close()  # noqa: S310
                break
            except OSError:
                time.sleep(0.05)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=20)


def verdicts(hosts: list[str], hours: int, evidence: dict[str, Any], asked: dict[str, Any]) -> dict[str, Any]:
    return judge(read_request(frame(hosts, hours, asked) | {"evidence": evidence}))


CASES: dict[str, dict[str, Any]] = {
    "healthy": {},
    "twice the errors": {"v2_error_factor": 4.0, "undelivered_share": 50.0},
    "slow": {"v2_time_factor": 20.0},
    "crashed": {"restart_at_h": 1.5},
    "rebooted": {"reboot_at_h": 1.5},
    "silent": {"gap_at_h": 1.0, "gap_h": 1.2},
}


def agree(folder: Path, cases: list[str], hours: int, hosts: list[str]) -> None:
    """Hold the verdicts of the files against those of one Prometheus that holds all cases."""
    exposed: dict[str, dict[str, list[str]]] = {}
    for number, name in enumerate(cases):
        scenario = Scenario(
            hosts=len(hosts), hours=hours, requests_per_h=5_000, bursts_per_day=0, **CASES[name]
        )
        write_files(scenario, folder / str(number))
        for host in hosts:

            def down(series_name: str, scrape_ms: int, scenario: Scenario = scenario) -> bool:
                hour = (scrape_ms - SINCE_MS) / HOUR_MS
                silent = 0 <= scenario.gap_at_h <= hour < scenario.gap_at_h + scenario.gap_h
                return series_name == "down" and silent

            exposed[f"{number}-{host}"] = exposition(Paths(folder / str(number) / host), hours, down)
    asked = of_table(TABLE, "stage1", "production") | {"window_s": hours * 3_600 - 900}
    leak = [each for each in EXAMPLE["criteria"] if each["name"] == "memory_no_leak"]
    asked["criteria"] = [*asked["criteria"], *leak]
    wanted = plan(read_request(frame(hosts, hours, asked)))
    window = Window(since_ms=wanted.since_ms, until_ms=wanted.until_ms, bucket_ms=BUCKET_MS)
    with prometheus(folder, exposed) as url:
        for number, name in enumerate(cases):
            instances = {host: f"{number}-{host}" for host in hosts}
            of_series = evidence_by_host(Source(url=url), instances, window)
            of_files = {host: packed(Paths(folder / str(number) / host), window) for host in hosts}
            found = [verdicts(hosts, hours, each, asked) for each in (of_files, of_series)]
            compare(name, *found)
            counts = [cells(Evidence.from_json(unpack(each["host1"]))) for each in (of_files, of_series)]
            assert counts[0] == counts[1] or name == "silent", name


def packed(tree: Paths, window: Window) -> dict[str, Any]:
    evidence = collect(
        tree, window.since_ms, window.until_ms, window.bucket_ms, now_ms=window.until_ms + BUCKET_MS
    )
    return pack(evidence.head(), evidence.cells())


@pytest.mark.processes
def test_files_and_a_real_prometheus_give_the_same_verdicts(tmp_path: Path) -> None:
    needs_prometheus()
    agree(tmp_path, ["healthy", "twice the errors"], hours=2, hosts=["host1"])


@pytest.mark.full
def test_files_and_a_real_prometheus_give_the_same_verdicts_in_every_case(tmp_path: Path) -> None:
    needs_prometheus()
    agree(tmp_path, list(CASES), hours=3, hosts=["host1", "host2"])


def frame(hosts: list[str], hours: int, asked: dict[str, Any]) -> dict[str, Any]:
    return {
        "environment": "test", "stage": "stage1", "step": "10", "asked_by": "a test", "triggers": [],
        "now": format_ms(SINCE_MS + hours * HOUR_MS), "since": format_ms(SINCE_MS), "hosts": hosts,
        "ordered": {"version": "v2", "traffic_pct": 10},
    } | asked  # fmt: skip


def cells(evidence: Evidence) -> dict[int, tuple[int, ...]]:
    """What must be the same to the last request: counts and bad counts of both versions by bucket."""
    return {
        start: tuple(
            each
            for arm in (cell.v1, cell.v2)
            for each in (arm.requests, arm.agents, *(arm.rates[rate].bad for rate in sorted(arm.rates)))
        )
        for (start, _), cell in evidence.requests.items()
    }


def compare(case: str, files: dict[str, Any], series_: dict[str, Any]) -> None:
    """The same verdicts by name; figures exactly, but for quantiles: those within a histogram's bucket."""
    assert files["verdict"] == series_["verdict"], (case, files["reasons"], series_["reasons"])
    for mine, other in zip(files["results"], series_["results"], strict=True):
        what = (case, mine["name"], mine["reason"], other["reason"])
        assert mine["verdict"] == other["verdict"], what
        wide = mine["metric"].startswith("coordination_time")
        tolerance = 0.14 if wide else 1e-4
        if mine["observed"] is not None and case != "silent":  # counts of a gap come with its end
            assert other["observed"] == pytest.approx(mine["observed"], rel=tolerance, abs=1e-6), what


@pytest.mark.processes
def test_nan_and_a_doubled_series_are_never_a_pass(tmp_path: Path) -> None:
    needs_prometheus()
    hours, hosts = 2, ["host1"]
    write_files(Scenario(hosts=1, hours=hours, requests_per_h=5_000, error_pct=0.0), tmp_path / "fleet")

    def nan(name: str, scrape_ms: int) -> bool:
        return name == "cfn_tmpfs_used_ratio" and scrape_ms > SINCE_MS + HOUR_MS

    tree = Paths(tmp_path / "fleet/host1")
    exposed = {"good": exposition(tree, hours, lambda *_: False), "nan": exposition(tree, hours, nan)}
    exposed["twice"] = {
        family: [*lines, *(each.replace("{", '{job="other",') for each in lines)]
        for family, lines in exposed["good"].items()
    }
    asked = of_table(TABLE, "stage1", "production") | {"window_s": hours * 3_600 - 900}
    wanted = plan(read_request(frame(hosts, hours, asked)))
    window = Window(since_ms=wanted.since_ms, until_ms=wanted.until_ms, bucket_ms=BUCKET_MS)
    with prometheus(tmp_path, exposed) as url:
        found = {
            name: verdicts(hosts, hours, evidence_by_host(Source(url=url), {"host1": name}, window), asked)
            for name in ("good", "nan", "twice", "absent")
        }
    assert found["good"]["verdict"] == "PASS", found["good"]["reasons"]
    assert found["nan"]["verdict"] in ("NO_DATA", "ERROR")
    assert found["twice"]["verdict"] == "ERROR"
    assert "two series where one is expected" in found["twice"]["reasons"][0]
    assert found["absent"]["verdict"] in ("NO_DATA", "ERROR")
