# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Exit codes that tell how a playbook ended; docs/reference/stage-run.md lists them."""

from __future__ import annotations

DOCUMENTATION = r"""
name: cfn_exit
type: aggregate
short_description: Exit codes that tell verdicts and refusals apart
description:
  - A playbook of this project says how it stands in the custom statistic C(cfn_outcome). Where it ends
    with a failure, that word becomes the exit code of ansible-playbook; without the word, or without
    this plugin, Ansible's own code stays.
requirements:
  - enabled in ansible.cfg
author:
  - cfn-rollout contributors
"""

from collections.abc import Mapping
from typing import Any

from ansible.plugins.callback import CallbackBase

EXIT_CODES = {
    "INCONCLUSIVE": 10,
    "FAIL": 11,
    "NO_DATA": 12,
    "ERROR": 13,
    "REFUSED": 20,
    "TAKEN_BACK": 21,
}


def exit_code(custom: Mapping[str, Any], failed: bool) -> int | None:
    """The code for the statistics of a whole run; None where Ansible's own stays."""
    word = custom.get("_run", {}).get("cfn_outcome", "")
    return EXIT_CODES.get(str(word)) if failed else None


class CallbackModule(CallbackBase):  # type: ignore[misc] # Ansible ships no types
    """Ends the process with the playbook's own code, after everything else was said."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "cfn_exit"

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """The last that happens in a run. Raises SystemExit, through which Ansible still cleans up."""
        code = exit_code(stats.custom, bool(stats.failures or stats.dark))
        if code is not None:
            raise SystemExit(code)
