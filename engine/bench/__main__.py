"""Measure the engine against a limit and its peers in one run.

    make bench                                     in a lab of its own: the release as it is deployed
    python -m engine.bench --local --quick         plain processes, few samples

Prints a table as it grows and writes all rows to OUTPUT/engine.json. Quote the ratios: both sides of
each are measured in turn, so that a busy machine is busy for both.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from engine.bench import coordinations, failover, messages, resources
from engine.bench.bars import verdicts
from engine.bench.deployed import deployed
from engine.bench.engine import Engine
from engine.bench.local import local
from engine.bench.plan import QUICK, Plan
from engine.bench.rounds import Programs
from engine.bench.table import Row, render

# In this order: resources of a new engine first, since results take up tmpfs; what kills comes last.
GROUPS: dict[str, Callable[[Engine, Programs, Plan], Iterator[Row]]] = {
    "resources": lambda engine, _, plan: resources.rows(engine, plan),
    "coordinations": coordinations.rows,
    "command": lambda engine, _, plan: coordinations.as_a_user_calls_it(engine, plan),
    "messages": lambda _engine, _programs, _plan: (Row(**row) for row in messages.rows()),
    "failover": lambda engine, _, plan: failover.rows(engine, plan),
}


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.bench", description="Measure the engine against a limit and its peers."
    )
    parser.add_argument("--output", type=Path, default=Path("build/bench"), help="folder of engine.json")
    parser.add_argument("--local", action="store_true", help="plain processes instead of a host of the lab")
    parser.add_argument("--lab", default="bench", help="name of the lab that is made and removed")
    parser.add_argument("--quick", action="store_true", help="few sizes, few samples")
    parser.add_argument(
        "--only", action="append", choices=GROUPS, metavar="NAME",
        help=f"only this group, can be given again: {', '.join(GROUPS)}",
    )  # fmt: skip
    options = parser.parse_args()
    if not options.local and os.geteuid() != 0:
        parser.error("a lab needs root; --local does not")
    options.output.mkdir(parents=True, exist_ok=True)
    programs = Programs(options.output)
    load = os.getloadavg()
    rows: list[Row] = []
    with local() if options.local else deployed(options.lab) as engine:
        for name in options.only or GROUPS:
            for row in GROUPS[name](engine, programs, QUICK if options.quick else Plan()):
                print(f"bench: {row.name}: {row.refused or f'{row.value} {row.unit}'}", file=sys.stderr)
                rows.append(row)
                write(options.output / "engine.json", rows)
    print(f"load of the machine before: {load[0]:.2f} (1 min), {load[1]:.2f} (5 min)")
    for program, reason in programs.said.items():
        print(f"not compared with {program}: {reason}")
    print(render(rows))
    print("\n".join(verdicts(rows)))
    return 0


def write(path: Path, rows: list[Row]) -> None:
    """All rows so far, whole at any time."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps([row.as_json() for row in rows], indent=2) + "\n")
    part.replace(path)


if __name__ == "__main__":
    sys.exit(main())
