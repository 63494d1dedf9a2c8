# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Run the `cfn` command of the release that is in force on the host, and read its JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

CFN = "/opt/cfn/current/bin/cfn"


def installed() -> bool:
    """Whether a release is in force on this host."""
    return Path(CFN).exists()


def run_cfn(
    module: AnsibleModule,
    arguments: list[str],
    *,
    stdin: object = None,
    accept: tuple[int, ...] = (0,),
    prefix: Sequence[str] = (),
) -> dict[str, Any]:
    """Run `cfn ARGUMENT ...` and return the object that it prints, with its exit code as `rc`.

    `stdin` is sent as JSON; `prefix` is a command that runs it, such as systemd-run. Ends the task with
    the command's own words if it exits with a code that is not in `accept`, or prints no JSON object.
    Blocks until the command ends.
    """
    if not installed():
        module.fail_json(msg=f"{CFN} does not exist on this host: deploy a release first (stage1.yml)")
    data = None if stdin is None else json.dumps(stdin, allow_nan=False)
    rc, output, errors = module.run_command([*prefix, CFN, *arguments], data=data, binary_data=True)
    if rc not in accept:
        module.fail_json(
            msg=errors.strip() or output.strip() or f"cfn {arguments[0]} exited with {rc}", rc=rc
        )
    try:
        result = json.loads(output)
    except ValueError:
        if rc != 0 and errors.strip():
            module.fail_json(msg=errors.strip(), rc=rc)
        module.fail_json(msg=f"cfn {arguments[0]} printed no JSON: {output[:200]!r} {errors[:200]!r}", rc=rc)
    if not isinstance(result, dict):
        module.fail_json(msg=f"cfn {arguments[0]} printed {type(result).__name__}, not an object", rc=rc)
    return {**result, "rc": rc}
