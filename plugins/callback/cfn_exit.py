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
    this plugin, Ansible's own code stays. Verdicts have the codes of C(cfn gate).
  - Without the word, a run whose every failure says that nothing was touched is a refusal too.
  - A run in which no host did anything is refused, where Ansible calls it a success; so are words that
    lost their quotes on the way into an extra variable, where Ansible drops them.
requirements:
  - enabled in ansible.cfg
author:
  - cfn-rollout contributors
"""

from collections.abc import Mapping
from typing import Any

from ansible.plugins.callback import CallbackBase

EXIT_CODES = {
    "FAIL": 10,
    "INCONCLUSIVE": 11,
    "NO_DATA": 12,
    "ERROR": 13,
    "REFUSED": 20,
    "TAKEN_BACK": 21,
}

# What a refusal says, if its playbook has no word for it.
PROMISES = ("Nothing was touched", "Nothing was recorded")

NOBODY = (
    "Nothing was done: no host of the inventory was asked. Name an inventory with -i, and put its hosts into "
    "the groups cfn and control; for the lab: make lab-up."
)
UNQUOTED = (
    "Refused before anything was touched: {words!r} belongs to no variable. A value of several words needs "
    "quotes of its own: -e 'reason=\"TEXT OF SEVERAL WORDS\"'."
)


def exit_code(custom: Mapping[str, Any], failed: bool, refused: bool = False) -> int | None:
    """The code for the statistics of a whole run; None where Ansible's own stays. `refused`: every failure
    says that nothing was touched."""
    word = custom.get("_run", {}).get("cfn_outcome") or ("REFUSED" if refused else "")
    return EXIT_CODES.get(str(word)) if failed else None


class CallbackModule(CallbackBase):  # type: ignore[misc] # Ansible ships no types
    """Ends the process with the playbook's own code, after everything else was said."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "cfn_exit"
    empty_plays = 0
    failures = 0
    refusals = 0

    def v2_playbook_on_play_start(self, play: Any) -> None:
        """Before any task. Raises SystemExit if extra variables are not what was meant."""
        words = play.get_variable_manager().extra_vars.get("_raw_params")
        if words:
            self._display.error(UNQUOTED.format(words=str(words)))
            raise SystemExit(EXIT_CODES["REFUSED"])

    def v2_playbook_on_no_hosts_matched(self) -> None:
        """A play found no host; others of the run may have some."""
        self.empty_plays += 1

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A task failed; one that is rescued counts as well, since it is no refusal."""
        if not ignore_errors:
            said = " ".join(str(result._result.get("msg", "")).split())
            self.failures += 1
            self.refusals += any(promise in said for promise in PROMISES)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """The last that happens in a run. Raises SystemExit, through which Ansible still cleans up."""
        if self.empty_plays and not stats.failures and not set(stats.processed) - {"localhost"}:
            self._display.error(NOBODY)
            raise SystemExit(EXIT_CODES["REFUSED"])
        refused = self.failures > 0 and self.refusals == self.failures and not stats.dark
        code = exit_code(stats.custom, bool(stats.failures or stats.dark), refused)
        if code is not None:
            raise SystemExit(code)
