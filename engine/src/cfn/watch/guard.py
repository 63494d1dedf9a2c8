"""A host's own guard: carries out what the watch orders, and falls back when the watch falls silent.

It can only lower V2's traffic. Raising it is for a playbook, which asks the gate first.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from cfn.metrics import checks
from cfn.watch.heard import Heard

# A way back goes two epochs up: a stage that it overtakes holds the next one in its hand.
EPOCHS_UP = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """An order of the watch: everything to V1 (`percent` None), or V2's share lowered to `percent`."""

    id: str
    percent: Decimal | None
    epoch: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class InForce:
    """What the host runs."""

    version: str
    traffic_pct: Decimal
    epoch: int

    @property
    def v2_pct(self) -> Decimal:
        """V2's share as it is."""
        return self.traffic_pct if self.version == "v2" else Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Flip:
    """What to do: version, share and epoch to order, and why. `id` is the order's, "" of a fall back."""

    version: str
    percent: Decimal | None
    epoch: int
    reason: str
    id: str = ""


def read_order(value: Mapping[str, Any]) -> Ordered:
    """An order in a JSON object. Raises ValueError saying what is wrong."""
    percent = value.get("percent")
    share = None if percent is None else Decimal(str(checks.number(percent, "percent", high=100)))
    return Ordered(
        id=checks.text(value.get("id"), "id"),
        percent=share or None,
        epoch=checks.whole(value.get("epoch"), "epoch", low=1),
        reason=checks.text(value.get("reason"), "reason"),
    )


def of_order(order: Ordered, now: InForce) -> Flip | str:
    """What an order comes to on this host: a flip, or why there is none."""
    if order.epoch < now.epoch:
        return f"epoch {order.epoch} is older than the change in force, {now.epoch}"
    if order.percent is None:
        return Flip(version="v1", percent=None, epoch=order.epoch, reason=order.reason, id=order.id)
    if order.percent > now.v2_pct:
        return f"{order.percent} % is more than the {now.v2_pct} % in force: a guard only lowers"
    return Flip(version="v2", percent=order.percent, epoch=order.epoch, reason=order.reason, id=order.id)


def of_silence(heard: Heard | None, age_s: float, now: InForce) -> Flip | None:
    """The fall back when the watch that answers for this host is silent for too long; None if not."""
    if heard is None or not heard.watching or not now.v2_pct or age_s <= heard.blind_limit_s:
        return None
    return Flip(
        version="v1",
        percent=None,
        epoch=now.epoch + EPOCHS_UP,
        reason=f"the watch was not heard of for {age_s:.0f} s; {heard.blind_limit_s:g} s are allowed",
    )
