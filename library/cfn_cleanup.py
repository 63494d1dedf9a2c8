#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Remove what has outlived its retention on a host, and orphaned processes."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_cleanup
short_description: Remove what has outlived its retention on a host, and orphaned processes
description:
  - Never touches what is in use. The cleanup timer does the same.
options:
  retention_s:
    description: Seconds to keep; the configuration's if it is not set.
    type: int
attributes:
  check_mode:
    support: full
    details: What running requests hold, only the conductor knows; a prediction may name it.
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Remove what is older than an hour
  cfn_cleanup:
    retention_s: 3600
"""

RETURN = r"""
removed:
  description: >-
    How many C(requests) (segments of the journal), C(outputs), C(swarms), C(inboxes), C(processes).
  returned: always
  type: dict
freed_bytes:
  description: The size of what was removed.
  returned: always
  type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import run_cfn

KINDS = ("requests", "outputs", "swarms", "inboxes", "processes")


def main() -> None:
    """Translate the options to one call of `cfn cleanup`."""
    module = AnsibleModule(argument_spec={"retention_s": {"type": "int"}}, supports_check_mode=True)
    arguments = ["cleanup", "--json"]
    if module.params["retention_s"] is not None:
        arguments += ["--retention-s", str(module.params["retention_s"])]
    found = run_cfn(module, arguments + (["--check"] if module.check_mode else []))
    removed = {kind: found[kind] for kind in KINDS}
    module.exit_json(
        changed=any(removed.values()),
        removed=removed,
        freed_bytes=found["freed_bytes"],
        retention_s=found["retention_s"],
    )


if __name__ == "__main__":
    main()
