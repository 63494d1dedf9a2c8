"""Everything else that decides without touching the machine."""

import json
from pathlib import Path

import pytest
import yaml

from lab import apt, cgroup, cli, doctor, hostfiles, inventory, names, nspawn, recipe, ssh, state
from lab.down import mounts_below
from lab.errors import LabError, UsageError
from lab.host import Status
from lab.keeper import overlay_options
from lab.network import (
    choose_address,
    choose_subnet,
    choose_subnet_clashes,
    gateway,
    used_subnets,
)
from lab.plan import Action, make_plan
from lab.spec import HostSpec
from lab.state import HostState, LabState, Paths

WHERE = Paths(state_root=Path("/s"), cache_root=Path("/c"), name="demo")


def made(name: str, address: str, **changes: object) -> HostState:
    base = {"groups": ("cfn",), "shm_mb": 64, "nofile": 4096, "bash": None, "image": "i"}
    return HostState(name=name, address=address, **{**base, **changes})  # type: ignore[arg-type]


def lab_with(*hosts: HostState) -> LabState:
    return LabState(name="demo", lab_id="demo-x", subnet="10.86.3.0/24", hosts={h.name: h for h in hosts})


# --- names ---------------------------------------------------------------------------------


def test_names_fit_the_kernel_and_differ_between_labs_and_folders() -> None:
    long = "a-very-long-name-for-a-lab-of-32"
    ids = {
        names.lab_id(root, name)
        for root in (Path("/a"), Path("/b"))
        for name in ("demo", long, f"{long[:-1]}1")
    }
    assert len(ids) == 6
    bridges = {names.bridge_name(lab_id) for lab_id in ids}
    links = {names.link_name(lab_id, host) for lab_id in ids for host in (long, f"{long[:-1]}1")}
    assert len(bridges) == 6
    assert len(links) == 12
    assert all(len(name) <= names.IFNAME_MAX for name in bridges | links)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "1a", "a" * 33, "../x", "a.b"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is not allowed"):
        names.check_name("lab", name)


# --- addresses -----------------------------------------------------------------------------


def test_a_lab_prefers_its_own_subnet_and_avoids_those_in_use() -> None:
    first = choose_subnet("demo-1", [])
    assert choose_subnet("demo-1", []) == first
    second = choose_subnet("demo-1", [first])
    assert second != first
    assert choose_subnet("demo-1", [first, second.replace("0/24", "128/25")]) not in {first, second}
    with pytest.raises(LabError, match="no /24"):
        choose_subnet("demo-1", ["10.0.0.0/8"])


def test_addresses_are_the_lowest_free() -> None:
    assert gateway("10.86.3.0/24") == "10.86.3.1"
    assert choose_address("10.86.3.0/24", []) == "10.86.3.11"
    assert choose_address("10.86.3.0/24", ["10.86.3.11", "10.86.3.13"]) == "10.86.3.12"
    with pytest.raises(LabError, match="no address"):
        choose_address("10.86.3.0/24", [f"10.86.3.{n}" for n in range(256)])


def test_networks_in_use_come_from_routes_and_addresses_but_not_the_labs_own() -> None:
    routes = json.dumps([{"dst": "default", "dev": "e"}, {"dst": "10.86.1.0/24", "dev": "br"},
                         {"dst": "10.86.2.0/24", "dev": "e"}])  # fmt: skip
    addresses = json.dumps(
        [{"ifname": n, "addr_info": [{"local": a, "prefixlen": 24}]}
         for n, a in (("br", "10.86.1.1"), ("e", "10.86.4.9"))]
    )  # fmt: skip
    used = used_subnets(routes, addresses, but="br")
    assert used == ["10.86.2.0/24", "10.86.4.9/24"]
    assert choose_subnet_clashes("10.86.4.0/24", used)
    assert not choose_subnet_clashes("10.86.1.0/24", used)


# --- the plan ------------------------------------------------------------------------------


def test_the_plan_makes_starts_and_keeps() -> None:
    spec = tuple(HostSpec(name=n, groups=("cfn",), shm_mb=64, nofile=4096) for n in "abcd")
    lab = lab_with(made("a", "10.86.3.11"), made("b", "10.86.3.13"), made("z", "10.86.3.12"),
                   made("d", "10.86.3.20", image="old"))  # fmt: skip
    statuses = {"a": Status.RUNNING, "b": Status.OFF, "z": Status.STARTING, "d": Status.MISSING}
    plan = make_plan(lab, spec, statuses, "new")
    assert plan.actions == {
        "a": Action.KEEP, "b": Action.START, "z": Action.KEEP, "d": Action.MAKE, "c": Action.MAKE,
    }  # fmt: skip
    assert plan.state.hosts["c"].address == "10.86.3.14"
    # Only a host that is made anew gets the new image below it.
    assert {n: h.image for n, h in plan.state.hosts.items()} == {
        "a": "i", "b": "i", "z": "i", "d": "new", "c": "new",
    }  # fmt: skip
    assert plan.notes == ("z: not in the spec, kept (`lab rm z` removes it)",)


def test_an_existing_host_is_never_changed_except_for_its_groups() -> None:
    lab = lab_with(made("a", "10.86.3.11"))
    more = HostSpec(name="a", groups=("cfn", "control"), shm_mb=64, nofile=4096)
    plan = make_plan(lab, (more,), {"a": Status.RUNNING}, "i")
    assert plan.actions == {"a": Action.KEEP}
    assert plan.state.hosts["a"].groups == ("cfn", "control")
    bigger = HostSpec(name="a", groups=("cfn",), shm_mb=65, nofile=4096)
    with pytest.raises(UsageError, match=r"a: shm_mb is 64 and the spec asks for 65.*lab rm a"):
        make_plan(lab, (bigger,), {"a": Status.RUNNING}, "i")


def test_state_survives_the_file() -> None:
    lab = lab_with(made("a", "10.86.3.11", bash="3.2"))
    assert state.from_json(state.to_json(lab)) == lab


# --- what others read ----------------------------------------------------------------------


def test_the_inventory_checks_host_keys_and_has_all_groups() -> None:
    hosts = [made("a", "10.86.3.11", groups=("cfn", "control")), made("b", "10.86.3.12")]
    text = inventory.render_inventory("demo", hosts, Path("/s/key"), Path("/s/known"))
    top = yaml.safe_load(text)["all"]
    assert top["hosts"]["b"] == {"ansible_host": "10.86.3.12"}
    assert {name: sorted(group["hosts"]) for name, group in top["children"].items()} == {
        "cfn": ["a", "b"],
        "control": ["a"],
        "monitoring": [],
    }
    assert top["vars"]["ansible_user"] == "deploy"
    assert top["vars"]["ansible_ssh_private_key_file"] == "/s/key"
    arguments = top["vars"]["ansible_ssh_common_args"]
    assert "UserKnownHostsFile=/s/known" in arguments
    assert "StrictHostKeyChecking=yes" in arguments


def test_the_molecule_file_is_an_instance_config() -> None:
    text = inventory.render_molecule("demo", [made("a", "10.86.3.11")], Path("/s/key"))
    assert yaml.safe_load(text) == [
        {
            "instance": "a",
            "address": "10.86.3.11",
            "user": "deploy",
            "port": 22,
            "identity_file": "/s/key",
        }
    ]


def test_only_files_of_this_lab_are_replaced_or_removed(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    ours.write_text(inventory.render_molecule("demo", [], Path("/k")))
    theirs.write_text(inventory.render_molecule("demo2", [], Path("/k")))
    inventory.check_output("demo", tmp_path / "none")
    inventory.check_output("demo", ours)
    with pytest.raises(UsageError, match="was not written by the lab demo"):
        inventory.check_output("demo", theirs)
    lab = LabState(name="demo", lab_id="x", subnet="10.86.3.0/24",
                   outputs=(("molecule", str(ours)), ("molecule", str(theirs))))  # fmt: skip
    assert inventory.remove_outputs(lab) == [str(ours)]
    assert theirs.exists()


def test_known_hosts_names_address_and_host() -> None:
    line = ssh.known_hosts([(made("a", "10.86.3.11"), "ssh-ed25519 AAAA root@a\n")])
    assert line == "10.86.3.11,a ssh-ed25519 AAAA\n"


def test_one_word_is_a_shell_line_and_several_are_quoted() -> None:
    assert ssh.remote_command(["ls /; id"]) == "ls /; id"
    assert ssh.remote_command(["echo", "a b"]) == "echo 'a b'"


# --- what is run ---------------------------------------------------------------------------


def test_a_host_is_limited_as_asked_and_cannot_lift_its_limits() -> None:
    argv = nspawn.argv("demo-x", made("a", "10.86.3.11"), Path("/s/demo/hosts/a/root"))
    assert "--directory=/s/demo/hosts/a/root" in argv
    assert "--rlimit=RLIMIT_NOFILE=4096" in argv
    assert "--tmpfs=/dev/shm:mode=1777,size=64M" in argv
    assert "--drop-capability=CAP_SYS_RESOURCE" in argv
    assert argv[-1] == recipe.INIT
    assert overlay_options(Path("/c/i/root"), Path("/h")) == (
        "lowerdir=/c/i/root,upperdir=/h/upper,workdir=/h/work"
    )


def test_the_cgroup_is_made_by_hand_or_by_systemd() -> None:
    host, folder = made("a", "10.86.3.11"), Path("/s/demo/hosts/a")
    roots = (Path("/cg/systemd"), Path("/cg/memory"))
    by_hand = cgroup.Layout(roots=roots, systemd=False)
    launch = json.loads(nspawn.launch_file("demo-x", host, folder, Path("/c/i"), by_hand))
    assert launch["cgroups"] == ["/cg/systemd/cfn-lab/demo-x/a", "/cg/memory/cfn-lab/demo-x/a"]
    assert launch["argv"][0] == "systemd-nspawn"
    scoped = cgroup.Layout(roots=(Path("/cg"),), systemd=True)
    launch = json.loads(nspawn.launch_file("demo-x", host, folder, Path("/c/i"), scoped))
    assert launch["cgroups"] == []
    assert launch["argv"][:2] == ["systemd-run", "--scope"]
    assert "--unit=cfn-lab:demo-x:a.scope" in launch["argv"]
    assert scoped.host_dirs("demo-x", "a") == [Path("/cg/system.slice/cfn-lab:demo-x:a.scope")]


def test_hosts_with_a_scope_are_found(tmp_path: Path) -> None:
    for name in ("cfn-lab:demo-x:a.scope", "cfn-lab:demo-x:b-c.scope", "cfn-lab:demo:d.scope"):
        (tmp_path / "system.slice" / name).mkdir(parents=True)
    layout = cgroup.Layout(roots=(tmp_path,), systemd=True)
    assert layout.hosts("demo-x") == {"a", "b-c"}


def test_cgroup_hierarchies_v1_v2_and_none() -> None:
    v2 = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n"
    assert cgroup.parse_mounts(v2) == (Path("/sys/fs/cgroup"),)
    v1 = (
        "cgroup /c/cpu,cpuacct cgroup rw,cpu,cpuacct 0 0\n"
        "cgroup /c/freezer cgroup rw,freezer 0 0\n"
        "cgroup /c/systemd cgroup rw,name=systemd 0 0\n"
        "cgroup2 /c/unified cgroup2 rw 0 0\n"
    )
    assert cgroup.parse_mounts(v1) == (
        Path("/c/systemd"),
        Path("/c/unified"),
        Path("/c/cpu,cpuacct"),
    )
    with pytest.raises(LabError, match="name=systemd"):
        cgroup.parse_mounts("cgroup /c/memory cgroup rw,memory 0 0\n")


def test_mounts_are_found_innermost_first_and_only_below() -> None:
    lines = "\n".join(f"1 2 0:1 / {p} rw - t s rw" for p in ("/s/demo/a", "/s/demo2/a", "/s/demo/a/b", "/s"))
    assert mounts_below(lines, Path("/s/demo")) == [Path("/s/demo/a/b"), Path("/s/demo/a")]


# --- what is in a host ---------------------------------------------------------------------


def test_each_host_is_marked_and_named() -> None:
    files = hostfiles.host_files("demo", made("a", "10.86.3.11"), public_key="k", machine_id="m",
                                 host_key=("private", "public"))  # fmt: skip
    content, mode = files["/etc/cfn-lab.json"]
    assert json.loads(content) == {"lab": "demo", "host": "a"}
    assert mode == 0o644
    assert files["/etc/ssh/ssh_host_ed25519_key"] == ("private", 0o600)
    assert "Address=10.86.3.11/24" in files["/etc/systemd/network/10-lab.network"][0]
    assert "/usr/local/bin/bash" not in files


def test_etc_hosts_keeps_what_others_wrote() -> None:
    hosts = [made("a", "10.86.3.11"), made("b", "10.86.3.12")]
    first = hostfiles.etc_hosts("", hosts[:1])
    assert "127.0.0.1 localhost\n" in first
    edited = f"# mine\n{first}192.0.2.9 other\n"
    second = hostfiles.etc_hosts(edited, hosts)
    assert "10.86.3.12 b" in second
    assert second.count("10.86.3.11 a") == 1
    assert "# mine" in second
    assert "192.0.2.9 other" in second
    assert hostfiles.etc_hosts(second, hosts) == second


# --- the image -----------------------------------------------------------------------------


def test_sources_are_debians_own_whatever_their_suite_here() -> None:
    files = {
        "/etc/apt/sources.list": """
# deb http://commented.example/debian bookworm main
deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://a.example/debian trixie main
deb http://a.example/debian-security bookworm/updates main contrib
deb http://vendor.example/debian bookworm stable
deb [signed-by=/etc/apt/vendor.gpg] http://signed.example/debian bookworm main
deb-src http://a.example/debian bookworm main
""",
        "/etc/apt/sources.list.d/d.sources": """Types: deb
# a comment
URIs: http://b.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main
""",
    }
    assert apt.image_sources(files, "bookworm") == [
        "deb http://a.example/debian bookworm main",
        "deb http://a.example/debian-security bookworm-security main",
        "deb http://b.example/debian bookworm main",
        "deb http://b.example/debian bookworm-updates main",
    ]


def test_without_a_debian_archive_mmdebstrap_uses_its_own() -> None:
    files = {"/etc/apt/sources.list": "deb http://a.example/ubuntu noble main\n"}
    assert apt.image_sources(files, "bookworm") == []
    only_security = {"/etc/apt/sources.list": "deb http://a.example/debian-security bookworm-security main"}
    assert apt.image_sources(only_security, "bookworm") == []


def test_the_build_dies_with_its_parent_and_the_hash_names_the_recipe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv = recipe.contained_argv(["mmdebstrap"])
    assert argv[:3] == ["setpriv", "--pdeathsig", "KILL"]
    assert "--kill-child=KILL" in argv
    before = recipe.image_hash()
    monkeypatch.setattr(recipe, "PACKAGES", (*recipe.PACKAGES, "more"))
    assert recipe.image_hash() != before


# --- the command line ----------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["--name", "x", "ls"], ["ls", "--name", "x"]])
def test_the_labs_name_may_stand_on_either_side(argv: list[str]) -> None:
    assert cli.parser().parse_args(argv).name == "x"


def test_a_remote_command_is_passed_on_with_its_dashes() -> None:
    arguments = cli.parser().parse_args(["sh", "cfn1", "--", "ls", "-l"])
    assert arguments.remote == ["ls", "-l"]


def test_the_doctor_names_packages_and_the_command() -> None:
    need = doctor.Need("no-such-program", "some-package", "does things")
    assert doctor.missing((need,)) == [need]
    text = doctor.report([need])
    assert "no-such-program is missing: package some-package (does things)" in text
    assert text.endswith("apt-get install -y some-package")
    assert doctor.as_json([need])["ok"] is False
    assert doctor.as_json([])["ok"] is True


@pytest.mark.parametrize("value", ["relative", "/with blank", "/with,comma", "/with:colon"])
def test_a_state_folder_that_breaks_mount_options_is_refused(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFN_LAB_STATE", value)
    with pytest.raises(UsageError, match="CFN_LAB_STATE"):
        state.paths("demo")


def test_the_folders_of_a_lab() -> None:
    assert WHERE.host("a") == Path("/s/demo/hosts/a")
    assert WHERE.lock == Path("/s/demo.lock")
