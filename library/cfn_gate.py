#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Judge a stage from the evidence of all hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_gate
short_description: Judge a stage from the evidence of all hosts
description:
  - Runs the judge of the deployed release on the control host. Judging changes nothing and decides
    nothing else; the playbook acts on the verdict.
  - A verdict other than PASS is no failure of this task. A request that is refused unjudged is.
  - What people recorded in the ledger of this host (critical incidents, attestations) is put into the
    request as C(facts), unless it holds them. Without them, criteria on them are held.
options:
  request:
    description: The request, as docs/reference/gates.md describes it.
    type: dict
    required: true
  state:
    description: C(planned) says what to ask every host for, C(judged) judges.
    type: str
    choices: [planned, judged]
    default: judged
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Judge
  cfn_gate:
    request: "{{ gate_request }}"
  register: gate_result
"""

RETURN = r"""
now:
  description: The time of the look, for the question that follows.
  returned: when state is planned
  type: str
plan:
  description: C(since), C(until) and C(bucket_s) to reduce each host's files over.
  returned: when state is planned
  type: dict
verdict:
  description: The verdict with every criterion, its value, its limit and the reason.
  returned: when state is judged
  type: dict
text:
  description: The verdict as a person reads it.
  returned: when state is judged
  type: str
record:
  description: Request and verdict together; replaying the request gives the same verdict.
  returned: when state is judged
  type: dict
"""

import json
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import CFN, run_cfn

VERDICT_EXIT_CODES = (0, 10, 11, 12, 13)


def with_facts(module: AnsibleModule, request: dict[str, Any]) -> dict[str, Any]:
    """The request with the ledger's facts; as it was if the ledger has no answer."""
    if "facts" in request:
        return request
    argv = [CFN, "rollout", "facts", "--stage", str(request["stage"]), "--since", str(request["since"])]
    code, out, _ = module.run_command(argv)
    try:
        return request | {"facts": json.loads(out)} if code == 0 else request
    except ValueError:
        return request


def main() -> None:
    """Translate the options to one call of `cfn gate`."""
    module = AnsibleModule(
        argument_spec={
            "request": {"type": "dict", "required": True},
            "state": {"type": "str", "choices": ["planned", "judged"], "default": "judged"},
        },
        supports_check_mode=True,
    )
    request = module.params["request"]
    if module.params["state"] == "planned":
        module.exit_json(
            changed=False, now=request["now"], plan=run_cfn(module, ["gate", "--plan"], stdin=request)
        )
    request = with_facts(module, request)
    record = run_cfn(module, ["gate", "--record"], stdin=request, accept=VERDICT_EXIT_CODES)
    del record["rc"]
    verdict = record["verdict"]
    text = module.run_command([CFN, "gate", "--render"], data=json.dumps(verdict), binary_data=True)[1]
    module.exit_json(changed=False, record=record, verdict=verdict, text=text.strip())


if __name__ == "__main__":
    main()
