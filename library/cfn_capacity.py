#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Read or change how many agents V2 takes and how long it keeps things, while it runs."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_capacity
short_description: Read or change how many agents V2 takes and how long it keeps things, while it runs
description:
  - Edits the configuration if it differs, and returns when conductor and router report what it says. No
    restart, no lost request; a larger request goes to V1, outside the split.
options:
  agents:
    description: Largest request that V2 takes.
    type: int
  retention_s:
    description: Seconds to keep results and answers, or C(default) for the engine's own.
    type: str
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Half as many agents
  cfn_capacity:
    agents: 350
"""

RETURN = r"""
before:
  description: C(agents) and C(retention_s) before.
  returned: always
  type: dict
after:
  description: The same afterwards, or as it would be in check mode.
  returned: always
  type: dict
confirmed:
  description: Whether conductor and router report it.
  returned: always
  type: bool
seconds:
  description: Time until they did.
  returned: always
  type: float
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import run_cfn


def main() -> None:
    """Translate the options to one call of `cfn capacity`."""
    module = AnsibleModule(
        argument_spec={"agents": {"type": "int"}, "retention_s": {"type": "str"}},
        supports_check_mode=True,
    )
    arguments = ["capacity", "--json"]
    for option in ("agents", "retention_s"):
        if module.params[option] is not None:
            arguments += [f"--{option.replace('_', '-')}", str(module.params[option])]
    result = run_cfn(module, arguments + (["--check"] if module.check_mode else []))
    shown = {
        when: "".join(f"{name}: {value}\n" for name, value in result[when].items())
        for when in ("before", "after")
    }
    module.exit_json(**result, diff=shown)


if __name__ == "__main__":
    main()
