"""A long run of a host: a steady load through its router, and an account at the end.

It runs as a transient unit of systemd, so that it outlives whoever started it; its order, progress and
result are files in the state folder. It does not outlive a reboot, and says so.
"""

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cfn.config_follower import write_atomically
from cfn.errors import CfnError, RefusedError, UsageError
from cfn.load.account import LoadReport
from cfn.load.plan import LoadPlan, parse_sizes
from cfn.load.stream import run_async
from cfn.metrics.times import format_ms
from cfn.operate.checks import Limit, hold
from cfn.operate.trials import ADVICE, usage
from cfn.paths import Paths

UNIT = "cfn-soak.service"
SETTLE_S = 600  # beyond its length, for answers that are still out; then systemd ends it
STOP_S = 180
_PROGRESS_S = 2.0

DELIVERY_ADVICE = "Look at cfn status and at the worst coordinations in coordination-events.jsonl."


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What was asked for: `rate_per_s` requests for `seconds`, `sizes` as `cfn load` takes them, and
    limits by metric for the end."""

    soak: str
    seconds: int
    rate_per_s: float
    sizes: str
    limits: Mapping[str, Mapping[str, Any]]

    def plan(self, here: Paths) -> LoadPlan:
        """The load. Raises UsageError for one that is not bounded."""
        return LoadPlan(
            router=f"unix:{here.router_socket}",
            rate_per_s=self.rate_per_s,
            requests=max(1, round(self.rate_per_s * self.seconds)),
            prefix=self.soak,
            sizes=parse_sizes(self.sizes),
        )


def folder(here: Paths) -> Path:
    """Where order, progress and result are."""
    return here.state / "soak"


def account(
    load: LoadReport,
    first: Mapping[str, float | None],
    last: Mapping[str, float | None],
    limits: Mapping[str, Limit],
) -> dict[str, Any]:
    """What became of it: `ok`, the problems in words, and the figures at start and end."""
    problems = []
    if load.answered_once != load.sent:
        problems.append(
            f"{load.sent - load.answered_once} of {load.sent} requests were not answered exactly once "
            f"({load.never} never, {load.answered_twice} twice)"
        )
    if load.failed or load.partial:
        problems.append(f"{load.failed} requests failed and {load.partial} were answered in part")
    if not load.sent:
        problems.append("no request was sent")
    figures = {name: found for name, found in last.items() if found is not None and name in limits}
    if "delivery_rate_pct" in limits:
        figures["delivery_rate_pct"] = load.delivery_rate_pct or 0.0
    checks = hold(figures, limits, {**ADVICE, "delivery_rate_pct": DELIVERY_ADVICE})
    problems += [check.text for check in checks if not check.holds]
    return {
        "ok": not problems,
        "problems": problems,
        "checks": [check.as_json() for check in checks],
        "load": load.as_json(),
        "first": dict(first),
        "last": dict(last),
        "growth": {
            name: round(end - begin, 3)
            for name, begin in first.items()
            if begin is not None and (end := last.get(name)) is not None
        },
    }


def run(here: Paths, order: Order, limits: Mapping[str, Limit]) -> dict[str, Any]:
    """The run itself; writes progress and result. SIGTERM ends it early, with an account."""
    plan = order.plan(here)
    began = format_ms(time.time_ns() // 1_000_000)
    first = usage(here)
    stopped = False
    told_s = 0.0

    def progress(line: str) -> None:
        nonlocal told_s
        if time.monotonic() - told_s >= _PROGRESS_S:
            told_s = time.monotonic()
            _write(here, "progress.json", {"soak": order.soak, "since": began, "line": line})

    async def all_of_it() -> LoadReport:
        nonlocal stopped
        stop = asyncio.Event()

        def end() -> None:
            nonlocal stopped
            stopped = True
            stop.set()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, end)
        return await run_async(plan, progress=progress, stop=stop)

    load = asyncio.run(all_of_it())
    result = {
        "soak": order.soak,
        "since": began,
        "until": format_ms(time.time_ns() // 1_000_000),
        "stopped": stopped,
        **account(load, first, usage(here), limits),
    }
    _write(here, "result.json", result)
    return result


def start(here: Paths, order: Order, *, check: bool) -> dict[str, Any]:
    """Start it as a unit, unless one runs. Raises RefusedError if another one runs, UsageError for an
    order that is not bounded, CfnError with systemd's words."""
    order.plan(here)
    found = status(here)
    if found["state"] == "running":
        if _asked(found["order"]) != _asked(asdict(order)):
            raise RefusedError(
                f"a soak of {found['order']['seconds']} s runs already, since {found['since']}; "
                "cfn soak stop ends it"
            )
        return {"changed": False, **found}
    if check:
        return {"changed": True, **found}
    folder(here).mkdir(mode=0o750, exist_ok=True)
    owner = here.state.stat()  # the engine's user, as which it runs
    os.chown(folder(here), owner.st_uid, owner.st_gid)
    for name in ("result.json", "progress.json"):
        (folder(here) / name).unlink(missing_ok=True)
    _write(here, "order.json", asdict(order))
    argv = ["systemd-run", "--quiet", "--collect", f"--unit={UNIT}", "--slice=cfn.slice"]
    argv += ["--uid=cfn", "--gid=cfn", f"--property=RuntimeMaxSec={order.seconds + SETTLE_S}"]
    argv += ["--property=KillMode=mixed", f"--property=TimeoutStopSec={STOP_S}"]
    _system([*argv, "/opt/cfn/current/bin/cfn", "soak", "run"])
    return {"changed": True, **status(here)}


def status(here: Paths) -> dict[str, Any]:
    """`state` (none, running, done, stopped, lost), the order, progress and result as far as there are."""
    order, result = _read(here, "order.json"), _read(here, "result.json")
    progress = _read(here, "progress.json")
    running = order is not None and result is None and _active()
    state = "none"
    if running:
        state = "running"
    elif result is not None:
        state = "stopped" if result["stopped"] else "done"
    elif order is not None:
        state = "lost"  # a reboot, or systemd ended it
    return {
        "state": state,
        "soak": order["soak"] if order else None,
        "since": (result or progress or {}).get("since"),
        "order": order,
        "progress": (progress or {}).get("line"),
        "result": result,
    }


def stop(here: Paths, *, check: bool) -> dict[str, Any]:
    """End it early; its account is made all the same. Blocks until it is."""
    found = status(here)
    if found["state"] != "running" or check:
        return {"changed": found["state"] == "running", **found}
    _system(["systemctl", "stop", UNIT])
    return {"changed": True, **status(here)}


def order_of(here: Paths) -> Order:
    """What was asked for. Raises UsageError if nothing was."""
    value = _read(here, "order.json")
    if value is None:
        raise UsageError(f"{folder(here)} holds no order; cfn soak start makes one")
    return Order(**value)


def _asked(order: Mapping[str, Any]) -> tuple[object, ...]:
    return tuple(order[name] for name in ("seconds", "rate_per_s", "sizes"))


def _active() -> bool:
    done = subprocess.run(["systemctl", "is-active", "--quiet", UNIT], check=False)
    return done.returncode == 0


def _system(argv: Sequence[str]) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CfnError(f"{' '.join(argv[:2])}: {done.stderr.strip()} See: journalctl -u {UNIT}")


def _write(here: Paths, name: str, value: Mapping[str, Any]) -> None:
    write_atomically(folder(here) / name, json.dumps(value) + "\n", mode=0o644)


def _read(here: Paths, name: str) -> dict[str, Any] | None:
    try:
        value = json.loads((folder(here) / name).read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
