"""`cfn simulate | cfn gate`: judge a fleet that does not exist.

Prints a gate's request with made-up evidence, seeded: the same options give the same bytes. Every
field of a scenario is an option (`--v2-error-factor 2`); docs/reference/simulate.md lists them.
"""

import argparse
from dataclasses import MISSING, fields
from pathlib import Path

from cfn.errors import EXIT_DONE, UsageError
from cfn.ledger.canonical import canonical
from cfn.simulate.criteria import EXAMPLE, of_table
from cfn.simulate.files import write_files
from cfn.simulate.request import simulated_request
from cfn.simulate.scenario import Scenario


def main(argv: list[str]) -> int:
    """Print the request, or write files as the router and the collector would have."""
    parser = argparse.ArgumentParser(
        prog="cfn simulate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="the stage table; default: a few examples")
    parser.add_argument("--stage", default="stage1")
    parser.add_argument("--kind", choices=["staging", "production"], default="production")
    parser.add_argument(
        "--files", type=Path, metavar="FOLDER", help="write every host's files below FOLDER/HOST instead"
    )
    for field in fields(Scenario):
        assert field.default is not MISSING  # noqa: S101 - so that every option has a default
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=int if isinstance(field.default, int) else float,
            default=field.default,
            metavar=str(field.default),
        )
    options = vars(parser.parse_args(argv))
    scenario = Scenario.read({field.name: options[field.name] for field in fields(Scenario)})
    folder: Path | None = options["files"]
    if folder is not None:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty: name a new folder")
        print("\n".join(write_files(scenario, folder)))
        return EXIT_DONE
    table: Path | None = options["table"]
    asked = EXAMPLE if table is None else of_table(table, options["stage"], options["kind"])
    print(canonical(simulated_request(scenario, asked)))
    return EXIT_DONE
