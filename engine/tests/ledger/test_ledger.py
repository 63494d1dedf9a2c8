"""The ledger: every change to a chain is found, and a crash in the middle of a write harms nothing."""

import errno
import io
import json
import multiprocessing
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfn.commands.ledger import main
from cfn.errors import DamagedError, RefusedError, UsageError
from cfn.ledger import backwards
from cfn.ledger.canonical import canonical, sha256
from cfn.ledger.chain import NO_HASH, Anchor, Entry, Head, next_record, verify
from cfn.ledger.store import LedgerStore
from cfn.ledger.table import table

NAN = '{"a": NaN}'


def entry(number: int = 1, **changes: Any) -> Entry:
    values: dict[str, Any] = {
        "time": "2026-01-31T12:00:00.000Z",
        "environment": "lab",
        "kind": "flipped",
        "stage": "stage1",
        "actor": "a test",
        "data": {"number": number, "text": "grün \u2028"},
    }
    return Entry(**(values | changes))


def chain(length: int) -> list[bytes]:
    lines, head = [], Head()
    for number in range(length):
        record = next_record(head, entry(number))
        head = Head(record["sequence"], record["hash"])
        lines.append(canonical(record).encode())
    return lines


def filled(folder: Path, length: int = 3) -> LedgerStore:
    store = LedgerStore(folder, lambda _: None)
    for number in range(length):
        store.append(entry(number))
    return store


def test_a_record_holds_the_hash_of_the_one_before() -> None:
    first, second = (json.loads(line) for line in chain(2))
    assert (first["sequence"], first["previous"]) == (1, NO_HASH)
    assert (second["sequence"], second["previous"]) == (2, first["hash"])
    assert first["hash"] == sha256({key: value for key, value in first.items() if key != "hash"})


def test_an_untouched_chain_is_sound() -> None:
    finding = verify(chain(5))
    assert (finding.problem, finding.head.sequence) == ("", 5)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 4), st.integers(0, 10**6), st.integers(1, 255))
def test_any_changed_byte_is_found_and_its_record_named(record: int, place: int, change: int) -> None:
    lines = chain(5)
    line = bytearray(lines[record])
    line[place % len(line)] ^= change
    lines[record] = bytes(line)
    assert f"record {record + 1} " in verify(lines).problem


@pytest.mark.parametrize("removed", [0, 1, 3])
def test_a_removed_record_is_found(removed: int) -> None:
    lines = chain(5)
    del lines[removed]
    assert f"record {removed + 1} cannot be trusted" in verify(lines).problem


def test_a_doubled_and_a_swapped_record_are_found() -> None:
    lines = chain(3)
    assert "record 3" in verify([lines[0], lines[1], lines[1], lines[2]]).problem
    assert "record 2" in verify([lines[0], lines[2], lines[1]]).problem


def test_a_forged_record_with_a_hash_of_its_own_is_found_by_the_next() -> None:
    lines = chain(3)
    first = Head(1, json.loads(lines[0])["hash"])
    lines[1] = canonical(next_record(first, entry(7))).encode()
    assert "record 3 cannot be trusted: it does not follow" in verify(lines).problem


def test_a_record_with_another_spelling_of_the_same_content_is_found() -> None:
    line = chain(1)[0]
    assert "canonical" in verify([line.replace(b'":', b'": ', 1)]).problem


def test_a_cut_end_and_a_rewritten_chain_show_against_a_kept_head() -> None:
    lines = chain(4)
    kept = [Anchor("a host", verify(lines).head.hash, 4)]
    assert verify(lines, kept).problem == ""
    longer = [*lines, canonical(next_record(verify(lines).head, entry(9))).encode()]
    assert verify(longer, kept).problem == ""
    assert "that a host keeps" in verify(lines[:3], kept).problem
    assert "rewritten" in verify(chain(3), [Anchor("a host", "f" * 64)]).problem
    assert verify(lines, [Anchor("a host", kept[0].hash, 3)]).missing != ()


def test_append_is_for_its_group_only_and_shows_again(tmp_path: Path) -> None:
    store = filled(tmp_path / "ledger")
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o640
    assert [record["data"]["number"] for record in store.records(2)] == [1, 2]
    assert "flipped" in table(store.records(3))


def test_a_torn_tail_is_put_aside_and_said(tmp_path: Path) -> None:
    store = filled(tmp_path)
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + b'{"half": "a rec')
    assert "record 4" in store.verify().problem
    assert len(store.records(10)) == 3
    said: list[str] = []
    record = LedgerStore(tmp_path, said.append).append(entry())
    assert record["sequence"] == 4
    assert store.verify().problem == ""
    aside = list(tmp_path.glob("*.torn"))
    assert [path.read_bytes() for path in aside] == [b'{"half": "a rec']
    assert str(aside[0]) in said[0]


def test_a_torn_tail_that_cannot_be_put_aside_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = filled(tmp_path)
    torn = store.path.read_bytes() + b'{"half": "a rec'
    store.path.write_bytes(torn)
    really = os.open

    def full(path: Any, *rest: Any, **named: Any) -> int:
        if str(path).endswith(".torn"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return really(path, *rest, **named)

    monkeypatch.setattr(os, "open", full)
    with pytest.raises(RefusedError, match=r"torn.*No space left"):
        store.append(entry())
    assert store.path.read_bytes() == torn


@pytest.mark.parametrize("cut", range(0, 300, 23))
def test_a_crash_at_any_byte_of_a_write_loses_that_record_only(tmp_path: Path, cut: int) -> None:
    store = filled(tmp_path, 1)
    head = store.head_path.read_bytes()
    first = len(store.path.read_bytes())
    store.append(entry())
    store.path.write_bytes(store.path.read_bytes()[: first + cut])
    store.head_path.write_bytes(head)  # it is replaced after the record
    assert store.append(entry())["sequence"] == 2
    assert store.verify().problem == ""


def test_a_crash_between_record_and_head_is_no_damage(tmp_path: Path) -> None:
    store = filled(tmp_path, 2)
    head = store.head_path.read_bytes()
    store.append(entry())
    store.head_path.write_bytes(head)
    assert store.append(entry())["sequence"] == 4
    assert store.verify().problem == ""


def test_nothing_is_appended_after_an_end_that_cannot_be_trusted(tmp_path: Path) -> None:
    store = filled(tmp_path)
    damaged = store.path.read_bytes().replace(b'"number":2', b'"number":7')
    store.path.write_bytes(damaged)
    with pytest.raises(DamagedError, match="the last record"):
        store.append(entry())
    assert store.path.read_bytes() == damaged


def test_a_record_cut_off_the_end_shows_at_the_next_append(tmp_path: Path) -> None:
    store = filled(tmp_path)
    lines = store.path.read_bytes().splitlines(keepends=True)
    store.path.write_bytes(b"".join(lines[:2]))
    with pytest.raises(DamagedError, match="cut off"):
        store.append(entry())
    assert "cut off" in store.verify().problem


def test_damage_in_the_middle_is_left_to_verify(tmp_path: Path) -> None:
    store = filled(tmp_path)
    store.path.write_bytes(store.path.read_bytes().replace(b'"number":1', b'"number":7'))
    assert store.append(entry())["sequence"] == 4
    assert "record 2" in store.verify().problem
    with pytest.raises(DamagedError, match="record 2"):
        store.records(1)


def test_an_append_reads_the_end_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path, 1)
    big = entry(data={"text": "x" * 50_000})
    for _ in range(40):
        store.append(big)
    read = 0
    pread = os.pread

    def counted(descriptor: int, length: int, offset: int) -> bytes:
        nonlocal read
        read += length
        return pread(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", counted)
    store.append(entry())
    assert read < 200_000 < store.path.stat().st_size


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lines=st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=8),
       block=st.integers(1, 30))  # fmt: skip
def test_lines_come_backwards_whatever_the_block(tmp_path: Path, lines: list[bytes], block: int) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    with path.open("rb") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(backwards, "BLOCK_BYTES", block)
        found = list(backwards.lines_backwards(file.fileno(), path.stat().st_size))
    assert found == lines[::-1]


def test_the_newest_come_first_and_are_held_against_one_another(tmp_path: Path) -> None:
    store = filled(tmp_path, 4)
    assert [record["sequence"] for record in store.newest()] == [4, 3, 2, 1]
    lines = store.path.read_bytes().splitlines(keepends=True)
    store.path.write_bytes(b"".join([lines[0], lines[2], lines[3]]))
    newest = store.newest()
    assert [next(newest)["sequence"], next(newest)["sequence"]] == [4, 3]
    with pytest.raises(DamagedError, match="follower"):
        next(newest)


def test_records_of_some_kinds_are_shown_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = LedgerStore(tmp_path, lambda _: None)
    for number, kind in enumerate(("archived", "flipped", "decommissioned", "flipped", "restored")):
        store.append(entry(number, kind=kind))
    kinds = ["--kind", "archived", "--kind", "restored"]
    assert main(["--folder", str(tmp_path), "show", "--json", "--last", "9", *kinds]) == 0
    assert [each["kind"] for each in json.loads(capsys.readouterr().out)["records"]] == [
        "archived",
        "restored",
    ]
    assert main(["--folder", str(tmp_path), "show", "--json", "--last", "1", *kinds]) == 0
    assert [each["kind"] for each in json.loads(capsys.readouterr().out)["records"]] == ["restored"]


def test_a_full_disk_leaves_the_ledger_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path)
    before = store.path.read_bytes()
    write = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) <= 50:
            raise OSError(28, "No space left on device")
        return write(descriptor, data[:-50])

    monkeypatch.setattr(os, "write", half)
    with pytest.raises(RefusedError, match="No space left"):
        store.append(entry())
    assert store.path.read_bytes() == before


def _append_some(folder: Path) -> None:
    for number in range(10):
        LedgerStore(folder, lambda _: None).append(entry(number))


def test_writers_wait_for_one_another(tmp_path: Path) -> None:
    writers = [multiprocessing.Process(target=_append_some, args=(tmp_path,)) for _ in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(30)
    finding = LedgerStore(tmp_path, lambda _: None).verify()
    assert (finding.problem, finding.head.sequence) == ("", 40)


@pytest.mark.parametrize(
    "changes", [{"kind": "invented"}, {"time": "yesterday"}, {"data": {"a": float("nan")}}, {"stage": 1}]
)
def test_what_is_no_record_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        LedgerStore(tmp_path, lambda _: None).append(entry(**changes))
    assert LedgerStore(tmp_path, lambda _: None).records(1) == []


def run(monkeypatch: pytest.MonkeyPatch, text: str, *arguments: str) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return main(list(arguments))


APPEND = ("append", "--kind", "flipped", "--stage", "stage1", "--actor", "me", "--environment", "lab")


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = ("--folder", str(tmp_path))
    assert run(monkeypatch, '{"traffic_pct": 10}', *folder, *APPEND, "--json") == 0
    record = json.loads(capsys.readouterr().out)
    assert run(monkeypatch, "", *folder, "show", "--json", "--last", "5") == 0
    assert json.loads(capsys.readouterr().out) == {"records": [record]}
    assert run(monkeypatch, "", *folder, "show") == 0
    assert "traffic_pct=10" in capsys.readouterr().out
    assert run(monkeypatch, "", *folder, "verify") == 0
    assert record["hash"] in capsys.readouterr().out
    assert run(monkeypatch, "", *folder, "verify", "--head", "0a" * 32) == 6
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(path.read_bytes().replace(b'"traffic_pct":10', b'"traffic_pct":90'))
    assert run(monkeypatch, "", *folder, "verify") == 6
    assert "record 1" in capsys.readouterr().err
    assert run(monkeypatch, "", *folder, "verify", "--json") == 0
    assert json.loads(capsys.readouterr().out)["intact"] is False


@pytest.mark.parametrize("text", ["", "[]", NAN, "{", '{"a": 1e999}'])
def test_data_that_is_no_object_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    with pytest.raises(UsageError):
        run(monkeypatch, text, "--folder", str(tmp_path), *APPEND)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9) | st.booleans(), max_size=4))
def test_whatever_is_appended_reads_back_the_same(tmp_path: Path, data: dict[str, Any]) -> None:
    store = LedgerStore(tmp_path, lambda _: None)
    try:
        store.append(entry(data=data))
    except UsageError:  # a lone surrogate has no UTF-8
        return
    assert store.records(1)[0]["data"] == data
