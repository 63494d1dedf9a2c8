"""The configuration: `/etc/cfn/config.sh`, its keys, its one parser and what is rendered from it.

systemd, bash and Python would each read the raw file differently (quotes, comments, `export`).
So this parser alone reads it, and renders what the others read. Nothing in the file is ever
executed.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation

from cfn.errors import ConfigError

MAX_RETENTION_S = 31_536_000  # a year


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """One validated configuration. Field names carry units; `KEYS` maps them to file keys."""

    environment: str = "lab"
    coordination_version: str = "v1"
    traffic_pct: Decimal = Decimal(0)
    epoch: int = 0
    split_key: str = "cfn-split-key"
    topology: str = "flat"
    max_agents: int = 100
    coordinators: int = 7
    workers_per_coordinator: int = 100
    mesh_reliability_pct: Decimal = Decimal(100)
    coordinator_failover: bool = True
    fallback_enabled: bool = True
    fallback_time_ms: int = 30_000
    fallback_delivery_pct: Decimal = Decimal(80)
    coordination_deadline_ms: int = 60_000
    agent_command: str = ""
    agent_commands: str = ""
    agent_timeout_ms: int = 300_000
    breaker_window_requests: int = 20
    breaker_failures: int = 5
    breaker_minimum_requests: int = 10
    breaker_engine_ms: int = 15_000
    breaker_probe_ms: int = 0
    v1_enabled: bool = True
    v1_command: str = ""
    v1_concurrency: int = 32
    v1_capacity_per_s: int = 0
    override_peers: str = ""
    shadow_pct: Decimal = Decimal(0)
    shadow_dry_run: bool = False
    max_payload_bytes: int = 65_536
    max_output_bytes: int = 65_536
    max_inbox_messages: int = 1_000
    inbox_wait_ms: int = 1_000
    max_sender_rate_per_s: int = 50_000
    max_queued_messages: int = 200_000
    max_queued_mb: int = 32
    max_spawn_rate: int = 20_000
    retention_s: int = 86_400
    router_port: int = 8470
    events_size_mb: int = 256
    events_parts: int = 16
    metrics_interval_s: Decimal = Decimal(60)
    metrics_listen: str = "127.0.0.1"
    metrics_port: int = 8471
    detail_time_s: int = 0
    shm_size_mb: int = 256
    max_fd: int = 4_096

    @property
    def allowed_commands(self) -> dict[str, str]:
        """The commands that a request may name, by name."""
        parts = [part.strip() for part in self.agent_commands.split(";")]
        return {name: command for name, _, command in (part.partition("=") for part in parts if part)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key of the file: the field it sets, how its text is read, and what is allowed in words."""

    name: str
    field: str
    parse: Callable[[str], object]
    allowed: str


def _integer(name: str, field: str, low: int, high: int) -> Key:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not low <= int(text) <= high:
            raise ValueError
        return int(text)

    return Key(name=name, field=field, parse=parse, allowed=f"a whole number from {low} to {high}")


def _decimal(name: str, field: str, low: str, high: str) -> Key:
    def parse(text: str) -> Decimal:
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,2})?", text):
            raise ValueError
        value = Decimal(text)
        if not Decimal(low) <= value <= Decimal(high):
            raise ValueError
        return value

    return Key(
        name=name,
        field=field,
        parse=parse,
        allowed=f"a number from {low} to {high} with at most two decimals",
    )


def _choice(name: str, field: str, values: Mapping[str, object]) -> Key:
    def parse(text: str) -> object:
        if text not in values:
            raise ValueError
        return values[text]

    return Key(name=name, field=field, parse=parse, allowed=" or ".join(values))


def _text(name: str, field: str, pattern: str, allowed: str) -> Key:
    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return Key(name=name, field=field, parse=parse, allowed=allowed)


_BOOLEAN = {"true": True, "false": False}
_COMMAND = ("(/[^ ].*)?", "empty (the built-in one) or a command that begins with an absolute path")
_NAMED_COMMAND = "[A-Za-z0-9][A-Za-z0-9._-]*=/[^ ;][^;]*"
_COMMANDS = (
    rf"({_NAMED_COMMAND}(; ?{_NAMED_COMMAND})*)?",
    "empty, or NAME=COMMAND with ';' between them, each command beginning with an absolute path",
)

KEYS: tuple[Key, ...] = (
    _text("CFN_ENVIRONMENT", "environment", "[a-z][a-z0-9-]{0,31}", "a short name in lower case"),
    _choice("CFN_COORDINATION_VERSION", "coordination_version", {"v1": "v1", "v2": "v2"}),
    _decimal("CFN_TRAFFIC_PERCENTAGE", "traffic_pct", "0", "100"),
    _integer("CFN_EPOCH", "epoch", 0, 10**12 - 1),
    _text("CFN_SPLIT_KEY", "split_key", "[A-Za-z0-9._-]{8,128}", "8 to 128 letters, digits, '.', '_', '-'"),
    _choice("CFN_TOPOLOGY", "topology", {"flat": "flat", "hybrid": "hybrid"}),
    _integer("CFN_MAX_AGENTS", "max_agents", 1, 2_000),
    _integer("CFN_COORDINATORS", "coordinators", 1, 32),
    _integer("CFN_WORKERS_PER_COORDINATOR", "workers_per_coordinator", 1, 1_000),
    _decimal("CFN_MESH_LEVEL_RELIABILITY", "mesh_reliability_pct", "0", "100"),
    _choice("CFN_COORDINATOR_FAILOVER", "coordinator_failover", _BOOLEAN),
    _choice("CFN_FALLBACK_ENABLED", "fallback_enabled", _BOOLEAN),
    _integer("CFN_FALLBACK_THRESHOLD_TIME", "fallback_time_ms", 1, 3_600_000),
    _decimal("CFN_FALLBACK_THRESHOLD_DELIVERY", "fallback_delivery_pct", "0", "100"),
    _integer("CFN_COORDINATION_DEADLINE_TIME", "coordination_deadline_ms", 1, 3_600_000),
    _text("CFN_AGENT_COMMAND", "agent_command", *_COMMAND),
    _text("CFN_AGENT_COMMANDS", "agent_commands", *_COMMANDS),
    _integer("CFN_AGENT_TIMEOUT_TIME", "agent_timeout_ms", 1, 86_400_000),
    _integer("CFN_BREAKER_WINDOW", "breaker_window_requests", 1, 1_000),
    _integer("CFN_BREAKER_FAILURES", "breaker_failures", 0, 1_000),
    _integer("CFN_BREAKER_MINIMUM", "breaker_minimum_requests", 1, 1_000),
    _integer("CFN_BREAKER_ENGINE_TIME", "breaker_engine_ms", 0, 3_600_000),
    _integer("CFN_BREAKER_PROBE_TIME", "breaker_probe_ms", 0, 86_400_000),
    _choice("CFN_V1_ENABLED", "v1_enabled", _BOOLEAN),
    _text("CFN_V1_COMMAND", "v1_command", *_COMMAND),
    _integer("CFN_V1_CONCURRENCY", "v1_concurrency", 1, 10_000),
    _integer("CFN_V1_CAPACITY", "v1_capacity_per_s", 0, 1_000_000),
    _text(
        "CFN_OVERRIDE_PEERS",
        "override_peers",
        "((loopback|[0-9]{1,10})(,(loopback|[0-9]{1,10}))*)?",
        "empty, or numbers of users and the word loopback, separated by commas",
    ),
    _decimal("CFN_SHADOW_PERCENTAGE", "shadow_pct", "0", "100"),
    _choice("CFN_SHADOW_DRY_RUN", "shadow_dry_run", _BOOLEAN),
    _integer("CFN_MAX_PAYLOAD", "max_payload_bytes", 0, 131_072),
    _integer("CFN_MAX_OUTPUT", "max_output_bytes", 0, 131_072),
    _integer("CFN_MAX_INBOX", "max_inbox_messages", 1, 1_000_000),
    _integer("CFN_INBOX_WAIT_TIME", "inbox_wait_ms", 0, 60_000),
    _integer("CFN_MAX_SENDER_RATE", "max_sender_rate_per_s", 1, 10_000_000),
    _integer("CFN_MAX_QUEUED_MESSAGES", "max_queued_messages", 1, 10_000_000),
    _integer("CFN_MAX_QUEUED_SIZE", "max_queued_mb", 1, 4_096),
    _integer("CFN_MAX_SPAWN_RATE", "max_spawn_rate", 0, 1_000_000),
    _integer("CFN_RETENTION_TIME", "retention_s", 1, MAX_RETENTION_S),
    _integer("CFN_ROUTER_PORT", "router_port", 1_024, 65_535),
    _integer("CFN_EVENTS_SIZE", "events_size_mb", 1, 1_048_576),
    _integer("CFN_EVENTS_PARTS", "events_parts", 1, 1_000),
    _decimal("CFN_METRICS_INTERVAL", "metrics_interval_s", "0.10", "3600"),
    _text(
        "CFN_METRICS_LISTEN", "metrics_listen", r"[0-9]{1,3}(\.[0-9]{1,3}){3}", "an IPv4 address of the host"
    ),
    _integer("CFN_METRICS_PORT", "metrics_port", 0, 65_535),
    _integer("CFN_DETAIL_TIME", "detail_time_s", 0, 2_592_000),
    _integer("CFN_SHM_SIZE", "shm_size_mb", 1, 1_048_576),
    _integer("CFN_MAX_FD", "max_fd", 64, 10_000_000),
)

_BY_NAME = {key.name: key for key in KEYS}

_LINE = re.compile(
    r"(?:export[ \t]+)?(?P<name>[A-Za-z_][A-Za-z0-9_]*)="
    r"(?:\"(?P<double>[^\"]*)\"|'(?P<single>[^']*)'|(?P<plain>[^\s\"'#]*))"
    r"[ \t]*(?:[ \t]#.*)?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """What a file said: the configuration, and the keys this release does not know."""

    config: Config
    unknown: tuple[str, ...] = ()


def parse(text: str, *, source: str = "config.sh") -> Parsed:
    """Read the text of a configuration file.

    Raises ConfigError naming `source`, the line, the key, the value and what is allowed. Unknown
    keys are returned, not refused: a deployment refuses them (`check`), a daemon warns, so that
    the previous release can start on a newer file.
    """
    values: dict[str, object] = {}
    unknown: list[str] = []
    seen: set[str] = set()
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if not stripped or stripped.startswith("#"):
            continue
        where = f"{source}, line {number}"
        name, value = _read_line(stripped, where)
        if name in seen:
            raise ConfigError(f"{where}: {name} is set twice; keep one of the two lines")
        seen.add(name)
        key = _BY_NAME.get(name)
        if key is None:
            unknown.append(name)
            continue
        try:
            values[key.field] = key.parse(value)
        except (ValueError, InvalidOperation):
            raise ConfigError(f"{where}: {name}={value!r} is refused; allowed: {key.allowed}") from None
    config = Config(**values)  # type: ignore[arg-type]
    _check_together(config, source)
    return Parsed(config=config, unknown=tuple(unknown))


def _check_together(config: Config, source: str) -> None:
    """What no key can be judged by alone. Raises ConfigError."""
    everything = config.coordination_version == "v2" and config.traffic_pct == 100
    if not config.v1_enabled and not everything:
        raise ConfigError(
            f"{source}: CFN_V1_ENABLED is false, so nothing but CFN_COORDINATION_VERSION=v2 with "
            "CFN_TRAFFIC_PERCENTAGE=100 is allowed; restore V1 first"
        )
    if config.shadow_pct and config.agent_command and not config.shadow_dry_run:
        raise ConfigError(
            f"{source}: CFN_SHADOW_PERCENTAGE={as_text(config.shadow_pct)} would run CFN_AGENT_COMMAND a "
            "second time; allowed: 0, or CFN_SHADOW_DRY_RUN=true if that command does nothing real for a "
            "task whose id begins with shadow:"
        )


def check(text: str, *, source: str = "config.sh") -> Config:
    """Read a file that is about to be deployed: as `parse`, and unknown keys are refused too."""
    parsed = parse(text, source=source)
    if parsed.unknown:
        known = ", ".join(sorted(_BY_NAME))
        raise ConfigError(f"{source}: unknown key {', '.join(parsed.unknown)}; known keys: {known}")
    return parsed.config


_REFUSED = {"$": "a dollar sign", "`": "a backtick", "\\": "a backslash"}


def _read_line(line: str, where: str) -> tuple[str, str]:
    match = _LINE.fullmatch(line)
    # Without a match there is no telling where a comment begins: any refused character is named.
    value = line if match is None else next(part for part in match.group(2, 3, 4) if part is not None)
    for character, word in _REFUSED.items():
        if character in value:
            raise ConfigError(f"{where}: {word} is refused; values are plain text, nothing is expanded")
    if match is None:
        raise ConfigError(f'{where}: {line!r} is not a line of the form KEY="value"')
    if '"' in value or "'" in value or not value.isprintable():
        raise ConfigError(f"{where}: quotes and control characters are refused inside a value")
    return match["name"], value


def as_text(value: object) -> str:
    """A field's value as the file writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Decimal):
        return format(value.normalize(), "f")
    return str(value)


def render_env(config: Config) -> str:
    """The configuration as `KEY="value"` lines that systemd's EnvironmentFile and bash read alike."""
    lines = [f'{key.name}="{as_text(getattr(config, key.field))}"' for key in KEYS]
    return "\n".join(lines) + "\n"


def edit(text: str, changes: Mapping[str, str]) -> str:
    """The file's text with the given keys set and all else, comments too, as it was.

    A key that the file lacks is added at its end. Raises ConfigError if the result is refused.
    """
    remaining = dict(changes)
    lines = []
    for line in text.splitlines():
        match = re.match(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=", line)
        if match and match[1] in remaining:
            line = f'{match[1]}="{remaining.pop(match[1])}"'
        lines.append(line)
    lines += [f'{name}="{value}"' for name, value in remaining.items()]
    edited = "\n".join(lines) + "\n"
    parse(edited, source="the edited configuration")
    return edited
