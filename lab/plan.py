"""What ``up`` has to do for each host: pure."""

import enum
from dataclasses import dataclass, replace

from lab.errors import UsageError
from lab.host import Status
from lab.network import choose_address
from lab.spec import HostSpec
from lab.state import HostState, LabState


class Action(enum.Enum):
    """What is done to a host."""

    MAKE = "made"
    START = "started"
    KEEP = "unchanged"
    RESTART = "restarted"  # it runs, but does not let anyone in


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``state`` is the lab as it will be; ``actions`` what gets it there, for each host."""

    state: LabState
    actions: dict[str, Action]
    notes: tuple[str, ...]


def make_plan(
    state: LabState, spec: tuple[HostSpec, ...] | None, statuses: dict[str, Status], image: str
) -> Plan:
    """Compare what is asked for (*spec*; None: what there was) with what is.

    Raises UsageError if an existing host would have to be made anew to be as asked for.
    """
    notes: list[str] = []
    if spec is not None:
        for wanted in spec:
            state = state.with_host(_merge(state, wanted, image))
        extra = sorted(set(state.hosts) - {wanted.name for wanted in spec})
        notes += [f"{name}: not in the spec, kept (`lab rm {name}` removes it)" for name in extra]
    actions = {name: _action(statuses.get(name, Status.MISSING)) for name in state.hosts}
    for name, action in actions.items():
        if action is Action.MAKE:
            state = state.with_host(replace(state.hosts[name], image=image))
    return Plan(state=state, actions=actions, notes=tuple(notes))


def _action(status: Status) -> Action:
    if status is Status.MISSING:
        return Action.MAKE
    return Action.START if status is Status.OFF else Action.KEEP


def _merge(state: LabState, wanted: HostSpec, image: str) -> HostState:
    there = state.hosts.get(wanted.name)
    if there is None:
        used = [host.address for host in state.hosts.values()]
        return HostState(
            name=wanted.name,
            address=choose_address(state.subnet, used),
            groups=wanted.groups,
            shm_mb=wanted.shm_mb,
            nofile=wanted.nofile,
            bash=wanted.bash,
            image=image,
        )
    for key in ("shm_mb", "nofile", "bash"):
        old, new = getattr(there, key), getattr(wanted, key)
        if old != new:
            raise UsageError(
                f"{wanted.name}: {key} is {old} and the spec asks for {new}; an existing host is "
                f"not changed: `lab rm {wanted.name}` first, then `lab up`"
            )
    return replace(there, groups=wanted.groups)
