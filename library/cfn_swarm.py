#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Run real coordinations and hold them against targets."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_swarm
short_description: Run real coordinations on a host and hold them against targets
description:
  - Runs one coordination for each step of a ladder, with real agents, and fails at the first step
    that misses its target, naming what was found and what is allowed.
options:
  version:
    description: C(v2) runs on the engine itself, C(v1) on the V1 command; neither needs traffic.
    type: str
    choices: [v1, v2]
    default: v2
  through_router:
    description: Go through the router as a caller does, and require that C(version) served.
    type: bool
    default: false
  ladder:
    description: >-
      Steps of C(agents), C(coordination_time_ms) (at most), C(delivery_rate_pct) (at least), and
      C(version) where a step tries another than C(version).
    type: list
    elements: dict
    required: true
  repeat:
    description:
      - What to run if the whole ladder has passed on this host before, with the same release,
        configuration (but for the traffic), limits of the units, and V1. C(first) runs the first step
        of each version only.
      - What has passed is kept as a digest in C(/opt/cfn/smoke-passed).
    type: str
    choices: [whole, first]
    default: whole
attributes:
  check_mode:
    support: full
    details: Runs nothing in check mode, since a coordination runs agents.
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Smoke test with 10 agents
  cfn_swarm:
    version: v2
    ladder:
      - {agents: 10, coordination_time_ms: 2000, delivery_rate_pct: 95}
"""

RETURN = r"""
steps:
  description: For each step what was asked, and the coordination that answered.
  returned: always
  type: list
  elements: dict
summary:
  description: One line for each step.
  returned: always
  type: list
  elements: str
"""

import hashlib
import json
import re
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import run_cfn

ROOM_WITHIN_S = 15.0
PASSED = Path("/opt/cfn/smoke-passed")
RELEASE = Path("/opt/cfn/current")
CONFIG = Path("/etc/cfn/config.sh")
# What a coordination depends on, beside release and configuration.
FURTHER = (
    Path("/etc/systemd/system/cfn-.service.d/limits.conf"),
    Path("/opt/cfn-v1/bin/coordinate"),
)
# A flip changes these, and nothing that a direct coordination meets.
TRAFFIC = re.compile(rb"(?m)^(export +)?CFN_(TRAFFIC_PERCENTAGE|COORDINATION_VERSION|EPOCH)=.*\n")


def digest_of(release: str, config: bytes, further: Sequence[bytes], ladder: list[dict[str, Any]]) -> str:
    """What tells one ladder on one deployment from any other: a SHA-256, the traffic left out."""
    parts = [
        release.encode(),
        TRAFFIC.sub(b"", config),
        *further,
        json.dumps(ladder, sort_keys=True).encode(),
    ]
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()


def first_steps(ladder: list[dict[str, Any]], version: str) -> list[dict[str, Any]]:
    """The first step of each version; `version` is that of steps that name none."""
    first: dict[str, dict[str, Any]] = {}
    for step in ladder:
        first.setdefault(step.get("version", version), step)
    return list(first.values())


def content(path: Path) -> bytes:
    """A file's content, empty if there is none."""
    return path.read_bytes() if path.is_file() else b""


def keep(digest: str) -> None:
    """Keep what has passed, in one step. A ladder that cannot be kept has passed all the same."""
    fresh = PASSED.with_suffix(".new")
    with suppress(OSError):
        fresh.write_text(digest)
        fresh.chmod(0o644)
        fresh.replace(PASSED)


def problems(step: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What one coordination missed, in words; empty when it met its targets."""
    missed = []
    if found["coordination_time_ms"] > step["coordination_time_ms"]:
        missed.append(
            f"coordination took {found['coordination_time_ms']:.0f} ms, "
            f"allowed {step['coordination_time_ms']} ms"
        )
    if found["delivery_rate_pct"] < step["delivery_rate_pct"]:
        missed.append(f"delivery {found['delivery_rate_pct']:.1f} %, required {step['delivery_rate_pct']} %")
    if found["completion_rate_pct"] < step["delivery_rate_pct"]:
        missed.append(
            f"completion {found['completion_rate_pct']:.1f} %, required {step['delivery_rate_pct']} %"
        )
    return missed


def agents_active(module: AnsibleModule) -> int:
    """How many agents the engine has now; 0 if it does not say."""
    health = run_cfn(module, ["status", "--json"], accept=(0, 1, 3)).get("engine_health") or {}
    return int(health.get("agents_active") or 0)


def wait_for_room(module: AnsibleModule, at_most: int) -> None:
    """Let the agents of the step before end, so that a ladder never takes more of a host than its largest
    step does. Gives up after a while: live traffic may have brought as many."""
    deadline_s = time.monotonic() + ROOM_WITHIN_S
    while agents_active(module) > at_most and time.monotonic() < deadline_s:
        time.sleep(0.2)


def main() -> None:
    """Climb the ladder."""
    module = AnsibleModule(
        argument_spec={
            "version": {"type": "str", "choices": ["v1", "v2"], "default": "v2"},
            "through_router": {"type": "bool", "default": False},
            "ladder": {"type": "list", "elements": "dict", "required": True},
            "repeat": {"type": "str", "choices": ["whole", "first"], "default": "whole"},
        },
        supports_check_mode=True,
    )
    steps: list[dict[str, Any]] = []
    summary: list[str] = []
    if module.check_mode:
        module.exit_json(changed=False, steps=steps, summary=summary)
    ladder: list[dict[str, Any]] = module.params["ladder"]
    release = str(RELEASE.readlink()) if RELEASE.is_symlink() else ""
    digest = digest_of(release, content(CONFIG), [content(path) for path in FURTHER], ladder)
    if module.params["repeat"] == "first" and content(PASSED) == digest.encode():
        ladder = first_steps(ladder, module.params["version"])
    # Asked before the engine's first step, if there is a second; V1 needs no engine.
    present: int | None = None
    climbing = sum(step.get("version", module.params["version"]) == "v2" for step in ladder) > 1
    for step in ladder:
        version = step.get("version", module.params["version"])
        # V1 in the place of an absent router would prove nothing of the router.
        route = ["--when-down", "fail"] if module.params["through_router"] else ["--direct", version]
        if version == "v2" and climbing and present is None:
            present = agents_active(module)
        elif version == "v2" and climbing:
            wait_for_room(module, present or 0)
        task = f"smoke-{version}-{step['agents']}-{uuid.uuid4().hex[:12]}"
        answer = run_cfn(
            module,
            ["coordinate", "--json", *route, "--agents", str(step["agents"]), task],
            accept=(0, 1, 4),
        )
        if answer.get("served", version) != version:
            module.fail_json(msg=f"{task} was served by {answer['served']}, not by {version}", steps=steps)
        found = {key: value for key, value in answer["coordination"].items() if key != "results"}
        steps.append({"asked": step, "found": found})
        summary.append(
            f"{version}: {step['agents']} agents in {found['coordination_time_ms']:.0f} ms, "
            f"delivery {found['delivery_rate_pct']:.1f} %"
        )
        missed = problems(step, found)
        if missed:
            module.fail_json(
                msg=f"{version} with {step['agents']} agents: {'; '.join(missed)}. "
                "Look at journalctl -u cfn-coordination -u cfn-workers on this host.",
                steps=steps,
                summary=summary,
            )
    if ladder is module.params["ladder"] and not module.params["through_router"]:
        keep(digest)
    module.exit_json(changed=False, steps=steps, summary=summary)


if __name__ == "__main__":
    main()
