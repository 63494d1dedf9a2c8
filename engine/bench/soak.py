"""A long run under faults: a coordination each second, and each minute a process killed with -9.

    make soak SOAK_MINUTES=60                        in a lab of its own
    python -m engine.bench.soak --minutes 2 --local  plain processes

Turn by turn a coordination runs on a swarm that is kept, or starts its own agents. What is killed,
and when in its minute, is drawn from the seed. Ends by itself with an account in OUTPUT; the exit
code is 1 if something in it is unaccounted.
"""

import argparse
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from cfn.client import Client
from cfn.errors import CfnError
from engine.bench import processes
from engine.bench.account import Asked, Fault, Reading, account, render, summary
from engine.bench.deployed import deployed
from engine.bench.engine import TOPOLOGIES, Engine, RefusedError
from engine.bench.local import local
from engine.bench.processes import Process

PERIOD_S = 1.0  # between two coordinations
READ_S = 60.0  # between two readings
DEADLINE_MS = 10_000  # of a coordination, for its acknowledgements
PATIENCE_S = 60.0  # for an answer, asked again under the same id whenever nobody answers
AGAIN_S = 0.1
CONCURRENT = 64  # coordinations that wait for their answer at most; more would hide a standstill


class Soak:
    """One run on one engine."""

    def __init__(self, engine: Engine, agents: int, *, seed: int, kill_every_s: float) -> None:
        self._engine = engine
        self._agents = agents
        self._kill_every_s = kill_every_s
        self._random = random.Random(seed)  # noqa: S311 - a draw that can be repeated
        self._began_s = time.monotonic()
        self._swarm_id = ""
        self.asked: list[Asked] = []
        self.faults: list[Fault] = []
        self.readings: list[Reading] = []
        self.left_over = 0

    def run(self, seconds: float) -> None:
        """Ask, kill and read for as long. Raises RefusedError when the engine is not whole at the
        start, at the end, or for a kill or a reading; what was seen until then is kept."""
        self._swarm_id = self._engine.init(self._agents)
        self._engine.coordinate(self._agents, self._swarm_id)
        self._began_s = time.monotonic()
        self._read()
        futures: list[Future[Asked]] = []
        try:
            with ThreadPoolExecutor(CONCURRENT) as pool:
                self._drive(seconds, pool, futures)
        finally:
            self.asked = [future.result() for future in futures]
        self._engine.until(self._engine.ready, "the engine is not whole at the end")
        self._read()
        self._end()

    def _drive(self, seconds: float, pool: ThreadPoolExecutor, futures: list[Future[Asked]]) -> None:
        kills = 0
        kill_s = self._random.random() * self._kill_every_s
        read_s = READ_S
        for turn in range(int(seconds / PERIOD_S)):
            time.sleep(max(0.0, turn * PERIOD_S - self._now()))
            futures.append(pool.submit(self._ask, turn))
            if kill_s < (turn + 1) * PERIOD_S:  # at any moment of a coordination, not only at its start
                time.sleep(max(0.0, kill_s - self._now()))
                self._kill()
                kills += 1
                kill_s = (kills + self._random.random()) * self._kill_every_s
            if self._now() >= read_s:
                self._read()
                read_s += READ_S

    def _now(self) -> float:
        return time.monotonic() - self._began_s

    def _ask(self, turn: int) -> Asked:
        """One coordination, asked again until somebody answers. Never raises."""
        task_id = self._engine.task_id()
        asked = Asked(task_id=task_id, agents=self._agents, began_s=self._now(), ended_s=0.0)
        request = {
            "verb": "coordinate",
            "task_id": task_id,
            "agents": self._agents,
            "deadline_ms": DEADLINE_MS,
        }
        if turn % 2:
            request["swarm_id"] = self._swarm_id
        retries = 0
        while True:
            try:
                with Client(self._engine.paths.conductor_socket, timeout_s=PATIENCE_S) as client:
                    answer = client.final(request)
                break
            except CfnError as error:
                if self._now() - asked.began_s > PATIENCE_S:
                    return replace(asked, ended_s=self._now(), retries=retries, error=str(error))
                retries += 1
                time.sleep(AGAIN_S)
        done = replace(asked, ended_s=self._now(), retries=retries)
        if "error" in answer:
            return replace(done, error=str(answer["error"]), refused=True)
        return replace(done, states=answer["states"], coordination_time_ms=answer["coordination_time_ms"])

    def _kill(self) -> None:
        """Kill a process of a role that is drawn first, so that coordinators are not rare."""
        victim = choose(self._engine.processes(), self._random)
        try:
            self._engine.kill(victim)
        except ProcessLookupError:  # a worker that ended by itself meanwhile: nothing was done
            return
        self.faults.append(Fault(at_s=self._now(), role=victim.role, number=victim.number, pid=victim.pid))
        print(
            f"soak: {self._now():6.0f} s: killed {victim.role} {victim.number or victim.pid}", file=sys.stderr
        )

    def _read(self) -> None:
        roles: Counter[str] = Counter()
        daemons: dict[int, str] = {}
        memory_bytes = descriptors = 0
        for process in self._engine.processes():
            pss, open_files = processes.pss_bytes(process.pid), processes.descriptors(process.pid)
            if pss is not None and open_files is not None:  # else it has just ended
                roles[process.role] += 1
                if process.role != "worker":
                    daemons[process.pid] = process.role
                memory_bytes += pss
                descriptors += open_files
        reading = Reading(
            at_s=round(self._now(), 1),
            daemons=daemons,
            processes=dict(roles),
            memory_mb=round(memory_bytes / 1_000_000, 1),
            descriptors=descriptors,
            tmpfs_mb=round(processes.tree_bytes(self._engine.paths.shm) / 1_000_000, 2),
        )
        self.readings.append(reading)
        print(f"soak: {reading.at_s:6.0f} s: {summary(reading)}", file=sys.stderr)

    def _end(self) -> None:
        """End the kept swarm, and count the workers that live on although nothing needs them."""
        self._engine.need("shutdown", swarm_id=self._swarm_id)
        try:
            self._engine.rest()
        except RefusedError:
            self.left_over = sum(process.role == "worker" for process in self._engine.processes())


def choose(candidates: Sequence[Process], draw: random.Random) -> Process:
    """A role that has a process, each as likely, then one of its processes."""
    roles = sorted({process.role for process in candidates})
    role = draw.choice(roles)
    return draw.choice(sorted((one for one in candidates if one.role == role), key=lambda one: one.inner_pid))


def main() -> int:
    """Run, account, write."""
    parser = argparse.ArgumentParser(
        prog="python -m engine.bench.soak", description="A long run under faults."
    )
    parser.add_argument("--output", type=Path, default=Path("build/soak.json"))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--agents", type=int, default=708)
    parser.add_argument("--topology", choices=TOPOLOGIES, default="hybrid")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kill-every-s", type=float, default=60.0)
    parser.add_argument("--local", action="store_true", help="plain processes instead of a host of the lab")
    parser.add_argument("--lab", default="soak", help="name of the lab that is made and removed")
    options = parser.parse_args()
    if not options.local and os.geteuid() != 0:
        parser.error("a lab needs root; --local does not")
    problem = ""
    with local() if options.local else deployed(options.lab) as engine:
        soak = Soak(engine, options.agents, seed=options.seed, kill_every_s=options.kill_every_s)
        try:
            engine.use(CFN_TOPOLOGY=options.topology)
            soak.run(options.minutes * 60)
        except RefusedError as error:
            problem = str(error)
    report = account(soak.asked, soak.faults, soak.readings, left_over=soak.left_over, problem=problem)
    report |= {name: getattr(options, name) for name in ("seed", "topology", "minutes", "kill_every_s")}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report, indent=2) + "\n")
    print(render(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
