"""Engines of real processes for tests (harness.py), one for each test."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .harness import BIN, Engine

__all__ = ["BIN", "Engine"]


@pytest.fixture
def engine() -> Iterator[Engine]:
    """An engine with its folders, not started."""
    root = Path(tempfile.mkdtemp(prefix="cfn", dir="/dev/shm"))
    engine = Engine(root)
    engine.configure(CFN_MAX_AGENTS=100)
    try:
        yield engine
    finally:
        engine.stop()
        shutil.rmtree(root)


@pytest.fixture
def running(engine: Engine) -> Engine:
    """A started engine."""
    engine.start()
    return engine


@pytest.fixture
def hybrid(engine: Engine) -> Engine:
    """A started engine with four coordinators."""
    engine.configure(CFN_MAX_AGENTS=100, CFN_TOPOLOGY="hybrid", CFN_COORDINATORS=4)
    engine.start_hybrid(4)
    return engine
