"""How long the teams of a coordinator were without a hub when it was lost or drained."""

from collections.abc import Iterable

Team = tuple[str, str]  # swarm and name


class FailoverClock:
    """Measures one failover at a time; several that overlap are one, from the first loss to the last team.

    `last_s` is the length of the last one in seconds, None while there was none. Times are monotonic.
    """

    def __init__(self) -> None:
        self.last_s: float | None = None
        self._since_s = 0.0
        self._waiting: set[Team] = set()

    def lost(self, teams: Iterable[Team], since_s: float) -> None:
        """These teams have no hub since then. Without any, nobody was without service."""
        teams = set(teams)
        if not teams:
            return
        self._since_s = min(self._since_s, since_s) if self._waiting else since_s
        self._waiting |= teams

    def served(self, team: Team, now_s: float) -> None:
        """A team has a hub again, or is gone."""
        if team in self._waiting:
            self._waiting.discard(team)
            if not self._waiting:
                self.last_s = max(0.0, now_s - self._since_s)
