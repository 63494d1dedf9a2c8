"""`cfn conductor`: runs coordinations and answers clients; cfn-coordination.service runs it."""

from cfn import paths
from cfn.engine.conductor import Conductor
from cfn.errors import UsageError


def main(argv: list[str]) -> int:
    """Run until SIGTERM. Without argparse, which would make a restart slower."""
    if argv in (["-h"], ["--help"]):
        print(f"usage: cfn conductor\n\n{__doc__}")
        return 0
    if argv:
        raise UsageError(f"cfn conductor takes no argument, not {argv[0]!r}")
    Conductor(paths.installed()).run()
    return 0
