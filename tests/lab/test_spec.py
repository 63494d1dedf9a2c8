"""The spec file: what is accepted, and what each refusal says."""

from pathlib import Path

import pytest

import lab
from lab.errors import SpecError
from lab.spec import HostSpec, cap_nofile, parse


def names(text: str) -> list[str]:
    return [host.name for host in parse(text, "t.yml")]


def test_demo_is_three_hosts_and_one_is_control() -> None:
    path = Path(lab.__file__).parent / "specs" / "demo.yml"
    hosts = parse(path.read_text(), path.name)
    assert [(host.name, host.groups) for host in hosts] == [
        ("cfn1", ("cfn", "control")),
        ("cfn2", ("cfn",)),
        ("cfn3", ("cfn",)),
    ]
    assert all(host.shm_mb >= 256 and host.nofile == 20000 for host in hosts)


def test_an_entry_overrides_the_defaults() -> None:
    text = """
defaults: {shm_mb: 64, nofile: 4096, groups: [cfn]}
hosts:
  - {name: a, shm_mb: 32, bash: "3.2", groups: []}
  - names: [b, c]
"""
    assert parse(text, "t.yml") == (
        HostSpec(name="a", groups=(), shm_mb=32, nofile=4096, bash="3.2"),
        HostSpec(name="b", groups=("cfn",), shm_mb=64, nofile=4096),
        HostSpec(name="c", groups=("cfn",), shm_mb=64, nofile=4096),
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hosts: [{count: 3}]", ["cfn1", "cfn2", "cfn3"]),
        ("hosts: [{count: 2, prefix: n}, {name: n1}]", ["n2", "n3", "n1"]),
        ("hosts: [{count: 1}, {count: 2}]", ["cfn1", "cfn2", "cfn3"]),
    ],
)
def test_counted_hosts_are_numbered_around_the_named(text: str, expected: list[str]) -> None:
    assert names(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("hosts: [", "t.yml: not YAML"),
        ("[]", "t.yml: found [], need a mapping"),
        ("{}", "hosts: found None, need a list of at least one host"),
        ("hosts: []", "hosts: found [], need a list"),
        ("host: []", "unknown key 'host' (did you mean hosts?); allowed: defaults, hosts"),
        ("hosts: [{name: a, shm: 5}]", "hosts[0]: unknown key 'shm' (did you mean shm_mb?)"),
        ("{defaults: {name: a}, hosts: [{name: b}]}", "defaults: unknown key 'name'"),
        ("hosts: [{shm_mb: 5}]", "found none of them, need exactly one of name, names, count"),
        ("hosts: [{name: a, count: 2}]", "found name and count, need exactly one"),
        ("hosts: [{name: a, prefix: b}]", "prefix goes with count, not with name"),
        ("hosts: [{names: []}]", "names: found [], need a list of at least one"),
        ("hosts: [{names: a}]", "names: found 'a', need a list"),
        ("hosts: [{name: A_b}]", "host name 'A_b' is not allowed"),
        ("hosts: [{name: 5}]", "host name '5' is not allowed"),
        ("hosts: [{name: a}, {name: a}]", "host a is there 2 times, need once"),
        ("hosts: [{count: 0}]", "count: found 0, need a whole number from 1 to 200"),
        ("hosts: [{count: 199}, {count: 9, prefix: n}]", "208 hosts: at most 200"),
        ("hosts: [{name: a, shm_mb: 64M}]", "shm_mb: found '64M', need a whole number from 1 to"),
        ("hosts: [{name: a, shm_mb: true}]", "shm_mb: found True"),
        ("hosts: [{name: a, nofile: 10}]", "nofile: found 10, need a whole number from 256 to"),
        ("hosts: [{name: a, bash: 3.2}]", 'bash: found 3.2, need a version in quotes, such as "3'),
        ("hosts: [{name: a, groups: cfn}]", "groups: found 'cfn', need a list"),
        ("hosts: [{name: a, groups: [all]}]", "group 'all' is not allowed"),
        ("hosts: [x]", "hosts[0]: found 'x', need a mapping"),
    ],
)
def test_what_is_wrong_is_named(text: str, message: str) -> None:
    with pytest.raises(SpecError) as caught:
        parse(text, "t.yml")
    assert message in str(caught.value)
    assert caught.value.exit_code == 2


def test_nofile_is_lowered_to_the_machines_limit_and_said() -> None:
    hosts = parse("hosts: [{name: a, nofile: 9000}, {name: b, nofile: 300}]", "t.yml")
    capped, notes = cap_nofile(hosts, 8000)
    assert [host.nofile for host in capped] == [8000, 300]
    assert len(notes) == 1
    assert "a: nofile 9000 is above this machine's own hard limit 8000" in notes[0]
