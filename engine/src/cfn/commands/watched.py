"""`cfn watched`: a host's answer to the watch, which it asks for by SSH with a key for nothing else.

Reads one JSON object from standard input and prints one (docs/reference/watch.md).
"""

import argparse
import json
import sys
import time

from cfn import paths
from cfn.errors import EXIT_DONE, UsageError
from cfn.metrics.checks import load_object
from cfn.watch.host import answer

MAX_REQUEST_BYTES = 65_536


def main(argv: list[str]) -> int:
    """Exit code 0 with an answer, 2 for a request that is malformed."""
    argparse.ArgumentParser(prog="cfn watched", description=__doc__).parse_args(argv)
    raw = sys.stdin.buffer.read(MAX_REQUEST_BYTES + 1)
    if len(raw) > MAX_REQUEST_BYTES:
        raise UsageError(f"a request of more than {MAX_REQUEST_BYTES} bytes is refused")
    try:
        value = load_object(raw.decode())
    except ValueError as error:
        raise UsageError(f"the watch's request: {error}") from None
    print(json.dumps(answer(value, paths.installed(), now_ms=time.time_ns() // 1_000_000)))
    return EXIT_DONE
