"""The bundle of a host: what is in it, its bounds, and that a broken host gives what it can."""

import io
import json
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from module_utils.diagnostics_bundle import archive, facts, redacted, secrets_of, units, write
from module_utils.diagnostics_host import Host, Part, parts
from module_utils.diagnostics_reading import Read, read_end, run

KEY = "Tr33-split-key"
PEM = "OPENSSH PRIVATE KEY-----"
CONFIG = f'CFN_COORDINATION_VERSION="v2"\nCFN_TRAFFIC_PERCENTAGE="7.5"\nCFN_SPLIT_KEY="{KEY}"\n'
HEADING = {"host": "one", "time_s": 1_700_000_000.0}


def host(root: Path, answers: Callable[[list[str]], Read] | None = None) -> Host:
    return Host(root.resolve(), answers or (lambda argv: (f"{argv[0]} says {KEY}\n", "")), 0.0, 4096)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A host with a configuration, records and secrets."""
    for name, text in {
        "etc/cfn/config.sh": CONFIG,
        "etc/cfn/watch-key": f"-----BEGIN {PEM}\nb3BlbnNzaC1r\n-----END {PEM}\n",
        "etc/cfn/watch.json": '{"ssh": {"key": "/etc/cfn/watch-key"}}\n',
        "var/log/cfn/coordination-events.jsonl": f'{{"task_id": "a", "detail": "said {KEY}"}}\n',
        "var/log/cfn/v2-metrics.jsonl": "".join(f'{{"n": {n}}}\n' for n in range(2000)),
        "var/lib/cfn/ledger/ledger.jsonl": json.dumps(
            {"sequence": 1, "time": "T", "kind": "verdict", "stage": "stage1", "actor": "ada",
             "data": {"verdict": {"verdict": "PASS"}, "request": {"evidence": "x" * 500}}}) + "\n{torn\n",
    }.items():  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path.resolve()


def bundle(
    root: Path, answers: Callable[[list[str]], Read] | None = None
) -> tuple[dict[str, str], list[Part]]:
    """The texts of a bundle by name, and its parts."""
    here = host(root, answers)
    collected = list(parts(here))
    clean, removed = redacted(collected, secrets_of(here.root, collected))
    content, _ = archive(clean, {**HEADING, "removed": removed}, 1_000_000)
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        names = tar.getnames()
        assert all(tar.getmember(name).mode == 0o600 for name in names)
        texts = {}
        for name in names:
            file = tar.extractfile(name)
            assert file is not None
            texts[name] = file.read().decode()
    return texts, clean


def test_the_split_key_is_in_no_part_of_a_bundle(tree: Path) -> None:
    texts, _ = bundle(tree)
    assert {"config/config.sh", "events.jsonl", "journal.txt", "units.txt", "facts.json"} <= set(texts)
    for name, text in texts.items():
        assert KEY not in text, name
        assert "b3BlbnNzaC1r" not in text, name
    assert "said [removed]" in texts["events.jsonl"]
    assert json.loads(texts["MANIFEST.json"])["removed"] >= 3


def test_a_file_that_is_a_secret_is_named_and_left_out(tree: Path) -> None:
    texts, _ = bundle(tree)
    assert "config/watch-key" not in texts
    listed = {each["name"]: each["problem"] for each in json.loads(texts["MANIFEST.json"])["parts"]}
    assert listed["config/watch-key"] == "left out: it is a secret"
    assert listed["config/config.sh"] == ""


def test_logs_are_cut_at_whole_lines_and_the_manifest_says_so(tree: Path) -> None:
    texts, clean = bundle(tree)
    lines = texts["samples.jsonl"].splitlines()
    assert json.loads(lines[-1]) == {"n": 1999}
    assert json.loads(lines[0])["n"] > 1000
    assert "the last 4096 of" in next(part.problem for part in clean if part.name == "samples.jsonl")


def test_the_ledger_is_summed_up_without_evidence(tree: Path) -> None:
    texts, _ = bundle(tree)
    assert "1 T verdict stage1 ada" in texts["ledger.txt"]
    assert "PASS" in texts["ledger.txt"]
    assert "xxxx" not in texts["ledger.txt"]
    assert "damaged: " in texts["ledger.txt"]


def test_a_host_on_which_nothing_is_installed_gives_a_bundle_that_says_so(tmp_path: Path) -> None:
    texts, clean = bundle(tmp_path.resolve(), lambda argv: ("", f"{argv[0]}: No such file or directory"))
    problems = {part.name: part.problem for part in clean}
    assert problems["status.json"] == "no release is in force on this host"
    assert problems["config/config.sh"] == "does not exist"
    assert problems["journal.txt"] == "journalctl: No such file or directory"
    assert json.loads(texts["versions.json"])["release"] is None
    found = facts(host(tmp_path), clean)
    assert (found["installed"], found["version"], found["units"]) == (False, None, {})


def test_facts_come_from_the_file_where_the_engine_does_not_answer(tree: Path) -> None:
    _, clean = bundle(tree)
    found = facts(host(tree), clean)
    assert (found["version"], found["traffic_pct"], found["engine"]) == ("v2", 7.5, None)


def test_a_part_that_raises_is_a_problem_and_no_end(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: 1 / 0)
    monkeypatch.setattr(os, "cpu_count", lambda: 1 / 0)
    texts, clean = bundle(tree)
    assert "facts.json" not in texts
    assert "ZeroDivisionError" in next(part.problem for part in clean if part.name == "facts.json")
    assert "journal.txt" in texts


def test_a_bundle_is_bounded_and_what_was_cut_is_said() -> None:
    many = [Part(f"part-{n}", "here", f"{n}\n" * 100) for n in range(5)]
    content, manifest = archive(many, dict(HEADING), 500)
    assert [part["bytes"] for part in manifest["parts"]] == [200, 200, 98, 0, 0]
    assert manifest["parts"][2]["problem"] == "the bundle is full: the last 100 bytes"
    assert "full" in manifest["parts"][4]["problem"]
    assert len(content) < 2000


def test_a_bundle_on_disk_is_for_its_owner_only(tmp_path: Path) -> None:
    folder = tmp_path / "bundles"
    old = os.umask(0)
    try:
        paths = [write(folder, f"{n}.tar.gz", b"x") for n in range(4)]
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(paths[-1].stat().st_mode) == 0o600
    assert len(list(folder.iterdir())) == 3
    with pytest.raises(FileExistsError):
        write(folder, "3.tar.gz", b"y")
    folder.chmod(0o755)
    with pytest.raises(PermissionError):
        write(folder, "5.tar.gz", b"y")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(PermissionError):
        write(tmp_path / "link", "6.tar.gz", b"y")


def test_nothing_is_read_through_a_link_or_from_a_pipe(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    (root / "plain").write_text("shadow\n")
    (root / "link").symlink_to(root / "plain")
    (root / "folder").symlink_to(root)
    os.mkfifo(root / "pipe")
    assert read_end(root / "plain", 100) == ("shadow\n", "")
    assert read_end(root / "link", 100)[0] == ""
    assert read_end(root / "folder/plain", 100)[0] == ""
    assert read_end(root / "pipe", 100) == ("", "not a plain file")
    assert read_end(root / "gone", 100) == ("", "No such file or directory")


def test_a_command_is_bounded_in_size_and_time() -> None:
    text, problem = run(["seq", "1", "100000"], most_bytes=1000, timeout_s=20)
    assert text.endswith("99999\n100000\n")
    assert len(text) <= 1000
    assert text.splitlines()[0].isdigit()
    assert problem == "the last 1000 bytes"
    text, problem = run(["sh", "-c", "echo first; sleep 60"], most_bytes=1000, timeout_s=0.3)
    assert (text, problem) == ("first\n", "killed: no end within 0.3 s")
    assert run(["sh", "-c", "echo no >&2; exit 3"], most_bytes=99, timeout_s=20) == ("no\n", "exit code 3")
    assert run(["/does/not/exist"], most_bytes=99, timeout_s=20)[1].endswith("No such file or directory")


def test_units_from_what_systemctl_shows() -> None:
    shown = (
        "Id=cfn-router.service\nLoadState=loaded\nActiveState=failed\nSubState=failed\nResult=signal\nNRestarts=3\n\n"
        "Id=cfn-x.service\nLoadState=not-found\nActiveState=inactive\nSubState=dead\n"
    )
    assert units(shown) == {
        "cfn-router.service": {"state": "failed/failed", "result": "signal", "restarts": 3}
    }
