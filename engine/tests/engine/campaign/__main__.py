"""The fault campaign: coordinations on a real engine while its processes are killed and stopped.

    python -m engine.tests.engine.campaign --count 10000 --seed 1

Several coordinations run at a time. Each is led to one state of the protocol (STATES), and when it is
seen there one to three processes are killed (SIGKILL) or stopped (SIGSTOP; continued soon, or killed by
the supervisor, as a unit's watchdog does). The state with the fewest faults so far is next. Each agent
notes its runs in one file, one line for each. At the end, of every task that was accepted:

- each agent is in exactly one of the four final states, with a reason unless it is done; the sum is right;
- no agent ran twice, none that is undelivered ran, each that is done ran;
- no answer came later than deadline + agent timeout + MARGIN_S, not counting the time in which no
  conductor ran: a caller's clock cannot bound how often it is killed, or how slow a busy machine starts it;
- the same id asked again gives the same answer;
- every message that was accepted is received.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from engine.tests.engine.harness import Engine

from .campaign import Campaign
from .report import STATES


def main(argv: Sequence[str] | None = None) -> int:
    """Run a campaign, print its counts as JSON; 1 when something broke the promise."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--each", type=int, default=100, help="faults in each state, at least")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--lanes", type=int, default=6)
    parser.add_argument("--coordinators", type=int, default=3)
    parser.add_argument("--agents", type=int, default=24, help="of a request, at most")
    parser.add_argument("--warm", action="store_true", help="requests on kept swarms only")
    parser.add_argument("--minutes", type=float, default=1e6)
    parser.add_argument("--keep", action="store_true", help="the engine's folder, for its logs")
    parser.add_argument("--state", action="append", choices=list(STATES), help="only these")
    options = parser.parse_args(argv)
    root = Path(tempfile.mkdtemp(prefix="cfn", dir="/dev/shm"))
    engine = Engine(root)
    try:
        campaign = Campaign(
            engine,
            options.seed,
            coordinators=options.coordinators,
            sizes=(2, options.agents) if options.agents <= 24 else (options.agents, options.agents),
            share_kept=1.0 if options.warm else 0.5,
            kept_agents=16 if options.agents <= 24 else options.agents,
            states=options.state or tuple(STATES),
        )
        report = campaign.run(
            options.count, each=options.each, lanes=options.lanes, limit_s=options.minutes * 60
        )
    finally:
        engine.stop()
        if options.keep:
            print(root, file=sys.stderr)
        else:
            shutil.rmtree(root)
    print(json.dumps({"seed": options.seed, **report.as_json()}, indent=2))
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
