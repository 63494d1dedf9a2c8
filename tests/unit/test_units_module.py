"""cfn_units: a service that was started before a change is restarted, whoever died in between."""

import os
from pathlib import Path

from library.cfn_units import last_change_s, stale


def test_only_what_started_before_the_change_is_stale() -> None:
    started_s = {
        "old.service": 100.0,
        "same-second.service": 199.0,
        "new.service": 201.0,
        "never.service": 0.0,
    }
    assert stale(started_s, 199.9) == ["old.service"]
    assert stale(started_s, 0.0) == []


def test_a_link_counts_by_itself_and_what_is_missing_does_not(tmp_path: Path) -> None:
    target, link = tmp_path / "release", tmp_path / "current"
    target.write_text("")
    link.symlink_to(target)
    os.utime(target, (500, 500))
    os.utime(link, (300, 300), follow_symlinks=False)
    assert last_change_s([str(link), str(tmp_path / "none")]) == 300
    assert last_change_s([str(tmp_path / "none")]) == 0
