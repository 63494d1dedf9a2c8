#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Find what a deployment would have to change on a host."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_drift
short_description: Find what a deployment would have to change on a host
description:
  - Compares the release in force, file by file with its manifest, further files, and the units that
    should run with what is on the host, in one task. A deployment looks at the same things in a dozen,
    each of which costs every host a fifth of a second; a host without drift needs none of them.
  - Only reads.
options:
  release:
    description: The version that should be in force.
    type: str
    required: true
  files:
    description: >-
      Files that no release holds, as C(path), C(sha256), C(mode) (octal), C(user) and C(group); what matches
      the regular expression C(ignoring), if there is one, is no part of their content.
    type: list
    elements: dict
    required: true
  units:
    description: The units that should be enabled and active.
    type: list
    elements: str
    required: true
  stopped:
    description: Patterns of units that should not run, but for those that are named.
    type: list
    elements: str
    default: []
  newer_than:
    description: Files and links that no service should have started before.
    type: list
    elements: path
    default: []
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: See what is not as it should be
  cfn_drift:
    release: 0.1.0-0123456789ab
    files:
      - path: /etc/cfn/config.sh
        sha256: "{{ text | hash('sha256') }}"
        mode: "0640"
        user: root
        group: cfn
    units: [cfn-router.service]
"""

RETURN = r"""
drift:
  description: Each thing that is not as it should be, in words; empty if there is nothing to do.
  returned: always
  type: list
  elements: str
"""

import re
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.release_tree import file_differences, find_differences
from ansible.module_utils.unit_states import WANTED, read_units, stale, surplus


def main() -> None:
    """Compare, and say it."""
    module = AnsibleModule(
        argument_spec={
            "release": {"type": "str", "required": True},
            "files": {"type": "list", "elements": "dict", "required": True},
            "units": {"type": "list", "elements": "str", "required": True},
            "stopped": {"type": "list", "elements": "str", "default": []},
            "newer_than": {"type": "list", "elements": "path", "default": []},
        },
        supports_check_mode=True,
    )
    names: list[str] = module.params["units"]
    try:
        found = find_differences(module.params["release"])
        for file in module.params["files"]:
            path, mode, ignoring = Path(file["path"]), int(file["mode"], 8), file.get("ignoring", "")
            found += file_differences(path, file["sha256"], mode, file["user"], file["group"], ignoring)
    except (KeyError, ValueError, re.error) as error:
        module.fail_json(msg=f"what should be here cannot be understood: {error}")
    drift = [f"{each.path}: {each.found}, not {each.wanted}" for each in found]
    units = read_units(module, names)
    drift += [f"{name}: {unit.state}" for name, unit in units.items() if unit.state != WANTED]
    drift += [f"{name}: started before its release" for name in stale(units, module.params["newer_than"])]
    drift += [f"{name}: runs" for name in surplus(module, module.params["stopped"], names)]
    module.exit_json(changed=False, drift=drift)


if __name__ == "__main__":
    main()
