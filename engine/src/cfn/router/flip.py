"""A flip: version, percentage and epoch in the configuration file, changed in one step, and the
running router asked until it reports them."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

from cfn.config import KEYS, Config, as_text, edit, parse
from cfn.errors import CfnError, ConfigError, NotRunningError, RefusedError, UsageError
from cfn.router.client import RouterClient
from cfn.router.generation import as_number

_AGAIN_S = 0.02
# A router between two lives; beyond this it is simply not there.
_RESTART_S = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What is ordered; None leaves that part as it is. `v1_enabled` False is V1's end: V2 serves everything
    and nothing falls back. `reason` and `by` go with `breaker`."""

    version: str | None = None
    percent: str | None = None
    v1_enabled: bool | None = None
    epoch: int | None = None
    breaker: Literal["open", "closed"] | None = None
    reason: str = ""
    by: str = ""

    @property
    def reads_only(self) -> bool:
        """Whether nothing is ordered."""
        parts = (self.version, self.percent, self.v1_enabled, self.breaker)
        return all(part is None for part in parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The configuration before and after an order. `text` is the file's new text, None if it stays."""

    before: Config
    after: Config
    text: str | None


def plan(text: str, order: Order, *, source: str) -> Plan:
    """What an order makes of the file's text; with nothing to change, the file stays as it is. A later
    epoch is a change: what came between must find it. Raises UsageError for a bad value and
    RefusedError for an older epoch."""
    before = parse(text, source=source).config
    if order.epoch is not None and order.epoch < before.epoch:
        raise RefusedError(
            f"epoch {order.epoch} is refused: {source} is at epoch {before.epoch}, a later change; "
            "read the traffic in force again before changing it"
        )
    changes = {
        "CFN_COORDINATION_VERSION": order.version,
        "CFN_TRAFFIC_PERCENTAGE": order.percent,
        "CFN_V1_ENABLED": None if order.v1_enabled is None else as_text(order.v1_enabled),
    }
    wanted = {name: _checked(name, value) for name, value in changes.items() if value is not None}
    fields = {key.name: key.field for key in KEYS}
    if order.epoch is not None:
        wanted["CFN_EPOCH"] = str(order.epoch)
    if all(value == as_text(getattr(before, fields[name])) for name, value in wanted.items()):
        return Plan(before=before, after=before, text=None)
    edited = edit(text, wanted)
    return Plan(before=before, after=parse(edited, source=source).config, text=edited)


def _checked(name: str, value: str) -> str:
    key = next(key for key in KEYS if key.name == name)
    try:
        return as_text(key.parse(value))
    except (ValueError, ArithmeticError):
        raise UsageError(f"{name} of {value!r} is refused; allowed: {key.allowed}") from None


def apply(path: Path, order: Order, *, check: bool) -> Plan:
    """Make the order's change to the file, unless `check`. Orders at the same time come one after the
    other. Blocks for that, shortly."""
    with locked(path):
        made = plan(_read(path), order, source=str(path))
        if made.text is not None and not check:
            replace_file(path, made.text)
    return made


def flip(path: Path, order: Order, router: RouterClient, *, check: bool, wait_s: float) -> dict[str, Any]:
    """Read, or change and confirm. Returns what `cfn traffic --json` prints.

    Blocks until the router reports the ordered version and percentage, and where V1 was disabled until
    nothing is under way that may still call it in; at most `wait_s`. Raises NotRunningError if no router
    answers (the file is changed nevertheless, and holds from the router's start) and CfnError if it
    answers but does not follow.
    """
    seen = _ask(router)
    began_s = time.monotonic()
    breaker_moved = False
    if order.reads_only:
        config = config_in_force(path, seen)
        done = Plan(before=config, after=config, text=None)
    else:
        with locked(path):
            done = plan(_read(path), order, source=str(path))
            _refuse_to_override(done, order, seen)
            if order.breaker and not check:
                breaker_moved = router.move_breaker(order.breaker, reason=order.reason, by=order.by)[
                    "changed"
                ]
            if done.text is not None and not check:
                replace_file(path, done.text)
    if check and order.breaker:
        breaker_moved = (order.breaker == "closed") != (_breaker(seen).get("state", "closed") == "closed")
    acting = not order.reads_only and not check
    after = _confirm(done.after, router, began_s + wait_s, changed=done.text is not None) if acting else seen
    in_force = check and done.text is not None
    return {
        "changed": done.text is not None or breaker_moved,
        "before": _state(done.before, seen),
        "after": _state(done.after, None if in_force else after)
        | ({"breaker": order.breaker} if check and order.breaker else {}),
        "confirmed": not in_force and _reports(after, done.after),
        "seconds": round(time.monotonic() - began_s, 3),
        "observed": after.get("observed", {}) if after else {},
        "observed_share_pct": after.get("observed_share_pct") if after else None,
        "v1": v1_bears(after or seen),
    }


def v1_bears(status: dict[str, Any] | None) -> dict[str, Any]:
    """Whether V1 can take all that the router is asked for: requests per second that it bears, and that
    were asked for over the last minute. `bears_all` is null where either is not known."""
    v1 = status.get("v1", {}) if status else {}
    capacity_per_s, demand_per_s = v1.get("capacity_per_s"), (status or {}).get("demand_per_s")
    bears_all = None
    if capacity_per_s is not None and demand_per_s is not None:
        bears_all = capacity_per_s >= demand_per_s
    return {
        "capacity_per_s": capacity_per_s,
        "declared": v1.get("capacity_declared"),
        "demand_per_s": demand_per_s,
        "bears_all": bears_all,
    }


def _refuse_to_override(done: Plan, order: Order, status: dict[str, Any] | None) -> None:
    """An open breaker holds V1: more traffic for V2 has to say that it is closed. Raises RefusedError."""
    breaker = _breaker(status)
    if order.breaker == "closed" or breaker.get("state", "closed") == "closed":
        return
    if _v2_share_pct(done.after) > _v2_share_pct(done.before):
        raise RefusedError(
            f"more traffic for V2 is refused: the breaker is {breaker['state']} since {breaker['since']} "
            f"({breaker['reason']}). When that is understood: cfn traffic --breaker closed --reason TEXT"
        )


def _breaker(status: dict[str, Any] | None) -> dict[str, Any]:
    """What a router says of its breaker; nothing if none answers, or it is of a release without one."""
    found: dict[str, Any] = status.get("breaker", {}) if status else {}
    return found


def _v2_share_pct(config: Config) -> Decimal:
    return config.traffic_pct if config.coordination_version == "v2" else Decimal(0)


def config_in_force(path: Path, status: dict[str, Any] | None) -> Config:
    """The version, percentage and epoch in force. A file that is refused, or gone, leaves what the
    running router reports; without a router, V1 where there is no file yet. Raises ConfigError."""
    try:
        return parse(_read(path), source=str(path)).config
    except ConfigError:
        if status is not None:
            return Config(
                coordination_version=status["version"],
                traffic_pct=Decimal(str(status["traffic_pct"])),
                epoch=status["epoch"],
                v1_enabled=status.get("v1", {}).get("enabled", True),
            )
        if path.exists():
            raise
        return Config()


def _state(config: Config, status: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "version": config.coordination_version,
        "traffic_pct": as_number(float(config.traffic_pct)),
        "epoch": config.epoch,
        "v1_enabled": config.v1_enabled,
        "generation": status["generation"] if status and _reports(status, config) else None,
        "breaker": _breaker(status).get("state"),
    }


def _reports(status: dict[str, Any] | None, config: Config) -> bool:
    return status is not None and (
        status.get("version") == config.coordination_version
        and Decimal(str(status.get("traffic_pct"))) == config.traffic_pct
        and status.get("epoch") == config.epoch
        # A release from before its end could be ordered says nothing of V1, and has it.
        and status.get("v1", {}).get("enabled", True) == config.v1_enabled
    )


def _may_call_v1(status: dict[str, Any], config: Config) -> int:
    """How many coordinations are under way that were routed while V1 was there, once it is not."""
    return 0 if config.v1_enabled else int(status.get("earlier_in_flight", 0))


def _confirm(config: Config, router: RouterClient, ends_s: float, *, changed: bool) -> dict[str, Any]:
    status: dict[str, Any] = {}
    problem: NotRunningError | None = None
    gone_s = min(ends_s, time.monotonic() + _RESTART_S)
    while True:
        try:
            status, problem = router.get("/status")[1], None
            if _reports(status, config) and not _may_call_v1(status, config):
                return status
        except NotRunningError as error:  # it may be in the middle of a restart
            problem = error
        if time.monotonic() >= (gone_s if problem and not status else ends_s):
            break
        time.sleep(_AGAIN_S)
    share = f"{config.coordination_version} at {as_text(config.traffic_pct)} %"
    written = f"the configuration {'now ' if changed else ''}says {share}, and holds from the router's start"
    if problem is not None:
        raise NotRunningError(f"{problem}; {written}")
    if _reports(status, config):
        raise CfnError(
            f"{share} without V1 is in force, and {_may_call_v1(status, config)} coordinations from before "
            "are still under way, which may call V1 in: leave V1 where it is, and order the same again"
        )
    raise CfnError(
        f"the router at {router.address} still runs generation {status.get('generation')} "
        f"({status.get('version')} at {status.get('traffic_pct')} %, epoch {status.get('epoch')}): "
        f"{status.get('config_problem') or 'it reports no problem with the configuration'}; ordered: {share}"
    )


def _ask(router: RouterClient) -> dict[str, Any] | None:
    try:
        return router.get("/status")[1]
    except NotRunningError:
        return None


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Two flips at once would lose one of them, and the epoch is compared under the same lock."""
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path.parent}: cannot be read: {error}") from error
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def replace_file(path: Path, text: str) -> None:
    """Replace the file in one step, durably, with the owner and mode that it has."""
    target = path.resolve()
    status = target.stat()
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), status.st_mode & 0o7777)
            if (status.st_uid, status.st_gid) != (os.geteuid(), os.getegid()):
                os.fchown(file.fileno(), status.st_uid, status.st_gid)
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ConfigError(f"{target}: cannot be replaced: {error}; run this as the file's owner") from error
