"""`cfn config check|render`: validate a configuration file, or render it for systemd and bash."""

import argparse
from pathlib import Path

from cfn import paths
from cfn.config import check, parse, render_env
from cfn.config_follower import write_atomically
from cfn.errors import ConfigError, RefusedError


def main(argv: list[str]) -> int:
    """Exit code 0 when the file is accepted, 2 when it is refused, 5 when it is older than the one before."""
    parser = argparse.ArgumentParser(prog="cfn config", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    checker = actions.add_parser("check", help="refuse a file that must not be deployed")
    checker.add_argument("file", type=Path, nargs="?", default=paths.installed().config)
    checker.add_argument(
        "--replaces",
        type=Path,
        metavar="FILE",
        help="refuse one with an older epoch than this file, if it is there",
    )
    renderer = actions.add_parser("render", help="write what systemd and bash read")
    renderer.add_argument("file", type=Path, nargs="?", default=paths.installed().config)
    renderer.add_argument("--output", type=Path, default=paths.installed().env)
    options = parser.parse_args(argv)
    try:
        text = options.file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{options.file}: cannot be read: {error}") from error
    if options.action == "check":
        check(text, source=str(options.file))
        if options.replaces is not None:
            _not_older(text, options.replaces)
        print(f"{options.file}: accepted")
        return 0
    write_atomically(options.output, render_env(parse(text, source=str(options.file)).config), mode=0o640)
    return 0


def _not_older(text: str, replaced: Path) -> None:
    """A deployment writes the traffic that it read a moment before: a change in between, a way back above
    all, must survive it. Raises RefusedError."""
    try:
        now = parse(replaced.read_text(), source=str(replaced)).config.epoch
    except (OSError, UnicodeDecodeError, ConfigError):
        return  # nothing is in force that could be undone
    epoch = parse(text, source=str(replaced)).config.epoch
    if epoch < now:
        raise RefusedError(
            f"{replaced} is at epoch {now} meanwhile, and the new file at {epoch}: the traffic was changed "
            "since it was read. Look at status.yml before you run this again"
        )
