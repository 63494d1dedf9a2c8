#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Append to the environment's ledger, or read it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_ledger
short_description: Append to the environment's ledger, read it or verify it
description:
  - The ledger is the record, on the control host, of what was done and decided. Records are
    chained by hash and never changed.
  - Run it on the control host. Where that has no release yet, there is nothing to append with:
    C(record) is null then.
options:
  state:
    description: What to do.
    type: str
    choices: [appended, read, verified]
    default: read
  kind:
    description: Kind of the record to append, such as C(deployed), C(flipped) or C(verdict).
    type: str
  stage:
    description: The stage that the record belongs to.
    type: str
  environment:
    description: Name of the environment.
    type: str
  actor:
    description: Who asked.
    type: str
  data:
    description: What was done or decided.
    type: dict
    default: {}
  last:
    description: How many records to read.
    type: int
    default: 20
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Record the flip
  cfn_ledger:
    state: appended
    kind: flipped
    stage: stage1
    environment: production
    actor: "{{ lookup('env', 'USER') }}"
    data: {traffic_pct: 10}

- name: Read the last records
  cfn_ledger:
    last: 5
  register: ledger_read
"""

RETURN = r"""
record:
  description: The record that was appended.
  returned: when state is appended
  type: dict
records:
  description: The last records, oldest first; empty where no ledger exists yet.
  returned: when state is read
  type: list
  elements: dict
intact:
  description: Whether every record is as it was written and none is missing.
  returned: when state is verified
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import installed, run_cfn


def main() -> None:
    """Translate the options to one call of `cfn ledger`."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["appended", "read", "verified"], "default": "read"},
            "kind": {"type": "str"},
            "stage": {"type": "str"},
            "environment": {"type": "str"},
            "actor": {"type": "str"},
            "data": {"type": "dict", "default": {}},
            "last": {"type": "int", "default": 20},
        },
        required_if=[("state", "appended", ["kind", "stage", "environment", "actor"])],
        supports_check_mode=True,
    )
    parameters = module.params
    if parameters["state"] == "appended":
        if module.check_mode or not installed():
            module.exit_json(changed=module.check_mode, record=None)
        arguments = ["ledger", "append", "--json"]
        for option in ("kind", "stage", "environment", "actor"):
            arguments += [f"--{option}", parameters[option]]
        record = run_cfn(module, arguments, stdin=parameters["data"])
        module.exit_json(changed=True, record=record)
    if not installed():
        module.exit_json(changed=False, records=[], intact=True)
    if parameters["state"] == "verified":
        module.exit_json(changed=False, **run_cfn(module, ["ledger", "verify", "--json"]))
    shown = run_cfn(module, ["ledger", "show", "--json", "--last", str(parameters["last"])])
    module.exit_json(changed=False, records=shown["records"])


if __name__ == "__main__":
    main()
