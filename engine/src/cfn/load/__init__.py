"""The load generator: a steady, seeded stream of coordinations that accounts for every one.

`run(LoadPlan(...)) -> LoadReport` is all that other code needs.
"""

from cfn.load.account import LoadReport
from cfn.load.plan import LoadPlan
from cfn.load.stream import run

__all__ = ["LoadPlan", "LoadReport", "run"]
