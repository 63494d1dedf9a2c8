"""The breaker in force on this host: kept over restarts, each move of it one record and one log line."""

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cfn.config import Config
from cfn.config_follower import write_atomically
from cfn.engine.log import log
from cfn.router.breaker import AUTOMATIC, Admission, Breaker, Rules, State
from cfn.router.clock import utc_text

_SHOWN_CHARS = 500


class BreakerKeeper:
    """Holds the breaker and keeps it in `path`. `record` writes one event (without `v`, host, release).

    `problem` is "" or says why the state could not be kept: it is in force nevertheless.
    """

    def __init__(self, path: Path, record: Callable[[Mapping[str, Any]], None]) -> None:
        self._path = path
        self._record = record
        self._rules = Rules.of(Config())
        self.problem = ""
        self.since = utc_text(time.time())
        self.moves: dict[str, int] = dict.fromkeys(State, 0)
        self.breaker = self._kept()

    def follow(self, config: Config, *, generation: int) -> None:
        """Take the rules of a configuration that came into force. One that orders V1 closes the breaker:
        from then on the configuration holds V1, and ordering V2 again is somebody's decision."""
        self._rules = Rules.of(config)
        if config.coordination_version == "v1":
            self._move(self.breaker.closed("V1 is ordered", f"generation {generation}"))
        elif not config.v1_enabled:
            self._move(self.breaker.closed("there is no V1", f"generation {generation}"))

    def admit(self) -> Admission:
        """Whether a request of V2's may go there; what is admitted is reported by `judged`."""
        if self.breaker.state is State.CLOSED:  # the usual case, without an allocation
            return "v2"
        after, admission = self.breaker.admit(self._rules, time.monotonic())
        self._move(after)
        return admission

    def judged(self, admission: Admission, bad: str | None) -> None:
        """An admitted request has ended; `bad` is that of `what_was_bad`."""
        now_s = time.monotonic()
        if admission == "v2":
            self._move(self.breaker.judged(bad, self._rules, now_s))
        elif admission == "probe":
            self._move(self.breaker.probed(bad, self._rules, now_s))

    def silent(self, silent_s: float) -> None:
        """The engine has not answered for so long."""
        self._move(self.breaker.silent(silent_s, self._rules, time.monotonic()))

    def order(self, state: State, reason: str, by: str) -> bool:
        """Somebody's decision: open it or close it. True if that changed anything."""
        before = self.breaker
        if state is State.CLOSED:
            self._move(before.closed(reason, by))
        else:
            self._move(before.opened(reason, by, self._rules, time.monotonic()))
        return self.breaker.state is not before.state

    def as_json(self) -> dict[str, Any]:
        """The part of `/status` that is the breaker's."""
        now = self.breaker
        return {
            "state": str(now.state),
            "since": self.since,
            "reason": now.reason,
            "by": now.by,
            "bad": sum(map(bool, now.recent)),
            "looked_at": len(now.recent),
            "probes": {"good": now.probes_good, "bad": now.probes_bad},
            "problem": self.problem,
        }

    def _move(self, after: Breaker) -> None:
        before, self.breaker = self.breaker, after
        if after.state is before.state:
            return
        now = time.time()
        self.since = utc_text(now)
        self.moves[after.state] += 1
        facts = {
            "state": str(after.state),
            "before": str(before.state),
            "reason": after.reason,
            "by": after.by,
        }
        log("breaker", **facts)
        try:
            write_atomically(self._path, json.dumps(facts | {"since": self.since}) + "\n", mode=0o640)
            self.problem = ""
        except OSError as error:
            self.problem = f"{self._path} cannot be written: {error.strerror}; a restart may not find it"
        self._record({"type": "breaker", "time": self.since, **facts})

    def _kept(self) -> Breaker:
        """What the last process left. A file that cannot be read holds V1: nobody has decided."""
        try:
            value = json.loads(self._path.read_text())
            self.since = str(value["since"])
            state = State(value["state"])
            reason, by = str(value["reason"])[:_SHOWN_CHARS], str(value["by"])[:_SHOWN_CHARS]
            return Breaker(state=state, reason=reason, by=by)
        except FileNotFoundError:
            return Breaker()
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.problem = f"{self._path} is damaged: {error}"
            return Breaker(state=State.OPEN, reason=f"its state was not readable: {error}", by=AUTOMATIC)
