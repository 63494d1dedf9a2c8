"""Says what the lab is doing, on standard error: results go to standard output."""

import sys
import time
from typing import TextIO


class Progress:
    """One line per finished step; on a terminal also a line that shows what is being waited for."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._tty = self._stream.isatty()
        self._began = time.monotonic()
        self._live = False

    @property
    def seconds(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self._began

    def step(self, subject: str, text: str) -> None:
        """Report that *subject* (a host, the image, the network) has got somewhere."""
        self._clear()
        print(f"[{self.seconds:5.1f}s] {subject}: {text}", file=self._stream, flush=True)

    def waiting(self, text: str) -> None:
        """Show on a terminal what is being waited for; called again and again while waiting."""
        if self._tty:
            self._clear()
            self._stream.write(f"[{self.seconds:5.1f}s] ... {text[:90]}")
            self._stream.flush()
            self._live = True

    def _clear(self) -> None:
        if self._live:
            self._stream.write("\r\x1b[K")
            self._live = False
