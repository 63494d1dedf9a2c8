"""``lab up``: make what is missing, start what is off, leave alone what is well."""

import resource
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lab import cgroup, host, image, inventory, names, network, spec, ssh, state
from lab.errors import LabError, SpecError
from lab.files import private_dir
from lab.locks import locked
from lab.plan import Action, Plan, make_plan
from lab.progress import Progress
from lab.state import HostState, LabState, Paths

READY_TIMEOUT_S = 90
# A healthy host lets one in within a second; more only on a machine that is very busy.
HEALTHY_TIMEOUT_S = 10
LOCK_TIMEOUT_S = 660
DEMO_SPEC = Path(__file__).parent / "specs" / "demo.yml"


def up(
    where: Paths, spec_file: Path | None, outputs: tuple[tuple[str, str], ...], progress: Progress
) -> tuple[LabState, dict[str, Action]]:
    """Bring the lab up; returns it, and what was done to each host.

    *outputs* are files to write (kind and absolute path). Blocks until every host lets the lab's
    user in. Raises UsageError before anything is touched if what is asked for is not possible,
    and LabError if something fails on the way: then ``up`` again continues, ``down`` clears.
    """
    wanted = _read_spec(spec_file, progress) if spec_file is not None else None
    for _, path in outputs:
        inventory.check_output(where.name, Path(path))
    layout = cgroup.detect()
    private_dir(where.state_root)
    with locked(where.lock, timeout_s=LOCK_TIMEOUT_S, what=f"the lab {where.name}",
                waiting=lambda: progress.waiting("another command works on this lab")):  # fmt: skip
        former = state.load(where)
        if wanted is None and not (former and former.hosts):
            wanted = _read_spec(DEMO_SPEC, progress)
        image_hash = image.ensure(where.cache_root, progress)
        statuses = {name: host.status(where, name, layout) for name in (former.hosts if former else {})}
        if former is not None:
            make_plan(former, wanted, statuses, image_hash)  # raises before anything is touched
        private_dir(where.lab)
        private_dir(where.hosts)
        lab = _network(where, former, progress)
        plan = make_plan(lab, wanted, statuses, image_hash)
        for note in plan.notes:
            progress.step("note", note)
        merged = dict.fromkeys([*lab.outputs, *outputs])
        lab = replace(plan.state, outputs=tuple(merged))
        state.save(where, lab)
        actions = _converge(where, lab, plan, layout, progress)
        for path in inventory.write_outputs(where, lab):
            progress.step("written", path)
    return lab, actions


def refresh(where: Paths, lab: LabState, layout: cgroup.Layout) -> None:
    """After a host came or went: tell the others, and everybody who reads the written files."""
    ssh.write_known_hosts(where, lab.hosts.values())
    for name in lab.hosts:
        if where.host(name).is_dir():
            host.write_etc_hosts(where, name, list(lab.hosts.values()), layout)


def start_and_wait(
    where: Paths, hosts: list[HostState], layout: cgroup.Layout, progress: Progress, done: str
) -> None:
    """Turn *hosts* on and block until they let the lab's user in. Raises LabError if one cannot."""
    for one in hosts:
        host.start(where, one, layout)

    def tick(pending: Sequence[HostState]) -> None:
        first = ", ".join(one.name for one in pending[:5])
        progress.waiting(f"booting {first}{' ...' if len(pending) > 5 else ''}")
        if progress.seconds - began < 2:
            return  # the keeper may not have taken its lock yet
        for one in pending:
            if host.status(where, one.name, layout) is host.Status.OFF:
                raise LabError(_why_off(where, one.name))

    began = progress.seconds
    late = ssh.wait_ready(
        where,
        hosts,
        timeout_s=READY_TIMEOUT_S,
        tick=tick,
        ready=lambda one: progress.step(one.name, f"{done} ({one.address})"),
    )
    if late:
        raise LabError(
            f"{', '.join(one.name for one in late)}: no ssh login within {READY_TIMEOUT_S} s; "
            f"see the end of {where.host(late[0].name) / 'console.log'}"
        )


def _read_spec(path: Path, progress: Progress) -> tuple[spec.HostSpec, ...]:
    try:
        text = path.read_text()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    limit = spec.NOFILE[-1] if hard == resource.RLIM_INFINITY else hard
    hosts, notes = spec.cap_nofile(spec.parse(text, path.name), limit)
    if notes:
        progress.step("note", notes[0])
        if len(notes) > 1:
            progress.step("note", f"the same for {len(notes) - 1} more hosts")
    return hosts


def _network(where: Paths, former: LabState | None, progress: Progress) -> LabState:
    lab_id = where.lab_id
    bridge = names.bridge_name(lab_id)
    subnet = network.ensure_bridge(bridge, lab_id, former.subnet if former else None)
    if former is not None:
        return former
    progress.step("network", f"{subnet} on bridge {bridge}")
    lab = LabState(name=where.name, lab_id=lab_id, subnet=subnet)
    state.save(where, lab)
    return lab


def _converge(
    where: Paths, lab: LabState, plan: Plan, layout: cgroup.Layout, progress: Progress
) -> dict[str, Action]:
    actions = dict(plan.actions)
    note = network.raise_inotify_limit(len(lab.hosts))
    if note:
        progress.step("note", note)
    ssh.make_key(where.key, f"lab {where.name}")
    for name, action in actions.items():
        if action is Action.MAKE:
            host.make(where, lab.hosts[name])
    refresh(where, lab, layout)
    unwell = ssh.wait_ready(
        where,
        [lab.hosts[name] for name, action in actions.items() if action is Action.KEEP],
        timeout_s=HEALTHY_TIMEOUT_S,
        tick=lambda pending: progress.waiting(f"looking at {pending[0].name}"),
        ready=lambda one: progress.step(one.name, f"unchanged ({one.address})"),
    )
    for one in unwell:
        progress.step(one.name, "runs, but no ssh login: turning it off and on")
        host.power_cut(where, one.name, layout)
        actions[one.name] = Action.RESTART
    for action in (Action.MAKE, Action.START, Action.RESTART):
        chosen = [lab.hosts[name] for name, done in actions.items() if done is action]
        if chosen:
            start_and_wait(where, chosen, layout, progress, action.value)
    return actions


def _why_off(where: Paths, name: str) -> str:
    log = where.host(name) / "console.log"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-6:])
    return f"{name} went off while it was starting; the end of {log}:\n{tail}"
