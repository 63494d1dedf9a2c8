"""The host's side of the watch: what it answers, and its guard's turn. All I/O of the two."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cfn.commands.metrics import collect
from cfn.commands.status import read as read_status
from cfn.config import parse
from cfn.config_follower import write_atomically
from cfn.errors import CfnError, UsageError
from cfn.ledger import anchors
from cfn.ledger.chain import Head
from cfn.ledger.entries import NAME
from cfn.metrics import checks
from cfn.metrics.times import format_ms, parse_ms
from cfn.paths import Paths
from cfn.router.client import RouterClient
from cfn.router.flip import Order, flip
from cfn.watch import heard, spool
from cfn.watch.guard import Flip, InForce, of_order, of_silence, read_order

VERSION = 1
MODE = 0o640
OBEYED_WITHIN_S = 30.0
FLIP_WAIT_S = 10.0


def folder(tree: Paths) -> Path:
    """Where watch and guard meet: written by the watch's account and by root only."""
    return tree.state / "watch"


# The answers: `cfn watched`, as the watch's own account


def answer(value: Mapping[str, Any], tree: Paths, *, now_ms: int) -> dict[str, Any]:
    """Do what the watch asks and tell it how the host stands. Raises UsageError for what is malformed.

    What cannot be read is said in the answer (`evidence_error`), so that one host's trouble is not the
    watch's. Blocks for the reduction, and up to OBEYED_WITHIN_S for an order.
    """
    try:
        if value.get("v") != VERSION:
            raise ValueError(f"version {value.get('v')!r}; this release speaks {VERSION}")
        blind_limit_s = checks.number(value.get("blind_limit_s"), "blind_limit_s", low=1)
        watching = checks.boolean(value.get("watching"), "watching")
        found: dict[str, Any] = {"v": VERSION, "host_time": format_ms(now_ms)}
        if checks.boolean(value.get("alive", True), "alive"):
            heard.write(
                folder(tree) / "heard.json", now_ms=now_ms, watching=watching, blind_limit_s=blind_limit_s
            )
        if value.get("anchor") is not None:
            found["anchor"] = _keep(checks.mapping(value["anchor"], "anchor"), tree, now_ms)
        if value.get("order") is not None:
            found["order"] = _obeyed(checks.mapping(value["order"], "order"), tree)
        if value.get("evidence") is not None:
            found |= _evidence(checks.mapping(value["evidence"], "evidence"), tree, now_ms)
    except ValueError as error:
        raise UsageError(f"the watch's request: {error}") from None
    except OSError as error:
        raise CfnError(f"{folder(tree)}: {error}") from error
    found["status"] = read_status(tree)
    found["spooled"] = spool.lines(tree)
    return found


def _keep(anchor: Mapping[str, Any], tree: Paths, now_ms: int) -> str:
    """Keep the ledger's head. Returns "" or what is wrong with it."""
    environment = checks.text(anchor.get("environment"), "environment")
    if not NAME.fullmatch(environment):
        raise ValueError(f"environment {environment!r}")
    head = _head(anchor)
    earlier = [_head(each) for each in checks.sequence(anchor.get("earlier", []), "earlier")]
    try:
        anchors.keep(tree.state / "anchors", environment, head, earlier, time=format_ms(now_ms))
    except CfnError as error:
        return str(error)
    return ""


def _head(value: Any) -> Head:
    named = checks.mapping(value, "a head")
    return Head(
        checks.whole(named.get("sequence"), "sequence", low=1), checks.text(named.get("hash"), "hash")
    )


def _evidence(wanted: Mapping[str, Any], tree: Paths, now_ms: int) -> dict[str, Any]:
    since_ms = parse_ms(checks.text(wanted.get("since"), "since"))
    until_ms = parse_ms(checks.text(wanted.get("until"), "until"))
    bucket_ms = round(checks.number(wanted.get("bucket_s"), "bucket_s", low=0.001, high=1e6) * 1_000)
    if not 0 < (until_ms - since_ms) // bucket_ms <= 20_000:
        raise ValueError("the window has no bucket, or more than 20000")
    try:
        return {"evidence": collect(tree, since_ms, until_ms, bucket_ms, now_ms=now_ms).as_json()}
    except CfnError as error:
        return {"evidence": {"error": str(error)}}


def _obeyed(order: Mapping[str, Any], tree: Paths) -> dict[str, Any]:
    """Hand an order to the guard, and wait for what became of it."""
    asked = read_order(order)
    write_atomically(folder(tree) / "order.json", json.dumps(dict(order)) + "\n", mode=MODE)
    deadline_s = time.monotonic() + OBEYED_WITHIN_S
    while time.monotonic() < deadline_s:
        done = _load(folder(tree) / "obeyed.json")
        if done.get("id") == asked.id:
            return done
        time.sleep(0.1)
    return {"id": asked.id, "error": f"the guard did not act within {OBEYED_WITHIN_S:g} s"}


# The guard: `cfn guard`, as root

Flipper = Callable[[Flip], dict[str, Any]]


def guard(tree: Paths, *, now_ms: int, flipper: Flipper | None = None) -> str:
    """One turn: carry out an order that waits, and fall back if the watch is silent. Returns what was
    done in words, "" for nothing."""
    act = flipper or (lambda what: _flip(tree, what))
    waiting = _load(folder(tree) / "order.json")
    said = []
    if waiting and waiting.get("id") != _load(folder(tree) / "obeyed.json").get("id"):
        said.append(_carry_out(tree, waiting, act))
    silent = _silence(tree, now_ms)
    if silent is not None:
        result = _acted(act, silent)
        spool.add(tree, {"time": format_ms(now_ms), "reason": silent.reason, **result})
        said.append(f"fell back to V1: {silent.reason}")
    return "; ".join(said)


def _carry_out(tree: Paths, waiting: Mapping[str, Any], act: Flipper) -> str:
    try:
        order = read_order(waiting)
        what = of_order(order, _in_force(tree))
    except (ValueError, CfnError) as error:
        done: dict[str, Any] = {"id": str(waiting.get("id")), "error": str(error)}
    else:
        done = (
            {"id": order.id, "error": what} if isinstance(what, str) else _acted(act, what) | {"id": order.id}
        )
    write_atomically(folder(tree) / "obeyed.json", json.dumps(done) + "\n", mode=MODE)
    return str(done.get("error") or f"obeyed: {waiting.get('reason')}")


def _acted(act: Flipper, what: Flip) -> dict[str, Any]:
    try:
        return act(what)
    except CfnError as error:
        return {"error": str(error)}


def _silence(tree: Paths, now_ms: int) -> Flip | None:
    try:
        last = heard.read(folder(tree) / "heard.json")
        now = _in_force(tree)
    except (ValueError, CfnError):
        return None  # no word of a watch that can be read, or nothing installed: nobody answers for it
    if last is None:
        return None
    booted, up_s = heard.boot()
    return of_silence(last, last.age_s(now_ms=now_ms, booted=booted, up_s=up_s), now)


def _in_force(tree: Paths) -> InForce:
    try:
        config = parse(tree.config.read_text(), source=str(tree.config)).config
    except (OSError, UnicodeDecodeError) as error:
        raise CfnError(f"{tree.config}: cannot be read: {error}") from error
    return InForce(version=config.coordination_version, traffic_pct=config.traffic_pct, epoch=config.epoch)


def _flip(tree: Paths, what: Flip) -> dict[str, Any]:
    """As `cfn traffic`: the file, and the running router's word for it."""
    percent = None if what.percent is None else format(what.percent.normalize(), "f")
    order = Order(version=what.version, percent=percent, epoch=what.epoch)
    router = RouterClient(f"unix:{tree.router_socket}")
    done = flip(tree.config, order, router, check=False, wait_s=FLIP_WAIT_S)
    return {name: done[name] for name in ("changed", "before", "after", "confirmed", "seconds")}


def _load(path: Path) -> dict[str, Any]:
    try:
        return checks.load_object(path.read_text())
    except (OSError, ValueError):
        return {}
