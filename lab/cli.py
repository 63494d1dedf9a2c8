"""The command line: ``python -m lab``.

Results go to standard output, what is being done to standard error.
Exit codes: 0 done; 1 failed, or ``doctor`` found something missing; 2 wrong usage, nothing was
touched; 130 interrupted. ``lab sh`` passes on the exit code of what it ran (ssh's own is 255).
"""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lab import doctor
from lab.errors import LabError, UsageError

_ENVIRONMENT = """\
environment:
  CFN_LAB_STATE   where labs live (default /var/lib/cfn-lab)
  CFN_LAB_CACHE   where the image is kept (default /var/cache/cfn-lab)

exit codes: 0 done, 1 failed, 2 wrong usage (nothing was touched), 130 interrupted
"""


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--name", default=argparse.SUPPRESS, metavar="LAB",
                       help="which lab (default: demo)")  # fmt: skip
    output = argparse.ArgumentParser(add_help=False)
    output.add_argument("--json", action="store_true", help="print the result as JSON")
    top = argparse.ArgumentParser(
        prog="lab",
        description="Real systemd hosts on one machine, reached by SSH. Needs root.",
        epilog=_ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[named],
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[named, *parents])

    up = add("up", "Make what is missing, start what is off.", output)
    up.add_argument(
        "--spec", type=Path, metavar="FILE", help="which hosts (default: those there are, or three)"
    )
    up.add_argument("--inventory", type=Path, metavar="DIR", help="write DIR/hosts.yml for Ansible")
    up.add_argument("--molecule", type=Path, metavar="FILE", help="write Molecule's instances")
    add("ls", "Show the hosts.", output)
    sh = add("sh", "Open a shell on a host, or run a command there.")
    sh.add_argument("host", metavar="HOST")
    sh.add_argument(
        "remote",
        nargs="*",
        metavar="CMD",
        help="after --; one word is a shell line, several are quoted",
    )
    for name, text in (
        ("off", "Cut a host's power (kill -9)."),
        ("on", "Turn a host on again."),
        ("rm", "Remove a host and its files."),
    ):
        add(name, text, output).add_argument("host", metavar="HOST")
    down = add("down", "Remove the lab and all it left; fine if there is none.", output)
    down.add_argument("--image", action="store_true", help="also the cached image, if unused")
    add("doctor", "Check that the packages the lab needs are installed.", output)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = parser().parse_args(argv)
    os.umask(0o022)
    try:
        return _command(arguments)
    except BrokenPipeError:
        # The reader (`| head`) has gone; nothing may be printed any more, not even at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("lab: interrupted; `lab up` continues, `lab down` removes what is there",
              file=sys.stderr)  # fmt: skip
        return 130


def _command(arguments: argparse.Namespace) -> int:
    if arguments.command == "doctor":
        needs = doctor.missing()
        print(json.dumps(doctor.as_json(needs)) if arguments.json else doctor.report(needs))
        return 1 if needs else 0
    _need_root()
    needs = doctor.missing()
    if needs:
        raise LabError(doctor.report(needs))
    # Only now: these need PyYAML, and doctor must run without it.
    from lab import commands, state

    where = state.paths(getattr(arguments, "name", "demo"))
    run: dict[str, Callable[[], tuple[Any, str]]] = {
        "up": lambda: commands.up(where, arguments.spec, arguments.inventory, arguments.molecule),
        "ls": lambda: commands.ls(where),
        "off": lambda: commands.off(where, arguments.host),
        "on": lambda: commands.on(where, arguments.host),
        "rm": lambda: commands.rm(where, arguments.host),
        "down": lambda: commands.down(where, images=arguments.image),
    }
    if arguments.command == "sh":
        return commands.sh(where, arguments.host, arguments.remote)
    result, text = run[arguments.command]()
    print(json.dumps(result) if arguments.json else text, flush=True)
    return 0


def _need_root() -> None:
    if os.geteuid() != 0:
        again = shlex.join([sys.executable, "-m", "lab", *sys.argv[1:]])
        raise UsageError(f"hosts can be made by root only: run `sudo {again}`")
