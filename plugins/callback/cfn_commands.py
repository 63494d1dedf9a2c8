# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""What to add to the commands that a run names, so that they reach the same hosts."""

from __future__ import annotations

DOCUMENTATION = r"""
name: cfn_commands
type: aggregate
short_description: Says which inventory the commands that a run names are for
description:
  - Messages name what to type next, and know nothing of how this run was typed. Where it was given an
    inventory with C(-i), the same words without it would reach the hosts of the configured one.
  - Named C(cfn_commands) to come before C(cfn_exit), which ends the process.
author:
  - cfn-rollout contributors
"""

import os
import shlex
from collections.abc import Sequence
from typing import Any

from ansible import constants, context
from ansible.plugins.callback import CallbackBase

COMMAND = "ansible-playbook "


def reminder(given: Sequence[str], configured: Sequence[str], here: str) -> str:
    """What to say after a run with these inventories (paths or lists of hosts); empty when a command
    without any reaches the same. `here` is the folder that commands are typed in."""
    if list(given) == list(configured):
        return ""
    below = here.rstrip("/") + "/"
    options = " ".join(f"-i {shlex.quote(each.removeprefix(below))}" for each in given)
    return f"Commands named above are for the same inventory: type them with {options}"


class CallbackModule(CallbackBase):  # type: ignore[misc] # Ansible ships no types
    """Speaks at the end, if a message named a command."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "cfn_commands"
    named = False

    def _note(self, result: Any) -> None:
        self.named = self.named or COMMAND in str(result._result.get("msg", ""))

    def v2_runner_on_ok(self, result: Any) -> None:
        """A message may name a command."""
        self._note(result)

    def v2_runner_on_failed(self, result: Any, **_: Any) -> None:
        """So may a failure."""
        self._note(result)

    def v2_playbook_on_stats(self, _stats: Any) -> None:
        """The end of a run."""
        given = context.CLIARGS.get("inventory") or ()
        text = reminder(given, constants.DEFAULT_HOST_LIST, os.getcwd()) if self.named else ""  # noqa: PTH109
        if text:
            self._display.display(text)
