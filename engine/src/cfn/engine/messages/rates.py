"""The rate limit of one sender: a token bucket with the time passed in, which may run into debt."""

BURST_S = 0.25  # how much of its rate a sender that was quiet may send at once


class TokenBucket:
    """Counts messages against a rate. It begins full."""

    __slots__ = ("_at_s", "_tokens")

    def __init__(self, now_s: float) -> None:
        self._tokens = float("inf")  # cut to a burst by the first look
        self._at_s = now_s

    def spend(self, messages: int, rate_per_s: float, now_s: float) -> float:
        """Count messages that were sent; seconds until the next one may be, 0 for at once.

        What comes in one go is counted whole, into debt if need be: the wait pays it off. A clock that
        went back adds nothing.
        """
        elapsed_s = max(0.0, now_s - self._at_s)
        self._at_s = now_s
        full = max(1.0, rate_per_s * BURST_S)
        self._tokens = min(full, self._tokens + elapsed_s * rate_per_s) - messages
        return max(0.0, 1.0 - self._tokens) / rate_per_s
