#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Run real coordinations and hold them against targets."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_swarm
short_description: Run real coordinations on a host and hold them against targets
description:
  - Runs one coordination for each step of a ladder, with real agents, and fails at the first step
    that misses its target, naming what was found and what is allowed.
options:
  version:
    description: C(v2) runs on the engine itself, C(v1) on the V1 command; neither needs traffic.
    type: str
    choices: [v1, v2]
    default: v2
  through_router:
    description: Go through the router as a caller does, and require that C(version) served.
    type: bool
    default: false
  ladder:
    description: >-
      Steps of C(agents), C(coordination_time_ms) (at most), C(delivery_rate_pct) (at least), and
      C(version) where a step tries another than C(version).
    type: list
    elements: dict
    required: true
attributes:
  check_mode:
    support: full
    details: Runs nothing in check mode, since a coordination runs agents.
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Smoke test with 10 agents
  cfn_swarm:
    version: v2
    ladder:
      - {agents: 10, coordination_time_ms: 2000, delivery_rate_pct: 95}
"""

RETURN = r"""
steps:
  description: For each step what was asked, and the coordination that answered.
  returned: always
  type: list
  elements: dict
summary:
  description: One line for each step.
  returned: always
  type: list
  elements: str
"""

import time
import uuid
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import run_cfn

ROOM_WITHIN_S = 15.0


def problems(step: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What one coordination missed, in words; empty when it met its targets."""
    missed = []
    if found["coordination_time_ms"] > step["coordination_time_ms"]:
        missed.append(
            f"coordination took {found['coordination_time_ms']:.0f} ms, "
            f"allowed {step['coordination_time_ms']} ms"
        )
    if found["delivery_rate_pct"] < step["delivery_rate_pct"]:
        missed.append(f"delivery {found['delivery_rate_pct']:.1f} %, required {step['delivery_rate_pct']} %")
    if found["completion_rate_pct"] < step["delivery_rate_pct"]:
        missed.append(
            f"completion {found['completion_rate_pct']:.1f} %, required {step['delivery_rate_pct']} %"
        )
    return missed


def agents_active(module: AnsibleModule) -> int:
    """How many agents the engine has now; 0 if it does not say."""
    health = run_cfn(module, ["status", "--json"], accept=(0, 1, 3)).get("engine_health") or {}
    return int(health.get("agents_active") or 0)


def wait_for_room(module: AnsibleModule, at_most: int) -> None:
    """Let the agents of the step before end, so that a ladder never takes more of a host than its largest
    step does. Gives up after a while: live traffic may have brought as many."""
    deadline_s = time.monotonic() + ROOM_WITHIN_S
    while agents_active(module) > at_most and time.monotonic() < deadline_s:
        time.sleep(0.2)


def main() -> None:
    """Climb the ladder."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "choices": ["v1", "v2"], "default": "v2"},
            "through_router": {"type": "bool", "default": False},
            "ladder": {"type": "list", "elements": "dict", "required": True},
        },
        supports_check_mode=True,
    )
    steps: list[dict[str, Any]] = []
    summary: list[str] = []
    if module.check_mode:
        module.exit_json(changed=False, steps=steps, summary=summary)
    present: int | None = None  # asked before the engine's first step; V1 needs no engine
    for step in module.params["ladder"]:
        version = step.get("version", module.params["version"])
        # V1 in the place of an absent router would prove nothing of the router.
        route = ["--when-down", "fail"] if module.params["through_router"] else ["--direct", version]
        if version == "v2" and present is None:
            present = agents_active(module)
        elif version == "v2":
            wait_for_room(module, present or 0)
        task = f"smoke-{version}-{step['agents']}-{uuid.uuid4().hex[:12]}"
        answer = run_cfn(
            module,
            ["coordinate", "--json", *route, "--agents", str(step["agents"]), task],
            accept=(0, 1, 4),
        )
        if answer.get("served", version) != version:
            module.fail_json(msg=f"{task} was served by {answer['served']}, not by {version}", steps=steps)
        found = {key: value for key, value in answer["coordination"].items() if key != "results"}
        steps.append({"asked": step, "found": found})
        summary.append(
            f"{version}: {step['agents']} agents in {found['coordination_time_ms']:.0f} ms, "
            f"delivery {found['delivery_rate_pct']:.1f} %"
        )
        missed = problems(step, found)
        if missed:
            module.fail_json(
                msg=f"{version} with {step['agents']} agents: {'; '.join(missed)}. "
                "Look at journalctl -u cfn-coordination -u cfn-workers on this host.",
                steps=steps,
                summary=summary,
            )
    module.exit_json(changed=False, steps=steps, summary=summary)


if __name__ == "__main__":
    main()
