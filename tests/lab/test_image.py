"""The image cache: built once, whole or not at all. The unpacking itself is replaced."""

import io
import os
import threading
import time
from pathlib import Path

import pytest

from lab import image
from lab.errors import LabError
from lab.locks import locked, try_lock
from lab.progress import Progress


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every build that was begun."""
    begun: list[Path] = []

    def unpack(root: Path, *_: object) -> None:
        begun.append(root)
        time.sleep(0.3)
        root.mkdir()

    monkeypatch.setattr(image, "_unpack", unpack)
    monkeypatch.setattr(image, "_finish", lambda _: None)
    return begun


def ensure(cache: Path) -> str:
    return image.ensure(cache, Progress(io.StringIO()))


def test_two_at_once_build_once(tmp_path: Path, builds: list[Path]) -> None:
    threads = [threading.Thread(target=ensure, args=(tmp_path,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert image.root_of(tmp_path, ensure(tmp_path)).is_dir()


@pytest.mark.usefixtures("builds")
def test_a_failed_build_leaves_no_image_and_the_next_begins_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> None:
        raise LabError("no")

    with monkeypatch.context() as broken:
        broken.setattr(image, "_finish", fail)
        with pytest.raises(LabError):
            ensure(tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    assert image.root_of(tmp_path, ensure(tmp_path)).is_dir()


def test_what_a_killed_build_left_is_removed_but_not_a_build_that_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a.building").mkdir()
    (tmp_path / "b.building").mkdir()
    with locked(tmp_path / "b.lock", timeout_s=1, what="b"):
        image.remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.glob("*.building")] == ["b.building"]


@pytest.mark.usefixtures("builds")
def test_an_image_in_use_is_kept(tmp_path: Path) -> None:
    name = ensure(tmp_path)
    running = try_lock(tmp_path / name / image.USED, shared=True)
    assert running is not None
    assert image.remove_unused(tmp_path, set()) == ([], [name])
    os.close(running)
    # Not running, but a host of a lab was made from it.
    assert image.remove_unused(tmp_path, {name}) == ([], [name])
    assert image.remove_unused(tmp_path, set()) == ([name], [])
    assert list(tmp_path.iterdir()) == []


def test_a_lock_in_use_is_waited_for_and_then_named(tmp_path: Path) -> None:
    with (
        locked(tmp_path / "x", timeout_s=1, what="x"),
        pytest.raises(LabError, match="the thing is in use by another lab command"),
        locked(tmp_path / "x", timeout_s=0.1, what="the thing"),
    ):
        pass
