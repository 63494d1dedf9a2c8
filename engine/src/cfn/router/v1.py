"""V1 as the router calls it: one command per coordination, under the contract of v1_contract."""

import asyncio
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cfn.config import Config
from cfn.coordination import AgentResult, AgentState, Coordination
from cfn.errors import RefusedError
from cfn.ids import agent_ids
from cfn.paths import Paths
from cfn.router import process
from cfn.router.decision import uniform
from cfn.router.gate import Gate
from cfn.router.v1_contract import V1Reading

_CAPABILITIES_TIME_S = 2.0
# What belongs to the router as a unit, and must not reach V1.
_PRIVATE = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")


@dataclass(frozen=True, slots=True, kw_only=True)
class V1Result:
    """What V1 made of its agents. `problem` is "" if it kept its contract; `ran` is False if nothing
    was started; `refused` is True if that is because too many were waiting."""

    coordination: Coordination
    problem: str = ""
    ran: bool = True
    refused: bool = False


class V1:
    """Runs V1's command. `gate` bounds how many run at once."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._takes_list: dict[tuple[str, ...], bool] = {}
        self.gate = Gate()

    def command(self, config: Config) -> list[str]:
        """The words of the command in force."""
        return shlex.split(config.v1_command) if config.v1_command else [str(self._paths.v1_command)]

    async def takes_list(self, config: Config) -> bool:
        """Whether V1 declares `agent-list` when asked for its --capabilities; asked once for each
        command that could be started."""
        words = self.command(config)
        key = tuple(words)
        if key not in self._takes_list:
            lines: list[str] = []
            ends_at = asyncio.get_running_loop().time() + _CAPABILITIES_TIME_S
            try:
                ended = await process.run(
                    [*words, "--capabilities"],
                    env=_environment(config, ""),
                    stdin=b"",
                    on_line=lines.append,
                    ends_at=lambda: ends_at,
                    max_output_bytes=4_096,
                )
            except OSError:
                return False
            self._takes_list[key] = ended.exit_code == 0 and "agent-list" in (line.strip() for line in lines)
        return self._takes_list[key]

    async def run(
        self,
        task_id: str,
        agents: Sequence[str],
        *,
        payload: bytes,
        config: Config,
        arrived_s: float,
        deadline_s: float,
        on_start: Callable[[], None] = lambda: None,
    ) -> V1Result:
        """Run the task for `agents` and return when each is final. Never raises for what V1 does.

        `arrived_s` (when the request came) and `deadline_s` (by when every agent must have been
        started) are times of the loop's clock. A V1 that acknowledges every agent as started may
        then take CFN_AGENT_TIMEOUT_TIME for them; one that does not is ended at the deadline.
        `on_start` is called when its turn has come, just before the command is started.
        """
        loop = asyncio.get_running_loop()
        try:
            await self.gate.enter(config.v1_concurrency, deadline_s - loop.time())
        except (RefusedError, TimeoutError) as error:
            refused = isinstance(error, RefusedError)
            reason = f"V1 is full: {error}" if refused else "V1 had no free slot before the deadline"
            elapsed_ms = (loop.time() - arrived_s) * 1000
            return V1Result(
                coordination=uniform(task_id, agents, AgentState.UNDELIVERED, reason, elapsed_ms=elapsed_ms),
                problem=reason,
                ran=False,
                refused=refused,
            )
        try:
            on_start()
            return await self._run(task_id, agents, payload, config, arrived_s, deadline_s)
        finally:
            self.gate.leave()

    async def _run(
        self,
        task_id: str,
        agents: Sequence[str],
        payload: bytes,
        config: Config,
        arrived_s: float,
        deadline_s: float,
    ) -> V1Result:
        loop = asyncio.get_running_loop()
        reading = V1Reading(agents)
        acknowledged_s: float | None = None

        def on_line(line: str) -> None:
            nonlocal acknowledged_s
            if reading.feed(line):
                acknowledged_s = loop.time()

        def ends_at() -> float:
            if acknowledged_s is None or not reading.all_acknowledged:
                return deadline_s
            return max(deadline_s, acknowledged_s + config.agent_timeout_ms / 1000)

        argv = [*self.command(config), str(len(agents)), task_id]
        if list(agents) != agent_ids(len(agents)):
            argv.append("--agents-from-stdin")
            payload = " ".join(agents).encode() + b"\n" + payload
        exit_code: int | None = None
        try:
            ended = await process.run(
                argv,
                env=_environment(config, task_id),
                stdin=payload,
                on_line=on_line,
                ends_at=ends_at,
                # An agent's output may be percent-encoded, three characters for a byte.
                max_output_bytes=65_536 + len(agents) * (3 * config.max_output_bytes + 512),
            )
            exit_code = ended.exit_code
            results, problem = reading.results(
                exit_code=exit_code, ended=f"V1 was ended: {ended.reason}" if ended.reason else ""
            )
            if problem and ended.stderr:
                problem = f"{problem}; its standard error ends: {ended.stderr.splitlines()[-1]}"
        except OSError as error:
            results, problem = reading.results(
                exit_code=None, ended=f"V1 cannot be started: {argv[0]}: {error.strerror}"
            )
        now = loop.time()
        return V1Result(
            coordination=_coordination(
                task_id, results, (acknowledged_s or now) - arrived_s, now - arrived_s
            ),
            problem=problem,
            ran=exit_code is not None,
        )


def _coordination(
    task_id: str, results: Sequence[AgentResult], acknowledged_s: float, total_s: float
) -> Coordination:
    return Coordination(
        task_id=task_id,
        coordination_time_ms=acknowledged_s * 1000,
        total_time_ms=total_s * 1000,
        results=tuple(results),
    )


def _environment(config: Config, task_id: str) -> dict[str, str]:
    """What V1 and its agents see: the router's environment without what is the unit's own."""
    inherited = {name: value for name, value in os.environ.items() if name not in _PRIVATE}
    return inherited | {
        "CFN_TASK_ID": task_id,
        "CFN_AGENT_COMMAND": config.agent_command,
        "CFN_MAX_OUTPUT": str(config.max_output_bytes),
    }
