#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Reduce events and samples over a window to evidence for the gate."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_metrics
short_description: Reduce events and samples over a window to evidence
description:
  - With O(source=files), reads the files that router and collector write, on the host, and returns
    counts and mergeable histograms by time bucket, never the raw lines.
  - With O(source=prometheus), asks a Prometheus for the same of many hosts. Run it once, on the control
    host. The answer is the same but for the width of the histogram's buckets.
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
  source:
    description: Where to read.
    type: str
    choices: [files, prometheus]
    default: files
  url:
    description: Address of the Prometheus, such as V(https://prometheus.example:9090).
    type: str
  hosts:
    description: The hosts to ask a Prometheus for, and the C(instance) label of each.
    type: dict
  token_file:
    description: File on this host with a bearer token. Only its path is passed on.
    type: path
  ca_file:
    description: Certificates that the Prometheus' own is checked against, instead of the system's.
    type: path
  timeout_s:
    description: How long one query may take.
    type: float
    default: 30
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

- name: The same of two hosts, from Prometheus
  cfn_metrics:
    since: "2026-01-31T11:00:00.000Z"
    until: "2026-01-31T12:00:00.000Z"
    bucket_s: 300
    source: prometheus
    url: https://prometheus.example:9090
    hosts: {cfn1: "cfn1:8471", cfn2: "cfn2:8471"}
    token_file: /etc/cfn/prometheus.token
  run_once: true
  delegate_to: "{{ groups['control'][0] }}"
  register: metrics_result
"""

RETURN = r"""
evidence:
  description: The evidence of this host, packed, as docs/reference/gates.md describes it.
  returned: when source is files
  type: dict
evidence_by_host:
  description: The evidence of each host, packed, or C(error) with what went wrong.
  returned: when source is prometheus
  type: dict
"""

from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import run_cfn


def prometheus_argv(options: dict[str, Any]) -> list[str]:
    """The options of `cfn metrics` that name the Prometheus and the hosts."""
    argv = ["--prometheus", options["url"], "--timeout-s", f"{options['timeout_s']:g}"]
    for option, name in (("--token-file", "token_file"), ("--ca-file", "ca_file")):
        if options[name]:
            argv += [option, options[name]]
    for host, instance in sorted(options["hosts"].items()):
        argv += ["--instance", f"{host}={instance}"]
    return argv


def main() -> None:
    """Translate the options to one call of `cfn metrics`."""
    module = AnsibleModule(
        argument_spec={
            "since": {"type": "str", "required": True},
            "until": {"type": "str", "required": True},
            "bucket_s": {"type": "float", "required": True},
            "source": {"type": "str", "choices": ["files", "prometheus"], "default": "files"},
            "url": {"type": "str"},
            "hosts": {"type": "dict"},
            "token_file": {"type": "path", "no_log": False},
            "ca_file": {"type": "path"},
            "timeout_s": {"type": "float", "default": 30},
        },
        required_if=[("source", "prometheus", ("url", "hosts"))],
        supports_check_mode=True,
    )
    options = module.params
    argv = [
        "metrics", "--packed", "--since", options["since"], "--until", options["until"],
        "--bucket-s", f"{options['bucket_s']:g}",
    ]  # fmt: skip
    prometheus = options["source"] == "prometheus"
    answer = run_cfn(module, argv + prometheus_argv(options) if prometheus else argv)
    del answer["rc"]
    module.exit_json(changed=False, **{"evidence_by_host" if prometheus else "evidence": answer})


if __name__ == "__main__":
    main()
