"""`cfn router`: run the router in the foreground, as its unit does."""

import argparse
import asyncio

from cfn import paths
from cfn.router.daemon import serve


def main(argv: list[str]) -> int:
    """Exit code 0 after SIGTERM, 5 if another router holds the socket or the port."""
    argparse.ArgumentParser(prog="cfn router", description=__doc__).parse_args(argv)
    asyncio.run(serve(paths.installed()))
    return 0
