#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Take a host's traffic to V1 and prove it, or see whether V1 could take it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_fallback
short_description: Take a host's traffic to V1 and prove it, or see whether V1 could take it
description:
  - V1 is tried by a real coordination beside the router; C(fallen_back) then flips the router to V1 and
    proves V1 through it, all in one call, since a way back is as fast as its number of tasks.
  - A V1 that does not work takes no traffic from a V2 that does, unless C(force). Where V2's engine does
    not answer it goes all the same.
  - The epoch is C(epoch), or two above the host's own if that is more, so that a fall back is never
    refused and overtakes what is under way.
options:
  state:
    description:
      - C(checked) changes nothing.
      - C(reached) does nothing; it tells a host that can be reached from one that cannot.
    type: str
    choices: [fallen_back, checked, reached]
    default: fallen_back
  epoch:
    description: The least epoch to order.
    type: int
    default: 0
  ladder:
    description: Steps of V1's smoke test, of which the first is what V1 must do to count as working.
    type: list
    elements: dict
    default: []
  force:
    description: Go even if V1 does not work while V2 does.
    type: bool
    default: false
attributes:
  check_mode:
    support: full
    details: Tries V1, and changes nothing.
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Everything to V1, now
  cfn_fallback:
    epoch: 1790000000
    ladder: [{agents: 10, coordination_time_ms: 5000, delivery_rate_pct: 95}]
"""

RETURN = r"""
installed:
  description: Whether a release is in force on the host; without one V2 serves nothing there.
  returned: always
  type: bool
standing:
  description: >-
    What C(cfn fallback --json) printed: C(before), C(after), C(epoch), C(engine), C(v1) (C(works),
    C(problem), C(decommissioned), C(bears_all)), C(refused), C(proved), C(problem).
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import installed, run_cfn

NOT_PROVED, REFUSED = 1, 5


STATES = ["fallen_back", "checked", "reached"]


def main() -> None:
    """Translate the options to one call of `cfn fallback`."""
    module = AnsibleModule(
        argument_spec={
            "state": {
                "type": "str",
                "choices": ["fallen_back", "checked", "reached"],
                "default": "fallen_back",
            },
            "epoch": {"type": "int", "default": 0},
            "ladder": {"type": "list", "elements": "dict", "default": []},
            "force": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    asked = module.params
    if asked["state"] == "reached" or not installed():
        module.exit_json(changed=False, installed=installed(), standing={})
    acting = asked["state"] == "fallen_back" and not module.check_mode
    arguments = ["fallback", "--json", "--epoch", str(asked["epoch"])]
    for step in asked["ladder"][:1]:
        arguments += ["--agents", str(step["agents"]), "--within-ms", str(step["coordination_time_ms"])]
        arguments += ["--delivery-pct", str(step["delivery_rate_pct"])]
    arguments += ["--force"] if asked["force"] else []
    standing = run_cfn(module, arguments + ([] if acting else ["--check"]), accept=(0, NOT_PROVED, REFUSED))
    changed = bool(standing.get("changed")) if acting else asked["state"] == "fallen_back"
    result = {"changed": changed, "installed": True, "standing": standing}
    problem = standing["refused"] or standing.get("problem")
    if acting and problem:
        module.fail_json(msg=problem, **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
