"""The commands of a runbook, taken out of its Markdown, and what the page says one should see.

    ```console
    $ ansible-playbook status.yml
    ...
    next: ansible-playbook gate.yml
    ...
    ```

A line that begins with `$ ` is typed on the controller, one with `HOST$ ` on that host; a backslash at the
end goes on in the next line. What follows is what one should see: a line `...` stands for any lines, `...`
within a line for any text, and `[exit code N]` at the end for an exit code other than 0. Blanks at both
ends of a line count for nothing. `<!-- lab HOST: COMMAND -->` brings the lab into the state that the page
is for (HOST is `controller` for this machine); a reader does not see it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

CONTROLLER = "controller"
PROMPT = re.compile(r"(?P<host>[a-z][a-z0-9-]*)?\$ (?P<text>.+)")
EXIT_CODE = re.compile(r"\[exit code (\d+)\]")
ARRANGED = re.compile(r"<!-- lab (?P<host>[a-z][a-z0-9-]*): (?P<text>.+) -->")
FENCE = re.compile(r"\s*```(?P<language>\w*)")

# What begins with one of these is a command, wherever on a page it stands.
PROGRAMS = (
    r"ansible(?:-playbook)?|make|python|sudo|systemctl|journalctl|cfn|sed|ps|lsof|du|ls|df|cat|rm|kill|mount|ssh"
    r"|lab|bash|sh|ulimit|tail|grep|tar"
)
LOOKS_TYPED = re.compile(rf"(?:\S*\$ |/opt/cfn/\S*/|/coordination/)?(?:{PROGRAMS}) \S")


class PageError(Exception):
    """A page that cannot be run as it is; says which page, which line, and why."""


@dataclass(frozen=True)
class Step:
    """One command of a page. `host` is empty for the controller; what is `arranged` expects nothing."""

    page: str
    line: int
    host: str
    text: str
    expected: tuple[str, ...] = ()
    exit_code: int = 0
    arranged: bool = False

    @property
    def where(self) -> str:
        """What a message names it by."""
        return f"{self.page}:{self.line}: {self.host}$ {self.text}"


def steps(page: str, markdown: str) -> list[Step]:
    """Everything that is to be run for a page, in order. Raises PageError for a command that no block of
    this kind holds, since nobody would run it."""
    found: list[Step] = []
    block: list[tuple[int, str]] | None = None
    language = ""
    for number, line in enumerate(markdown.splitlines(), 1):
        fence = FENCE.match(line)
        if fence is not None:
            if block is None:
                block, language = [], fence["language"]
                if language not in ("console", "text"):
                    raise PageError(
                        f"{page}:{number}: a block of {language or 'no language'}: console or text"
                    )
                continue
            found += _block(page, block) if language == "console" else _no_commands(page, block)
            block = None
        elif block is not None:
            block.append((number, line))
        elif arranged := ARRANGED.fullmatch(line.strip()):
            host = "" if arranged["host"] == CONTROLLER else arranged["host"]
            found.append(Step(page, number, host, arranged["text"], arranged=True))
        elif LOOKS_TYPED.match(line.strip()) and line.startswith("    "):
            raise PageError(f"{page}:{number}: a command outside of a console block: {line.strip()}")
    if block is not None:
        raise PageError(f"{page}: the last block has no end")
    _check_inline(page, markdown, found)
    return found


def _block(page: str, lines: list[tuple[int, str]]) -> list[Step]:
    """The commands of one block, each with what follows it."""
    found: list[Step] = []
    continued = False
    for number, line in lines:
        if continued:
            text = f"{found[-1].text[:-1].rstrip()} {line.strip()}"
            found[-1] = Step(page, found[-1].line, found[-1].host, text)
            continued = text.endswith("\\")
            continue
        prompt = PROMPT.fullmatch(line.strip())
        if prompt is not None:
            found.append(Step(page, number, prompt["host"] or "", prompt["text"]))
            continued = prompt["text"].endswith("\\")
            continue
        if not found:
            raise PageError(f"{page}:{number}: a console block begins with a command, not with {line!r}")
        last = found[-1]
        code = EXIT_CODE.fullmatch(line.strip())
        found[-1] = Step(
            page,
            last.line,
            last.host,
            last.text,
            last.expected if code else (*last.expected, line),
            int(code[1]) if code else last.exit_code,
        )
    if not found:
        raise PageError(f"{page}: a console block without a command")
    return found


def _no_commands(page: str, lines: list[tuple[int, str]]) -> list[Step]:
    for number, line in lines:
        if LOOKS_TYPED.match(line.strip()):
            raise PageError(f"{page}:{number}: a command in a block of text: {line.strip()}")
    return []


def _check_inline(page: str, markdown: str, found: Iterable[Step]) -> None:
    """A command in a sentence has to be the beginning of one that is run."""
    prose = re.sub(r"^\s*```.*?^\s*```$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    run = [step.text for step in found if not step.arranged]
    for inline in re.findall(r"`([^`\n]+)`", prose):
        if LOOKS_TYPED.match(inline) and not any(text.startswith(inline) for text in run):
            raise PageError(f"{page}: `{inline}` is run by no block of the page")


def unlike(expected: Iterable[str], output: str) -> str:
    """What a page promised and the output does not hold, in words; empty if all is there in order."""
    seen = [_plain(line) for line in output.splitlines()]
    wanted = [_plain(line) for line in expected]
    pattern = "".join(r"(?:.*\n)*?" if line == "..." else f"{_line_pattern(line)}\n" for line in wanted)
    if not wanted or re.fullmatch(pattern, "".join(f"{line}\n" for line in seen)):
        return ""
    at = 0
    for line in wanted:
        if line == "...":
            continue
        matching = (index for index in range(at, len(seen)) if re.fullmatch(_line_pattern(line), seen[index]))
        found = next(matching, None)
        if found is None:
            return f"nowhere, or not in this place: {line}"
        at = found + 1
    return "there are lines that the page does not mention: it wants a line of ... there"


def _plain(line: str) -> str:
    return " ".join(line.split())


def _line_pattern(line: str) -> str:
    return ".*".join(map(re.escape, line.split("...")))
