"""A verdict as text for a person: the answer first, then why, then every criterion on one line."""

from collections.abc import Mapping
from typing import Any


def render(verdict: Mapping[str, Any]) -> str:
    """Lines of plain text."""
    lines = [f"{verdict['verdict']}  {verdict['environment']} {verdict['stage']} step {verdict['step']}"]
    lines += [f"  {reason}" for reason in verdict["reasons"]]
    if verdict["time_scale"]["note"]:
        lines.append(f"  {verdict['time_scale']['note']}")
    if verdict.get("ask_again_at"):
        lines.append(f"  ask again at {verdict['ask_again_at']}")
    lines += [f"  missing: {each}" for each in verdict.get("missing", [])]
    observed = verdict.get("observed")
    if observed:
        share = observed["v2_share_pct"]
        lines.append(
            f"  V2 share: {'none observed' if share is None else f'{share:g} %'} of "
            f"{observed['v1_requests'] + observed['v2_requests']} requests; ordered "
            f"{verdict['ordered']['version']} {verdict['ordered']['traffic_pct']} %"
        )
    if verdict["results"]:
        lines.append("")
    width = max((len(each["name"]) for each in verdict["results"]), default=0)
    for each in verdict["results"]:
        name = f"{each['name']:<{width}}"
        counted = " (not counted)" if each["dry_run"] else ""
        lines.append(f"  {each['verdict']:<12}  {name}  {each['reason']}{counted}")
    return "\n".join(lines)
