"""The programs that the engine is compared with: the limit really exchanges its messages."""

import shutil
import sys
from pathlib import Path

import pytest

from engine.bench.rounds import Programs, Rounds, SkippedError

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler (cc)")


@needs_cc
@pytest.mark.parametrize("command", ["", "/bin/true"])
@pytest.mark.parametrize("mode", ["cold", "warm"])
def test_the_limit_measures_round_after_round(tmp_path: Path, mode: str, command: str) -> None:
    with Programs(tmp_path).started(mode, 5, command=command) as running:
        assert list(running) == ["limit"]
        assert [running["limit"].sample_ms() > 0 for _ in range(3)] == [True] * 3


@needs_cc
@pytest.mark.parametrize("mode", ["cold", "warm"])
def test_a_command_that_fails_is_no_figure(
    tmp_path: Path, mode: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with Programs(tmp_path).started(mode, 2, command="/bin/false") as running, pytest.raises(RuntimeError):
        running["limit"].sample_ms()
    assert "a worker died" in capfd.readouterr().err


def test_without_a_compiler_there_is_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    programs = Programs(tmp_path)
    assert programs.said == {"limit": "there is no C compiler (cc)"}
    with programs.started("cold", 2) as running:
        assert running == {}


def test_what_cannot_run_says_why() -> None:
    with pytest.raises(SkippedError, match=r"^it is not installed$"):
        Rounds([sys.executable, "-c", "print('skipped: it is not installed')"])


@pytest.mark.parametrize("peer", ["redis", "nats"])
@pytest.mark.parametrize("mode", ["cold", "warm"])
def test_a_peer_measures_or_says_what_it_lacks(tmp_path: Path, peer: str, mode: str) -> None:
    programs = Programs(tmp_path)
    with programs.started(mode, 3, peers=[peer]) as running:
        if peer in running:
            assert [running[peer].sample_ms() > 0 for _ in range(2)] == [True, True]
        else:
            assert "is not installed" in programs.said[peer]
