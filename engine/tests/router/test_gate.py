"""The bound on what runs at once."""

import asyncio

import pytest

from cfn.errors import RefusedError
from cfn.router.gate import WAITING_PER_SLOT, Gate


async def test_never_more_than_the_limit_and_everyone_gets_a_turn() -> None:
    gate, most = Gate("CFN_V1_CONCURRENCY"), 0

    async def one() -> None:
        nonlocal most
        await gate.enter(3, 5)
        most = max(most, gate.running)
        await asyncio.sleep(0)
        gate.leave()

    await asyncio.gather(*(one() for _ in range(40)))
    assert (most, gate.running, gate.waiting) == (3, 0, 0)


async def test_a_full_queue_refuses() -> None:
    gate = Gate("CFN_V1_CONCURRENCY")
    await gate.enter(1, 5)
    waiting = [asyncio.create_task(gate.enter(1, 5)) for _ in range(WAITING_PER_SLOT)]
    await asyncio.sleep(0)
    with pytest.raises(RefusedError, match="1 run and 16 wait"):
        await gate.enter(1, 5)
    for _ in range(1 + WAITING_PER_SLOT):
        gate.leave()
        await asyncio.sleep(0)
    await asyncio.gather(*waiting)
    assert (gate.running, gate.waiting) == (0, 0)


async def test_who_gives_up_leaves_no_slot_taken() -> None:
    gate = Gate("CFN_V1_CONCURRENCY")
    await gate.enter(1, 5)
    with pytest.raises(TimeoutError):
        await gate.enter(1, 0.01)
    cancelled = asyncio.create_task(gate.enter(1, 5))
    await asyncio.sleep(0)
    gate.leave()  # hands the slot over
    cancelled.cancel()  # and it is given up in the same moment
    await asyncio.gather(cancelled, return_exceptions=True)
    await asyncio.wait_for(gate.enter(1, 1), 1)
    assert gate.running == 1
