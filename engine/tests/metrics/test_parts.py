"""Times, histograms and files: the parts of the reduction that know nothing of records."""

import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfn.errors import UsageError
from cfn.metrics import checks, files
from cfn.metrics.files import MAX_LINE_BYTES, pieces
from cfn.metrics.histogram import Histogram
from cfn.metrics.packing import pack, unpack
from cfn.metrics.times import format_ms, parse_ms, read_argument

# Times and histograms


@pytest.mark.parametrize(
    "text", ["2026-01-31T12:00:00", "2026-01-31", "now", "", "2026-02-30T12:00:00.000Z", "1e9", "-5", "NaN"]
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        read_argument(text)


@given(st.integers(0, 4_000_000_000_000))
def test_a_time_survives_its_text(moment: int) -> None:
    assert parse_ms(format_ms(moment)) == moment


@settings(max_examples=60)
@given(st.lists(st.floats(0.01, 1e8), min_size=1, max_size=60), st.sampled_from([0.5, 0.95, 0.99]))
def test_a_quantile_is_within_one_percent_also_when_merged(values: list[float], share: float) -> None:
    parts = [Histogram(), Histogram()]
    for number, value in enumerate(values):
        parts[number % 2].add(value)
    parts[0].merge(Histogram.from_json(json.loads(json.dumps(parts[1].as_json()))))
    exact = sorted(values)[max(1, -(-int(share * 1000) * len(values) // 1000)) - 1]
    found = parts[0].quantile(share)
    assert found is not None
    assert abs(found - exact) <= 0.0100001 * exact


def test_an_empty_histogram_has_no_quantile() -> None:
    assert Histogram().quantile(0.5) is None


# Files


def read(path: Path) -> list[tuple[bytes, str]]:
    with ExitStack() as stack:
        return [(each.read(), each.damage) for each in pieces(path, stack)]


def test_rotated_parts_are_read_first_and_a_missing_file_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert read(path) == []
    for name, content in (("log.2", b"1\n"), ("log.1", b"2\n\n"), ("log", b"3\n4")):
        (tmp_path / name).write_bytes(content)
    assert read(path) == [(b"1\n", ""), (b"2\n\n", ""), (b"3\n", "cut")]


def test_an_endless_line_is_skipped_in_bounded_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"7\n" + b"x" * (6 * MAX_LINE_BYTES) + b"\n8\n")
    assert read(path) == [(b"7\n", "too_long"), (b"8\n", "")]
    monkeypatch.setattr(files, "PIECE_BYTES", 10)
    path.write_bytes(b"7\n" + b"x" * (2 * MAX_LINE_BYTES))
    assert read(path) == [(b"7\n", "too_long")]


@settings(max_examples=60)
@given(st.lists(st.binary(max_size=12), max_size=20), st.integers(1, 40))
def test_pieces_are_the_file_in_whole_lines(contents: list[bytes], piece_bytes: int) -> None:
    content = b"\n".join(contents)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        patched.setattr(files, "PIECE_BYTES", piece_bytes)
        path = Path(folder) / "log"
        path.write_bytes(content)
        found = read(path)
    whole = content[: content.rfind(b"\n") + 1]
    assert b"".join(part for part, _ in found) == whole
    assert all(part.endswith(b"\n") for part, _ in found if part)
    assert [damage for _, damage in found if damage] == (["cut"] if content != whole else [])


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_nan_is_refused_wherever_it_stands_in_an_object(constant: str) -> None:
    with pytest.raises(checks.NotFiniteError):
        checks.load_object(f'{{"a": [{{"b": {constant}}}]}}')


def test_no_bit_of_what_is_packed_may_change() -> None:
    for number in range(64):  # every length of the last group, with and without unused bits
        packed = pack({"v": 2, "host": "h" * number}, {})
        assert unpack(packed) == {"v": 2, "host": "h" * number}
        text = packed["packed"]
        last = len(text.rstrip("=")) - 1
        for other in set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") - {text[last]}:
            with pytest.raises(ValueError, match="packed"):
                unpack(packed | {"packed": text[:last] + other + text[last + 1 :]})
