"""A bound on what runs at once, with a bounded queue before it."""

import asyncio
from collections import deque

from cfn.errors import RefusedError

WAITING_PER_SLOT = 16


class Gate:
    """Lets at most `limit` in at a time, `limit` * `waiting_per_slot` wait, and refuses the others. The
    limit is given on each entry, since the configuration may change; `name` is what sets it."""

    def __init__(self, name: str, waiting_per_slot: int = WAITING_PER_SLOT) -> None:
        self.running = 0
        self._name = name
        self._waiting_per_slot = waiting_per_slot
        self._limit = 1
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait now."""
        return len(self._waiting)

    async def enter(self, limit: int, timeout_s: float) -> None:
        """Take a slot. Raises RefusedError if the queue is full, TimeoutError if no slot came free."""
        self._limit = limit
        if self.running < limit and not self._waiting:
            self.running += 1
            return
        if len(self._waiting) >= limit * self._waiting_per_slot:
            raise RefusedError(
                f"{self.running} run and {len(self._waiting)} wait already ({self._name} is {limit})"
            )
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            async with asyncio.timeout(timeout_s):
                await turn
        except BaseException:
            # The slot may have been handed over in the very moment of giving up.
            if turn.done() and not turn.cancelled():
                self.leave()
            elif turn in self._waiting:
                self._waiting.remove(turn)
            raise

    def leave(self) -> None:
        """Give the slot back."""
        self.running -= 1
        while self._waiting and self.running < self._limit:
            turn = self._waiting.popleft()
            if not turn.done():
                self.running += 1
                turn.set_result(None)
