"""Asking every host at once, over SSH."""

import json
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfn.metrics import checks

CONNECT_S = 5
TIMEOUT_S = 60.0
MAX_AT_ONCE = 16
MAX_ANSWER_BYTES = 64_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a host answers: address and port, and the account whose key runs `cfn watched` only."""

    address: str
    port: int = 22
    user: str = "cfn-watch"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosts:
    """All hosts, the key that reaches them, and the host keys that they must show."""

    targets: Mapping[str, Target]
    key: Path
    known_hosts: Path

    def ask(self, requests: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """The answer of each host that is asked, `{"error": TEXT}` of one that has none. Blocks at most
        TIMEOUT_S for each MAX_AT_ONCE hosts."""
        with ThreadPoolExecutor(MAX_AT_ONCE) as pool:
            answers = pool.map(lambda each: self._one(*each), requests.items())
            return dict(zip(requests, answers, strict=True))

    def _one(self, host: str, request: Mapping[str, Any]) -> dict[str, Any]:
        target = self.targets[host]
        argv = [
            "ssh", "-T", "-F", "none", "-i", str(self.key), "-p", str(target.port), "-l", target.user,
            "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=yes",
            "-o", f"UserKnownHostsFile={self.known_hosts}", "-o", f"HostKeyAlias={host}",
            "-o", f"ConnectTimeout={CONNECT_S}", "-o", "LogLevel=ERROR", "-o", "ServerAliveInterval=5",
            target.address, "cfn watched",
        ]  # fmt: skip
        try:
            done = subprocess.run(
                argv, input=json.dumps(request).encode(), capture_output=True, timeout=TIMEOUT_S, check=False
            )
        except (OSError, subprocess.SubprocessError) as error:
            return {"error": f"{host}: {error}"}
        if done.returncode != 0:
            words = done.stderr.decode(errors="replace").strip() or f"ssh ended with {done.returncode}"
            return {"error": f"{host}: {words[-500:]}"}
        try:
            if len(done.stdout) > MAX_ANSWER_BYTES:
                raise ValueError(f"an answer of {len(done.stdout)} bytes")
            return checks.load_object(done.stdout.decode())
        except ValueError as error:
            return {"error": f"{host}: {error}"}
