"""The `cfn` command: one module in `cfn.commands` for each word.

Only the module that is asked for is imported, since a start is part of what a caller waits for.
"""

import importlib
import sys

from cfn.errors import EXIT_FAILED, EXIT_USAGE, CfnError

# word: (module in cfn.commands, one line of help)
COMMANDS = {
    "coordinate": ("coordinate", "run one coordination through the router, or on the engine directly"),
    "load": ("load", "send a steady, seeded stream of requests to a router and account for every one"),
    "status": ("status", "what this host runs: release, version, traffic, health"),
    "traffic": ("traffic", "read or flip version and percentage, confirmed by the running router"),
    "fallback": ("fallback", "everything on this host to V1, at once, and proof that V1 serves"),
    "config": ("config", "check the configuration or render what systemd and bash read"),
    "metrics": ("metrics", "reduce this host's events and samples over a window to mergeable evidence"),
    "gate": ("gate", "judge a stage from the evidence of all hosts"),
    "simulate": ("simulate", "a gate's request about a fleet that does not exist, seeded"),
    "ledger": ("ledger", "append, show, verify, replay and export the record of what was done and decided"),
    "lock": ("lock", "the lock of a rollout: who holds it, take it, give it back, break it"),
    "rollout": ("rollout", "what may start, what is due, what is to be escalated, how it ended"),
    "report": ("report", "the report of a stage or of the whole rollout, as HTML and JSON"),
    "watch": ("watch", "one minute of the watch (a timer does this on the control host)"),
    "watched": ("watched", "answer the watch (its key runs nothing else)"),
    "spool": ("spool", "keep a record that no control host could take, and join it to the ledger later"),
    "guard": ("guard", "obey the watch, or fall back when it is silent (a unit does this)"),
    "capacity": ("capacity", "read or change how many agents V2 takes, and how long it keeps things"),
    "soak": ("soak", "a long load that outlives whoever started it: start, status, stop"),
    "stress": ("stress", "stress this host within bounds, and end what that began"),
    "trial": ("trial", "try load balance, mesh, resources or teams, and hold the figures against limits"),
    "cleanup": ("cleanup", "remove what has outlived its retention"),
    "conductor": ("conductor", "run the conductor (a unit does this)"),
    "coordinators": ("coordinators", "list, drain, fail over, restart or bring back a coordinator"),
    "coordinator": ("coordinator", "run a coordinator of the hybrid topology (a unit does this)"),
    "spawner": ("spawner", "run the spawner of workers (a unit does this)"),
    "router": ("router", "run the router (a unit does this)"),
    "collector": ("collector", "run the collector of metrics (a unit does this)"),
}


def usage() -> str:
    """The list of commands."""
    width = max(map(len, COMMANDS))
    rows = [f"  {name:<{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "usage: cfn COMMAND [ARGUMENT ...]\n\n" + "\n".join(rows) + "\n\ncfn COMMAND --help says more."


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code (see cfn.errors). Prints errors to stderr."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage())
        return 0 if arguments else EXIT_USAGE
    if arguments[0] not in COMMANDS:
        print(f"cfn: unknown command {arguments[0]!r}\n\n{usage()}", file=sys.stderr)
        return EXIT_USAGE
    module = importlib.import_module(f"cfn.commands.{COMMANDS[arguments[0]][0]}")
    try:
        code: int = module.main(arguments[1:])
        return code
    except CfnError as error:
        print(f"cfn {arguments[0]}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_FAILED
