# Copyright: cfn-rollout contributors. Apache-2.0, see LICENSE
"""Take secrets out of texts: by the name that they stand under, by their form, and then by value wherever
the same value occurs again. Pure.

A name is a secret's if it says so (`CFN_SPLIT_KEY`, `apiToken`, `--password`), unless it only speaks of
one (`token_file`, `split_key_sha256`, `public_key`).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable
from urllib.parse import quote

MARK = "[removed]"

# A value of the configuration is removed everywhere from this length on; what a log seems to call a secret
# must look like one, or every "disabled" would go because of one "auth: disabled".
LEAST_CONFIGURED = 4
LEAST_LOGGED = 8
LEAST_LOGGED_WORD = 20
MOST_LOGGED = 500  # values; by name all are removed, however many there are

_WORDS = frozenset(
    [
        "key",
        "keys",
        "apikey",
        "token",
        "tokens",
        "secret",
        "secrets",
        "password",
        "passwords",
        "passwd",
        "passphrase",
        "pwd",
        "pass",
        "credential",
        "credentials",
        "auth",
        "authorization",
        "cookie",
        "bearer",
    ]
)
_SPEAKS_OF_ONE = frozenset(
    [
        "file",
        "path",
        "dir",
        "folder",
        "sha256",
        "id",
        "ids",
        "name",
        "type",
        "kind",
        "at",
        "age",
        "size",
        "count",
        "rate",
        "limit",
        "s",
        "ms",
        "pct",
    ]
)
_NO_SECRET = frozenset(("sticky_key", "public_key", "primary_key"))
_HARMLESS = frozenset(("true", "false", "none", "null", MARK))

_IN_NAME = r"(?:key|token|secret|passw|passphrase|pwd|pass|credential|auth|cookie|bearer)"
_NAME = rf"(?<![\w.-])[\w.-]{{0,64}}?{_IN_NAME}[\w.-]{{0,64}}"
_VALUE = (
    r"""(?:\\"(?P<escaped>.*?)\\"|"(?P<double>(?:[^"\\\n]|\\.)*)"|'(?P<single>[^'\n]*)'"""
    r"""|(?P<plain>[^\s,;&"'}\])]+))"""
)
_ASSIGNED = re.compile(rf"""(?P<name>{_NAME})(?P<between>\\?["']?[ \t]*[:=][ \t]*){_VALUE}""", re.IGNORECASE)
_OPTION = re.compile(
    rf"""(?P<name>(?<![\w.-])--?[\w-]{{0,64}}?{_IN_NAME}[\w-]{{0,64}})"""
    r"""(?P<between>[ \t]+["']?)(?P<plain>[^\s"'-][^\s"']*)""",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"""(?P<between>\bauthorization\\?["']?[ \t]*[:=][ \t]*\\?["']?[\w-]+[ \t]+|\bbearer[ \t]+)"""
    r"""(?P<plain>[^\s"'\\,;]{6,})""",
    re.IGNORECASE,
)
_IN_URL = re.compile(r"(?P<between>[a-z][a-z0-9+.-]{0,20}://[^\s/:@]{0,128}:)(?P<plain>[^\s/@]{1,256})(?=@)")
_PEM = re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL)
_PEM_END = re.compile(r"\A.*-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)

_FORMS = (_HEADER, _IN_URL, _ASSIGNED, _OPTION)


def is_secret_name(name: str) -> bool:
    """Whether what stands under this name is a secret."""
    plain = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip("-")).lower()
    parts = [part for part in re.split(r"[^a-z0-9]+", plain) if part]
    if not parts or "_".join(parts) in _NO_SECRET or parts[-1] in _SPEAKS_OF_ONE:
        return False
    return any(part in _WORDS or part.endswith(("password", "secret", "token")) for part in parts)


def _value(match: re.Match[str]) -> str:
    found = (match.groupdict().get(name) for name in ("escaped", "double", "single", "plain"))
    return next((value for value in found if value is not None), "")


def _is_one(match: re.Match[str]) -> bool:
    name = match.groupdict().get("name")
    # An empty value, or what is left of a mark where a bracket ends a value, is none.
    return not MARK.startswith(_value(match)) and (name is None or is_secret_name(name))


def configured_secrets(text: str) -> set[str]:
    """The values of secrets in a text of settings, which are secrets wherever they occur."""
    found = {_value(match) for form in _FORMS for match in form.finditer(text) if _is_one(match)}
    return {value for value in found if _counts(value)}


def secret_lines(text: str) -> set[str]:
    """The lines of a file that is nothing but a secret, such as a token or a private key."""
    lines = (line.strip() for line in text.splitlines())
    return {line for line in lines if _counts(line) and not line.startswith("-----")}


def logged_secrets(text: str) -> set[str]:
    """The values that a log names as secrets and that look like some; `MOST_LOGGED` at most."""
    found: set[str] = set()
    for form in _FORMS:
        for match in form.finditer(text):
            if _is_one(match) and _looks_like_one(_value(match)):
                found.add(_value(match))
            if len(found) >= MOST_LOGGED:
                return found
    return found


def _counts(value: str) -> bool:
    return len(value) >= LEAST_CONFIGURED and value.lower() not in _HARMLESS and not value.startswith("/")


def _looks_like_one(value: str) -> bool:
    varied = re.search(r"[0-9]", value) or (value.lower() != value and value.upper() != value)
    least = LEAST_LOGGED if varied else LEAST_LOGGED_WORD
    return _counts(value) and len(value) >= least


class Redactor:
    """Removes secrets of known values and whatever stands under a secret's name."""

    def __init__(self, values: Iterable[str]) -> None:
        """`values`: secrets; each is found also as JSON, a URL and base64 write it."""
        written = {each for value in values for each in _writings(value)}
        longest_first = sorted(written, key=lambda each: (-len(each), each))
        self._values = re.compile("|".join(map(re.escape, longest_first))) if written else None
        self.removed = 0

    def text(self, text: str) -> str:
        """The text without secrets; `removed` counts what was taken out."""
        text = _PEM.sub(self._mark, text)
        text = _PEM_END.sub(self._mark, text)
        if self._values is not None:
            text = self._values.sub(self._mark, text)
        for form in _FORMS:
            text = form.sub(self._assigned, text)
        return text

    def _mark(self, _match: re.Match[str]) -> str:
        self.removed += 1
        return MARK

    def _assigned(self, match: re.Match[str]) -> str:
        if not _is_one(match):
            return match[0]
        self.removed += 1
        start = match.start()
        for name in ("escaped", "double", "single", "plain"):
            if name in match.re.groupindex and match[name] is not None:
                return match[0][: match.start(name) - start] + MARK + match[0][match.end(name) - start :]
        return match[0]


def _writings(value: str) -> set[str]:
    encoded = base64.b64encode(value.encode()).decode().rstrip("=")
    return {value, json.dumps(value)[1:-1], quote(value, safe=""), encoded}
