"""`cfn gate`: judge a stage from the evidence of all hosts.

The request is a JSON object (docs/reference/gates.md), on standard input or in a file. Exit codes:
0 PASS, 10 FAIL, 11 INCONCLUSIVE, 12 NO_DATA, 13 ERROR; 2 when the request is refused unjudged.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from cfn.errors import EXIT_DONE, DamagedError, UsageError
from cfn.judge.judge import judge
from cfn.judge.render import render
from cfn.judge.request import Request, read_request
from cfn.judge.verdict import EXIT_CODES, Verdict
from cfn.judge.window import plan
from cfn.ledger.canonical import canonical
from cfn.metrics.checks import load_object
from cfn.metrics.times import format_ms


def main(argv: list[str]) -> int:
    """Print the verdict; the exit code tells the verdicts apart."""
    parser = argparse.ArgumentParser(
        prog="cfn gate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--request", type=Path, metavar="FILE", help="the request; without it, standard input"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--plan", action="store_true", help="print what to ask `cfn metrics` of each host for")
    what.add_argument(
        "--replay", type=Path, metavar="FILE", help="recompute the verdict of a --record or ledger record"
    )
    what.add_argument(
        "--record", action="store_true", help="print request and verdict together, for the ledger"
    )
    what.add_argument("--render", action="store_true", help="the text of a verdict that was given before")
    parser.add_argument("--json", action="store_true", help="the verdict as JSON instead of text")
    options = parser.parse_args(argv)
    if options.replay:
        return _replay(_load(options.replay))
    raw = _load(options.request)
    if options.render:
        return _render(raw)
    request = read_request(raw)
    if options.plan:
        print(json.dumps(_plan(request), sort_keys=True))
        return EXIT_DONE
    verdict = judge(request)
    if options.record:
        print(canonical({"request": raw, "verdict": verdict}))
    else:
        print(canonical(verdict) if options.json else render(verdict))
    return EXIT_CODES[Verdict(verdict["verdict"])]


def _plan(request: Request) -> dict[str, Any]:
    wanted = plan(request)
    since, until = format_ms(wanted.since_ms), format_ms(wanted.until_ms)
    bucket = f"{wanted.bucket_ms / 1_000:g}"
    return {
        "since": since,
        "until": until,
        "bucket_s": wanted.bucket_ms / 1_000,
        "argv": ["cfn", "metrics", "--since", since, "--until", until, "--bucket-s", bucket, "--json"],
    }


def _render(value: dict[str, Any]) -> int:
    """Print a verdict, or the one of a record. Raises UsageError if it is none."""
    data = value.get("data", value)
    verdict = data.get("verdict", data) if isinstance(data, dict) else data
    try:
        print(render(verdict if isinstance(verdict, dict) else value))
    except (KeyError, TypeError) as error:
        raise UsageError(f"this is no verdict: {error!r}") from None
    return EXIT_DONE


def _replay(record: dict[str, Any]) -> int:
    """Compare a stored verdict with a recomputed one. Raises DamagedError if they differ."""
    data = record.get("data", record)
    if not isinstance(data, dict) or "request" not in data or "verdict" not in data:
        raise UsageError("there is no request and verdict in this record")
    again = canonical(judge(read_request(data["request"])))
    if again != canonical(data["verdict"]):
        raise DamagedError(f"the verdict is another one when recomputed: {again}")
    print(f"replayed, byte for byte: {data['verdict']['verdict']}")
    return EXIT_DONE


def _load(path: Path | None) -> dict[str, Any]:
    source = str(path) if path else "standard input"
    try:
        return load_object(path.read_text() if path else sys.stdin.read())
    except OSError as error:
        raise UsageError(f"{source}: cannot be read: {error}") from error
    except ValueError as error:
        raise UsageError(f"{source}: {error}") from error
