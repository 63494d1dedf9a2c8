#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Reduce a host's events and samples over a window to evidence for the gate."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_metrics
short_description: Reduce a host's events and samples over a window to evidence
description:
  - Reads the files that router and collector write, on the host, and returns counts and mergeable
    histograms by time bucket, never the raw lines.
options:
  since:
    description: Begin of the window, RFC 3339 in UTC, on a multiple of the bucket.
    type: str
    required: true
  until:
    description: End of the window, which is left out.
    type: str
    required: true
  bucket_s:
    description: Length of a time bucket in seconds.
    type: float
    required: true
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Reduce the last hour
  cfn_metrics:
    since: "2026-01-31T11:00:00.000Z"
    until: "2026-01-31T12:00:00.000Z"
    bucket_s: 300
  register: metrics_result
"""

RETURN = r"""
evidence:
  description: The evidence, as docs/reference/gates.md describes it.
  returned: always
  type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import run_cfn


def main() -> None:
    """Translate the options to one call of `cfn metrics`."""
    module = AnsibleModule(
        argument_spec={
            "since": {"type": "str", "required": True},
            "until": {"type": "str", "required": True},
            "bucket_s": {"type": "float", "required": True},
        },
        supports_check_mode=True,
    )
    window = module.params
    evidence = run_cfn(
        module,
        ["metrics", "--json", "--since", window["since"], "--until", window["until"],
         "--bucket-s", f"{window['bucket_s']:g}"],
    )  # fmt: skip
    del evidence["rc"]
    module.exit_json(changed=False, evidence=evidence)


if __name__ == "__main__":
    main()
