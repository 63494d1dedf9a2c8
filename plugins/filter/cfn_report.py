# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Texts that a person reads at the end of a playbook: what is wrong, and how things stand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def preflight_report(hosts: Iterable[str], hostvars: Mapping[str, Any], stage: str) -> str:
    """The problems of all hosts, by host; empty if there are none. Unreachable is a problem."""
    lines: list[str] = []
    for host in hosts:
        result = hostvars[host].get("preflight_result", {})
        if result.get("unreachable"):
            problems = ["unreachable: " + " ".join(str(result.get("msg", "")).split())]
        elif "problems" not in result:
            problems = ["the checks did not run: " + " ".join(str(result.get("msg", "no result")).split())]
        else:
            problems = list(result["problems"])
        lines += [f"{host}: {problem}" for problem in problems]
    if not lines:
        return ""
    return "\n".join([f"Not fit for {stage}. Nothing was changed on any host.", *lines])


def table(rows: list[list[str]]) -> str:
    """Rows of cells as aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


class FilterModule:
    """What Ansible finds here."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {"cfn_preflight_report": preflight_report}
