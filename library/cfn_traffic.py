#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Read or flip which version serves a host's traffic."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_traffic
short_description: Read or flip which version serves a host's traffic, and how much of it
description:
  - Without C(version) and C(percent), reads what is configured and what the running router does.
  - With one of them, edits the configuration if it differs, and returns only when the running
    router reports a generation that serves what was ordered. No restart, no lost request.
  - A change of an older epoch than the host's is refused, so that a controller that was pre-empted
    can do no harm.
options:
  version:
    description: The coordination version to order.
    type: str
    choices: [v1, v2]
  percent:
    description: Share of requests that V2 serves, 0 to 100, with at most two decimals.
    type: str
  epoch:
    description: Number of the change; every change of an environment has a higher one.
    type: int
  wait_s:
    description: How long the router may take to report the new generation.
    type: float
    default: 10
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Read what is in force
  cfn_traffic:
  register: traffic_now

- name: Send 5 % to V2
  cfn_traffic:
    version: v2
    percent: "5"
    epoch: 7

- name: Send everything to V1
  cfn_traffic:
    version: v1
    epoch: 8
"""

RETURN = r"""
before:
  description: C(version), C(traffic_pct), C(epoch) and C(generation) before; null where nothing is installed.
  returned: always
  type: dict
after:
  description: The same afterwards, or as it would be in check mode.
  returned: always
  type: dict
confirmed:
  description: Whether the running router reports what is configured.
  returned: always
  type: bool
seconds:
  description: Time from the edit to the router's confirmation.
  returned: always
  type: float
observed:
  description: Requests by ordered version that this router counted.
  returned: when the router answers
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import installed, run_cfn

NOTHING = {"version": "v1", "traffic_pct": 0, "epoch": 0, "generation": None}


def as_yaml(state: dict[str, Any]) -> str:
    """The part of a state that an operator orders, for the diff."""
    return f"version: {state['version']}\ntraffic_pct: {state['traffic_pct']}\nepoch: {state['epoch']}\n"


def predicted(module: AnsibleModule) -> dict[str, Any]:
    """What a flip would do on a host where no release is installed yet."""
    after = dict(NOTHING)
    after["version"] = module.params["version"] or after["version"]
    after["traffic_pct"] = module.params["percent"] or after["traffic_pct"]
    return {
        "changed": after != NOTHING,
        "before": NOTHING,
        "after": after,
        "confirmed": False,
        "seconds": 0.0,
    }


def main() -> None:
    """Translate the options to one call of `cfn traffic`."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "choices": ["v1", "v2"]},
            "percent": {"type": "str"},
            "epoch": {"type": "int"},
            "wait_s": {"type": "float", "default": 10},
        },
        supports_check_mode=True,
    )
    reading = module.params["version"] is None and module.params["percent"] is None
    if not installed() and (reading or module.check_mode):
        result = predicted(module)
    else:
        arguments = ["traffic", "--json", "--wait-s", str(module.params["wait_s"])]
        for option in ("version", "percent", "epoch"):
            if module.params[option] is not None:
                arguments += [f"--{option}", str(module.params[option])]
        result = run_cfn(module, arguments + (["--check"] if module.check_mode else []))
    result["diff"] = {"before": as_yaml(result["before"]), "after": as_yaml(result["after"])}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
