"""The spec file of a lab: which hosts, and how each differs. Pure: text in, hosts out.

::

    defaults:                # optional; any of the settings below
      shm_mb: 256
    hosts:                   # required; each entry is one of three forms
      - name: cfn1           # one host
        groups: [cfn, control]
      - names: [old1, old2]  # several
        bash: "3.2"
      - count: 2             # that many, numbered from the first free number
        prefix: cfn

Settings: ``groups`` (inventory groups), ``shm_mb`` (size of /dev/shm in MiB), ``nofile`` (hard
limit of open files), ``bash`` (the version that bash reports).
"""

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import yaml

from lab.errors import SpecError, UsageError
from lab.names import check_name

HOSTS_MAX = 200
SHM_MB = range(1, 65537)
NOFILE = range(256, 1048577)
_SETTINGS = ("groups", "shm_mb", "nofile", "bash")
_BASE = {"groups": ("cfn",), "shm_mb": 256, "nofile": 20000, "bash": None}
_FORMS = ("name", "names", "count")
_GROUP = re.compile(r"[a-z][a-z0-9_]{0,40}")
_RESERVED_GROUPS = ("all", "ungrouped")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostSpec:
    """One host as it is asked for."""

    name: str
    groups: tuple[str, ...]
    shm_mb: int
    nofile: int
    bash: str | None = None


def parse(text: str, source: str) -> tuple[HostSpec, ...]:
    """Read a spec; *source* names it in messages. Raises SpecError at the first thing wrong."""
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise SpecError(f"{source}: not YAML: {error}") from error
    top = _mapping(document, source)
    _known(top, ("defaults", "hosts"), source)
    defaults = _settings(_mapping(top.get("defaults") or {}, f"{source}: defaults"),
                         f"{source}: defaults", extra=())  # fmt: skip
    base: dict[str, Any] = dict(_BASE) | defaults
    entries = top.get("hosts")
    if not isinstance(entries, list) or not entries:
        raise SpecError(f"{source}: hosts: found {entries!r}, need a list of at least one host")
    hosts: list[HostSpec] = []
    taken = _explicit_names(entries, source)
    for number, entry in enumerate(entries):
        where = f"{source}: hosts[{number}]"
        mapping = _mapping(entry, where)
        settings = base | _settings(mapping, where, extra=(*_FORMS, "prefix"))
        hosts += [HostSpec(name=name, **settings) for name in _names(mapping, where, taken)]
    _no_duplicates([host.name for host in hosts], source)
    if len(hosts) > HOSTS_MAX:
        raise SpecError(f"{source}: {len(hosts)} hosts: at most {HOSTS_MAX} fit in one lab")
    return tuple(hosts)


def cap_nofile(hosts: tuple[HostSpec, ...], machine_limit: int) -> tuple[tuple[HostSpec, ...], list[str]]:
    """Lower each ``nofile`` to what this machine allows; the hosts, and a note for each change."""
    notes = [
        f"{host.name}: nofile {host.nofile} is above this machine's own hard limit "
        f"{machine_limit}: using {machine_limit} (raise it with `ulimit -Hn` before `lab up`)"
        for host in hosts
        if host.nofile > machine_limit
    ]
    return tuple(replace(host, nofile=min(host.nofile, machine_limit)) for host in hosts), notes


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise SpecError(f"{where}: found {value!r}, need a mapping of keys to values")
    return value


def _known(mapping: Mapping[str, Any], allowed: tuple[str, ...], where: str) -> None:
    for key in mapping:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise SpecError(f"{where}: unknown key {key!r}{hint}; allowed: {', '.join(allowed)}")


def _settings(mapping: Mapping[str, Any], where: str, *, extra: tuple[str, ...]) -> dict[str, Any]:
    _known(mapping, (*extra, *_SETTINGS), where)
    found: dict[str, Any] = {}
    for key in _SETTINGS:
        if key in mapping:
            found[key] = _CHECKS[key](mapping[key], f"{where}: {key}")
    return found


def _groups(value: object, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise SpecError(f"{where}: found {value!r}, need a list of group names")
    for group in value:
        if not _GROUP.fullmatch(group) or group in _RESERVED_GROUPS:
            raise SpecError(
                f"{where}: group {group!r} is not allowed: lower-case letters, digits and "
                f"underscores, starting with a letter, and not {' or '.join(_RESERVED_GROUPS)}"
            )
    return tuple(dict.fromkeys(value))


def _integer(value: object, where: str, allowed: range) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value not in allowed:
        raise SpecError(f"{where}: found {value!r}, need a whole number from {allowed[0]} to {allowed[-1]}")
    return value


def _bash(value: object, where: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,2}\.\d{1,2}", value):
        raise SpecError(f'{where}: found {value!r}, need a version in quotes, such as "3.2"')
    return value


_CHECKS = {
    "groups": _groups,
    "shm_mb": lambda value, where: _integer(value, where, SHM_MB),
    "nofile": lambda value, where: _integer(value, where, NOFILE),
    "bash": _bash,
}


def _explicit_names(entries: list[object], source: str) -> set[str]:
    """All names written out: a counted entry numbers around them, wherever they stand."""
    taken: set[str] = set()
    for number, entry in enumerate(entries):
        mapping = _mapping(entry, f"{source}: hosts[{number}]")
        names = mapping.get("names") or []
        taken |= {str(name) for name in (names if isinstance(names, list) else [names])}
        if "name" in mapping:
            taken.add(str(mapping["name"]))
    return taken


def _names(mapping: Mapping[str, Any], where: str, taken: set[str]) -> list[str]:
    forms = [form for form in _FORMS if form in mapping]
    if len(forms) != 1:
        found = " and ".join(forms) or "none of them"
        raise SpecError(f"{where}: found {found}, need exactly one of {', '.join(_FORMS)}")
    if "prefix" in mapping and forms != ["count"]:
        raise SpecError(f"{where}: prefix goes with count, not with {forms[0]}")
    if forms == ["count"]:
        return _numbered(mapping, where, taken)
    names = [mapping["name"]] if forms == ["name"] else mapping["names"]
    if not isinstance(names, list) or not names:
        raise SpecError(f"{where}: names: found {names!r}, need a list of at least one name")
    return [_host_name(name, where) for name in names]


def _numbered(mapping: Mapping[str, Any], where: str, taken: set[str]) -> list[str]:
    count = _integer(mapping["count"], f"{where}: count", range(1, HOSTS_MAX + 1))
    prefix = mapping.get("prefix", "cfn")
    names: list[str] = []
    number = 0
    while len(names) < count:
        number += 1
        name = _host_name(f"{prefix}{number}", where)
        if name not in taken:
            names.append(name)
            taken.add(name)
    return names


def _host_name(name: object, where: str) -> str:
    try:
        return check_name("host", name if isinstance(name, str) else repr(name))
    except UsageError as error:
        raise SpecError(f"{where}: {error}") from None


def _no_duplicates(names: list[str], source: str) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SpecError(f"{source}: host {name} is there {names.count(name)} times, need once")
