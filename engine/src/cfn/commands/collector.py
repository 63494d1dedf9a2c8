"""`cfn collector`: sample the engine, the router and the host; cfn-metrics.service runs it."""

import argparse

from cfn import paths
from cfn.collector.daemon import run
from cfn.errors import EXIT_DONE


def main(argv: list[str]) -> int:
    """Run until SIGTERM."""
    argparse.ArgumentParser(prog="cfn collector", description=__doc__).parse_args(argv)
    run(paths.installed())
    return EXIT_DONE
