"""How commands are taken out of a runbook, and how what they print is held against it."""

from pathlib import Path

import pytest

from tests.conftest import PROJECT
from tests.runbook_pages import PageError, Step, steps, unlike

PAGE = """# A page

<!-- lab cfn2: sudo systemctl stop x -->
Type this, and look at `ansible-playbook status.yml` again:

```console
$ ansible-playbook status.yml \\
    -e a=1
...
next: gate
$ ansible-playbook gate.yml
[exit code 10]
```

- in a list:

  ```console
  cfn1$ sudo ls /etc/cfn
  config.sh
  ```

```text
what a file looks like
```
"""


def test_the_steps_of_a_page_in_order() -> None:
    assert steps("p.md", PAGE) == [
        Step("p.md", 3, "cfn2", "sudo systemctl stop x", arranged=True),
        Step("p.md", 7, "", "ansible-playbook status.yml -e a=1", ("...", "next: gate"), 0),
        Step("p.md", 11, "", "ansible-playbook gate.yml", (), 10),
        Step("p.md", 18, "cfn1", "sudo ls /etc/cfn", ("  config.sh",), 0),
    ]


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        ("```bash\nls /\n```\n", "a block of bash"),
        ("```\nls /\n```\n", "a block of no language"),
        ("Then:\n\n    ansible-playbook gate.yml\n", "outside of a console block"),
        ("Then type `ansible-playbook gate.yml`.\n", "is run by no block"),
        ("```text\nsudo rm -rf /\n```\n", "in a block of text"),
        ("```console\nsome output\n$ ls /\n```\n", "begins with a command"),
        ("```console\n```\n", "without a command"),
        ("```console\n$ ls /\n", "no end"),
    ],
)
def test_a_command_that_nobody_would_run_is_refused(page: str, problem: str) -> None:
    with pytest.raises(PageError, match=problem):
        steps("p.md", page)


@pytest.mark.parametrize(
    ("expected", "output", "problem"),
    [
        ([], "whatever\n", ""),
        (["a"], "  a  \n", ""),
        (["a", "...", "d"], "a\nb\nc\nd\n", ""),
        (["...", "b ... of 2", "..."], "a\n   b 1   of 2\n", ""),
        (["..."], "", ""),
        (["b", "..."], "a\nb\n", "does not mention"),
        (["a"], "a\nb\n", "does not mention"),
        (["...", "c", "..."], "a\nb\n", "nowhere, or not in this place: c"),
        (["...", "b", "...", "a", "..."], "a\nb\n", "nowhere, or not in this place: a"),
        (["1.5"], "1x5\n", "nowhere"),
    ],
)
def test_an_output_is_held_against_a_page(expected: list[str], output: str, problem: str) -> None:
    found = unlike(expected, output)
    assert problem in found
    assert bool(problem) is bool(found)


@pytest.mark.parametrize("page", sorted((PROJECT / "docs/runbooks").glob("*.md")), ids=lambda page: page.name)
def test_every_runbook_can_be_run_and_promises_something(page: Path) -> None:
    found = [step for step in steps(page.name, page.read_text()) if not step.arranged]
    assert found
    silent = [step.where for step in found if not step.host and not step.expected and not step.exit_code]
    assert silent == []
