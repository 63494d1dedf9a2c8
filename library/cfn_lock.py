#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Take, give back or read the lock of a rollout."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_lock
short_description: Take, give back or read the lock of a rollout
description:
  - One playbook at a time changes an environment. The lock is kept in the environment's ledger, so
    run this on the control host. Where that has no release yet, there is no lock to take.
  - The error of a lock that another run holds says who, since when, and how to break it.
options:
  state:
    description: What to do.
    type: str
    choices: [read, taken, released]
    default: read
  run:
    description: What tells this run of a playbook from every other one.
    type: str
  controller:
    description: The machine that it runs on.
    type: str
  purpose:
    description: What the lock is for, in words.
    type: str
    default: a playbook
  stage:
    description: The stage that it belongs to.
    type: str
    default: rollout
  environment:
    description: Name of the environment.
    type: str
  actor:
    description: Who asks.
    type: str
  lease_s:
    description: After so many seconds the lock is free again, whatever became of its holder.
    type: int
    default: 7200
  dead_run:
    description: A run of this controller that is known to be dead; its lock is taken over.
    type: str
    default: ""
  break_reason:
    description: Why the lock of another run is to be broken; empty breaks none.
    type: str
    default: ""
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Take the lock
  cfn_lock:
    state: taken
    run: "4711.1234567"
    controller: desk
    purpose: stage1
    environment: production
    actor: "{{ lookup('env', 'USER') }}"
"""

RETURN = r"""
lock:
  description: The lock that is held afterwards; null if none is.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import installed, run_cfn


def main() -> None:
    """Translate the options to one call of `cfn lock`."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["read", "taken", "released"], "default": "read"},
            "run": {"type": "str"},
            "controller": {"type": "str"},
            "purpose": {"type": "str", "default": "a playbook"},
            "stage": {"type": "str", "default": "rollout"},
            "environment": {"type": "str"},
            "actor": {"type": "str"},
            "lease_s": {"type": "int", "default": 7200},
            "dead_run": {"type": "str", "default": ""},
            "break_reason": {"type": "str", "default": ""},
        },
        required_if=[
            ("state", "taken", ["run", "controller", "environment", "actor"]),
            ("state", "released", ["run", "environment", "actor"]),
        ],
        supports_check_mode=True,
    )
    asked = module.params
    if not installed():
        module.exit_json(changed=False, lock=None)
    if asked["state"] == "read" or module.check_mode:
        changed = asked["state"] != "read"
        module.exit_json(changed=changed, lock=run_cfn(module, ["lock", "--json", "show"])["lock"])
    common = ["lock", "--json", "--environment", asked["environment"]]
    who = ["--actor", asked["actor"], "--stage", asked["stage"]]
    if asked["state"] == "released":
        found = run_cfn(module, [*common, "release", *who, "--run", asked["run"]])
    else:
        wanted = ("run", "controller", "purpose", "lease_s", "dead_run", "break_reason")
        found = run_cfn(module, [*common, "take", *who], stdin={name: asked[name] for name in wanted})
    module.exit_json(changed=True, lock=found["lock"])


if __name__ == "__main__":
    main()
