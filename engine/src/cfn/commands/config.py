"""`cfn config check|render`: validate a configuration file, or render it for systemd and bash."""

import argparse
from pathlib import Path

from cfn import paths
from cfn.config import check, parse, render_env
from cfn.config_follower import write_atomically
from cfn.errors import ConfigError


def main(argv: list[str]) -> int:
    """Exit code 0 when the file is accepted, 2 when it is refused."""
    parser = argparse.ArgumentParser(prog="cfn config", description=__doc__)
    actions = parser.add_subparsers(dest="action", required=True)
    checker = actions.add_parser("check", help="refuse a file that must not be deployed")
    checker.add_argument("file", type=Path, nargs="?", default=paths.installed().config)
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
        print(f"{options.file}: accepted")
        return 0
    write_atomically(options.output, render_env(parse(text, source=str(options.file)).config), mode=0o640)
    return 0
