"""cfn_units: a service that was started before a change is restarted, whoever died in between."""

import os
from pathlib import Path

import pytest
from ansible.module_utils.unit_states import Unit, last_change_s, parse_units, stale

SHOWN = """\
ActiveState=active
UnitFileState=enabled
ActiveEnterTimestamp=@1795906625

ActiveState=inactive
UnitFileState=disabled
ActiveEnterTimestamp=

ActiveState=inactive
UnitFileState=
ActiveEnterTimestamp=
"""


def test_units_are_read_in_the_order_in_which_they_were_asked() -> None:
    assert parse_units(["a.service", "b@2.service", "none.service"], SHOWN) == {
        "a.service": Unit("enabled/active", 1795906625.0),
        "b@2.service": Unit("disabled/inactive", 0.0),
        "none.service": Unit("not-found/inactive", 0.0),
    }


def test_an_answer_that_leaves_a_unit_out_is_no_answer() -> None:
    with pytest.raises(ValueError, match="shorter"):
        parse_units(["a.service", "b@2.service", "none.service", "more.service"], SHOWN)


def test_only_services_that_started_before_the_change_are_stale(tmp_path: Path) -> None:
    changed = tmp_path / "limits.conf"
    changed.write_text("")
    os.utime(changed, (199.9, 199.9))
    units = {
        "old.service": Unit("enabled/active", 100.0),
        "old.socket": Unit("enabled/active", 100.0),
        "same-second.service": Unit("enabled/active", 199.0),
        "new.service": Unit("enabled/active", 201.0),
        "never.service": Unit("disabled/inactive", 0.0),
    }
    assert stale(units, [str(changed)]) == ["old.service"]
    assert stale(units, []) == []


def test_a_link_counts_by_itself_and_what_is_missing_does_not(tmp_path: Path) -> None:
    target, link = tmp_path / "release", tmp_path / "current"
    target.write_text("")
    link.symlink_to(target)
    os.utime(target, (500, 500))
    os.utime(link, (300, 300), follow_symlinks=False)
    assert last_change_s([str(link), str(tmp_path / "none")]) == 300
    assert last_change_s([str(tmp_path / "none")]) == 0
