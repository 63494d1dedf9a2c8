#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Ask the ledger what may start, what is due, what is to be escalated, and how it ended."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_rollout
short_description: Ask the ledger what may start, what is due and how it ended
description:
  - Runs the decisions of C(cfn rollout) on the control host, over the environment's ledger.
  - C(may_start) fails when the step may not start, and says everything that is missing.
options:
  question:
    description: What to ask.
    type: str
    choices: [may_start, due, escalations, outcome]
    required: true
  request:
    description: The step that is asked for, or the plan, as docs/reference/order.md describes them.
    type: dict
    required: true
  actor:
    description: Who asks. With it, what comes of the answer is recorded (an override, an escalation).
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
- name: Ask whether the step may start
  cfn_rollout:
    question: may_start
    request: "{{ order_request }}"
    actor: "{{ cfn_actor }}"
"""

RETURN = r"""
answer:
  description: What C(cfn rollout) printed. C(decided) is false where no release is installed yet.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import installed, run_cfn

REFUSED = 5


def refusal(request: dict[str, object], reasons: list[str], holds: list[str]) -> str:
    """What is missing or held, and what can be done about it."""
    lines = [f"{request['stage']} at {request['traffic_pct']:g} % may not start. No traffic was moved."]
    lines += [f"- {reason}" for reason in reasons]
    if reasons:
        lines.append(
            "To answer for it yourself: -e override_by=NAME -e override_reason=TEXT (it is recorded)"
        )
    lines += [f"- held: {hold}" for hold in holds]
    if holds:
        lines.append("To let it go on: -e resume_by=NAME -e resume_reason=TEXT (it is recorded)")
    return "\n".join(lines)


def main() -> None:
    """Translate the options to one call of `cfn rollout`."""
    module = AnsibleModule(
        argument_spec={
            "question": {
                "type": "str",
                "choices": ["may_start", "due", "escalations", "outcome"],
                "required": True,
            },
            "request": {"type": "dict", "required": True},
            "actor": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    question, request = module.params["question"], module.params["request"]
    if not installed():
        module.exit_json(changed=False, answer={"decided": False})
    arguments = ["rollout", question.replace("_", "-")]
    if module.params["actor"] and not module.check_mode:
        arguments += ["--record", module.params["actor"]]
    answer = run_cfn(module, arguments, stdin=request, accept=(0, REFUSED))
    if answer["rc"] == REFUSED:
        module.fail_json(msg=refusal(request, answer["reasons"], answer.get("holds", [])), answer=answer)
    module.exit_json(changed=False, answer=answer)


if __name__ == "__main__":
    main()
