"""Programs that do the engine's work in another way: the limit in C, and the peers.

Each is a process that prints `ready`, then for each line on its standard input does one round and
prints its microseconds. What cannot run here prints `skipped: REASON` instead of `ready`.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

SOURCE = Path(__file__).with_name("limit") / "limit.c"


class SkippedError(Exception):
    """This program cannot run here; the text says what is missing."""


class Rounds:
    """One running program; `close` ends it. Raises SkippedError if it cannot run here."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._argv = argv
        self._process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        word = self._line()
        if word != "ready":
            self.close()
            raise SkippedError(word.removeprefix("skipped: "))

    def sample_ms(self) -> float:
        """One round; blocks until it is done. Raises RuntimeError if the program ended."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker: a pipe was asked for
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._line()) / 1_000

    def close(self) -> None:
        """End the program: it sees the end of its input."""
        self._process.communicate()

    def __enter__(self) -> "Rounds":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self) -> str:
        assert self._process.stdout is not None  # noqa: S101 - as above
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError(f"{' '.join(self._argv)} ended with {self._process.wait()}")
        return line


class Programs:
    """The programs that can run on this machine; `said` holds why others cannot, each once."""

    def __init__(self, build: Path) -> None:
        """Compiles the limit into the folder `build`, if there is a compiler."""
        self.said: dict[str, str] = {}
        self._limit: Path | None = None
        compiler = shutil.which("cc")
        if compiler:
            self._limit = build / "limit"
            subprocess.run([compiler, "-O2", "-o", self._limit, SOURCE], check=True)
        else:
            self.said["limit"] = "there is no C compiler (cc)"

    @contextmanager
    def started(
        self, mode: str, agents: int, *, command: str = "", peers: Sequence[str] = ()
    ) -> Iterator[dict[str, Rounds]]:
        """The limit and the named peers in `mode` ("cold" or "warm") with `agents` processes each."""
        argvs = {
            name: [sys.executable, "-m", f"engine.bench.peers.{name}", mode, str(agents)] for name in peers
        }
        if self._limit:
            argvs["limit"] = [str(self._limit), mode, str(agents), *filter(None, [command])]
        running: dict[str, Rounds] = {}
        try:
            for name, argv in argvs.items():
                try:
                    running[name] = Rounds(argv)
                except SkippedError as error:
                    self.said[name] = str(error)
            yield running
        finally:
            for program in running.values():
                program.close()
