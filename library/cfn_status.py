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
options: {}
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
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import installed, run_cfn


def main() -> None:
    """Translate to one call of `cfn status`."""
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    if not installed():
        module.exit_json(changed=False, installed=False, status={})
    # A daemon that does not answer is part of the status: the exit code says so, the JSON too.
    status = run_cfn(module, ["status", "--json"], accept=(0, 1, 3))
    module.exit_json(changed=False, installed=True, status=status)


if __name__ == "__main__":
    main()
