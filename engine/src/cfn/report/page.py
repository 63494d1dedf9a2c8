"""The report as one HTML file: no script, no font, no picture from elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cfn.report import charts
from cfn.report.charts import Limit, Line
from cfn.report.markup import Content, Markup, tag
from cfn.report.tables import MARKS, NONE_YET, STYLES, badge, card, table
from cfn.report.words import count, figure, mb, moment, ms, pct, points, ratio, unit

Data = Mapping[str, Any]

_STYLE_SHEET = Path(__file__).with_name("style.css")

_MEANS = {
    "PASS": "Every criterion holds, on enough evidence, over the whole window. It may advance.",
    "FAIL": "A criterion is broken on enough evidence. The traffic goes back.",
    "INCONCLUSIVE": "Not enough time or evidence yet. It holds.",
    "NO_DATA": "Samples are missing or cover too little. It holds.",
    "ERROR": "The evidence, the split or the judge cannot be trusted. It holds.",
    "NOT JUDGED": "There is nothing to report yet.",
    "COMPLETE": "The rollout is complete. V2 serves, V1 is archived for an emergency.",
    "INCOMPLETE": "The rollout is not complete.",
    "PIVOT": "The plan as it is cannot work.",
}


def page(report: Data) -> str:
    """The whole file."""
    title = f"{report['title']} · {report['environment']}"
    note = report["time_scale"]["note"]
    body = [
        tag(
            "header",
            tag("h1", report["title"]),
            tag("div", f"{report['environment']} · {moment(report['generated'])} UTC", class_="muted"),
            class_="top",
        ),
        tag("p", f"{note[0].upper()}{note[1:]}.", class_="note") if note else None,
        _outcome(report["outcome"]) if report["outcome"] else None,
        _overview(report["stages"]) if len(report["stages"]) > 1 else None,
        [_section(stage, len(report["stages"]) > 1) for stage in report["stages"]],
        _footer(report),
    ]
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("title", title),
        tag("style", Markup(_STYLE_SHEET.read_text())),
    ]
    whole = tag("html", tag("head", head), tag("body", tag("main", body)), lang="en")
    return f"<!doctype html>\n{whole}\n"


def _section(stage: Data, one_of_many: bool) -> Markup:
    verdict = stage["verdict"]
    parts: list[Content] = [
        tag("h2", stage["title"]) if one_of_many else None,
        _answer(verdict["verdict"], verdict["reasons"], _circumstances(verdict)),
        _warnings(stage),
        _tiles(stage),
        _criteria(stage["criteria"]),
        _charts(stage),
        _compared(stage["versions"]),
        _looks(stage),
        _people(stage),
        _timeline(stage["timeline"]),
    ]
    return tag("section", parts, class_="stage", id=stage["stage"])


def _answer(word: str, reasons: Sequence[str], circumstances: str = "") -> Markup:
    style = STYLES.get(word, NONE_YET)
    shown = [] if word == "PASS" else reasons
    return tag(
        "div",
        tag("div", f"{MARKS[style]} {word}", class_="word"),
        tag("p", _MEANS.get(word, "")),
        tag("ul", [tag("li", each) for each in shown]) if shown else None,
        tag("p", circumstances, class_="muted") if circumstances else None,
        class_=f"answer {style}",
    )


def _circumstances(verdict: Data) -> str:
    if "time" not in verdict:
        return ""
    ordered = verdict["ordered"]
    words = [
        f"Judged {moment(verdict['time'])} UTC",
        f"{ordered['version'].upper()} at {float(ordered['traffic_pct']):g} % "
        f"since {moment(verdict['since'])}",
        f"release {verdict['release']}",
        f"ledger record {verdict['record']}",
    ]
    if verdict.get("ask_again_at"):
        words.append(f"ask again {moment(verdict['ask_again_at'])}")
    return " · ".join(words)


def _outcome(outcome: Data) -> Markup:
    unmet = [f"{each['name']}: {each['why']}" for each in outcome["unmet"]]
    following = [tag("h3", "What next"), tag("ul", [tag("li", each) for each in outcome["next"]])]
    return tag("section", _answer(outcome["outcome"], unmet), tag("div", following, class_="card"))


def _overview(stages: Sequence[Data]) -> Markup:
    rows = []
    for stage in stages:
        v2, verdict = stage["versions"]["v2"], stage["verdict"]
        observed = verdict.get("observed") or {}
        rows.append(
            [
                tag("a", stage["title"], href=f"#{stage['stage']}"),
                badge(verdict["verdict"]),
                ms(v2["p95_ms"]),
                pct(v2["delivery_rate_pct"]),
                pct(v2["error_rate_pct"]),
                pct(observed.get("v2_share_pct")),
            ]
        )
    heads = ["stage", "verdict", "p95", "delivered", "errors", "V2 share"]
    return tag("div", tag("h3", "At a glance"), table(heads, rows, numbers=(2, 3, 4, 5)), class_="card")


def _warnings(stage: Data) -> Content:
    lines = [
        (each["severity"], f"{each['trigger'].replace('_', ' ')} ({each['level']}): {each['reason']}")
        for each in stage["escalations"]
    ]
    parts: list[Content] = [tag("p", badge(severity), " ", words) for severity, words in lines]
    for each in stage["overrides"]:
        overridden = "; ".join(each["overridden"])
        words = (
            f"{each['by']} answers for it since {moment(each['time'])}: {each['reason']}. "
            f"Overridden: {overridden}"
        )
        parts.append(tag("p", tag("span", "OVERRIDE", class_="badge wait"), " ", words))
    if stage["unread"]:
        hosts = ", ".join(stage["unread"])
        parts.append(tag("p", tag("span", "NO EVIDENCE", class_="badge wait"), f" from {hosts}"))
    return tag("div", tag("h3", "Needs attention"), parts, class_="card") if parts else None


def _tiles(stage: Data) -> Content:
    v2 = stage["versions"]["v2"]
    if not v2["requests"]:
        return None
    share = (stage["verdict"].get("observed") or {}).get("v2_share_pct")
    tiles = [
        (ms(v2["p50_ms"]), "coordination time, median"),
        (ms(v2["p95_ms"]), "95th percentile"),
        (ms(v2["p99_ms"]), "99th percentile"),
        (pct(v2["delivery_rate_pct"]), "delivered"),
        (pct(v2["error_rate_pct"]), "errors"),
        (f"{v2['requests']:,}".replace(",", " "), "requests on V2"),
        (pct(share), "V2's share, observed"),
        (str(v2["fallbacks"]), "fallbacks to V1"),
    ]
    drawn = [tag("div", tag("b", value), tag("span", words), class_="tile") for value, words in tiles]
    return tag("div", drawn, class_="tiles")


def _criteria(criteria: Sequence[Data]) -> Content:
    own = [each for each in criteria if each["layer"] == "criterion"]
    others = [each for each in criteria if each["layer"] != "criterion"]
    words = "Watched all the time, on the worst host; one that breaks takes the traffic back."
    return [
        card("Criteria", _limits(own)) if own else None,
        card("Guardrails", [tag("p", words, class_="muted"), _limits(others)]) if others else None,
    ]


def _limits(criteria: Sequence[Data]) -> Markup:
    """What counts comes first; why is said of what does not hold."""
    ordered = sorted(criteria, key=lambda each: bool(each["dry_run"]))
    signs = {"lt": "<", "le": "≤", "gt": ">", "ge": "≥"}
    rows = [
        [
            badge(each["verdict"]),
            [
                each["name"].removeprefix("trigger_").replace("_", " "),
                tag("span", "shown, not counted", class_="muted") if each["dry_run"] else None,
            ],
            "-" if each["observed"] is None else f"{figure(each['observed'])} {unit(each['unit'])}",
            f"{signs[each['compare']]} {figure(each['threshold'])} {unit(each['unit'])}"
            f"{_per(each.get('per'))}",
            f"{each['samples']:,}".replace(",", " "),
            tag("span", each["reason"], class_="muted") if each["verdict"] != "PASS" else None,
        ]
        for each in ordered
    ]
    heads = ["", "criterion", "observed", "must hold", "samples", "why"]
    classes = ["dry" if each["dry_run"] else None for each in ordered]
    return table(heads, rows, numbers=(2, 3, 4), names=(1,), wide=(5,), row_classes=classes)


def _per(per: Data | None) -> str:
    if per is None or per["kind"] == "cumulative":
        return ""
    return f", {per['n']} of {per['m']} buckets"


def _charts(stage: Data) -> Content:
    buckets = stage["series"]["points"]
    if not buckets:
        return None
    times = [bucket["time_s"] for bucket in buckets]

    def of(version: str, name: str) -> list[float | None]:
        return [bucket[version][name] for bucket in buckets]

    def gauge(name: str) -> list[float | None]:
        return [bucket[name] for bucket in buckets]

    limits = {each["metric"]: each for each in stage["criteria"] if each["layer"] == "criterion"}
    triggers = {each["metric"]: each for each in stage["criteria"] if each["layer"] == "guardrail"}

    def limit(metric: str) -> list[Limit]:
        found = [("target", limits.get(metric)), ("rollback at", triggers.get(metric))]
        return [
            Limit(name=name, value=float(each["threshold"]))
            for name, each in found
            if each is not None and each["unit"] not in ("pct_per_window",)
            and each["statistic"] not in ("relative_range",)
        ]  # fmt: skip

    memory_mb = [None if value is None else value / 1_024 for value in gauge("memory_kb")]
    delivery = [*of("v2", "delivery_rate_pct"), *of("v1", "delivery_rate_pct")]
    lowest = min((value for value in delivery if value is not None), default=100.0)
    floor = next((mark for mark in (90.0, 75.0, 50.0) if lowest >= mark + 1), 0.0)
    ordered = (stage["verdict"].get("ordered") or {}).get("traffic_pct")
    cards = [
        ("Coordination time", "of V2 by percentile, and V1's 95th", charts.line_chart(
            "Coordination time over the window", times,
            [Line(name="p50", style="p50", values=of("v2", "p50_ms")),
             Line(name="p95", style="v2", values=of("v2", "p95_ms")),
             Line(name="p99", style="p99", values=of("v2", "p99_ms")),
             Line(name="V1 p95", style="v1", values=of("v1", "p95_ms"))],
            show=ms, limits=limit("coordination_time_ms"))),
        ("Delivery", "mean over requests", charts.line_chart(
            "Delivery over the window", times,
            [Line(name="V2", style="v2", values=of("v2", "delivery_rate_pct")),
             Line(name="V1", style="v1", values=of("v1", "delivery_rate_pct"))],
            show=lambda value: f"{value:g} %", low=floor, high=100.0,
            limits=[each for each in limit("delivery_rate_pct") if each.value >= floor])),
        ("Split", "V2's share of the requests", charts.share_chart(
            "Share of V2 over the window", times, gauge("v2_share_pct"),
            None if ordered is None else float(ordered))),
        ("Memory", "of the engine, worst host", charts.line_chart(
            "Memory over the window", times, [Line(name="worst", style="v2", values=memory_mb)],
            show=mb, limits=[replace(each, value=each.value / 1_024) for each in limit("memory_kb")])),
        ("File descriptors", "of the engine, worst host", charts.line_chart(
            "File descriptors over the window", times,
            [Line(name="worst", style="v2", values=gauge("fd_count"))],
            show=count, limits=limit("fd_count"))),
        ("tmpfs", "used share of /dev/shm, worst host", charts.line_chart(
            "tmpfs over the window", times, [Line(name="worst", style="v2", values=gauge("tmpfs_pct"))],
            show=lambda value: f"{value:g} %", limits=limit("tmpfs_pct"))),
    ]  # fmt: skip
    drawn = [
        tag("div", tag("h3", name), tag("p", words, class_="muted"), chart, class_="card")
        for name, words, chart in cards
    ]
    return [tag("h3", "The window"), tag("div", drawn, class_="charts")]


def _compared(versions: Data) -> Content:
    v1, v2 = versions["v1"], versions["v2"]
    if not v1["requests"] or not v2["requests"]:
        return None
    rows = [
        ["requests", count(v2["requests"]), count(v1["requests"]), ""],
        *(
            [words, ms(v2[name]), ms(v1[name]), ratio(v2[name], v1[name])]
            for words, name in (
                ("median", "p50_ms"),
                ("95th percentile", "p95_ms"),
                ("99th percentile", "p99_ms"),
            )
        ),
        *(
            [words, pct(v2[name]), pct(v1[name]), points(v2[name], v1[name])]
            for words, name in (
                ("delivered", "delivery_rate_pct"),
                ("completed", "completion_rate_pct"),
                ("errors", "error_rate_pct"),
            )
        ),
    ]
    shown = table(["", "V2", "V1", "V2 against V1"], rows, numbers=(1, 2, 3), names=(0,))
    words = "The same window; each request counts for the version that the split ordered."
    return card("V1 against V2", [tag("p", words, class_="muted"), shown])


def _looks(stage: Data) -> Content:
    looks = stage["looks"]
    if not stage["verdicts"]:
        return None
    marks = [
        (
            STYLES.get(each["verdict"], NONE_YET),
            f"{each['verdict']} {moment(each['time'])} (record {each['record']})",
        )
        for each in stage["verdicts"][-120:]
    ]
    words = [f"{len(stage['verdicts'])} looks"]
    if looks["next"]:
        words.append(f"the next is {'due since' if looks['due'] else 'due'} {moment(looks['next'])} UTC")
    missed = looks["missed"]
    if missed:
        words.append(f"{looks['missed_count']} missed, the last at {moment(missed[-1])}")
    return tag(
        "div",
        tag("h3", "Looks"),
        tag("p", ", ".join(words) + ".", class_="muted"),
        charts.strip("Every look, oldest first", marks),
        class_="card",
    )


def _people(stage: Data) -> Content:
    parts: list[Content] = []
    if stage["incidents"]:
        rows = [
            [badge(each["severity"]), each["incident"], each["attributed_to"].upper(), each["state"],
             moment(each["started"]), each["text"]]
            for each in stage["incidents"]
        ]  # fmt: skip
        heads = ["", "incident", "attributed to", "state", "began", "what"]
        parts.append(card("Incidents", table(heads, rows, names=(1,), times=(4,), wide=(5,))))
    if stage["attestations"]:
        rows = [
            [tag("span", "✓ holds" if each["holds"] else "✗ does not hold",
                 class_=f"badge {'good' if each['holds'] else 'bad'}"),
             each["item"].replace("_", " "), each["by"], moment(each["time"]), each["note"]]
            for each in stage["attestations"]
        ]  # fmt: skip
        heads = ["", "item", "by", "when", "note"]
        parts.append(card("Attested", table(heads, rows, names=(1,), times=(3,), wide=(4,))))
    if stage["learned"]:
        said = [
            tag("li", each["text"], tag("span", f" {each['by']}, {moment(each['time'])}", class_="muted"))
            for each in stage["learned"]
        ]
        parts.append(card("What was learned", tag("ul", said)))
    return parts


def _timeline(timeline: Sequence[Data]) -> Content:
    if not timeline:
        return None
    rows = [
        [
            str(each["record"]),
            moment(each["time"]),
            each["kind"].replace("_", " "),
            each["actor"],
            each["what"],
        ]
        for each in timeline[-60:]
    ]
    rows_shown = table(
        ["record", "time (UTC)", "kind", "by", "what"], rows, names=(2,), times=(1,), wide=(4,)
    )
    left_out = len(timeline) - len(rows)
    words = f"The last {len(rows)} records; {left_out} older ones are in the ledger." if left_out else None
    return card("Timeline", [tag("p", words, class_="muted") if words else None, rows_shown])


def _footer(report: Data) -> Markup:
    ledger = report["ledger"]
    if ledger["intact"]:
        held = f", held against {ledger['anchors']} heads kept on {len(ledger['hosts'])} hosts"
        state = f"Ledger intact: {ledger['records']} records{held if ledger['anchors'] else ''}."
    else:
        state = f"LEDGER NOT INTACT: {ledger['problem']}"
    return tag(
        "footer",
        tag("p", state),
        tag("p", "Head ", tag("span", ledger["head"], class_="hash")),
        tag("p", "Stage table ", tag("span", report["stage_table_sha256"], class_="hash")),
        tag("p", f"Hosts: {', '.join(report['hosts'])}. Times are UTC. Percentiles are within 1 %."),
    )
