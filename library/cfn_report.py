#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Make the report of a stage or of the whole rollout."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_report
short_description: Make the report of a stage or of the whole rollout
description:
  - Runs C(cfn report) of the deployed release on the control host, over the environment's ledger,
    which is verified first. Changes nothing; the playbook writes the files.
options:
  plan:
    description: The plan of the rollout, as docs/reference/order.md describes it.
    type: dict
    required: true
  stage:
    description: A stage, or C(all).
    type: str
    required: true
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Make the report
  cfn_report:
    plan: "{{ report_plan }}"
    stage: stage1
  register: report_result
"""

RETURN = r"""
html:
  description: The report as one HTML file.
  returned: always
  type: str
json:
  description: The same as JSON.
  returned: always
  type: str
intact:
  description: Whether the ledger is as it was written.
  returned: always
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import run_cfn


def main() -> None:
    """Translate the options to one call of `cfn report`."""
    module = AnsibleModule(
        argument_spec={
            "plan": {"type": "dict", "required": True},
            "stage": {"type": "str", "required": True},
        },
        supports_check_mode=True,
    )
    arguments = ["report", "--both", "--stage", module.params["stage"]]
    made = run_cfn(module, arguments, stdin=module.params["plan"])
    module.exit_json(changed=False, html=made["html"], json=made["json"], intact=made["intact"])


if __name__ == "__main__":
    main()
