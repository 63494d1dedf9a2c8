#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Stress a host within bounds, as a unit that systemd ends in time."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_stress
short_description: Stress a host within bounds of time and size
description:
  - Runs one scenario of C(cfn stress) as a unit of systemd, which ends it after C(limit_s) and takes no more
    than C(memory_mb). What it began is ended whatever happens, here or by C(cleaned).
  - Fails when a figure is not within its limit, naming what was found, what is allowed and what to do.
options:
  scenario:
    description: C(cleaned) ends what an earlier one left.
    type: str
    choices: [rapid_cycles, cascade, memory_pressure, descriptor_pressure, message_storm, concurrent, cleaned]
    required: true
  bounds:
    description: What the scenario is bounded by, as in the inventory.
    type: dict
    default: {}
  limits:
    description: For each metric C(compare), C(threshold) and C(unit).
    type: dict
    default: {}
  limit_s:
    description: After so long systemd ends it.
    type: int
    default: 300
  memory_mb:
    description: Memory that it may take.
    type: int
    default: 1024
attributes:
  check_mode:
    support: full
    details: Runs nothing in check mode.
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Two coordinators at once
  cfn_stress:
    scenario: cascade
    bounds: {agents: 56, coordinators: 2}
    limits: "{{ cfn_stages | cfn_limits('stage3', cfn_stress.limits) }}"
"""

RETURN = r"""
figures:
  description: What was done and found.
  returned: always
  type: dict
summary:
  description: One line for each figure that is held against a limit.
  returned: always
  type: list
  elements: str
"""

from ansible.module_utils import cfn_command
from ansible.module_utils.basic import AnsibleModule

UNIT = "cfn-stress.service"
SCENARIOS = (
    "rapid_cycles",
    "cascade",
    "memory_pressure",
    "descriptor_pressure",
    "message_storm",
    "concurrent",
)


def main() -> None:
    """Translate the options to one call of `cfn stress`, bounded by systemd."""
    module = AnsibleModule(
        argument_spec={
            "scenario": {"type": "str", "choices": [*SCENARIOS, "cleaned"], "required": True},
            "bounds": {"type": "dict", "default": {}},
            "limits": {"type": "dict", "default": {}},
            "limit_s": {"type": "int", "default": 300},
            "memory_mb": {"type": "int", "default": 1024},
        },
        supports_check_mode=True,
    )
    scenario = module.params["scenario"]
    if module.check_mode:
        module.exit_json(changed=False, figures={}, summary=[])
    if scenario == "cleaned":
        module.run_command(["systemctl", "stop", UNIT])
        left = cfn_command.run_cfn(module, ["stress", "clean", "--json"])
        module.exit_json(changed=bool(left["swarms"] or left["started"]), figures=left, summary=[])
    bounded = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--unit={UNIT}"]
    bounded += [f"--property=RuntimeMaxSec={module.params['limit_s']}"]
    bounded += [f"--property=MemoryMax={module.params['memory_mb']}M", "--property=LimitNOFILE=4096"]
    found = cfn_command.run_cfn(
        module,
        ["stress", scenario, "--json"],
        stdin={"bounds": module.params["bounds"], "limits": module.params["limits"]},
        accept=(0, 1),
        prefix=bounded,
    )
    bad = [check["text"] for check in found["checks"] if not check["holds"]]
    answer = {"figures": found["figures"], "summary": found["summary"]}
    if bad:
        module.fail_json(msg=f"{scenario}: {' '.join(bad)}", changed=False, **answer)
    module.exit_json(changed=False, **answer)


if __name__ == "__main__":
    main()
