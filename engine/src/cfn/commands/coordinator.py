"""`cfn coordinator N`: a hub of the hybrid topology; cfn-coordinator@N.service runs it."""

from cfn import paths
from cfn.engine.coordinator import Coordinator
from cfn.errors import UsageError


def main(argv: list[str]) -> int:
    """Run until SIGTERM. Without argparse, which would make a restart slower."""
    if argv in (["-h"], ["--help"]):
        print(f"usage: cfn coordinator N\n\n{__doc__}")
        return 0
    if len(argv) != 1 or not argv[0].isdigit() or not 1 <= int(argv[0]) <= 32:
        raise UsageError("cfn coordinator takes its number, 1 to 32")
    Coordinator(paths.installed(), int(argv[0])).run()
    return 0
