#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""A long load on a host that outlives its controller: start it, ask how it goes, stop it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_soak
short_description: A long load on a host that outlives its controller
description:
  - Runs as a unit of systemd on the host. Starting one that runs already with the same length changes
    nothing; another one is refused while it runs.
options:
  state:
    description: C(stopped) ends it early, with an account of what was sent.
    type: str
    choices: [started, status, stopped]
    default: status
  seconds:
    description: Its length.
    type: int
  rate_per_s:
    description: Requests a second.
    type: float
  sizes:
    description: Sizes of requests as C(AGENTS:WEIGHT,...).
    type: str
  limits:
    description: For each metric C(compare), C(threshold) and C(unit), held at the end.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: An hour, one request a second
  cfn_soak:
    state: started
    seconds: 3600
    rate_per_s: 1
    sizes: "1:60,10:35,100:5"
"""

RETURN = r"""
soak:
  description: >-
    C(state) (none, running, done, stopped, lost), C(soak) (its id), C(since), C(order), C(progress) in
    words, and C(result), the account, once there is one.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import run_cfn


def main() -> None:
    """Translate the options to one call of `cfn soak`."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["started", "status", "stopped"], "default": "status"},
            "seconds": {"type": "int"},
            "rate_per_s": {"type": "float"},
            "sizes": {"type": "str"},
            "limits": {"type": "dict", "default": {}},
        },
        required_if=[("state", "started", ["seconds", "rate_per_s", "sizes"])],
        supports_check_mode=True,
    )
    state = module.params["state"]
    check = ["--check"] if module.check_mode else []
    if state == "started":
        arguments = ["soak", "start", "--json", "--seconds", str(module.params["seconds"])]
        arguments += ["--rate", str(module.params["rate_per_s"]), "--sizes", module.params["sizes"]]
        found = run_cfn(module, arguments + check, stdin=module.params["limits"], accept=(0, 1))
    elif state == "stopped":
        found = run_cfn(module, ["soak", "stop", "--json", *check], accept=(0, 1))
    else:
        found = run_cfn(module, ["soak", "status", "--json"], accept=(0, 1))
    changed = found.pop("changed")
    module.exit_json(changed=changed, soak=found)


if __name__ == "__main__":
    main()
