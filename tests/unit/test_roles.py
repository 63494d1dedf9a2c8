"""Every role says which variables it takes, and its defaults are what it says."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import PROJECT

ROLES = sorted(path for path in (PROJECT / "roles").iterdir())


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text()) if path.exists() else {}
    return found


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_are_the_ones_of_the_argument_spec(role: Path) -> None:
    specs = load(role / "meta/argument_specs.yml").get("argument_specs", {})
    options = specs.get("main", {}).get("options", {})
    optional = {name: option["default"] for name, option in options.items() if "default" in option}
    assert load(role / "defaults/main.yml") == optional
    assert all("default" in option or option.get("required") for option in options.values())


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_every_variable_of_a_role_carries_its_name(role: Path) -> None:
    specs = load(role / "meta/argument_specs.yml").get("argument_specs", {})
    names = [*specs.get("main", {}).get("options", {}), *load(role / "vars/main.yml")]
    assert all(name.startswith((f"{role.name}_", f"__{role.name}_")) for name in names)


def test_drift_looks_at_each_file_of_v1() -> None:
    wanted = yaml.safe_load((PROJECT / "roles/engine/vars/main.yml").read_text())["__engine_v1_files"]
    installed = {f"/opt/cfn-v1/bin/{path.name}" for path in (PROJECT / "engine/v1").iterdir()}
    assert {each["path"] for each in wanted} == installed
