"""What a release should look like, and each way in which a host can differ from it."""

import hashlib
import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from ansible.module_utils import release_tree
from ansible.module_utils.release_tree import (
    copy_differences,
    directory_differences,
    file_differences,
    link_difference,
    parse_tmpfiles,
    release_differences,
    version_digest,
)

from tests.conftest import load


@pytest.fixture(autouse=True)
def everything_is_root_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners are root's and cfn's on a host; here they are whoever runs the tests."""
    monkeypatch.setattr(release_tree, "_user", lambda _: "root")
    monkeypatch.setattr(release_tree, "_group", lambda _: "root")


@pytest.fixture
def release(tmp_path: Path) -> tuple[Path, str]:
    """A small release folder and its version."""
    folder = tmp_path / "release"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/cfn").write_text("#!/bin/sh\n")
    (folder / "bin/cfn").chmod(0o755)
    (folder / "note").write_text("hello\n")
    (folder / "note").chmod(0o644)
    lines = []
    for name, mode in (("bin/cfn", "0755"), ("note", "0644")):
        lines.append(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()} {mode} {name}\n")
    manifest = "".join(lines)
    version = f"1.0-{hashlib.sha256(manifest.encode()).hexdigest()[:12]}"
    for name, text in (("MANIFEST", manifest), ("release.json", "{}\n")):
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)
    for path in (folder, folder / "bin"):
        path.chmod(0o755)
    return folder, version


def found(folder: Path, version: str) -> list[tuple[str, str, str]]:
    return [
        (os.path.relpath(difference.path, folder), difference.found, difference.wanted)
        for difference in release_differences(folder, version)
    ]


def test_what_was_built_has_no_difference(release: tuple[Path, str]) -> None:
    assert found(*release) == []


def test_each_drift_is_named(release: tuple[Path, str]) -> None:
    folder, version = release
    (folder / "note").write_text("edited\n")
    (folder / "bin/cfn").chmod(0o777)
    (folder / "bin/stray").touch()
    (folder / "release.json").unlink()
    (folder / "bin").chmod(0o775)
    edited = hashlib.sha256(b"edited\n").hexdigest()[:12]
    assert sorted((path, kind) for path, kind, _ in found(folder, version)) == [
        ("bin", "root:root 0775"),
        ("bin/cfn", "root:root 0777"),
        ("bin/stray", "present"),
        ("note", f"sha256 {edited}"),
        ("release.json", "absent"),
    ]


def test_an_edited_manifest_is_not_believed(release: tuple[Path, str]) -> None:
    folder, version = release
    (folder / "note").unlink()
    kept = [line for line in (folder / "MANIFEST").read_text().splitlines() if "note" not in line]
    (folder / "MANIFEST").write_text("\n".join(kept) + "\n")
    ((path, kind, _),) = found(folder, version)
    assert path == "."
    assert "has digest" in kind


def test_a_release_that_is_not_there(tmp_path: Path) -> None:
    assert found(tmp_path / "absent", "1.0-0123456789ab") == [(".", "absent", "release 1.0-0123456789ab")]


@pytest.mark.parametrize("version", ["1.0", "1.0-short", "latest"])
def test_a_version_without_its_digest_is_refused(version: str) -> None:
    with pytest.raises(ValueError, match="does not carry a digest"):
        version_digest(version)


def test_directories(tmp_path: Path) -> None:
    wanted = parse_tmpfiles(
        f"# comment\nd {tmp_path}/good 0750 root root\nd {tmp_path}/open 0750 root root\n"
        f"d {tmp_path}/gone 0750 root root\nd {tmp_path}/link 0750 root root\n"
    )
    for name, mode in (("good", 0o750), ("open", 0o777)):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(mode)
    (tmp_path / "link").symlink_to("good")
    assert [(Path(item.path).name, item.found) for item in directory_differences(wanted)] == [
        ("open", "root:root 0777"),
        ("gone", "absent"),
        ("link", "not a directory"),
    ]


def test_copies_and_links(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    for name in ("edited", "gone", "same"):
        (source / name).write_text(name)
    for name, text in (("edited", "other"), ("same", "same")):
        (target / name).write_text(text)
        (target / name).chmod(0o644)
    assert [(Path(item.path).name, item.found) for item in copy_differences(source, target, "unit")] == [
        ("edited", "edited"),
        ("gone", "absent"),
    ]
    link = tmp_path / "link"
    assert [item.found for item in link_difference(link, "a")] == ["absent"]
    link.symlink_to("b")
    assert [item.found for item in link_difference(link, "a")] == ["b"]
    assert list(link_difference(link, "b")) == []


@pytest.mark.parametrize("name", ["../outside", "/etc/absolute", "a/../../outside"])
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    archive = tmp_path / "bad.tar"
    with tarfile.open(archive, "w") as tar:
        tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    with tarfile.open(archive) as tar, pytest.raises(ValueError, match="is refused"):
        load("cfn_release").extract(tar, tmp_path / "target")


@pytest.mark.parametrize(
    ("mend", "found"),
    [
        (lambda path: path.unlink(), ["absent"]),
        (lambda path: path.write_text("changed"), ["sha256 "]),
        (lambda path: path.chmod(0o666), ["root:root 0666"]),
        (lambda path: (path.chmod(0o600), path.write_text("")), ["sha256 ", "root:root 0600"]),
        (lambda path: path.touch(), []),
    ],
)
def test_a_further_file(tmp_path: Path, mend: Callable[[Path], object], found: list[str]) -> None:
    path = tmp_path / "config.sh"
    path.write_text("as it should be")
    path.chmod(0o640)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    mend(path)
    differences = list(file_differences(path, sha256, 0o640))
    assert [each.path for each in differences] == [str(path)] * len(found)
    assert all(each.found.startswith(start) for each, start in zip(differences, found, strict=True))


def test_a_link_is_not_the_file_that_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    found = list(file_differences(tmp_path / "link", hashlib.sha256(b"x").hexdigest(), 0o644))
    assert [each.found for each in found] == ["absent"]


def test_what_is_ignored_is_no_part_of_the_content(tmp_path: Path) -> None:
    path = tmp_path / "config.sh"
    sha256 = hashlib.sha256(b"A=1\nB=2\n").hexdigest()
    for text, same in (
        ("A=1\nEPOCH=7\nB=2\n", True),
        ("A=1\nEPOCH=8\nB=2\n", True),
        ("A=1\nB=3\nEPOCH=8\n", False),
    ):
        path.write_text(text)
        path.chmod(0o644)
        assert (list(file_differences(path, sha256, 0o644, ignoring=r"(?m)^EPOCH=.*\n")) == []) is same
