"""What a host has heard of the watch, and how long ago. A clock that jumps does not make it older."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from cfn.config_follower import write_atomically
from cfn.metrics import checks
from cfn.metrics.times import format_ms, parse_ms

MODE = 0o640


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """The last time. `watching`: V2 has traffic here and the watch answers for it, so that its silence
    for longer than `blind_limit_s` means a fall back. `booted` and `up_s` are this host's own."""

    time_ms: int
    watching: bool
    blind_limit_s: float
    booted: str
    up_s: float

    def age_s(self, *, now_ms: int, booted: str, up_s: float) -> float:
        """How long ago, by the time since boot; over a reboot at least that, or as the wall clock says."""
        if booted == self.booted:
            return max(0.0, up_s - self.up_s)
        return max(up_s, (now_ms - self.time_ms) / 1_000)


def boot() -> tuple[str, float]:
    """This boot's id, and the seconds since, suspended ones included."""
    return (
        Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
        time.clock_gettime(time.CLOCK_BOOTTIME),
    )


def write(path: Path, *, now_ms: int, watching: bool, blind_limit_s: float) -> None:
    """Remember that the watch was heard of now. Raises OSError."""
    booted, up_s = boot()
    value = {
        "time": format_ms(now_ms),
        "watching": watching,
        "blind_limit_s": blind_limit_s,
        "booted": booted,
        "up_s": round(up_s, 3),
    }
    write_atomically(path, json.dumps(value) + "\n", mode=MODE)


def read(path: Path) -> Heard | None:
    """What is remembered; None where the watch was never heard of. Raises ValueError for damage."""
    try:
        value = checks.load_object(path.read_text())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    return Heard(
        time_ms=parse_ms(checks.text(value.get("time"), "time")),
        watching=checks.boolean(value.get("watching"), "watching"),
        blind_limit_s=checks.number(value.get("blind_limit_s"), "blind_limit_s", low=1),
        booted=checks.text(value.get("booted"), "booted"),
        up_s=checks.number(value.get("up_s"), "up_s"),
    )
