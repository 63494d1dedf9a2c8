"""Measure cold coordinations on this machine, against a C program in the same run.

    make bench        (a table, and build/bench/engine.json)

The limit forks as many processes and exchanges one message with each. Both are measured in turn,
so that a noisy machine is noisy for both; quote the ratios. Conductor and spawner are real ones,
in a tree of their own below /dev/shm.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cfn.client import Client
from cfn.errors import NotRunningError
from cfn.paths import Paths

SIZES = (1, 10, 50, 100)
SAMPLES = 15
START_S = 10.0


@contextmanager
def engine() -> Iterator[Paths]:
    """A conductor and a spawner in a new tree; both are ended and the tree removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="cfn-bench-", dir="/dev/shm") as root:
        paths = Paths(Path(root))
        for folder in (paths.run, paths.shm, paths.state, paths.log, paths.config.parent):
            folder.mkdir(parents=True, mode=0o750)
        paths.config.write_text('CFN_MAX_AGENTS="100"\n')
        environment = os.environ | {"CFN_ROOT": root}
        daemons = [
            subprocess.Popen([sys.executable, "-m", "cfn", name], env=environment, stdout=subprocess.DEVNULL)
            for name in ("spawner", "conductor")
        ]
        try:
            wait_until_it_answers(paths)
            yield paths
        finally:
            for daemon in reversed(daemons):
                daemon.terminate()
            for daemon in daemons:
                daemon.wait(timeout=START_S)


def wait_until_it_answers(paths: Paths) -> None:
    """Block until the conductor has a spawner. Raises NotRunningError after some seconds."""
    ends = time.monotonic() + START_S
    while True:
        try:
            if ask(paths, verb="health").get("spawner") == "up":
                return
        except NotRunningError:
            if time.monotonic() > ends:
                raise
        time.sleep(0.05)


def ask(paths: Paths, **request: object) -> dict[str, Any]:
    """The final answer to one request."""
    with Client(paths.conductor_socket) as client:
        return client.final(request)


def limit_ms(program: Path, size: int) -> float:
    """One run of the C program."""
    done = subprocess.run([program, str(size)], capture_output=True, text=True, check=True)
    return float(done.stdout) / 1_000


def cold_ms(paths: Paths, size: int, number: int) -> float:
    """From the request at the conductor's socket to the last acknowledgement, new processes each time."""
    answer = ask(paths, verb="coordinate", task_id=f"bench-{size}-{number}", agents=size)
    if answer.get("delivery_rate_pct") != 100.0:
        raise SystemExit(f"bench: {size} agents: not all delivered: {answer}")
    return float(answer["coordination_time_ms"])


def row(name: str, values: list[float], limits: list[float]) -> dict[str, Any]:
    """One line of the table; the ratio is that of the medians."""
    median = statistics.median(values)
    return {
        "name": name,
        "value": round(median, 3),
        "unit": "ms",
        "samples": len(values),
        "min": round(min(values), 3),
        "max": round(max(values), 3),
        "ratio_to_limit": round(median / statistics.median(limits), 2) if limits else None,
    }


def main() -> None:
    """Measure, print the table, write the rows."""
    parser = argparse.ArgumentParser(description="Measure cold coordinations against a C program.")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    program = options.output / "fork_limit"
    compiler = shutil.which("cc")
    if compiler:
        source = Path(__file__).with_name("fork_limit.c")
        subprocess.run([compiler, "-O2", "-o", program, source], check=True)
    else:
        print("bench: there is no C compiler (cc), so there is no limit to compare with")
    rows = []
    with engine() as paths:
        for size in SIZES:
            values, limits = [], []
            for number in range(SAMPLES + 1):
                values.append(cold_ms(paths, size, number))
                limits += [limit_ms(program, size)] if compiler else []
            rows.append(row(f"cold, {size} agents, flat", values[1:], limits[1:]))
    print(f"load of the machine: {os.getloadavg()[0]:.2f}")
    print(f"{'':28} {'median':>9} {'min':>9} {'max':>9} {'x the limit':>12}")
    for line in rows:
        ratio = "-" if line["ratio_to_limit"] is None else f"{line['ratio_to_limit']:.2f}"
        print(f"{line['name']:28} {line['value']:9.2f} {line['min']:9.2f} {line['max']:9.2f} {ratio:>12}  ms")
    (options.output / "engine.json").write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
