#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Prove by a real coordination that V1 works, without the router."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_v1_proof
short_description: Prove by a real coordination that V1 works, without the router
description:
  - Runs V1's command under its contract (docs/reference/router.md, "V1"), as the account that the router
    runs it as, and holds its last line against what was asked for. Needs no part of V2 on the host.
options:
  command:
    description: V1's command.
    type: str
    required: true
  paths:
    description: What V1 consists of; words of the command in it are looked for below C(root).
    type: list
    elements: str
    default: []
  root:
    description: Below which folder V1 is; another than C(/) in a rehearsal.
    type: path
    default: /
  agents:
    description: How many agents to coordinate.
    type: int
    default: 10
  account:
    description: Run it as this user; as the module's own where there is no such user.
    type: str
    default: cfn
  timeout_s:
    description: How long it may take.
    type: int
    default: 60
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Prove that V1 works
  cfn_v1_proof:
    command: /opt/cfn-v1/bin/coordinate
"""

RETURN = r"""
line:
  description: The last line that V1 printed.
  returned: always, but in check mode
  type: str
"""

import os
import pwd
import re
import subprocess
import tempfile
import uuid

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.v1_archive import relocate


def problem(line: str, agents: int, exit_code: int) -> str:
    """What is wrong with the last line of a V1 that was asked for `agents`; empty if nothing is."""
    figures = r"delivery_rate=([0-9.]+) agents_coordinated=([0-9]+) coordination_time_ms=[0-9.]+"
    found = re.fullmatch(figures, line)
    if exit_code or found is None or float(found[1]) < 100 or int(found[2]) != agents:
        return (
            f"it exited with {exit_code} and said {line!r}; expected delivery_rate=100.0 of {agents} agents"
        )
    return ""


def main() -> None:
    """Run V1, and judge what it says."""
    module = AnsibleModule(
        argument_spec={
            "command": {"type": "str", "required": True},
            "paths": {"type": "list", "elements": "str", "default": []},
            "root": {"type": "path", "default": "/"},
            "agents": {"type": "int", "default": 10},
            "account": {"type": "str", "default": "cfn"},
            "timeout_s": {"type": "int", "default": 60},
        },
        supports_check_mode=True,
    )
    asked = module.params
    if module.check_mode:
        module.exit_json(changed=False)
    task = f"v1-proof-{uuid.uuid4().hex[:12]}"
    argv = [*relocate(asked["command"], asked["paths"], asked["root"]), str(asked["agents"]), task]
    environment = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "CFN_TASK_ID": task,
        "CFN_AGENT_COMMAND": "",
        "CFN_MAX_OUTPUT": "65536",
    }
    try:
        account = pwd.getpwnam(asked["account"])
    except KeyError:
        account = None
    try:
        with tempfile.TemporaryFile() as payload:
            done = subprocess.run(
                argv,
                stdin=payload,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=asked["timeout_s"],
                env=environment,
                cwd="/",
                check=False,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=[] if account else None,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        module.fail_json(msg=f"V1 does not work: {error}")
    line = done.stdout.strip().rpartition("\n")[2]
    wrong = problem(line, asked["agents"], done.returncode)
    if wrong:
        module.fail_json(msg=f"V1 does not work: {argv[0]}: {wrong} {done.stderr.strip()[-300:]}", line=line)
    module.exit_json(changed=False, line=line)


if __name__ == "__main__":
    main()
