"""Run a custom module in this process, as Ansible would, and read what it returns."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest
from ansible.module_utils.testing import patch_module_args

PROJECT = Path(__file__).resolve().parents[1]

if str(PROJECT / "module_utils") not in ansible.module_utils.__path__:
    ansible.module_utils.__path__.append(str(PROJECT / "module_utils"))

RunModule = Callable[..., dict[str, Any]]


@pytest.fixture
def run_module(capsys: pytest.CaptureFixture[str]) -> RunModule:
    """Call `run_module(name, check_mode=False, **options)`; returns the module's JSON."""

    def run(name: str, *, check_mode: bool = False, **options: object) -> dict[str, Any]:
        module = load(name)
        arguments = {**options, "_ansible_check_mode": check_mode}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            module.main()
        result: dict[str, Any] = json.loads(capsys.readouterr().out)
        return result

    return run


def load(name: str) -> Any:
    """A module of library/ as a Python module."""
    spec = importlib.util.spec_from_file_location(name, PROJECT / "library" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
