#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Check whether a host can take a stage."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_preflight
short_description: Check whether a host can take a stage
description:
  - Runs every check of a host at once and returns each with what was found and what is required.
  - Only reads. Never fails because of a finding, so that a playbook can show the problems of all
    hosts together; C(problems) is empty on a host that is fit.
  - Needs nothing on the host but Python.
options:
  needs:
    description: >-
      What the stage requires: C(shm_mb), C(nofile), C(memory_mb), C(memory_level) (required or
      advice), C(cores), C(bash_major), C(systemd_version), C(python_version), C(opt_free_mb),
      C(log_free_mb), and as wanted C(environment).
    type: dict
    required: true
  controller_time_s:
    description: >-
      The controller's clock as the task starts, in seconds since 1970; returned beside the host's, for
      the controller to judge the difference (C(cfn_preflight_report)).
    type: float
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
- name: Check the host
  cfn_preflight:
    needs: "{{ preflight_needs }}"
    controller_time_s: "{{ now(utc=true) | cfn_epoch_s }}"
  register: preflight_result
"""

RETURN = r"""
findings:
  description: Every check with C(check), C(found), C(required), C(ok), C(level) and C(remedy).
  returned: always
  type: list
  elements: dict
problems:
  description: One line for each requirement that the host does not meet.
  returned: always
  type: list
  elements: str
advice:
  description: One line for each recommendation that the host does not meet.
  returned: always
  type: list
  elements: str
controller_time_s:
  description: As it was given.
  returned: always
  type: float
host_time_s:
  description: The host's clock, in seconds since 1970.
  returned: always
  type: float
"""

import time
from collections.abc import Iterable

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.preflight_checks import Finding, gather, judge


def sentences(findings: Iterable[Finding], level: str) -> list[str]:
    """The findings of one level that are not met, for a person."""
    return [
        f"{finding.check}: found {finding.found}, required {finding.required}; {finding.remedy}"
        for finding in findings
        if not finding.ok and finding.level == level
    ]


def main() -> None:
    """Read the host, judge, and return everything."""
    module = AnsibleModule(
        argument_spec={
            "needs": {"type": "dict", "required": True},
            "controller_time_s": {"type": "float", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        findings = judge(gather(), module.params["needs"])
    except KeyError as error:
        module.fail_json(msg=f"needs lacks {error}; see the documentation of cfn_preflight")
    module.exit_json(
        changed=False,
        findings=[vars(finding) for finding in findings],
        problems=sentences(findings, "required"),
        advice=sentences(findings, "advice"),
        controller_time_s=module.params["controller_time_s"],
        host_time_s=time.time(),
    )


if __name__ == "__main__":
    main()
