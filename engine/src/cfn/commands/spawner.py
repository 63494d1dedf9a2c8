"""`cfn spawner`: the process that forks workers; cfn-workers.service runs it."""

from cfn import paths
from cfn.engine.spawner import Spawner
from cfn.errors import UsageError


def main(argv: list[str]) -> int:
    """Run until SIGTERM. No argparse: what is imported here is in every worker's memory."""
    if argv in (["-h"], ["--help"]):
        print(f"usage: cfn spawner\n\n{__doc__}")
        return 0
    if argv:
        raise UsageError(f"cfn spawner takes no argument, not {argv[0]!r}")
    Spawner(paths.installed()).run()
    return 0
