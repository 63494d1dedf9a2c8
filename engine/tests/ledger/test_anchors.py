"""Heads on a host: kept once, never replaced, and what verification is held against."""

import io
import json
from pathlib import Path

import pytest

from cfn.commands.ledger import main
from cfn.errors import DamagedError
from cfn.ledger import anchors
from cfn.ledger.chain import Head

A, B, C = (letter * 64 for letter in "abc")
NOW = "2026-01-31T12:00:00.000Z"


def keep(folder: Path, sequence: int, hash_: str) -> bool:
    return anchors.keep(folder, "lab", Head(sequence, hash_), time=NOW)


def test_a_head_is_kept_once(tmp_path: Path) -> None:
    assert [keep(tmp_path, 1, A), keep(tmp_path, 1, A), keep(tmp_path, 5, B)] == [True, False, True]
    assert anchors.read(tmp_path, "lab") == [Head(1, A), Head(5, B)]
    assert anchors.read(tmp_path, "production") == []


@pytest.mark.parametrize(("sequence", "hash_"), [(5, C), (3, C)])
def test_another_past_is_refused(tmp_path: Path, sequence: int, hash_: str) -> None:
    keep(tmp_path, 5, B)
    with pytest.raises(DamagedError, match="cut or rewritten"):
        keep(tmp_path, sequence, hash_)
    assert anchors.read(tmp_path, "lab") == [Head(5, B)]


def test_a_writer_that_comes_late_is_no_damage_where_the_other_brought_its_record(tmp_path: Path) -> None:
    late, newest = Head(2, B), Head(3, C)
    anchors.keep(tmp_path, "lab", newest, [Head(1, A), late], time=NOW)
    assert not anchors.keep(tmp_path, "lab", late, [Head(1, A)], time=NOW)
    assert anchors.read(tmp_path, "lab") == [Head(1, A), late, newest]


def test_earlier_heads_are_no_way_around_what_is_kept(tmp_path: Path) -> None:
    keep(tmp_path, 2, B)
    for earlier in ([Head(2, C)], [Head(1, A), Head(2, A)]):
        with pytest.raises(DamagedError, match="cut or rewritten"):
            anchors.keep(tmp_path, "lab", Head(3, C), earlier, time=NOW)
    with pytest.raises(DamagedError, match="cut or rewritten"):
        anchors.keep(tmp_path, "lab", Head(1, A), time=NOW)
    anchors.keep(tmp_path, "lab", Head(4, C), [Head(1, A), Head(2, B), Head(3, A)], time=NOW)
    assert anchors.read(tmp_path, "lab") == [Head(2, B), Head(3, A), Head(4, C)]


def test_a_line_torn_by_a_crash_is_written_over(tmp_path: Path) -> None:
    keep(tmp_path, 1, A)
    with (tmp_path / "lab.jsonl").open("a") as file:
        file.write('{"v": 1, "seq')
    assert keep(tmp_path, 2, B)
    assert anchors.read(tmp_path, "lab") == [Head(1, A), Head(2, B)]


def test_damage_is_said(tmp_path: Path) -> None:
    (tmp_path / "lab.jsonl").write_text("garbage\n")
    with pytest.raises(DamagedError, match="line 1"):
        keep(tmp_path, 1, A)


def test_a_ledger_that_was_rewritten_as_a_whole_is_found_by_a_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CFN_ROOT", str(tmp_path / "host"))
    folder = ("--folder", str(tmp_path / "ledger"))
    append = ("append", "--kind", "flipped", "--stage", "stage1", "--actor", "me", "--environment", "lab")

    def run(*arguments: str, stdin: str = "") -> tuple[int, str]:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = main([*folder, *arguments])
        return code, capsys.readouterr().out

    for number in range(3):
        head = json.loads(run(*append, "--json", stdin=json.dumps({"n": number}))[1])
        run("anchor", "--environment", "lab", "--sequence", str(head["sequence"]), "--hash", head["hash"])
    kept = tmp_path / "kept.json"
    kept.write_text(json.dumps({"one": json.loads(run("anchors", "--environment", "lab")[1])["anchors"]}))
    assert run("verify", "--anchors", str(kept))[0] == 0
    for path in (tmp_path / "ledger").iterdir():
        path.unlink()
    for number in range(3):
        run(*append, stdin=json.dumps({"n": -number}))
    assert run("verify")[0] == 0
    assert run("verify", "--anchors", str(kept))[0] == 6
