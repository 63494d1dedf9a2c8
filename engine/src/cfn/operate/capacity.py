"""How many agents V2 takes and how long it keeps things, changed while it runs.

The file is edited as a flip edits it; conductor, coordinators and router follow within a second, without
a restart. A request above the limit then goes to V1, outside the split.
"""

import time
from contextlib import suppress
from typing import Any

from cfn.config import KEYS, Config, edit, parse
from cfn.errors import CfnError, ConfigError, UsageError
from cfn.operate.engine_client import health
from cfn.paths import Paths
from cfn.router.client import RouterClient
from cfn.router.flip import locked, replace_file

DEFAULT = "default"
_AGAIN_S = 0.05
_FIELDS = {"agents": ("CFN_MAX_AGENTS", "max_agents"), "retention_s": ("CFN_RETENTION_TIME", "retention_s")}


def wanted(agents: str | None, retention_s: str | None) -> dict[str, str]:
    """The keys to set, of what was typed; None leaves one as it is. `default` means the engine's own for
    a retention; how many agents are a stage's default, only the stage table knows. Raises UsageError."""
    typed = {
        "agents": agents,
        "retention_s": str(Config().retention_s) if retention_s == DEFAULT else retention_s,
    }
    keys = {}
    for name, value in typed.items():
        if value is None:
            continue
        key = next(key for key in KEYS if key.name == _FIELDS[name][0])
        try:
            keys[key.name] = str(key.parse(value))
        except ValueError:
            raise UsageError(f"{name} of {value!r} is refused; {key.allowed} is allowed") from None
    return keys


def change(here: Paths, keys: dict[str, str], *, check: bool, wait_s: float) -> dict[str, Any]:
    """Set the keys, and wait until conductor and router report them. Without any, only read.

    Raises ConfigError for a file that cannot be edited, CfnError when a daemon does not follow.
    """
    began_s = time.monotonic()
    with locked(here.config):
        try:
            text = here.config.read_text()
        except OSError as error:
            raise ConfigError(f"{here.config} cannot be read: {error}") from error
        before = parse(text, source=str(here.config)).config
        edited = edit(text, keys)
        after = parse(edited, source=str(here.config)).config
        changed = after != before
        if changed and not check:
            replace_file(here.config, edited)
    confirmed = False
    if not check:
        confirmed = _confirm(here, after, began_s + wait_s)
    return {
        "changed": changed,
        "before": _shown(before),
        "after": _shown(after),
        "confirmed": confirmed,
        "seconds": round(time.monotonic() - began_s, 3),
    }


def _shown(config: Config) -> dict[str, int]:
    return {name: getattr(config, field) for name, (_, field) in _FIELDS.items()}


def _confirm(here: Paths, config: Config, ends_s: float) -> bool:
    """Wait until both report it. Raises CfnError naming who does not."""
    router = RouterClient(f"unix:{here.router_socket}", timeout_s=2.0)
    late = ["conductor", "router"]
    while late:
        with suppress(CfnError):
            found = health(here)
            if (found["max_agents"], found["retention_s"]) == (config.max_agents, config.retention_s):
                late = [name for name in late if name != "conductor"]
        with suppress(CfnError):
            if router.get("/status")[1]["max_agents"] == config.max_agents:
                late = [name for name in late if name != "router"]
        if late and time.monotonic() > ends_s:
            raise CfnError(
                f"{' and '.join(late)} did not take the configuration in; it holds from their next start. "
                "See cfn status: what it says of the configuration"
            )
        if late:
            time.sleep(_AGAIN_S)
    return True
