"""Messages that arrive for teams of this hub by way of a lane: from other hubs, from callers, to all."""

import time

from cfn.engine.messages import datagram
from cfn.engine.messages.lanes import NOT_NOW
from cfn.engine.messages.state import State
from cfn.engine.messages.team import HUB_INCARNATION, Inbox, Sender, Team, sender_key


class Arrivals:
    """Judges messages, stores those that are accepted."""

    def __init__(self, state: State) -> None:
        self._state = state

    def arrive(self, swarm_id: str, team_name: str, raw: bytes, previous: int) -> tuple[int, int]:
        """Decide on a message for a team: a reason (0 stored, NOT_NOW to be sent again later), and the
        inboxes that a broadcast skipped. What is for a team that has ended is taken, and nobody will read
        it. Raises ValueError for what is no message."""
        team = self._state.teams.get((swarm_id, team_name))
        if team is None:
            return 0 if (swarm_id, team_name) in self._state.ended else NOT_NOW, 0
        header = datagram.Header(raw)
        if header.size != len(raw):
            raise ValueError("longer than its header says")
        key = sender_key(header.sender, header.incarnation)
        sender = team.sender(key, header.incarnation)
        if sender is None:
            return datagram.EARLIER, 0
        if header.number <= sender.last:
            return sender.refused.get(header.number, 0), 0
        if previous > sender.last:
            return NOT_NOW, 0
        if header.receiver:
            reason, skipped = self._to_one(team, header, raw), 0
        else:
            reason, skipped = self._to_all(team, header, raw)
        if reason != NOT_NOW:
            self._decided(team, key, sender, header.number, reason)
        return reason, skipped

    def _decided(self, team: Team, key: bytes, sender: Sender, number: int, reason: int) -> None:
        if reason:
            team.refuse(key, sender, number, reason)
        else:
            sender.last = number

    def _to_one(self, team: Team, header: datagram.Header, raw: bytes) -> int:
        inbox = team.inbox(header.receiver)
        if inbox is None:
            return datagram.NO_AGENT
        reason = self._state.bound_reached(inbox, len(raw))
        waits = header.incarnation < HUB_INCARNATION  # a caller of the command line does not
        if reason == datagram.FULL and waits and self._state.hold_s(inbox, time.monotonic()) > 0:
            return NOT_NOW
        return reason or self._store(team, [raw], [inbox])

    def _to_all(self, team: Team, header: datagram.Header, raw: bytes) -> tuple[int, int]:
        messages: list[bytes] = []
        inboxes: list[Inbox] = []
        skipped, reason = 0, 0
        for agent in sorted(team.agents - {header.sender}):
            inbox = team.inbox(agent)
            if inbox is None:
                continue
            reached = self._state.bound_reached(inbox, len(raw) * (len(messages) + 1))
            if reached:
                skipped, reason = skipped + 1, reached
                continue
            messages.append(datagram.addressed(raw, agent))
            inboxes.append(inbox)
        if messages:
            failed = self._store(team, messages, inboxes)
            if failed:
                skipped, reason = skipped + len(messages), failed
        return reason, skipped

    def _store(self, team: Team, messages: list[bytes], inboxes: list[Inbox]) -> int:
        for inbox in inboxes:
            inbox.count += 1
        try:
            team.store(messages, inboxes)
        except OSError as error:
            self._state.no_room(team, error)
            return datagram.NO_ROOM
        self._state.counters["accepted"] += len(messages)
        return 0
