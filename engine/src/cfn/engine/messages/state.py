"""What the parts of one hub's messages share: its teams, its bounds, its counters, its directory."""

import time
from collections import Counter
from collections.abc import Callable

from cfn.engine.log import log
from cfn.engine.messages import datagram
from cfn.engine.messages.bounds import MessageBounds
from cfn.engine.messages.lanes import Directory
from cfn.engine.messages.rates import TokenBucket
from cfn.engine.messages.team import Inbox, Team, Totals
from cfn.errors import IdError
from cfn.ids import check_id

MAX_NAMES = 4_096  # checked names that are remembered
MAX_BUCKETS = 4_096  # senders whose rates are remembered


class State:
    """One hub's. `bounds` gives them as configured now; `ended` are teams that had their end here while
    their swarm goes on."""

    def __init__(self, bounds: Callable[[], MessageBounds], directory: Directory) -> None:
        self.bounds = bounds
        self.directory = directory
        self.teams: dict[tuple[str, str], Team] = {}
        self.ended: set[tuple[str, str]] = set()
        self.totals = Totals()
        self.counters = Counter({"accepted": 0, "malformed": 0, "rate_limited": 0, "held_back": 0})
        self.refused: Counter[int] = Counter()
        self._names: set[bytes] = set()
        self._buckets: dict[tuple[str, bytes], TokenBucket] = {}

    def team_of(self, swarm_id: str, agent: str) -> Team | None:
        """The team of an agent, if it is open here."""
        return self.teams.get((swarm_id, self.directory.team_of(swarm_id, agent) or ""))

    def is_name(self, raw: bytes) -> bool:
        """Whether these bytes are an identifier."""
        if raw in self._names:
            return True
        try:
            check_id("name", raw.decode("ascii"))
        except (IdError, UnicodeDecodeError):
            return False
        if len(self._names) >= MAX_NAMES:
            self._names.clear()
        self._names.add(raw)
        return True

    def bucket(self, swarm_id: str, agent: bytes) -> TokenBucket:
        """The rate of a sender, however often it connects."""
        found = self._buckets.get((swarm_id, agent))
        if found is None:
            if len(self._buckets) >= MAX_BUCKETS:
                self._buckets.clear()
            found = self._buckets[swarm_id, agent] = TokenBucket(time.monotonic())
        return found

    def bound_reached(self, inbox: Inbox, size: int) -> int:
        """Which bound keeps a message of so many bytes from an inbox; 0 for none."""
        bounds = self.bounds()
        if inbox.count >= bounds.max_inbox_messages:
            return datagram.FULL
        if self.totals.messages >= bounds.max_queued_messages:
            return datagram.QUEUED_MESSAGES
        if self.totals.bytes + size > bounds.max_queued_bytes:
            return datagram.QUEUED_BYTES
        return 0

    def hold_s(self, inbox: Inbox, now_s: float) -> float:
        """How long a full inbox holds its senders back from now on; not above 0: it refuses."""
        inbox.full_since_s = inbox.full_since_s or now_s
        return inbox.full_since_s + self.bounds().inbox_wait_ms / 1000 - now_s

    def no_room(self, team: Team, error: OSError) -> None:
        """A team's journal could not take messages."""
        log("messages not stored", swarm_id=team.swarm_id, team=team.name, reason=str(error))
