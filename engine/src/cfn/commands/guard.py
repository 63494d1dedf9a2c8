"""`cfn guard`: a host's own guard; cfn-guard.timer and cfn-guard.path run it as root.

Carries out what the watch orders, and falls back to V1 when the watch is silent for too long.
"""

import argparse
import time

from cfn import paths
from cfn.engine.log import log
from cfn.errors import EXIT_DONE
from cfn.watch.host import guard


def main(argv: list[str]) -> int:
    """Log what was done, if anything was."""
    argparse.ArgumentParser(prog="cfn guard", description=__doc__).parse_args(argv)
    done = guard(paths.installed(), now_ms=time.time_ns() // 1_000_000)
    if done:
        log("guard", did=done)
    return EXIT_DONE
