"""Generations: each configuration that comes into force on a host has a number, never reused."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfn.config import Config, render_env
from cfn.config_follower import write_atomically
from cfn.router.clock import utc_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """A configuration in force, its number, and since when (UTC)."""

    number: int
    since: str
    config: Config

    @property
    def traffic_pct(self) -> int | float:
        """The ordered share as JSON writes it: 10, not 10.0."""
        return as_number(float(self.config.traffic_pct))


def as_number(value: float) -> int | float:
    """An integer where nothing is lost by it."""
    return int(value) if value == int(value) else value


class GenerationBook:
    """Hands out numbers and keeps the last one in `path`.

    `problem` is "" or says that the number could not be kept: serving goes on, and a restart might
    then use a number again.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unkept: dict[str, Any] = {}
        self.problem = ""

    def in_force(self, config: Config) -> Generation | None:
        """The generation that the router last ran, if that was under `config`. Changes nothing."""
        kept = self._kept()
        if kept.get("sha256") != _digest(config):
            return None
        return Generation(number=kept["number"], since=kept["since"], config=config)

    def put_in_force(self, config: Config, now_s: float) -> tuple[Generation, bool]:
        """The generation of `config`, and whether it is a new one: a restart under the configuration
        that was in force before goes on with its number. `now_s` is seconds since 1970."""
        kept = self._kept()
        digest = _digest(config)
        if kept.get("sha256") == digest:
            return Generation(number=kept["number"], since=kept["since"], config=config), False
        # The numbers of a book that was damaged are not known: the seconds since 1970 are above them all.
        before = int(now_s) if self.problem and not kept else kept.get("number", 0)
        generation = Generation(number=before + 1, since=utc_text(now_s), config=config)
        record = {"number": generation.number, "since": generation.since, "sha256": digest}
        try:
            write_atomically(self._path, json.dumps(record) + "\n", mode=0o640)
            self.problem = ""
        except OSError as error:
            self._unkept = record
            self.problem = f"{self._path} cannot be written: {error.strerror}"
        return generation, True

    def _kept(self) -> dict[str, Any]:
        """What was kept last; nothing on a new host or if the file is damaged."""
        if self.problem:
            return self._unkept
        try:
            record = json.loads(self._path.read_text())
            return {
                "number": int(record["number"]),
                "since": str(record["since"]),
                "sha256": record["sha256"],
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError) as error:
            self.problem = f"{self._path} is damaged, numbers go on from the time: {error}"
            return {}


def _digest(config: Config) -> str:
    return hashlib.sha256(render_env(config).encode()).hexdigest()


def generation_event(generation: Generation, *, host: str, release: str) -> dict[str, Any]:
    """The record of type `generation` (docs/reference/records.md)."""
    config = generation.config
    return {
        "v": 1,
        "type": "generation",
        "time": generation.since,
        "host": host,
        "release": release,
        "generation": generation.number,
        "version": config.coordination_version,
        "traffic_pct": generation.traffic_pct,
        "epoch": config.epoch,
        "split_key_sha256": hashlib.sha256(config.split_key.encode()).hexdigest()[:16],
        "max_agents": config.max_agents,
    }
