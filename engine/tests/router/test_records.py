"""What the router keeps: events, answers and the numbers of generations, when files go wrong too."""

import json
import os
from contextlib import ExitStack
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from cfn.config import Config
from cfn.metrics.files import pieces
from cfn.router import answers
from cfn.router.answers import AnswerStore
from cfn.router.events import EventLog
from cfn.router.generation import GenerationBook, generation_event

FULL = Path("/dev/full")


def test_events_go_on_in_a_new_file_after_rotation_and_removal(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append({"n": 1})
    path.rename(tmp_path / "rotated")
    log.append({"n": 2})
    path.unlink()
    log.append({"b": 3, "a": 0})
    assert path.read_text() == '{"a":0,"b":3}\n'
    assert (tmp_path / "rotated").read_text() == '{"n":1}\n'
    assert log.lost == 0


def test_events_are_rotated_by_size_and_the_oldest_go(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, max_bytes=20, parts=3)
    for number in range(9):
        log.append({"n": number, "x": "x" * 4})  # two of them reach 20 bytes
    assert [each["n"] for each in read(path)] == [4, 5, 6, 7, 8]
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "events.jsonl",
        "events.jsonl.1",
        "events.jsonl.2",
    ]


def test_a_rotation_that_was_cut_off_hides_nothing_after_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, max_bytes=1, parts=9)
    for number in range(4):
        log.append({"n": number})
    for number in (3, 2):  # a crash before .1 was moved leaves no .2
        path.with_name(f"events.jsonl.{number}").replace(path.with_name(f"events.jsonl.{number + 1}"))
    assert [each["n"] for each in read(path)] == [2, 3]
    log.append({"n": 4})
    assert [each["n"] for each in read(path)] == [0, 1, 2, 3, 4]


def read(path: Path) -> list[dict[str, int]]:
    with ExitStack() as stack:
        return [json.loads(line) for piece in pieces(path, stack) for line in piece.read().splitlines()]


def test_a_full_disk_loses_events_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.symlink_to(FULL)
    log = EventLog(path)
    log.append({"n": 1})
    log.append({"n": 2})
    assert log.lost == 2
    assert "No space left" in log.problem
    path.unlink()
    log.append({"n": 3})
    assert (log.lost, log.problem) == (2, "")
    assert path.read_text() == '{"n":3}\n'


def test_half_a_line_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.append({"n": 1})
    write = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data[:3]))
    log.append({"n": 2})
    monkeypatch.undo()
    log.append({"n": 3})
    assert (tmp_path / "events.jsonl").read_text() == '{"n":1}\n{"n":3}\n'
    assert log.lost == 1


def test_answers_outlive_the_process_and_a_cut_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.journal"
    store = AnswerStore(path)
    store.begin("a", {"x": 1})
    store.put("a", b'{"first": 1}')
    store.begin("b", {"x": 2})
    store.close()
    with path.open("ab") as file:
        file.write(b'c answer {"half')
    again = AnswerStore(path)
    assert again.get("a") == b'{"first": 1}'
    assert again.get("b") is None
    assert again.get("c") is None
    assert again.begun() == {"b": {"x": 2}}
    again.put("c", b'{"whole": 1}')
    assert again.get("c") == b'{"whole": 1}'
    again.close()


def test_a_damaged_journal_does_not_stop_a_start(tmp_path: Path) -> None:
    path = tmp_path / "answers.journal"
    path.write_bytes(b"\x00\xff\n\nt begun {{{\na answer {}\n")
    store = AnswerStore(path)
    assert store.get("a") == b"{}"
    assert store.begun() == {}
    store.close()


def test_the_journal_is_bounded_and_keeps_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_FILE_BYTES", 2_000)
    path = tmp_path / "answers.journal"
    store = AnswerStore(path)
    for number in range(500):
        store.put(f"t-{number}", b'{"n": %d}' % number)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= 4_000
    assert store.get("t-0") is None
    for number in range(450, 500):
        assert store.get(f"t-{number}") == b'{"n": %d}' % number
    store.close()
    assert AnswerStore(path).get("t-499") == b'{"n": 499}'


def test_what_was_refused_after_all_is_not_open_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "answers.journal"
    store = AnswerStore(path)
    for task in ("refused", "again"):
        store.begin(task, {"x": 1})
        store.forget(task)
    store.forget("never begun")
    store.begin("again", {"x": 2})
    store.close()
    again = AnswerStore(path)
    assert again.begun() == {"again": {"x": 2}}
    again.close()
    assert [answers.knows(path, task) for task in ("refused", "again", "never begun")] == [False, True, False]


def test_what_runs_for_long_outlives_rotations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "MAX_ANSWERS", 10)
    path = tmp_path / "answers.journal"
    store = AnswerStore(path)
    store.begin("long", {"x": 1})
    for number in range(100):
        store.put(f"t-{number}", b"{}")
    store.close()
    again = AnswerStore(path)
    assert again.begun() == {"long": {"x": 1}}
    assert [again.get(f"t-{number}") is not None for number in (79, 90, 99)] == [False, True, True]
    again.close()


def test_an_answer_that_cannot_be_written_is_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    store = AnswerStore(tmp_path / "answers.journal")
    monkeypatch.setattr(os, "write", full)
    store.begin("a", {})
    store.put("a", b"{}")
    monkeypatch.undo()
    assert store.get("a") == b"{}"
    assert store.lost == 1
    store.close()


def test_numbers_of_generations_are_never_reused(tmp_path: Path) -> None:
    path = tmp_path / "generation.json"
    ten = Config(coordination_version="v2", traffic_pct=Decimal(10))
    first, new = GenerationBook(path).put_in_force(ten, 0.0)
    assert (first.number, first.since, new) == (1, "1970-01-01T00:00:00.000Z", True)
    # A restart under the same configuration goes on.
    same, new = GenerationBook(path).put_in_force(ten, 5.0)
    assert (same, new) == (first, False)
    book = GenerationBook(path)
    assert book.put_in_force(replace(ten, traffic_pct=Decimal(5)), 5.0)[0].number == 2
    assert book.put_in_force(ten, 6.0)[0].number == 3
    # The numbers of a damaged book are unknown: none of them comes again.
    path.write_text('{"number": 3')
    damaged = GenerationBook(path)
    assert damaged.put_in_force(ten, 1_700_000_000.0)[0].number == 1_700_000_001
    assert damaged.problem == ""
    assert damaged.put_in_force(Config(), 1_700_000_009.0)[0].number == 1_700_000_002


def test_a_number_that_cannot_be_kept_is_a_problem_and_no_obstacle(tmp_path: Path) -> None:
    book = GenerationBook(tmp_path / "missing" / "generation.json")
    assert book.put_in_force(Config(), 0.0)[0].number == 1
    assert "cannot be written" in book.problem
    assert book.put_in_force(Config(epoch=1), 0.0)[0].number == 2


def test_generation_event_has_every_field_of_the_record_and_not_the_key(tmp_path: Path) -> None:
    config = Config(coordination_version="v2", traffic_pct=Decimal("0.50"), split_key="secret-key")
    generation, _ = GenerationBook(tmp_path / "g").put_in_force(config, 0.0)
    event = generation_event(generation, host="h", release="r")
    assert event == {
        "v": 1,
        "type": "generation",
        "time": "1970-01-01T00:00:00.000Z",
        "host": "h",
        "release": "r",
        "generation": 1,
        "version": "v2",
        "traffic_pct": 0.5,
        "epoch": 0,
        "split_key_sha256": event["split_key_sha256"],
        "max_agents": 100,
    }
    assert "secret-key" not in json.dumps(event)
