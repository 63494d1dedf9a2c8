"""V1's archive: the same bytes for the same V1, every damage found, everything put back as it was."""

import gzip
import os
from pathlib import Path

import pytest
from ansible.module_utils import v1_archive as v1

from tests.conftest import RunModule

COMMAND = "/opt/v1/bin/run"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A host's tree with a V1 in it: a program, a configuration nobody else may read, a link."""
    root = tmp_path / "host"
    (root / "opt/v1/bin").mkdir(parents=True)
    (root / "opt/v1/bin/run").write_text("#!/bin/sh\necho done\n")
    (root / "opt/v1/bin/run").chmod(0o755)
    (root / "opt/v1/current").symlink_to("bin")
    (root / "etc/v1").mkdir(parents=True)
    (root / "etc/v1/secret.conf").write_text("key=1\n")
    (root / "etc/v1/secret.conf").chmod(0o600)
    return root


PATHS = ("/etc/v1", "/opt/v1")


def manifest(root: Path) -> v1.Manifest:
    return v1.Manifest(PATHS, COMMAND, (), v1.collect(PATHS, str(root)))


def archive(root: Path, to: Path) -> str:
    with to.open("wb") as file:
        digest: str = v1.build(manifest(root), file, str(root))
    return digest


def test_the_same_v1_is_the_same_archive_whenever_it_was_written(root: Path, tmp_path: Path) -> None:
    first = archive(root, tmp_path / "a")
    os.utime(root / "opt/v1/bin/run", (1, 1))
    assert archive(root, tmp_path / "b") == first
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert v1.build(manifest(root), None, str(root)) == first == v1.sha256_of(tmp_path / "a")
    (root / "opt/v1/bin/run").chmod(0o750)
    assert archive(root, tmp_path / "c") != first


def test_a_file_that_changes_while_it_is_archived_ends_it(root: Path) -> None:
    known = manifest(root)
    (root / "opt/v1/bin/run").write_text("#!/bin/sh\necho DONE\n")  # as long as before
    with pytest.raises(v1.ArchiveError, match="/opt/v1/bin/run was changed while V1 was archived"):
        v1.build(known, None, str(root))


def test_what_was_archived_comes_back_with_content_owner_mode_and_links(root: Path, tmp_path: Path) -> None:
    digest = archive(root, tmp_path / "a")
    known = v1.verify(tmp_path / "a", digest)
    fresh = tmp_path / "fresh"
    fresh.mkdir()
    assert [each.found for each in v1.differences(known, str(fresh))] == ["absent"] * len(known.entries)
    v1.unpack(tmp_path / "a", known, str(fresh))
    assert v1.differences(known, str(fresh)) == []
    assert v1.unlisted(known, str(fresh)) == []
    assert (fresh / "etc/v1/secret.conf").stat().st_mode & 0o777 == 0o600
    assert (fresh / "opt/v1/current").readlink() == Path("bin")


def test_what_was_changed_removed_or_added_shows(root: Path, tmp_path: Path) -> None:
    known = v1.verify(tmp_path / "a", archive(root, tmp_path / "a"))
    (root / "opt/v1/bin/run").write_text("another\n")
    (root / "etc/v1/secret.conf").chmod(0o644)
    (root / "opt/v1/current").unlink()
    (root / "opt/v1/new").touch()
    assert {each.path for each in v1.differences(known, str(root))} == {
        "/opt/v1/bin/run", "/etc/v1/secret.conf", "/opt/v1/current",
    }  # fmt: skip
    assert v1.unlisted(known, str(root)) == ["/opt/v1/new"]
    v1.unpack(tmp_path / "a", known, str(root))
    assert v1.differences(known, str(root)) == []
    assert (root / "opt/v1/new").exists()  # what the archive does not know is left alone


def test_every_bit_of_damage_is_found_before_anything_is_unpacked(root: Path, tmp_path: Path) -> None:
    digest = archive(root, tmp_path / "a")
    whole = (tmp_path / "a").read_bytes()
    bad = tmp_path / "bad"
    for place in range(0, len(whole), 7):
        bad.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(
            v1.ArchiveError, match=f"bad is damaged: its SHA-256 is [0-9a-f]+, expected {digest}"
        ):
            v1.verify(bad, digest)
    bad.write_bytes(whole[:-20])
    with pytest.raises(v1.ArchiveError, match="damaged"):
        v1.verify(bad, digest)


def test_an_archive_whose_digest_is_believed_and_whose_files_are_not_its_manifests(
    root: Path, tmp_path: Path
) -> None:
    archive(root, tmp_path / "a")
    tar = gzip.decompress((tmp_path / "a").read_bytes())
    forged = tmp_path / "forged"
    forged.write_bytes(gzip.compress(tar.replace(b"echo done", b"echo evil")))
    with pytest.raises(v1.ArchiveError, match=r"/opt/v1/bin/run has SHA-256 [0-9a-f]+, expected"):
        v1.verify(forged, v1.sha256_of(forged))
    forged.write_bytes(b"no archive at all")
    with pytest.raises(v1.ArchiveError, match="cannot be read"):
        v1.verify(forged, v1.sha256_of(forged))
    with pytest.raises(v1.ArchiveError, match="cannot be read"):
        v1.verify(tmp_path / "absent", "0" * 64)
    with pytest.raises(v1.ArchiveError, match="damaged"):
        v1.verify(tmp_path / "a", "")  # nothing to hold it against is no proof


def test_what_an_archive_cannot_hold_is_named(root: Path) -> None:
    os.mkfifo(root / "opt/v1/pipe")
    with pytest.raises(v1.ArchiveError, match="/opt/v1/pipe"):
        v1.collect(PATHS, str(root))


@pytest.mark.parametrize(
    "path",
    ["/", "/opt", "opt/v1", "/opt/v1/", "/opt/../etc/v1", "/usr/bin", "/usr", "/etc/systemd",
     "/etc/systemd/system", "/opt/cfn", "/opt/cfn/current", "/var/lib/cfn/ledger", "/run/v1", "/var/lib",
     "/dev/shm/v1", "/root/.ssh"],
)  # fmt: skip
def test_paths_that_are_never_v1s(path: str) -> None:
    assert v1.path_problems([path]), path


def test_paths_that_may_be_v1s() -> None:
    good = ["/opt/cfn-v1", "/etc/v1", "/usr/local/bin/v1", "/etc/systemd/system/v1.service", "/var/lib/v1"]
    assert v1.path_problems(good) == []
    assert "names nothing" in v1.path_problems([])[0]
    assert "named twice" in v1.path_problems(["/opt/v1", "/opt/v1/bin"])[0]


def test_v1s_command_is_found_where_it_is_rehearsed() -> None:
    command = "/usr/bin/env python3 /opt/v1/run.py --config /etc/v1/v1.conf"
    assert v1.relocate(command, PATHS, "/scratch") == [
        "/usr/bin/env", "python3", "/scratch/opt/v1/run.py", "--config", "/scratch/etc/v1/v1.conf",
    ]  # fmt: skip
    assert v1.relocate(command, PATHS, "/") == command.split()


def test_the_module_archives_predicts_and_repeats(tmp_path: Path, run_module: RunModule) -> None:
    own = tmp_path / "v1"
    own.mkdir()
    (own / "run").write_text("x\n")
    asked = {"state": "archived", "paths": [str(own)], "label": "one", "folder": str(tmp_path / "kept")}
    predicted = run_module("cfn_v1", check_mode=True, **asked)
    assert not (tmp_path / "kept").exists()
    made = run_module("cfn_v1", **asked)
    assert (
        (predicted["changed"], predicted["name"]) == (made["changed"], made["name"]) == (True, made["name"])
    )
    assert made["name"] == f"v1-one-{made['sha256'][:12]}.tar.gz"
    assert run_module("cfn_v1", **asked)["changed"] is False

    archive = str(tmp_path / "kept" / made["name"])
    removing = {"state": "removed", "archive": archive, "sha256": made["sha256"]}
    (own / "run").write_text("changed since\n")
    refused = run_module("cfn_v1", **removing)
    assert (refused["failed"], refused["whole"]) == (True, True)
    assert "run was changed since" in refused["msg"]
    (own / "run").write_text("x\n")
    (own / "added").touch()
    assert "added is not in the archive" in run_module("cfn_v1", **removing)["msg"]
    (own / "run").unlink()
    assert run_module("cfn_v1", **removing)["whole"] is False
    (own / "run").write_text("x\n")
    (own / "added").unlink()
    assert run_module("cfn_v1", check_mode=True, **removing)["changed"]
    assert own.exists()
    assert run_module("cfn_v1", **removing)["changed"]
    assert not own.exists()
    assert run_module("cfn_v1", **removing)["changed"] is False

    restoring = {"state": "restored", "archive": archive, "sha256": made["sha256"]}
    assert run_module("cfn_v1", check_mode=True, **restoring)["changed"]
    assert not own.exists()
    assert run_module("cfn_v1", **restoring)["changed"]
    assert (own / "run").read_text() == "x\n"
    assert run_module("cfn_v1", **restoring)["changed"] is False
    assert run_module("cfn_v1", **restoring | {"sha256": "0" * 64})["failed"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo delivery_rate=100.0 agents_coordinated=$1 coordination_time_ms=3", ""),
        ("echo delivery_rate=90.0 agents_coordinated=9 coordination_time_ms=3", "delivery_rate=90.0"),
        ("echo delivery_rate=100.0 agents_coordinated=$1 coordination_time_ms=3; exit 1", "exited with 1"),
        ("echo hello", "hello"),
        ("", "expected delivery_rate=100.0 of 10 agents"),
    ],
)
def test_a_v1_proves_itself_or_says_what_it_said(
    tmp_path: Path, run_module: RunModule, script: str, words: str
) -> None:
    command = tmp_path / "v1"
    command.write_text(f"#!/bin/sh\n{script}\n")
    command.chmod(0o755)
    found = run_module("cfn_v1_proof", command=str(command), account="no-such-user")
    assert bool(found.get("failed")) == bool(words)
    assert words in found.get("msg", "")
