"""`cfn cleanup`: remove results, journals and swarms past their retention, and orphaned processes."""

import argparse
import json
from collections.abc import Collection
from dataclasses import asdict

from cfn import paths
from cfn.client import Client, raise_error
from cfn.config import Config, parse
from cfn.engine.retention import (
    Removed,
    describe,
    kill_orphans,
    size_bytes,
    stale,
    sweep_deserted,
)
from cfn.errors import ConfigError, NotRunningError
from cfn.paths import Paths

ASK_S = 30.0


def main(argv: list[str]) -> int:
    """Exit code 0 also when there was nothing to remove. Never touches anything live."""
    parser = argparse.ArgumentParser(prog="cfn cleanup", description=__doc__)
    parser.add_argument("--retention-s", type=int, help="seconds to keep; default: CFN_RETENTION_TIME")
    parser.add_argument("--check", action="store_true", help="say what would be removed, and remove nothing")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(argv)
    here = paths.installed()
    retention_s = options.retention_s
    if retention_s is None:
        retention_s = _configured(here)
    elif retention_s < 0:
        parser.error(f"--retention-s: {retention_s} is refused; a whole number from 0 is needed")
    in_use = _swarms(here)
    found = stale(here, retention_s, in_use or (), live=in_use is not None)
    sizes = {entry: size_bytes(entry) for entries in found.values() for entry in entries}
    if options.check:
        removed = Removed(**{kind: len(entries) for kind, entries in found.items()})
        freed = sum(sizes.values())
    else:
        removed = _swept(here, retention_s)
        freed = sum(size for entry, size in sizes.items() if not entry.exists())
    removed.processes = kill_orphans(here, check=options.check)
    if options.json:
        print(json.dumps({**asdict(removed), "freed_bytes": freed, "retention_s": retention_s}))
    else:
        print(f"{describe(removed)} freed_bytes={freed}")
    return 0


def _swarms(here: Paths) -> Collection[str] | None:
    """The swarms that are kept; None where no conductor runs."""
    try:
        with Client(here.conductor_socket, timeout_s=ASK_S) as client:
            return [swarm["swarm_id"] for swarm in client.final({"verb": "health"})["swarms"]]
    except NotRunningError:
        return None


def _swept(here: Paths, retention_s: int) -> Removed:
    """By the conductor, which knows what is in use; by ourselves where none runs."""
    try:
        with Client(here.conductor_socket, timeout_s=ASK_S) as client:
            answer = client.final({"verb": "sweep", "retention_s": retention_s})
    except NotRunningError:
        return sweep_deserted(here, retention_s)
    raise_error(answer)
    return Removed(**answer)


def _configured(here: Paths) -> int:
    """The retention in force: the file's, else the last good one's, else the default."""
    for path in (here.config, here.state / "conductor" / "config.last-good"):
        try:
            return parse(path.read_text(), source=str(path)).config.retention_s
        except (OSError, UnicodeDecodeError, ConfigError):
            continue
    return Config().retention_s
