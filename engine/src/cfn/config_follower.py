"""Follow the configuration file while a daemon runs.

The file is the truth, edited by playbooks and by people with `sed`. A bad file leaves the
configuration in force as it is; at start the last good one serves, or the defaults (V1).
"""

import os
from pathlib import Path

from cfn.config import Config, parse
from cfn.errors import ConfigError


class ConfigFollower:
    """Holds the configuration in force and notices a change of the file.

    `path` is the file; `last_good` is where the text in force is kept for the next start.
    `config` is always usable. `problem` is empty, or says why the file is not in force, or which
    unknown keys it holds.
    """

    def __init__(self, path: Path, last_good: Path) -> None:
        self._path = path
        self._last_good = last_good
        self._signature: tuple[int, int, int] | None = None
        self.config = Config()
        self.problem = ""
        self.poll()
        if self._signature is None and last_good.exists():
            self._go_on_with(last_good)

    def _go_on_with(self, last_good: Path) -> None:
        try:
            self.config = parse(last_good.read_text(), source=str(last_good)).config
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            self.problem += f"; nor is the last good one: {error}"

    def poll(self) -> bool:
        """Read the file if it changed since the last call. True if another text is now in force.

        Never raises: what is wrong is in `problem`. Reads at most one small file.
        """
        try:
            status = self._path.stat()
            signature = (status.st_mtime_ns, status.st_ino, status.st_size)
            if signature == self._signature:
                return False
            text = self._path.read_text()
            parsed = parse(text, source=str(self._path))
        except (OSError, UnicodeDecodeError, ConfigError) as error:
            # A file that comes back as it was must be read again.
            self._signature = None
            self.problem = f"{error}; the configuration in force is unchanged"
            return False
        self._signature = signature
        changed = parsed.config != self.config
        self.config = parsed.config
        self.problem = f"unknown keys ignored: {', '.join(parsed.unknown)}" if parsed.unknown else ""
        try:
            write_atomically(self._last_good, text, mode=0o640)
        except OSError as error:
            self.problem = f"{self._last_good} cannot be written: {error}; a restart may not find this text"
        return changed


def write_atomically(path: Path, text: str, *, mode: int) -> None:
    """Replace `path` by `text` in one step, durably. Readers see the old text or the new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
