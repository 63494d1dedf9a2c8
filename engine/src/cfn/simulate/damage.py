"""Damage to what a gate is asked, each kind such that the verdict must not be PASS: for tests.

Every function takes a request whose evidence is unpacked, and changes it in place.
"""

import random
from collections.abc import Callable, Mapping
from typing import Any

from cfn.metrics.packing import pack, unpack

Request = dict[str, Any]
_WRONG: tuple[Any, ...] = (None, "x", -1, 1.5, [], {}, float("nan"), float("inf"), True)


def unpacked(request: Mapping[str, Any]) -> Request:
    """The request with its evidence in the open."""
    return dict(request) | {
        "evidence": {host: dict(unpack(raw)) for host, raw in request["evidence"].items()}
    }


def damage(request: Request, randomness: random.Random) -> str:
    """Damage one host's evidence in one of KINDS; returns which, and how."""
    kind = randomness.choice(sorted(KINDS))
    host = randomness.choice(sorted(request["evidence"]))
    return f"{kind} of {host}: {KINDS[kind](request, host, randomness) or ''}"


def _no_evidence(request: Request, host: str, _: random.Random) -> str:
    del request["evidence"][host]
    return ""


def _query_failed(request: Request, host: str, _: random.Random) -> str:
    request["evidence"][host] = {"error": "timed out"}
    return ""


def _no_samples(request: Request, host: str, _: random.Random) -> str:
    _keep_samples(request["evidence"][host], [])
    return ""


def _one_sample(request: Request, host: str, randomness: random.Random) -> str:
    evidence = request["evidence"][host]
    cell = randomness.choice(evidence["sample_cells"])
    _keep_samples(evidence, [cell])
    return ""


def _gap(request: Request, host: str, randomness: random.Random) -> str:
    """A third of the window, or more."""
    evidence = request["evidence"][host]
    cells = evidence["sample_cells"]
    length = randomness.randint(-(-len(cells) // 3), len(cells))
    start = randomness.randint(0, len(cells) - length)
    _keep_samples(evidence, cells[:start] + cells[start + length :])
    return f"{length} of {len(cells)} from {start}"


def _stopped_collector(request: Request, host: str, randomness: random.Random) -> str:
    evidence = request["evidence"][host]
    stopped = randomness.randint(3, len(evidence["sample_cells"]))
    _keep_samples(evidence, evidence["sample_cells"][:-stopped])
    return f"{stopped} buckets ago"


def _lost_events(request: Request, host: str, randomness: random.Random) -> str:
    """Events that the collector saw end and that are not in the file: a fifth of the cells, or more."""
    evidence = request["evidence"][host]
    cells = evidence["request_cells"]
    kept = randomness.sample(cells, randomness.randint(0, len(cells) * 4 // 5))
    evidence["request_cells"] = [cell for cell in cells if cell in kept]
    _count_events(evidence)
    return f"{len(cells) - len(kept)} cells"


def _damaged_lines(request: Request, host: str, randomness: random.Random) -> str:
    evidence = request["evidence"][host]
    name = randomness.choice(["events", "samples"])
    kind = randomness.choice(["garbage", "not_finite", "unknown_version", "invalid", "too_long", "future"])
    damaged = evidence[name]["damaged"]
    damaged[kind] += max(4, evidence[name]["records"] // 50)
    return f"{name}, {kind}"


def _mismatch(request: Request, host: str, randomness: random.Random) -> str:
    request["evidence"][host]["arms"]["mismatches"] = randomness.randint(1, 50)
    return ""


def _unchecked(request: Request, host: str, randomness: random.Random) -> str:
    arms = request["evidence"][host]["arms"]
    arms["checked"] = randomness.randint(0, arms["checked"] - 1)
    return ""


def _wrong_value(request: Request, host: str, randomness: random.Random) -> str:
    """A value of another type, or none at all, somewhere."""
    node: Any = request["evidence"][host]
    path: list[Any] = []
    while isinstance(node, dict | list) and node:
        key = randomness.choice(sorted(node)) if isinstance(node, dict) else randomness.randrange(len(node))
        path.append(key)
        parent, node = node, node[key]
    wrong = randomness.choice([each for each in _WRONG if type(each) is not type(node)])
    if isinstance(node, int | float) and isinstance(wrong, int | float) and wrong == wrong and wrong >= 0:
        wrong = "1"  # another number may well be a value
    if wrong is None and path[-1] in ("latest_generation", "v1", "v2"):
        wrong = "none"
    parent[path[-1]] = wrong
    return f"{'.'.join(map(str, path))} = {wrong!r}"


def _missing_field(request: Request, host: str, randomness: random.Random) -> str:
    evidence = request["evidence"][host]
    field = randomness.choice(sorted(set(evidence) - {"latest_generation"}))
    del evidence[field]
    return str(field)


def _other_window(request: Request, host: str, randomness: random.Random) -> str:
    evidence = request["evidence"][host]
    field, other = randomness.choice(
        [("bucket_s", 60.0), ("until", evidence["since"]), ("since", evidence["until"]), ("v", 1)]
    )
    evidence[field] = other
    return f"{field} = {other}"


def _other_traffic(request: Request, host: str, randomness: random.Random) -> str:
    share = randomness.choice(["5", "50", "100", "0"])
    for generation in request["evidence"][host]["generations"]:
        generation["traffic_pct"] = share
    return f"{share} %"


def _cut_text(request: Request, host: str, randomness: random.Random) -> str:
    packed = pack(request["evidence"][host], {})
    text = packed["packed"]
    packed["packed"] = text[: randomness.randrange(len(text))]
    request["evidence"][host] = packed
    return ""


def _changed_text(request: Request, host: str, randomness: random.Random) -> str:
    evidence = request["evidence"][host]
    packed = pack(evidence, {})
    text = packed["packed"]
    while _holds(packed, evidence):  # compression leaves a few bits unused: to change those is no damage
        place = randomness.randrange(len(text) // 2)
        other = randomness.choice([each for each in "ABCDEFGH+/!\n" if each != text[place]])
        packed["packed"] = text[:place] + other + text[place + 1 :]
    request["evidence"][host] = packed
    return f"at {place}"


def _holds(packed: Mapping[str, Any], evidence: Mapping[str, Any]) -> bool:
    try:
        return unpack(packed) == evidence
    except ValueError:
        return False


KINDS: Mapping[str, Callable[[Request, str, random.Random], str]] = {
    "no evidence": _no_evidence,
    "a query that failed": _query_failed,
    "no samples": _no_samples,
    "one sample": _one_sample,
    "a gap": _gap,
    "a stopped collector": _stopped_collector,
    "lost events": _lost_events,
    "damaged lines": _damaged_lines,
    "a split that is not as ordered": _mismatch,
    "a split that was not checked": _unchecked,
    "a wrong value": _wrong_value,
    "a missing field": _missing_field,
    "another window": _other_window,
    "another traffic": _other_traffic,
    "a cut text": _cut_text,
    "a changed text": _changed_text,
}


def _keep_samples(evidence: Request, cells: list[Any]) -> None:
    evidence["sample_cells"] = cells
    evidence["samples"]["records"] = sum(cell["samples"] for cell in cells)


def _count_events(evidence: Request) -> None:
    served = sum(
        (cell["v1"] or {"requests": 0})["requests"] + (cell["v2"] or {"requests": 0})["requests"]
        for cell in evidence["request_cells"]
    )
    evidence["events"]["records"] = evidence["arms"]["checked"] = served
