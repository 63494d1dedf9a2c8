# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Make one bundle of a host's parts: secrets out, within bounds, a manifest that says what is missing."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import tarfile
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ansible.module_utils.diagnostics_host import (
    CFN,
    MOST_CONFIG_BYTES,
    Host,
    Part,
    filesystem,
    holds_a_secret,
    meminfo,
    processes,
)
from ansible.module_utils.diagnostics_reading import read_end
from ansible.module_utils.diagnostics_redaction import (
    Redactor,
    configured_secrets,
    logged_secrets,
    secret_lines,
)

MANIFEST = "MANIFEST.json"
KEPT_BUNDLES = 2  # left by controllers that died before they fetched theirs

# What holds settings rather than what happened: what is secret there is secret in every part.
SETTINGS = ("config/", "unit-texts.txt")


def secrets_of(root: Path, parts: Iterable[Part]) -> set[str]:
    """Every secret that the host's configuration, or a log, gives away."""
    found: set[str] = set()
    for part in parts:
        settings = part.name.startswith(SETTINGS)
        found |= configured_secrets(part.text) if settings else logged_secrets(part.text)
    folder = root / "etc/cfn"
    for path in folder.glob("*") if folder.is_dir() else []:
        if holds_a_secret(path):
            found |= secret_lines(read_end(path, MOST_CONFIG_BYTES)[0])
    return found


def redacted(parts: Iterable[Part], secrets: Iterable[str]) -> tuple[list[Part], int]:
    """The parts without secrets, and how many were taken out."""
    redactor = Redactor(secrets)
    clean = [
        replace(part, text=redactor.text(part.text), problem=redactor.text(part.problem)) for part in parts
    ]
    return clean, redactor.removed


def archive(parts: Iterable[Part], manifest: dict[str, Any], most_bytes: int) -> tuple[bytes, dict[str, Any]]:
    """The bundle as a tar.gz, and its manifest. Texts come to `most_bytes` at most, before they are
    compressed: what is over is cut from the beginning of a part, and said."""
    left = most_bytes
    listed, files = [], []
    for part in parts:
        content = part.text.encode()
        problem = part.problem
        if len(content) > left:
            problem = "; ".join(filter(None, (problem, f"the bundle is full: the last {left} bytes")))
            content = content[len(content) - left :].partition(b"\n")[2]
        left -= len(content)
        listed.append({"name": part.name, "source": part.source, "bytes": len(content), "problem": problem})
        if content:
            files.append((part.name, content))
    manifest = {**manifest, "v": 1, "parts": listed}
    text = json.dumps(manifest, indent=1, sort_keys=True) + "\n"
    return _packed([(MANIFEST, text.encode()), *files], manifest["time_s"]), manifest


def _packed(files: list[tuple[str, bytes]], time_s: float) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(content), int(time_s), 0o600
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def write(folder: Path, name: str, content: bytes) -> Path:
    """Write a bundle that only its owner can read, in a folder that only its owner can enter, and remove
    older ones. Raises OSError, also where somebody else made that folder."""
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not a folder of this account alone: remove it")
    for old in sorted(folder.iterdir(), key=lambda each: each.lstat().st_mtime)[:-KEPT_BUNDLES]:
        old.unlink()
    path = folder / name
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        try:
            file.write(content)
            file.flush()
        except OSError:
            path.unlink()
            raise
    return path


def facts(host: Host, parts: Iterable[Part]) -> dict[str, Any]:
    """What an incident report says of the host, each figure null where it cannot be read."""
    texts = {part.name: part for part in parts}
    settings = dict(
        re.findall(r"^\s*(?:export\s+)?(\w+)=[\"']?([^\"'\s#]*)", texts["config/config.sh"].text, re.M)
    )
    current = host.root / "opt/cfn/current"
    memory = meminfo(host.root)
    shm = filesystem("/dev/shm")  # noqa: S108 - what is looked at
    found = processes(host.root)
    status = _object(texts["status.json"].text)
    breaker = status.get("breaker") or {}
    return {
        "installed": (host.root / CFN).exists(),
        "release": current.readlink().name if current.is_symlink() else None,
        "version": settings.get("CFN_COORDINATION_VERSION"),
        "traffic_pct": _float(settings.get("CFN_TRAFFIC_PERCENTAGE")),
        "epoch": _float(settings.get("CFN_EPOCH")),
        "engine": status.get("engine"),
        "router": status.get("router"),
        "breaker": breaker.get("state"),
        "breaker_reason": breaker.get("reason"),
        "config_problem": status.get("config_problem"),
        "units": units(texts["units.txt"].text),
        "processes": len(found),
        "memory_kb": sum(each["rss_kb"] for each in found),
        "fd_count": sum(each["fds"] or 0 for each in found),
        "memory_available_mb": memory["MemAvailable"] // 1024 if "MemAvailable" in memory else None,
        "tmpfs_pct": shm["used_pct"] if shm else None,
    }


def units(shown: str) -> dict[str, dict[str, Any]]:
    """Each unit's state and restarts, from what `systemctl show` printed."""
    found = {}
    for block in shown.split("\n\n"):
        fields = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if fields.get("Id") and fields.get("LoadState") == "loaded":
            found[fields["Id"]] = {
                "state": f"{fields.get('ActiveState')}/{fields.get('SubState')}",
                "result": fields.get("Result"),
                "restarts": int(fields.get("NRestarts") or 0),
            }
    return found


def manifest_of(host: Host, name: str, now_s: float) -> dict[str, Any]:
    """The manifest's own lines."""
    return {
        "host": name,
        "time_s": round(now_s, 3),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now_s)),
        "since": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(host.since_s)),
    }


def sha256(content: bytes) -> str:
    """What tells whether a bundle arrived whole."""
    return hashlib.sha256(content).hexdigest()


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _float(text: str | None) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
