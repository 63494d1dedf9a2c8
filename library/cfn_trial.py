#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Try one thing of a running hybrid engine and hold what is found against limits."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_trial
short_description: Try one thing of a running hybrid engine and hold what is found against limits
description:
  - Makes a swarm of its own, measures, ends it. Nothing that serves is disturbed; it takes seconds.
  - Fails when a figure is not within its limit, naming what was found, what is allowed and what to do.
options:
  trial:
    description:
      - C(load_balance), whether a swarm's workers are spread evenly over coordinators that are all up.
      - C(mesh_reliability), whether every coordinator takes its team in every one of C(rounds) coordinations.
      - C(resource_analysis), what the largest coordinator and worker, descriptors and tmpfs come to.
      - C(teams), a workflow of messages within teams and across them.
    type: str
    choices: [load_balance, mesh_reliability, resource_analysis, teams]
    required: true
  agents:
    description: Size of its swarm.
    type: int
    required: true
  rounds:
    description: Coordinations of C(mesh_reliability).
    type: int
    default: 10
  limits:
    description: For each metric C(compare) (lt, le, ge, gt), C(threshold) and C(unit).
    type: dict
    required: true
attributes:
  check_mode:
    support: full
    details: Runs nothing in check mode, since a trial runs agents.
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Are workers balanced?
  cfn_trial:
    trial: load_balance
    agents: 300
    limits: "{{ cfn_stages | cfn_limits('stage2', cfn_trials.limits) }}"
"""

RETURN = r"""
checks:
  description: For each figure C(name), C(found), C(compare), C(allowed), C(unit), C(holds), C(text).
  returned: always
  type: list
  elements: dict
summary:
  description: One line for each figure.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import run_cfn


def main() -> None:
    """Translate the options to one call of `cfn trial`."""
    module = AnsibleModule(
        argument_spec={
            "trial": {
                "type": "str",
                "choices": ["load_balance", "mesh_reliability", "resource_analysis", "teams"],
                "required": True,
            },
            "agents": {"type": "int", "required": True},
            "rounds": {"type": "int", "default": 10},
            "limits": {"type": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=False, checks=[], summary=[])
    trial = module.params["trial"]
    arguments = ["trial", trial, "--json", "--agents", str(module.params["agents"])]
    arguments += ["--rounds", str(module.params["rounds"])]
    found = run_cfn(module, arguments, stdin=module.params["limits"], accept=(0, 1))
    answer = {"checks": found["checks"], "summary": found["summary"]}
    bad = [check["text"] for check in found["checks"] if not check["holds"]]
    if bad:
        module.fail_json(msg=f"{trial}: {' '.join(bad)}", changed=False, **answer)
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
