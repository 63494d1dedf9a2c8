"""Whether the engine is alive: asked twice a second, so that no request has to find out by waiting."""

import asyncio

from cfn.errors import CfnError
from cfn.router.v2 import V2

EVERY_S = 0.5
# An engine that has not answered for so long is not given any more tasks until it does.
LIMIT_S = 2.0


class EngineWatch:
    """Asks the conductor for its health while `run` runs."""

    def __init__(self, v2: V2) -> None:
        self._v2 = v2
        self._failing_since_s: float | None = None
        self._wanted = asyncio.Event()
        self.problem = ""

    def want(self, wanted: bool) -> None:
        """Watch only while V2 is ordered: before that the engine need not be there."""
        if wanted:
            self._wanted.set()
        else:
            self._wanted.clear()
            self._failing_since_s, self.problem = None, ""

    @property
    def silent_s(self) -> float:
        """For how long the engine has not answered; 0 while it does."""
        if self._failing_since_s is None:
            return 0.0
        return asyncio.get_running_loop().time() - self._failing_since_s

    @property
    def hangs(self) -> bool:
        """Whether a task should not be given to it now."""
        return self._failing_since_s is not None and self.silent_s >= LIMIT_S

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._wanted.wait()
            began_s = loop.time()
            problem = await self._ask()
            late = loop.time() - began_s > LIMIT_S + EVERY_S
            # If the answer to a question came that late, it was this process that stood still.
            if not problem:
                self._failing_since_s, self.problem = None, ""
            elif self._wanted.is_set() and not late:
                if self._failing_since_s is None:
                    self._failing_since_s = began_s
                self.problem = problem
            await asyncio.sleep(EVERY_S)

    async def _ask(self) -> str:
        """What is wrong with the engine; "" if it is well."""
        try:
            health = await self._v2.ask({"verb": "health"}, timeout_s=LIMIT_S)
        except TimeoutError:
            return f"the conductor did not answer within {LIMIT_S:g} s"
        except (OSError, EOFError, CfnError) as error:
            return str(error)
        return "the conductor has no spawner" if health.get("spawner") == "down" else ""
