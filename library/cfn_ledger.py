#!/usr/bin/python
# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Append to the environment's ledger, read it, verify it, or keep its head."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cfn_ledger
short_description: Append to the environment's ledger, read it, verify it, or keep its head on a host
description:
  - The ledger is the record, on the control host, of what was done and decided. Records are
    chained by hash and never changed.
  - Run it on the control host. Where that has no release yet, there is nothing to append with:
    C(record) is null then.
  - C(anchored) and C(anchors) are for every host. A head that hosts keep shows a ledger that was cut
    or rewritten; a host that keeps another one than the ledger has fails the task.
options:
  state:
    description:
      - C(verified) checks every record, and the heads in C(anchors).
      - C(exported) signs the last PASS of C(stage) for another environment.
      - C(anchored) keeps C(head) on this host, C(anchors) reads the heads that it keeps.
    type: str
    choices: [appended, read, verified, exported, anchored, anchors]
    default: read
  kind:
    description: Kind of the record to append, such as C(deployed), C(flipped) or C(verdict).
    type: str
  stage:
    description: The stage that the record belongs to.
    type: str
  environment:
    description: Name of the environment.
    type: str
  actor:
    description: Who asked.
    type: str
  data:
    description: What was done or decided.
    type: dict
    default: {}
  last:
    description: How many records to read.
    type: int
    default: 20
  kinds:
    description: Read only records of these kinds; all if empty.
    type: list
    elements: str
    default: []
  head:
    description: C(sequence), C(hash) and, so that another writer may come late, C(previous) of a record, as
      returned in C(record).
    type: dict
  anchors:
    description: For each host the heads that it keeps.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
author:
  - cfn-rollout contributors
"""

EXAMPLES = r"""
- name: Record the flip
  cfn_ledger:
    state: appended
    kind: flipped
    stage: stage1
    environment: production
    actor: "{{ lookup('env', 'USER') }}"
    data: {traffic_pct: 10}

- name: Read the last records
  cfn_ledger:
    last: 5
  register: ledger_read
"""

RETURN = r"""
record:
  description: The record that was appended.
  returned: when state is appended
  type: dict
records:
  description: The last records, oldest first; empty where no ledger exists yet.
  returned: when state is read
  type: list
  elements: dict
intact:
  description: Whether every record is as it was written and none is missing.
  returned: when state is verified
  type: bool
problem:
  description: The first damage, in words; empty if there is none.
  returned: when state is verified
  type: str
export:
  description: The record with its signature.
  returned: when state is exported
  type: dict
anchors:
  description: The heads that this host keeps, oldest first.
  returned: when state is anchors
  type: list
  elements: dict
"""

import json
import tempfile

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.cfn_command import installed, run_cfn

STATES = ["appended", "read", "verified", "exported", "anchored", "anchors"]
NOTHING_YET = {"records": [], "intact": True, "problem": "", "anchors": [], "record": None}


def append(module: AnsibleModule) -> None:
    """Append a record."""
    if module.check_mode:
        module.exit_json(changed=True, record=None)
    arguments = ["ledger", "append", "--json"]
    for option in ("kind", "stage", "environment", "actor"):
        arguments += [f"--{option}", module.params[option]]
    module.exit_json(changed=True, record=run_cfn(module, arguments, stdin=module.params["data"]))


def verify(module: AnsibleModule) -> None:
    """Verify, against the heads that hosts keep."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", dir=module.tmpdir) as file:
        json.dump(module.params["anchors"], file)
        file.flush()
        found = run_cfn(module, ["ledger", "verify", "--json", "--anchors", file.name])
    module.exit_json(changed=False, **found)


def anchor(module: AnsibleModule) -> None:
    """Keep a head on this host."""
    if module.check_mode:
        module.exit_json(changed=False)
    head = module.params["head"]
    arguments = ["ledger", "anchor", "--environment", module.params["environment"]]
    arguments += ["--sequence", str(head["sequence"]), "--hash", head["hash"]]
    if head.get("previous"):
        arguments += ["--previous", head["previous"]]
    kept = run_cfn(module, arguments)
    module.exit_json(changed=kept["changed"])


def main() -> None:
    """Translate the options to one call of `cfn ledger`."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": STATES, "default": "read"},
            "kind": {"type": "str"},
            "stage": {"type": "str"},
            "environment": {"type": "str"},
            "actor": {"type": "str"},
            "data": {"type": "dict", "default": {}},
            "last": {"type": "int", "default": 20},
            "kinds": {"type": "list", "elements": "str", "default": []},
            "head": {"type": "dict"},
            "anchors": {"type": "dict", "default": {}},
        },
        required_if=[
            ("state", "appended", ["kind", "stage", "environment", "actor"]),
            ("state", "exported", ["stage"]),
            ("state", "anchored", ["environment", "head"]),
            ("state", "anchors", ["environment"]),
        ],
        supports_check_mode=True,
    )
    parameters = module.params
    state = parameters["state"]
    if not installed() and state != "exported":
        module.exit_json(changed=False, **NOTHING_YET)
    if state == "appended":
        append(module)
    elif state == "verified":
        verify(module)
    elif state == "anchored":
        anchor(module)
    elif state == "anchors":
        kept = run_cfn(module, ["ledger", "anchors", "--environment", parameters["environment"]])
        module.exit_json(changed=False, anchors=kept["anchors"])
    elif state == "exported" and module.check_mode:  # it would make a key if there is none
        module.exit_json(changed=False, export=None)
    elif state == "exported":
        exported = run_cfn(module, ["ledger", "export", "--stage", parameters["stage"]])
        del exported["rc"]
        module.exit_json(changed=False, export=exported)
    kinds = [word for kind in parameters["kinds"] for word in ("--kind", kind)]
    shown = run_cfn(module, ["ledger", "show", "--json", "--last", str(parameters["last"]), *kinds])
    module.exit_json(changed=False, records=shown["records"])


if __name__ == "__main__":
    main()
