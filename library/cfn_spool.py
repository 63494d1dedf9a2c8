#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Keep a record on a host while no control host can take it, or join such records to the ledger."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_spool
short_description: Keep a record that no control host could take, or join such records to the ledger
description:
  - C(added) keeps a record in the host's spool, C(joined), on the control host, appends to the ledger
    what it has not heard of yet from the lines of all hosts. Both do nothing where no release is.
options:
  state:
    description: What to do.
    type: str
    choices: [added, joined]
    required: true
  record:
    description: C(id), C(stage), C(actor) and C(data) of the record; C(id) is the same on every host.
    type: dict
  lines:
    description: For each host the lines of its spool, as C(cfn status) shows them.
    type: dict
  environment:
    description: Name of the environment.
    type: str
  stage:
    description: The stage of what hosts did by themselves, which know none.
    type: str
    default: rollout
  actor:
    description: Who asked.
    type: str
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Keep it on the hosts
  cfn_spool:
    state: added
    record:
      id: fallback-1790000000
      stage: stage1
      actor: ada
      data: {text: V1 serves}
"""

RETURN = r"""
records:
  description: What was appended to the ledger.
  returned: when state is joined
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import installed, run_cfn


def main() -> None:
    """Translate the options to one call of `cfn spool`."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["added", "joined"], "required": True},
            "record": {"type": "dict"},
            "lines": {"type": "dict"},
            "environment": {"type": "str"},
            "stage": {"type": "str", "default": "rollout"},
            "actor": {"type": "str"},
        },
        required_if=[("state", "added", ["record"]), ("state", "joined", ["lines", "environment", "actor"])],
        supports_check_mode=True,
    )
    asked = module.params
    if not installed() or module.check_mode:
        module.exit_json(changed=False, records=[])
    if asked["state"] == "added":
        run_cfn(module, ["spool", "add"], stdin=asked["record"])
        module.exit_json(changed=True)
    names = [word for name in ("environment", "stage", "actor") for word in (f"--{name}", asked[name])]
    joined = run_cfn(module, ["spool", "join", *names], stdin=asked["lines"])
    module.exit_json(changed=bool(joined["records"]), records=joined["records"])


if __name__ == "__main__":
    main()
