"""Tallies of many pieces: remembered ones first, and the rest on several cores."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence

from cfn.metrics.files import Piece
from cfn.metrics.memory import Memory, pack, unpack
from cfn.metrics.tally import Hasher, Tally, tally

MAX_PROCESSES = 4
WORTH_A_FORK = 16  # pieces: what one process does in a second
NICENESS = 10  # a gate can wait, coordinations cannot


class Tallier:
    """Makes the tally of a piece, for one split key, one length of a bucket and one idea of now."""

    def __init__(self, split_key: str, bucket_ms: int, future_ms: int, memory: Memory) -> None:
        self._hasher = Hasher(split_key)
        self._bucket_ms = bucket_ms
        self._future_ms = future_ms
        self._memory = memory

    def __call__(self, piece: Piece) -> Tally:
        """The tally of a piece. Raises OSError when it cannot be read."""
        content = piece.read()
        name = self._memory.name(content) if piece.complete else ""
        found = self._memory.recall(name) if name else None
        if found is None:
            found = self._tally(content, frozenset())
            # What is from the future now is not tomorrow.
            if name and not any(damage.kind == "future" for damage in found.damage):
                self._memory.keep(name, found)
        return found

    def without(self, piece: Piece, keys: frozenset[int]) -> Tally:
        """The tally of a piece without the events of these keys."""
        return self._tally(piece.read(), keys)

    def _tally(self, content: bytes, without: frozenset[int]) -> Tally:
        return tally(
            content,
            hasher=self._hasher,
            bucket_ms=self._bucket_ms,
            future_ms=self._future_ms,
            without=without,
        )


def in_order(
    pieces: Sequence[Piece], tallier: Tallier, meanwhile: Callable[[], None]
) -> Iterator[tuple[Piece, Tally]]:
    """Each piece with its tally, in the order given; `meanwhile` is called first, when helpers are at work.
    Raises OSError when one cannot be read."""
    processes = min(MAX_PROCESSES, len(os.sched_getaffinity(0)))
    if processes == 1 or len(pieces) < WORTH_A_FORK:
        meanwhile()
        yield from ((piece, tallier(piece)) for piece in pieces)
        return
    # Forked, so that helpers have the same open files: a rotation meanwhile changes no piece.
    context = multiprocessing.get_context("fork")
    with context.Pool(processes, initializer=_start_helper, initargs=(tallier,)) as pool:
        tallies = pool.imap(_help, pieces)
        meanwhile()
        for piece, packed in zip(pieces, tallies, strict=True):
            yield piece, unpack(packed)


_helper_tallier: Tallier | None = None


def _start_helper(tallier: Tallier) -> None:
    global _helper_tallier
    _helper_tallier = tallier
    os.nice(NICENESS)


def _help(piece: Piece) -> bytes:
    assert _helper_tallier is not None  # noqa: S101 - for the type checker: set as the helper started
    return pack(_helper_tallier(piece))
