"""The lock of a rollout: one playbook at a time changes an environment. Pure: over the ledger's records.

It is held by a run, for a lease: a controller that died leaves a lock that ends by itself, and one on
the same machine can see at once that it died. A rollback needs no lock, and ends the one it finds: a
way back that waits is none. V1's restoration is one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cfn.errors import RefusedError, UsageError
from cfn.metrics import checks
from cfn.metrics.times import format_ms, parse_ms

LEASE_S = 7_200
_ENDING = ("unlocked", "rolled_back", "restored")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """A lock that was taken: by which `run` of which `actor`, on which `controller`, for what, when."""

    run: str
    actor: str
    controller: str
    stage: str
    purpose: str
    since: str
    until: str

    @property
    def words(self) -> str:
        """Who, since when, and how to break it."""
        return (
            f"{self.actor} holds the lock of this environment since {self.since}, for {self.purpose} "
            f"from {self.controller} (run {self.run}), until {self.until} at the longest. Wait for it, or, "
            "if that run is dead, break it: -e break_lock_reason=TEXT on the playbook, or on the control "
            f"host: cfn lock break --actor YOU --reason TEXT"
        )

    def as_json(self) -> dict[str, Any]:
        """The object that `cfn lock show --json` prints."""
        return asdict(self) | {"words": self.words}


def held(newest_first: Iterable[Mapping[str, Any]], now_ms: int) -> Lock | None:
    """The lock that is in force at `now_ms`; reads no further back than it must. A way back that was
    joined from a spool ends what was locked before it happened, not what came between."""
    happened = ""
    for record in newest_first:
        if record["kind"] == "rolled_back" and record["data"].get("spooled"):
            happened = max(happened, *(each["time"] for each in record["data"]["hosts"].values()))
            continue
        if record["kind"] in _ENDING:
            return None
        if record["kind"] == "locked":
            if record["time"] <= happened:
                return None
            data = record["data"]
            lock = Lock(
                run=data["run"],
                actor=record["actor"],
                controller=data["controller"],
                stage=record["stage"],
                purpose=data["purpose"],
                since=record["time"],
                until=data["until"],
            )
            return lock if parse_ms(lock.until) > now_ms else None
    return None


def taking(
    newest_first: Iterable[Mapping[str, Any]], asked: Mapping[str, Any], now_ms: int
) -> tuple[Lock | None, dict[str, Any]]:
    """The lock that is in the way of `asked` or was, and the data of the `locked` record to append.

    `asked`: `run`, `controller`, `purpose`, and as wanted `lease_s`, `dead_run` (the asker has seen that
    this run of its own machine is dead) and `break_reason`. A run that has the lock takes it again, for
    a new lease. Raises UsageError for what is malformed and RefusedError while another run holds it.
    """
    try:
        run = checks.text(asked.get("run"), "run")
        controller = checks.text(asked.get("controller"), "controller")
        purpose = checks.text(asked.get("purpose"), "purpose")
        lease_s = checks.number(asked.get("lease_s", LEASE_S), "lease_s", low=1, high=604_800)
        dead_run = checks.text(asked.get("dead_run", ""), "dead_run")
        reason = checks.text(asked.get("break_reason", ""), "break_reason").strip()
    except ValueError as error:
        raise UsageError(f"the lock that is asked for: {error}") from None
    if not run or not controller:
        raise UsageError("the lock that is asked for: run and controller must not be empty")
    lock = held(newest_first, now_ms)
    mine = lock is None or lock.run == run
    dead = lock is not None and lock.run == dead_run and lock.controller == controller
    if lock is not None and not mine and not dead and not reason:
        raise RefusedError(lock.words)
    data: dict[str, Any] = {
        "run": run,
        "controller": controller,
        "purpose": purpose,
        "until": format_ms(now_ms + round(lease_s * 1_000)),
    }
    if lock is not None and not mine:
        data["taken_from"] = {"run": lock.run, "actor": lock.actor, "since": lock.since}
        data["reason"] = reason or "that run is dead"
    return lock, data


def releasing(newest_first: Iterable[Mapping[str, Any]], run: str, now_ms: int) -> dict[str, Any]:
    """The data of the `unlocked` record by which a run gives its lock back. Raises RefusedError if it
    does not hold it."""
    lock = held(newest_first, now_ms)
    if lock is None or lock.run != run:
        who = f"{lock.actor} (run {lock.run}) does" if lock else "nobody does"
        raise RefusedError(f"run {run} does not hold the lock; {who}")
    return {"run": run}


def breaking(newest_first: Iterable[Mapping[str, Any]], reason: str, now_ms: int) -> dict[str, Any]:
    """The data of the `unlocked` record by which somebody else ends a lock. Raises RefusedError if there
    is none and UsageError without a reason."""
    if not reason.strip():
        raise UsageError("breaking a lock needs a reason")
    lock = held(newest_first, now_ms)
    if lock is None:
        raise RefusedError("nobody holds the lock: there is nothing to break")
    return {"run": lock.run, "broken": {"actor": lock.actor, "since": lock.since}, "reason": reason.strip()}
