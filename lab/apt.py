"""Where this machine gets Debian's packages from: the image is made from the same place. Pure."""

import re
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

_ONE_LINE = re.compile(
    r"deb\s+(?:\[(?P<options>[^]]*)\]\s+)?"
    r"(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)"
)
_SUITES = re.compile(
    r"(stable|oldstable|bullseye|bookworm|trixie|forky)(?P<part>-updates|-security|/updates)?"
)


def image_sources(files: Mapping[str, str], suite: str) -> list[str]:
    """apt lines for *suite*, from the machine's own source files (path to content).

    Only Debian's own archives are taken: an archive is Debian's if its address ends in
    ``/debian`` or ``/debian-security``, its suite is one of Debian's with the component ``main``,
    and it is signed by nothing but Debian's key. An empty result means that this machine is not
    a Debian: let mmdebstrap use its default.
    """
    lines: list[str] = []
    for uri, found in _entries(files):
        match = _SUITES.fullmatch(found)
        if match is None:
            continue
        part = (match["part"] or "").replace("/updates", "-security")
        lines.append(f"deb {uri} {suite}{part} main")
    unique = list(dict.fromkeys(lines))
    # Without the base suite nothing can be unpacked, whatever else is named.
    return unique if any(line.split()[2] == suite for line in unique) else []


def _entries(files: Mapping[str, str]) -> Iterable[tuple[str, str]]:
    """(uri, suite) of each of Debian's own archives."""
    for path, text in sorted(files.items()):
        found = _deb822(text) if path.endswith(".sources") else _one_line(text)
        for uri, suite, components, signed_by in found:
            last = urlsplit(uri).path.rstrip("/").rpartition("/")[2]
            if (
                "main" in components
                and last in ("debian", "debian-security")
                and (not signed_by or "debian-archive" in signed_by)
            ):
                yield uri, suite


def _one_line(text: str) -> Iterable[tuple[str, str, list[str], str]]:
    for line in text.splitlines():
        match = _ONE_LINE.match(line.partition("#")[0].strip())
        if match:
            signed = re.search(r"signed-by=(\S+)", match["options"] or "", re.IGNORECASE)
            components = match["components"].split()
            yield match["uri"], match["suite"], components, signed[1] if signed else ""


def _deb822(text: str) -> Iterable[tuple[str, str, list[str], str]]:
    for stanza in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        key = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1].isspace():
                fields[key] = f"{fields.get(key, '')} {line.strip()}"
            elif ":" in line:
                key, _, value = line.partition(":")
                key = key.strip().lower()
                fields[key] = value.strip()
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                yield uri, suite, fields.get("components", "").split(), fields.get("signed-by", "")
