#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Read what a host runs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_status
short_description: Read what a host runs
description:
  - Reads release, configuration, the router's generation and counts, and the health of the engine.
    What does not answer is said, and is no failure.
options:
  configuration:
    description: Return the files that a deployment changes too, so that they can be given back.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Read what the host runs
  cfn_status:
  register: status_result
"""

RETURN = r"""
installed:
  description: Whether a release is in force on the host.
  returned: always
  type: bool
status:
  description: What C(cfn status --json) printed; empty where no release is installed.
  returned: always
  type: dict
configuration:
  description: >-
    C(config) (/etc/cfn/config.sh) and C(limits) (the units' limits) as text; empty where there is no file.
  returned: when configuration is true
  type: dict
"""

from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import installed, run_cfn

FILES = {
    "config": Path("/etc/cfn/config.sh"),
    "limits": Path("/etc/systemd/system/cfn-.service.d/limits.conf"),
}


def text_of(path: Path) -> str:
    """The text of a file, empty if it cannot be read."""
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def main() -> None:
    """Translate to one call of `cfn status`."""
    module = AnsibleModule(
        argument_spec={"configuration": {"type": "bool", "default": False}}, supports_check_mode=True
    )
    files = {name: text_of(path) for name, path in FILES.items()}
    kept = {"configuration": files} if module.params["configuration"] else {}
    if not installed():
        module.exit_json(changed=False, installed=False, status={}, **kept)
    # A daemon that does not answer is part of the status: the exit code says so, the JSON too.
    status = run_cfn(module, ["status", "--json"], accept=(0, 1, 3))
    module.exit_json(changed=False, installed=True, status=status, **kept)


if __name__ == "__main__":
    main()
