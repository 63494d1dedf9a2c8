"""The report: what was decided is in it, nothing of it can become markup, and it needs no network."""

import io
import itertools
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from cfn.commands.report import main
from cfn.judge.judge import judge
from cfn.judge.request import read_request
from cfn.ledger.chain import Entry
from cfn.ledger.store import LedgerStore
from cfn.metrics.times import format_ms
from cfn.report.charts import HEIGHT, Limit, Line, line_chart, share_chart, strip, ticks
from cfn.report.data import MAX_POINTS, report, series
from cfn.report.markup import Markup, render, tag
from cfn.report.page import page
from cfn.rollout.observations import Bucket, Observed
from cfn.rollout.plan import read_plan
from engine.tests.judge.conftest import FACTOR, SINCE_MS, Fleet
from engine.tests.rollout.conftest import TABLE
from tests.conftest import PROJECT

OPERATIONS = yaml.safe_load((PROJECT / "inventories/common/group_vars/all/operations.yml").read_text())
NASTY = "<script>alert(1)</script> & \"quoted\" 'text'"
PLAN = {
    "v": 1,
    "environment": "lab",
    "kind": "production",
    "stage": "stage1",
    "time_factor": FACTOR,
    "table": TABLE,
    "table_sha256": "ab" * 32,
    "severities": OPERATIONS["cfn_severities"],
    "attested_at_the_end": OPERATIONS["cfn_attestations"]["epic"],
    "hosts": ["h1", "h2", "h3"],
}


@pytest.fixture
def ledger(tmp_path: Path) -> Path:
    """A stage that was flipped, attested, overridden and judged, with something nasty in every text."""
    store = LedgerStore(tmp_path / "ledger", lambda _: None)
    clock = iter(range(SINCE_MS, SINCE_MS + 10**9, 61_000))

    def add(kind: str, data: dict[str, Any], stage: str = "stage1") -> None:
        store.append(
            Entry(
                time=format_ms(next(clock)), environment="lab", kind=kind, stage=stage, actor=NASTY, data=data
            )
        )

    add("flipped", {"hosts": {"h1": {"changed": True, "after": {"traffic_pct": 10}}}})
    add("attested", {"item": "oncall_available", "holds": True, "by": "ada", "note": NASTY})
    add("override", {"override_by": "ada", "override_reason": NASTY, "overridden": ["no staging"]})
    incident = {"incident": "i-1", "severity": "P1", "attributed_to": "v1", "state": "closed", "by": "ada",
                "started": format_ms(SINCE_MS), "text": NASTY}  # fmt: skip
    add("incident", incident)
    add("learned", {"text": NASTY, "by": "ada"})
    request = Fleet(tmp_path / "fleet").write(64).request(64)
    add("verdict", {"request": request, "verdict": judge(read_request(request))})
    return tmp_path / "ledger"


class Reader(HTMLParser):
    """Collects tags that never close, and every address that a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [
            value or "" for name, value in attrs if name in ("src", "href", "xlink:href", "data")
        ]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:  # noqa: ARG002
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def made(ledger: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str, plan: Any = None) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(PLAN | (plan or {}))))
    return main(["--folder", str(ledger), *arguments])


def test_the_verdict_comes_first_and_everything_is_in_it(
    ledger: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    html, data = tmp_path / "r.html", tmp_path / "r.json"
    assert made(ledger, monkeypatch, "--html", str(html), "--json", str(data)) == 0
    found = json.loads(data.read_text())
    stage = found["stages"][0]
    assert stage["verdict"]["verdict"] == "PASS", stage["verdict"]["reasons"]
    assert stage["versions"]["v2"]["requests"] > 50
    assert (len(stage["incidents"]), len(stage["overrides"]), len(stage["learned"])) == (1, 1, 1)
    assert stage["timeline"][0]["kind"] == "flipped"
    assert found["ledger"]["intact"]
    text = html.read_text()
    assert text.index("✓ PASS") < text.index("OVERRIDE") < text.index("Criteria") < text.index("Timeline")
    assert text.count('class="chart"') == 6
    assert "worth nothing outside the lab" in text
    assert found["ledger"]["head"] in text


def test_it_is_one_file_without_script_and_whatever_people_wrote_stays_text(
    ledger: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    html = tmp_path / "r.html"
    made(ledger, monkeypatch, "--html", str(html), "--stage", "all")
    text = html.read_text()
    reader = Reader()
    reader.feed(text)
    assert reader.open == []
    assert "script" not in reader.tags
    assert all(address.startswith("#") for address in reader.addresses)
    assert "url(" not in text
    assert "@import" not in text
    assert text.count("&lt;script&gt;") >= 4


def test_a_changed_byte_is_said_and_the_records_before_it_are_still_reported(
    ledger: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = ledger / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b"i-1", b"i-7"))
    html = tmp_path / "r.html"
    assert made(ledger, monkeypatch, "--html", str(html)) == 6
    assert "LEDGER NOT INTACT: record 4" in html.read_text()
    assert "OVERRIDE" in html.read_text()


def test_a_head_that_a_host_keeps_is_held_against_it(
    ledger: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert made(ledger, monkeypatch, plan={"anchors": {"h1": [{"sequence": 2, "hash": "0a" * 32}]}}) == 6
    assert "h1 keeps" in json.loads(capsys.readouterr().out)["ledger"]["problem"]


@pytest.mark.parametrize("stage", ["stage2", "all"])
def test_what_was_not_judged_says_so(ledger: Path, monkeypatch: pytest.MonkeyPatch, stage: str,
                                     capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert made(ledger, monkeypatch, "--both", "--stage", stage) == 0
    both = json.loads(capsys.readouterr().out)
    assert "NOT JUDGED" in both["html"]
    found = json.loads(both["json"])
    assert (found["outcome"] is not None) is (stage == "all")


def test_an_empty_ledger_has_a_report() -> None:
    verified = {"intact": True, "problem": "", "records": 0, "head": "0" * 64, "anchors": 0, "hosts": []}
    found = report([], read_plan(PLAN), ["stage1"], verified, SINCE_MS)
    assert "NOT JUDGED" in page(found)


def test_long_windows_are_merged_and_lose_nothing() -> None:
    observed = Observed(tuple(Bucket(start_ms=number * 300_000) for number in range(2_016)), 300_000, ())
    found = series(observed)
    assert len(found["points"]) <= MAX_POINTS
    assert found["bucket_s"] * len(found["points"]) >= 604_800


# Markup and charts


def test_text_is_escaped_and_markup_is_not() -> None:
    assert render([NASTY, Markup("<b>x</b>")]) == (
        "&lt;script&gt;alert(1)&lt;/script&gt; &amp; &quot;quoted&quot; &#x27;text&#x27;<b>x</b>"
    )
    assert tag("a", "x", title=NASTY).count("<") == 2


@pytest.mark.parametrize(("low", "high"), [(0, 5_000), (0, 0.003), (90, 100), (0, 1e9), (7, 7), (0, 0)])
def test_ticks_are_few_round_and_reach_both_ends(low: float, high: float) -> None:
    found = ticks(low, high)
    assert found[0] <= low
    assert found[-1] >= high - 1e-9
    assert 1 <= len(found) <= 8
    steps = {round(b - a, 12) for a, b in itertools.pairwise(found)}
    assert len(steps) <= 1


def chart(values: list[float | None], **options: Any) -> str:
    lines = [Line(name="a", style="v2", values=values)]
    return line_chart("label", [float(n) for n in range(len(values))], lines, show=str, **options)


def test_figures_that_are_all_zero_have_a_chart() -> None:
    assert chart([0.0, 0.0, 0.0]).count("<polyline") == 1


@pytest.mark.parametrize(("buckets", "times"), [(1, 1), (5, 3)])
def test_a_moment_is_written_once_below_its_chart(buckets: int, times: int) -> None:
    assert chart([1.0] * buckets).count(f'y="{HEIGHT - 6}"') == times


def test_a_gap_breaks_the_line_and_a_single_value_is_a_dot() -> None:
    assert chart([1.0, 2.0, None, 3.0, 4.0]).count("<polyline") == 2
    assert chart([1.0, None, 2.0, None]).count("<circle") == 2
    assert "no data" in chart([None, None])
    assert "no data" in line_chart("label", [], [], show=str)


def test_a_limit_far_above_everything_does_not_flatten_the_lines() -> None:
    assert "rollback" in chart([10.0, 12.0], limits=[Limit(name="rollback", value=20)])
    assert "rollback" not in chart([10.0, 12.0], limits=[Limit(name="rollback", value=15_000)])


def test_every_point_lies_inside_the_picture() -> None:
    text = chart([0.0, 1e6, -0.0, 3.5], limits=[Limit(name="x", value=2e6)])
    places = re.findall(r'points="([^"]+)"', text)[0].split()
    for place in places:
        across, down = map(float, place.split(","))
        assert 0 <= across <= 420
        assert 0 <= down <= 220


def test_the_share_has_its_order_beside_it() -> None:
    text = share_chart("label", [0.0, 1.0], [10.0, 11.0], 10.0)
    assert "ordered 10 %" in text
    assert "no data" in share_chart("label", [0.0], [None], 10.0)
    assert strip("label", [("good", "PASS")]).count("<rect") == 1


@pytest.mark.skipif(shutil.which("chromium") is None, reason="Debian's chromium is not installed here")
def test_a_browser_draws_it_without_a_complaint(
    ledger: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    html, picture = tmp_path / "r.html", tmp_path / "r.png"
    made(ledger, monkeypatch, "--html", str(html))
    argv = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            "--enable-logging=stderr", "--window-size=390,800", f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={picture}", f"file://{html}"]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    assert picture.stat().st_size > 20_000
    assert "CONSOLE" not in done.stderr
