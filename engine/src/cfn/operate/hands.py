"""Doing something to one coordinator: drain, fail over, restart, bring back; idempotent where it can be."""

import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from cfn.config import parse
from cfn.errors import CfnError, NotDeliveredError, NotRunningError
from cfn.operate import coordinators as known
from cfn.operate.engine_client import ask, health, swarm, until
from cfn.operate.service import Served, disturbed
from cfn.paths import Paths

BACK_S = 20.0  # for a coordinator to be up again

Restart = Callable[[int], None]


def by_systemd(number: int) -> None:
    """Restart a coordinator's unit; ready when this returns. Raises CfnError with systemd's words."""
    unit = f"cfn-coordinator@{number}.service"
    subprocess.run(["systemctl", "reset-failed", unit], capture_output=True, check=False)
    done = subprocess.run(["systemctl", "restart", unit], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CfnError(f"systemctl restart {unit}: {done.stderr.strip()} See: journalctl -u {unit}")


def act(
    here: Paths,
    number: int,
    action: str,
    *,
    agents: int | None = None,
    within_s: float = 30.0,
    check: bool = False,
    restart: Restart = by_systemd,
) -> dict[str, Any]:
    """Do `action` (coordinators.ACTIONS) to a coordinator; what `cfn coordinators --json` prints.

    `agents`: how many are watched while it is done; None for as many as the configuration allows, 0 for
    none. Blocks until the coordinator is where it is to be. Raises as coordinators.check, and CfnError
    when it does not come back or its workers are not served again.
    """
    before = health(here)
    found = known.check(before, number, action)
    rows = known.listed(before)
    changed = known.changes(found, action)
    served: Served | None = None
    back_s: float | None = None
    if changed and not check:
        watched = _watched(here, len(rows)) if agents is None else agents
        began_s = time.monotonic()

        def do() -> None:
            _do(here, found, action, restart)

        with ExitStack() as ending:
            swarm_id = _made(ending, here, watched, found) if watched else None
            if swarm_id is not None:
                served = disturbed(here, swarm_id, watched, do, within_s=within_s)
            else:
                do()
            back_s = _back(here, found, action, began_s)
    after = rows if check or not changed else known.listed(health(here))
    return {
        "coordinator": number,
        "action": action,
        "changed": changed,
        "before": [each.as_json() for each in rows],
        "after": [
            each.as_json() for each in (known.predicted(rows, number, action) if check and changed else after)
        ],
        "served_s": round(served.seconds, 3) if served else None,
        "served": served.as_json() if served else None,
        "back_s": round(back_s, 3) if back_s is not None else None,
        "within_s": within_s,
        "held": served is None or served.seconds <= within_s,
    }


def _made(ending: ExitStack, here: Paths, agents: int, found: known.Coordinator) -> str | None:
    """A swarm to watch; None where its agents do not come since this coordinator is not up: that is what is
    to be mended, and waits for nobody."""
    try:
        return ending.enter_context(swarm(here, agents, "operate"))
    except NotDeliveredError:
        if found.state == known.UP:
            raise
        return None


def _do(here: Paths, found: known.Coordinator, action: str, restart: Restart) -> None:
    # A failover ends a drain, too: who is failed over is to be up again.
    hows = {"drain": ["drain"], "failover": ["dead", "resume"], "return": ["resume"]}
    for how in hows.get(action, []):
        ask(here, verb="failover", coordinator=found.number, how=how)
    # One that ends is started again by systemd; one that is down already was stopped, or gave up.
    if action == "restart" or (found.state == known.DOWN and action != "drain"):
        restart(found.number)


def _back(here: Paths, found: known.Coordinator, action: str, began_s: float) -> float | None:
    """Wait until the coordinator is as it is to be; the seconds since the order. None for a drain."""
    if action == "drain":
        return None
    allowed = (known.UP, known.DRAINING) if action == "restart" else (known.UP,)

    def there() -> bool:
        row = known.find(known.listed(health(here)), found.number)
        same = action in ("failover", "restart") and row.pid == found.pid
        return row.state in allowed and not same

    if not until(there, BACK_S):
        row = known.find(known.listed(health(here)), found.number)
        raise CfnError(
            f"coordinator {found.number} is {row.state} {BACK_S:.0f} s after it was to {action}; its teams "
            f"are with the others. Look at journalctl -u cfn-coordinator@{found.number}"
        )
    return time.monotonic() - began_s


def _watched(here: Paths, coordinators: int) -> int:
    """As many agents as the configuration in force allows, if that is enough for a team on each."""
    try:
        allowed = parse(here.config.read_text(), source=str(here.config)).config.max_agents
    except OSError as error:
        raise NotRunningError(f"{here.config} cannot be read: {error}") from error
    return allowed if allowed > coordinators else 0
