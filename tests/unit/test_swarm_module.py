"""cfn_swarm: which ladder counts as passed before, and what is left of it then."""

from pathlib import Path
from typing import Any

import pytest

from library import cfn_swarm
from library.cfn_swarm import digest_of, first_steps, keep

LADDER: list[dict[str, Any]] = [
    {"agents": 10, "version": "v1"},
    {"agents": 10},
    {"agents": 500},
    {"agents": 708},
]
CONFIG = b'CFN_TRAFFIC_PERCENTAGE="75"\nCFN_EPOCH="7"\nCFN_MAX_AGENTS="708"\n'
BEFORE = digest_of("releases/1", CONFIG, [b"limits", b"v1"], LADDER)


@pytest.mark.parametrize(
    "config",
    [
        CONFIG.replace(b"75", b"100"),
        CONFIG.replace(b'"7"', b"8"),
        b'export CFN_TRAFFIC_PERCENTAGE=5\nCFN_COORDINATION_VERSION="v2"\nCFN_MAX_AGENTS="708"\n',
    ],
)
def test_a_flip_leaves_what_has_passed(config: bytes) -> None:
    assert digest_of("releases/1", config, [b"limits", b"v1"], LADDER) == BEFORE


@pytest.mark.parametrize(
    ("release", "config", "further", "ladder"),
    [
        ("releases/2", CONFIG, [b"limits", b"v1"], LADDER),
        ("releases/1", CONFIG.replace(b"708", b"500"), [b"limits", b"v1"], LADDER),
        ("releases/1", CONFIG, [b"limits", b""], LADDER),
        ("releases/1", CONFIG, [b"limit", b"sv1"], LADDER),
        ("releases/1", CONFIG, [b"limits", b"v1"], LADDER[:-1]),
    ],
)
def test_anything_else_is_tried_again(
    release: str, config: bytes, further: list[bytes], ladder: list[dict[str, Any]]
) -> None:
    assert digest_of(release, config, further, ladder) != BEFORE


def test_of_what_has_passed_the_first_step_of_each_version_is_left() -> None:
    assert first_steps(LADDER, "v2") == [{"agents": 10, "version": "v1"}, {"agents": 10}]


def test_what_has_passed_is_kept_where_it_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cfn_swarm, "PASSED", tmp_path / "passed")
    keep("one")
    keep("two")
    assert [path.name for path in tmp_path.iterdir()] == ["passed"]
    assert (tmp_path / "passed").read_text() == "two"
    monkeypatch.setattr(cfn_swarm, "PASSED", tmp_path / "full/passed")
    keep("three")
    assert not (tmp_path / "full").exists()
