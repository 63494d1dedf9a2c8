"""`cfn status`: what this host runs: release, version, traffic, health."""

import argparse
import asyncio
import json
from pathlib import Path
from typing import Any

from cfn import paths, release
from cfn.config import Config, parse
from cfn.errors import CfnError
from cfn.metrics.times import format_ms
from cfn.router.client import RouterClient
from cfn.router.generation import as_number
from cfn.router.v2 import V2
from cfn.watch import spool

_HEALTH_TIME_S = 2.0
_SPOOLED = 20


def main(argv: list[str]) -> int:
    """Exit code 0 whenever the status could be told, also of a host on which nothing runs."""
    parser = argparse.ArgumentParser(prog="cfn status", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    status = read(paths.installed())
    print(json.dumps(status) if options.json else _table(status))
    return 0


def read(installed: paths.Paths) -> dict[str, Any]:
    """The status as an object. What cannot be known is null. Blocks a few seconds at most."""
    config, problem = _configured(installed)
    router, router_state = _router(installed)
    engine, engine_state = asyncio.run(_engine(installed))
    if router.get("config_problem"):
        problem = router["config_problem"]
    return {
        "release": release.version(),
        "release_since": _since(installed.current_release),
        "topology": config.topology if config else None,
        "max_agents": config.max_agents if config else None,
        "version": config.coordination_version if config else None,
        "traffic_pct": as_number(float(config.traffic_pct)) if config else None,
        "epoch": config.epoch if config else None,
        "v1_enabled": config.v1_enabled if config else None,
        "generation": router.get("generation"),
        "since": router.get("since"),
        "observed_share_pct": router.get("observed_share_pct"),
        "breaker": router.get("breaker"),
        "engine": engine_state,
        "router": router_state,
        "config_problem": problem,
        "engine_health": engine,
        "router_status": router,
        "spooled": spool.lines(installed, last=_SPOOLED),
    }


def _since(link: Path) -> str | None:
    try:
        return format_ms(int(link.lstat().st_mtime * 1000))
    except OSError:
        return None


def _configured(installed: paths.Paths) -> tuple[Config | None, str]:
    try:
        parsed = parse(installed.config.read_text(), source=str(installed.config))
    except (OSError, UnicodeDecodeError, CfnError) as error:
        return None, str(error)
    return parsed.config, f"unknown keys: {', '.join(parsed.unknown)}" if parsed.unknown else ""


def _router(installed: paths.Paths) -> tuple[dict[str, Any], str]:
    try:
        client = RouterClient(f"unix:{installed.router_socket}", timeout_s=_HEALTH_TIME_S)
        return client.get("/status")[1], "running"
    except CfnError as error:
        return {}, f"not running: {error}"


async def _engine(installed: paths.Paths) -> tuple[dict[str, Any], str]:
    try:
        return await V2(installed.conductor_socket).ask(
            {"verb": "health"}, timeout_s=_HEALTH_TIME_S
        ), "running"
    except TimeoutError:
        return {}, f"{installed.conductor_socket} does not answer within {_HEALTH_TIME_S:g} s"
    except (OSError, EOFError, CfnError) as error:
        return {}, f"not running: {error}"


def _breaker(breaker: dict[str, Any] | None) -> str:
    if breaker is None:
        return "unknown"
    if breaker["state"] == "closed":
        return f"closed, {breaker['bad']} of V2's last {breaker['looked_at']} requests bad"
    return f"{breaker['state']} since {breaker['since']} by {breaker['by']}: {breaker['reason']}; V1 serves"


def _table(status: dict[str, Any]) -> str:
    share = status["observed_share_pct"]
    rows = {
        "release": status["release"],
        "topology": f"{status['topology']}, up to {status['max_agents']} agents",
        "version": f"{status['version']} at {status['traffic_pct']} %, epoch {status['epoch']}",
        "generation": f"{status['generation']} since {status['since']}",
        "observed": "nothing yet" if share is None else f"{share:g} % on V2 since then",
        "breaker": _breaker(status["breaker"]),
        "v1": "gone: V2 serves everything" if status["v1_enabled"] is False else "there",
        "engine": status["engine"],
        "router": status["router"],
        "configuration": status["config_problem"] or "in force",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())
