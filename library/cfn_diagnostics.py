#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Collect what an investigation needs of a host, secrets removed."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_diagnostics
short_description: Collect what an investigation needs of a host, secrets removed
description:
  - Makes one tar.gz of a host's journals, configuration, status, samples, events, units, processes,
    versions and limits, and on the control host of the ledger's last records. Needs Python and systemd
    and nothing else, so it works where the engine is dead and where no release is installed.
  - Secrets are removed by the name that they stand under, and by value wherever the same value occurs.
  - What cannot be read is said in the bundle's C(MANIFEST.json) and in C(missing), and is no failure.
  - The bundle is below /run, readable by root only. Fetch it, then remove it.
options:
  host:
    description: The host's name in the inventory.
    type: str
    required: true
  since_s:
    description: From when on the journal is read, in seconds since 1970.
    type: float
    required: true
  part_kb:
    description: How much of one part is kept, in kB; its end is.
    type: int
    required: true
  bundle_kb:
    description: How much all parts may come to, in kB, before they are compressed.
    type: int
    required: true
  command_timeout_s:
    description: How long one command may take.
    type: float
    required: true
attributes:
  check_mode:
    support: full
    details: Reads the host and writes no bundle.
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Collect the last two hours
  cfn_diagnostics:
    host: "{{ inventory_hostname }}"
    since_s: "{{ (now(utc=true) | cfn_epoch_s) - 7200 }}"
    part_kb: 2048
    bundle_kb: 16384
    command_timeout_s: 10
  register: bundle
"""

RETURN = r"""
path:
  description: Where the bundle is on the host; empty in check mode.
  returned: always
  type: str
bytes:
  description: Its size.
  returned: always
  type: int
sha256:
  description: Its checksum.
  returned: always
  type: str
parts:
  description: Names of the files in it.
  returned: always
  type: list
  elements: str
missing:
  description: What is missing or not whole, and why, a line each.
  returned: always
  type: list
  elements: str
facts:
  description: What an incident report says of the host; null where it cannot be read.
  returned: always
  type: dict
"""

import time
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.diagnostics_bundle import (
    archive,
    facts,
    manifest_of,
    redacted,
    secrets_of,
    sha256,
    write,
)
from ansible.module_utils.diagnostics_host import Host, parts
from ansible.module_utils.diagnostics_reading import run

FOLDER = "/run/cfn-diagnostics"


def main() -> None:
    """Collect, remove secrets, write."""
    module = AnsibleModule(
        argument_spec={
            "host": {"type": "str", "required": True},
            "since_s": {"type": "float", "required": True},
            "part_kb": {"type": "int", "required": True},
            "bundle_kb": {"type": "int", "required": True},
            "command_timeout_s": {"type": "float", "required": True},
        },
        supports_check_mode=True,
    )
    given = module.params
    most_part_bytes = 1024 * given["part_kb"]
    host = Host(
        root=Path("/"),
        run=lambda argv: run(argv, most_bytes=most_part_bytes, timeout_s=given["command_timeout_s"]),
        since_s=given["since_s"],
        most_part_bytes=most_part_bytes,
    )
    now_s = time.time()
    collected = list(parts(host))
    clean, removed = redacted(collected, secrets_of(host.root, collected))
    heading = {**manifest_of(host, given["host"], now_s), "removed": removed}
    content, manifest = archive(clean, heading, 1024 * given["bundle_kb"])
    path = ""
    if not module.check_mode:
        name = f"{given['host']}-{time.time_ns()}.tar.gz"
        try:
            path = str(write(Path(FOLDER), name, content))
        except OSError as error:
            module.fail_json(msg=f"the bundle cannot be written below {FOLDER}: {error}")
    module.exit_json(
        changed=False,
        path=path,
        bytes=len(content),
        sha256=sha256(content),
        parts=[part["name"] for part in manifest["parts"] if part["bytes"]],
        missing=[f"{part['name']}: {part['problem']}" for part in manifest["parts"] if part["problem"]],
        facts=facts(host, clean),
    )


if __name__ == "__main__":
    main()
