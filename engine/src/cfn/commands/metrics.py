"""`cfn metrics`: reduce events and samples over a window to mergeable evidence.

Of this host, from its files; or of many hosts, from the Prometheus that scrapes their collectors.
"""

import argparse
import json
import socket
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from cfn import paths
from cfn.config import parse
from cfn.errors import EXIT_DONE, DamagedError, UsageError
from cfn.judge.window import MAX_BUCKETS
from cfn.metrics.evidence import CompactCells, Evidence
from cfn.metrics.files import pieces
from cfn.metrics.memory import Memory
from cfn.metrics.packing import pack
from cfn.metrics.reduce import reduce_events, reduce_samples
from cfn.metrics.times import format_ms, read_argument


def main(argv: list[str]) -> int:
    """Print the evidence. Exit code 0 also when files are missing: the evidence says so."""
    parser = argparse.ArgumentParser(prog="cfn metrics", description=__doc__)
    parser.add_argument("--since", required=True, help="begin of the window: RFC 3339 or seconds since 1970")
    parser.add_argument("--until", required=True, help="its end, which is left out")
    parser.add_argument("--bucket-s", required=True, type=float, help="length of a time bucket in seconds")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="the whole evidence instead of a summary")
    how.add_argument("--packed", action="store_true", help="the whole evidence, compressed")
    source = parser.add_argument_group("from a Prometheus, for many hosts")
    source.add_argument("--prometheus", metavar="URL", help="its address; --packed is understood")
    source.add_argument(
        "--instance", action="append", default=[], metavar="HOST=LABEL", help="a host's label `instance`"
    )
    source.add_argument("--token-file", type=Path, metavar="FILE", help="holds a bearer token")
    source.add_argument("--ca-file", type=Path, metavar="FILE", help="instead of the system's certificates")
    source.add_argument("--timeout-s", type=float, default=30.0, help="of one query")
    options = parser.parse_args(argv)
    bucket_ms = round(options.bucket_s * 1_000) if 0 < options.bucket_s < 1e9 else 0
    since_ms, until_ms = read_argument(options.since), read_argument(options.until)
    if bucket_ms <= 0 or not 0 < until_ms - since_ms <= MAX_BUCKETS * bucket_ms:
        raise UsageError(
            f"the window from {format_ms(since_ms)} to {format_ms(until_ms)} in buckets of "
            f"{options.bucket_s:g} s is refused: 1 to {MAX_BUCKETS} buckets are allowed"
        )
    if since_ms % bucket_ms or until_ms % bucket_ms:
        raise UsageError(f"the window must begin and end on a multiple of the bucket, {options.bucket_s:g} s")
    if options.prometheus is not None:
        found = _ask_prometheus(options, since_ms, until_ms, bucket_ms)
        print(json.dumps(found, sort_keys=True))
        return EXIT_DONE
    tree = paths.installed()
    evidence = collect(
        tree,
        since_ms,
        until_ms,
        bucket_ms,
        now_ms=time.time_ns() // 1_000_000,
        remembered=tree.root / "var/cache/cfn",
    )
    if options.json or options.packed:
        packed = options.packed
        print(
            json.dumps(
                pack(evidence.head(), evidence.cells()) if packed else evidence.as_json(), sort_keys=True
            )
        )
    else:
        print(summary(evidence))
    return EXIT_DONE


def _ask_prometheus(
    options: argparse.Namespace, since_ms: int, until_ms: int, bucket_ms: int
) -> dict[str, dict[str, Any]]:
    from cfn.metrics.from_prometheus import Window, evidence_by_host  # not what a host's own query needs
    from cfn.metrics.prometheus import Source

    instances = dict(each.split("=", 1) for each in options.instance if "=" in each)
    if not instances or len(instances) != len(options.instance):
        raise UsageError("--prometheus needs --instance HOST=LABEL for every host, each host once")
    source = Source(
        url=options.prometheus,
        token_file=options.token_file,
        ca_file=options.ca_file,
        timeout_s=options.timeout_s,
    )
    window = Window(since_ms=since_ms, until_ms=until_ms, bucket_ms=bucket_ms)
    return evidence_by_host(source, instances, window)


def collect(
    tree: paths.Paths,
    since_ms: int,
    until_ms: int,
    bucket_ms: int,
    *,
    now_ms: int,
    remembered: Path | None = None,
) -> Evidence:
    """Read this host's files; what old pieces of them reduce to is remembered in a folder, if one is
    given. Raises DamagedError when one cannot be read, ConfigError when the configuration is refused:
    without its key no event's version can be recomputed."""
    evidence = Evidence(
        host=socket.gethostname(),
        since_ms=since_ms,
        until_ms=until_ms,
        bucket_ms=bucket_ms,
        requests=CompactCells(),
    )
    try:
        split_key = parse(tree.config.read_text(), source=str(tree.config)).config.split_key
        memory = Memory(remembered, split_key=split_key, bucket_ms=bucket_ms)
        with ExitStack() as stack:
            events, samples = pieces(tree.events, stack), pieces(tree.samples, stack)
            reduce_events(
                events,
                evidence,
                split_key=split_key,
                now_ms=now_ms,
                memory=memory,
                meanwhile=lambda: reduce_samples(samples, evidence, now_ms=now_ms),
            )
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedError(
            f"{getattr(error, 'filename', None) or tree.config}: cannot be read: {error}"
        ) from error
    return evidence


def summary(evidence: Evidence) -> str:
    """A few lines for a person."""
    arms = {"v1": 0, "v2": 0}
    for cell in evidence.requests.values():
        arms["v1"] += cell.v1.requests
        arms["v2"] += cell.v2.requests
    buckets = (evidence.until_ms - evidence.since_ms) // evidence.bucket_ms
    return "\n".join(
        [
            f"{evidence.host}: {format_ms(evidence.since_ms)} to {format_ms(evidence.until_ms)}",
            f"  requests: {arms['v1']} ordered v1, {arms['v2']} ordered v2",
            f"  split: {evidence.arms.mismatches} of {evidence.arms.checked} events not as ordered",
            f"  samples: {evidence.samples.records} in {len(evidence.sampled)} of {buckets} buckets",
            f"  damaged lines: {evidence.events.lost} of events, {evidence.samples.lost} of samples",
        ]
    )
