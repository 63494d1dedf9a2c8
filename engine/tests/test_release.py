"""A release with a lab fault starts in the lab only."""

from pathlib import Path

import pytest

from cfn.errors import ConfigError
from cfn.paths import Paths
from cfn.release import SOURCE, LabFault, lab_fault, parse_fault, version


def test_an_ordinary_release_has_no_fault(tmp_path: Path) -> None:
    assert lab_fault(Paths(tmp_path), release=tmp_path) == LabFault()


def test_a_faulty_release_is_refused_outside_the_lab(tmp_path: Path) -> None:
    (tmp_path / "lab-fault").write_text("lose:30\n")
    with pytest.raises(ConfigError, match="lab hosts only"):
        lab_fault(Paths(tmp_path), release=tmp_path)
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/cfn-lab.json").write_text("{}")
    assert lab_fault(Paths(tmp_path), release=tmp_path) == LabFault(lose_pct=30)


@pytest.mark.parametrize("text", ["", "lose", "lose:101", "lose:-1", "slow:1.5", "drop:3"])
def test_bad_faults_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="lab fault"):
        parse_fault(text)


def test_a_checkout_is_release_source() -> None:
    assert version() == SOURCE
