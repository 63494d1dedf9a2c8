#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""List, drain, fail over, restart and bring back coordinators of the hybrid topology."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_coordinator
short_description: List, drain, fail over, restart and bring back coordinators of the hybrid topology
description:
  - Does one thing to one coordinator of a host, while a coordination over all workers is in flight, and
    returns how long it took until the last worker was served again.
  - Refuses a coordinator that does not exist, a flat topology, and whatever would take the last healthy
    coordinator away.
  - C(drained) and C(returned) change nothing on one that is so already. C(failed_over) and C(restarted)
    are acts, and act each time.
options:
  state:
    description:
      - C(drained), for maintenance, moves its teams to the others, and it gets no more.
      - C(failed_over) ends it (it may hang) and gives its teams to the others; it is started again.
      - C(restarted) restarts its unit.
      - C(returned) ends a drain, starts it if it is down, and brings its teams home.
      - C(listed) only reads.
    type: str
    choices: [listed, drained, failed_over, restarted, returned]
    default: listed
  id:
    description: Number of the coordinator; every state but C(listed) needs it.
    type: int
  agents:
    description: >-
      How many agents are watched meanwhile; as many as the configuration allows if it is not set, none
      if it is 0.
    type: int
  within_s:
    description: Within how long the last worker must be served again.
    type: float
    default: 30
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: List them
  cfn_coordinator:
  register: coordinators

- name: Take coordinator 3 out for maintenance
  cfn_coordinator:
    state: drained
    id: 3
    within_s: "{{ cfn_stages.stage3.objectives.failover_s }}"

- name: Bring it back
  cfn_coordinator:
    state: returned
    id: 3
"""

RETURN = r"""
coordinators:
  description: >-
    Each coordinator afterwards (or as it would be in check mode): C(id), C(state), C(pid), C(agents),
    C(failovers), C(last_heartbeat_age_s), C(response_time_ms).
  returned: always
  type: list
  elements: dict
before:
  description: The same before.
  returned: when state is not listed
  type: list
  elements: dict
served_s:
  description: >-
    Seconds from the order to the last acknowledgement of a coordination that was asked for when it was
    carried out and reached every agent; null if nothing was done or watched.
  returned: when state is not listed
  type: float
back_s:
  description: Seconds from the order until the coordinator was up again; null for a drain.
  returned: when state is not listed
  type: float
topology:
  description: The host's topology.
  returned: when state is listed
  type: str
imbalance_pct:
  description: The largest distance of a coordinator's agents from the mean, in % of it.
  returned: when state is listed
  type: float
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import run_cfn

ACTIONS = {"drained": "drain", "failed_over": "failover", "restarted": "restart", "returned": "return"}


def as_text(rows: list[dict[str, Any]]) -> str:
    """The part of the coordinators that an operator orders, for the diff."""
    return "".join(f"coordinator {row['id']}: {row['state']}\n" for row in rows)


def shown(result: dict[str, Any]) -> dict[str, str]:
    """The difference. An act on one that stays up shows as what it is."""
    before, after = as_text(result["before"]), as_text(result["after"])
    if result["changed"] and before == after:
        after += f"{result['action']} of coordinator {result['coordinator']}\n"
    return {"before": before, "after": after}


def main() -> None:
    """Translate the options to one call of `cfn coordinators`."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["listed", *ACTIONS], "default": "listed"},
            "id": {"type": "int"},
            "agents": {"type": "int"},
            "within_s": {"type": "float", "default": 30},
        },
        required_if=[("state", state, ["id"]) for state in ACTIONS],
        supports_check_mode=True,
    )
    state, number = module.params["state"], module.params["id"]
    if state == "listed":
        found = run_cfn(module, ["coordinators", "list", "--json"])
        wanted = ("topology", "coordinators", "imbalance_pct")
        module.exit_json(changed=False, **{key: found[key] for key in wanted})
    arguments = ["coordinators", ACTIONS[state], str(number), "--json"]
    arguments += ["--within-s", str(module.params["within_s"])]
    if module.params["agents"] is not None:
        arguments += ["--agents", str(module.params["agents"])]
    result = run_cfn(module, arguments + (["--check"] if module.check_mode else []), accept=(0, 1))
    answer = {
        "changed": result["changed"],
        "before": result["before"],
        "coordinators": result["after"],
        "served_s": result["served_s"],
        "back_s": result["back_s"],
        "diff": shown(result),
    }
    if not result["held"]:
        module.fail_json(
            msg=f"coordinator {number}, {state}: the last worker was served again after "
            f"{result['served_s']:.1f} s, allowed {result['within_s']:g} s. Look at journalctl "
            f"-u cfn-coordination -u cfn-workers -u cfn-coordinator@{number} on this host.",
            **answer,
        )
    module.exit_json(**answer)


if __name__ == "__main__":
    main()
