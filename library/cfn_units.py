#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Enable, start or restart several units at once."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_units
short_description: Enable, start or restart several units at once
description:
  - As M(ansible.builtin.systemd_service) for a list of units, in one task instead of one for each,
    since a task costs a fifth of a second on every host.
  - A unit of type notify counts as started when it says that it is ready, so this waits for health.
options:
  names:
    description: The units, in the order in which they are started.
    type: list
    elements: str
    required: true
  stopped:
    description: Patterns of units that are stopped and disabled, but for those that are named.
    type: list
    elements: str
    default: []
  restarted:
    description: Take changed units in and restart all of them, whatever their state; enable none.
    type: bool
    default: false
  newer_than:
    description: >-
      Files and links. Services that have started before one of them was last changed are restarted: a
      controller may have died between a change and its restart.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Run the router
  cfn_units:
    names: [cfn-router.socket, cfn-router.service]

- name: Run two coordinators and no more
  cfn_units:
    names: [cfn-coordinator@1.service, cfn-coordinator@2.service]
    stopped: ["cfn-coordinator@*.service"]
"""

RETURN = r"""
states:
  description: For each unit how it was before, as C(enabled/active) of systemctl.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.unit_states import WANTED, read_units, stale, surplus


def act(module: AnsibleModule, *arguments: str) -> None:
    """Run systemctl; end the task with its words and where to look if it fails."""
    rc, output, errors = module.run_command(["systemctl", *arguments])
    if rc != 0:
        module.fail_json(
            msg=f"systemctl {' '.join(arguments)}: {(errors or output).strip()} See: journalctl -u 'cfn-*'"
        )


def main() -> None:
    """Compare, show the difference, apply it."""
    module = AnsibleModule(
        argument_spec={
            "names": {"type": "list", "elements": "str", "required": True},
            "stopped": {"type": "list", "elements": "str", "default": []},
            "restarted": {"type": "bool", "default": False},
            "newer_than": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    names: list[str] = module.params["names"]
    restarted: bool = module.params["restarted"]
    gone = surplus(module, module.params["stopped"], names)
    units = read_units(module, names + gone)
    before = {name: unit.state for name, unit in units.items()}
    old = [name for name in stale(units, module.params["newer_than"]) if name not in gone]
    changed = bool(gone or old) or restarted or any(before[name] != WANTED for name in names)
    wanted = "restarted" if restarted else WANTED
    diff = {
        "before": "".join(f"{name}: {state}\n" for name, state in before.items()),
        "after": "".join(f"{name}: {'restarted' if name in old else wanted}\n" for name in names)
        + "".join(f"{name}: disabled/inactive\n" for name in gone),
    }
    if changed and not module.check_mode:
        if gone:
            act(module, "--quiet", "disable", "--now", *gone)
        if restarted:
            act(module, "daemon-reload")
            act(module, "restart", *names)
        else:
            act(module, "--quiet", "enable", *names)
            if old:
                act(module, "daemon-reload")
                act(module, "restart", *old)
            act(module, "start", *names)
    module.exit_json(changed=changed, states=before, diff=diff)


if __name__ == "__main__":
    main()
