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
  - More traffic for V2 is refused while the router's breaker is open, unless C(breaker) closes it.
  - Warns when V1 is given more than it bears.
options:
  version:
    description: The coordination version to order.
    type: str
    choices: [v1, v2]
  percent:
    description: Share of requests that V2 serves, 0 to 100, with at most two decimals.
    type: str
  v1_enabled:
    description:
      - False is V1's end. V2 at 100 % serves everything, nothing falls back, and what is under way from
        before is waited for, since it may still call V1 in.
      - True, with C(version) V1 or without, has V1 there again.
    type: bool
  epoch:
    description: Number of the change; every change of an environment has a higher one.
    type: int
  breaker:
    description: Open the breaker, which holds V1 whatever the percentage is, or close it.
    type: str
    choices: [open, closed]
  breaker_reason:
    description: Why the breaker is moved; needed with C(breaker), and kept in the record of it.
    type: str
  breaker_by:
    description: Who moves it. The user that runs the module, if this is empty.
    type: str
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

- name: Let V2 have its traffic again after its breaker had opened
  cfn_traffic:
    breaker: closed
    breaker_reason: the spawner's descriptor limit was too low, see incident 12
    breaker_by: alice
"""

RETURN = r"""
before:
  description: >-
    C(version), C(traffic_pct), C(epoch), C(v1_enabled), C(generation) and C(breaker) before; generation
    and breaker are null where no router answers.
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
v1:
  description: >-
    What V1 bears (C(capacity_per_s), and whether that is C(declared) or measured), what is asked for
    (C(demand_per_s)), and whether that fits (C(bears_all); null where it is not known).
  returned: where a release is installed
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import installed, run_cfn

NOTHING = {
    "version": "v1",
    "traffic_pct": 0,
    "epoch": 0,
    "v1_enabled": True,
    "generation": None,
    "breaker": None,
}


def as_yaml(state: dict[str, Any]) -> str:
    """The part of a state that an operator orders, for the diff."""
    # A release from before the breaker says nothing of one.
    parts = ("version", "traffic_pct", "epoch", "v1_enabled", "breaker")
    return "".join(f"{name}: {state.get(name)}\n" for name in parts)


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
            "v1_enabled": {"type": "bool"},
            "epoch": {"type": "int"},
            "breaker": {"type": "str", "choices": ["open", "closed"]},
            "breaker_reason": {"type": "str"},
            "breaker_by": {"type": "str"},
            "wait_s": {"type": "float", "default": 10},
        },
        required_by={"breaker": ["breaker_reason"]},
        supports_check_mode=True,
    )
    reading = all(module.params[option] is None for option in ("version", "percent", "v1_enabled", "breaker"))
    if not installed() and (reading or module.check_mode):
        result = predicted(module)
    else:
        arguments = ["traffic", "--json", "--wait-s", str(module.params["wait_s"])]
        for option in ("version", "percent", "epoch", "breaker"):
            if module.params[option] is not None:
                arguments += [f"--{option}", str(module.params[option])]
        if module.params["v1_enabled"] is not None:
            arguments += ["--v1", "enabled" if module.params["v1_enabled"] else "disabled"]
        if module.params["breaker"] is not None:
            arguments += ["--reason", module.params["breaker_reason"]]
            arguments += ["--by", module.params["breaker_by"]] if module.params["breaker_by"] else []
        result = run_cfn(module, arguments + (["--check"] if module.check_mode else []))
    for state in (result["before"], result["after"]):
        state.setdefault("v1_enabled", True)  # a release that knows no end of V1
    v1 = result.get("v1", {})
    if result["after"]["version"] == "v1" and v1.get("bears_all") is False:
        module.warn(
            f"V1 bears about {v1['capacity_per_s']:g} coordinations a second on this host, and "
            f"{v1['demand_per_s']:g} are asked for: some will wait, and then be refused"
        )
    result["diff"] = {"before": as_yaml(result["before"]), "after": as_yaml(result["after"])}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
