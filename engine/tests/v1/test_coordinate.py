"""The built-in V1, as a process: its contract on standard output, and its time."""

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

COMMAND = Path(__file__).parents[2] / "v1/coordinate"


def v1(
    *arguments: str, stdin: bytes = b"", agent: str = "", **environment: str
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [str(COMMAND), *arguments],
        input=stdin,
        capture_output=True,
        env={"PATH": os.environ["PATH"], "CFN_AGENT_COMMAND": agent, **environment},
        timeout=20,
        check=False,
    )


def lines(ended: subprocess.CompletedProcess[bytes]) -> list[str]:
    return ended.stdout.decode().splitlines()


def test_each_agent_is_acknowledged_and_reported_and_the_last_line_sums_up() -> None:
    ended = v1("3", "task-1", stdin=b"50% of\nall")
    assert ended.returncode == 0
    printed = lines(ended)
    assert printed[:3] == [f"agent=agent-{n} state=running" for n in (1, 2, 3)]
    assert sorted(printed[3:6]) == [
        f"agent=agent-{n} state=done exit_code=0 output=50%25 of%0Aall" for n in (1, 2, 3)
    ]
    assert printed[6].startswith("delivery_rate=100.0 agents_coordinated=3 coordination_time_ms=")
    assert len(printed) == 7


def test_capabilities() -> None:
    assert lines(v1("--capabilities")) == ["agent-list"]


def test_the_list_is_the_first_line_and_the_payload_follows(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_text(f"#!/bin/sh\ncat >{tmp_path}/$CFN_TASK_ID.$CFN_AGENT_ID\n")
    agent.chmod(0o755)
    payload = bytes(range(256)) + b"\nsecond line\n"
    ended = v1("2", "t", "--agents-from-stdin", stdin=b"agent-7 other\n" + payload, agent=str(agent))
    assert ended.returncode == 0
    for name in ("agent-7", "other"):
        assert (tmp_path / f"t.{name}").read_bytes() == payload


def test_the_payload_may_come_from_a_file_a_pipe_or_nowhere(tmp_path: Path) -> None:
    file = tmp_path / "payload"
    file.write_bytes(b"from a file")
    for stdin in (file.open("rb"), subprocess.DEVNULL):
        ended = subprocess.run([str(COMMAND), "2", "t"], stdin=stdin, capture_output=True, check=True)
        assert (b"output=from a file" in ended.stdout) == (stdin is not subprocess.DEVNULL)
    assert not list(Path(os.environ.get("TMPDIR", "/tmp")).glob("tmp.*payload*"))


@pytest.mark.parametrize(
    ("agent", "code", "states"),
    [
        ("/bin/true", 0, {"done": 3}),
        ("/bin/false", 1, {"failed": 3}),
        ("/does/not/exist -x", 1, {"failed": 3}),
    ],
)
def test_exit_codes(agent: str, code: int, states: dict[str, int]) -> None:
    ended = v1("3", "t", agent=agent)
    assert ended.returncode == code
    for state, count in states.items():
        assert sum(f" state={state} " in line for line in lines(ended)) == count


def test_agents_run_at_the_same_time() -> None:
    began = time.monotonic()
    assert v1("20", "t", agent="/bin/sleep 0.3").returncode == 0
    assert time.monotonic() - began < 20 * 0.3  # one after another


def test_a_killed_agent_is_failed_and_the_others_are_done(tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.write_text("#!/bin/sh\n[ $CFN_AGENT_ID = agent-2 ] && kill -9 $$\necho fine\n")
    agent.chmod(0o755)
    printed = lines(v1("3", "t", agent=str(agent)))
    assert "agent=agent-2 state=failed exit_code=137 output=" in printed
    assert sum("state=done" in line for line in printed) == 2


def test_more_output_than_a_pipe_holds_blocks_nobody_and_is_cut() -> None:
    ended = v1("4", "t", agent="/usr/bin/seq 100000", CFN_MAX_OUTPUT="1000")
    assert ended.returncode == 0
    outputs = [line.split("output=")[1] for line in lines(ended) if "output=" in line]
    assert [len(output.replace("%0A", "\n")) for output in outputs] == [1000] * 4


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("1",),
        ("0", "t"),
        ("-1", "t"),
        ("x", "t"),
        ("1", "a/b"),
        ("1", "a\nb"),
        ("1", "x" * 10_000),
        ("1", "t", "--what"),
        ("2", "t", "--agents-from-stdin"),
    ],
)
def test_bad_arguments_start_nothing(arguments: tuple[str, ...]) -> None:
    ended = v1(*arguments, stdin=b"only-one\n")
    assert ended.returncode == 2
    assert ended.stdout == b""
    assert b"usage: coordinate" in ended.stderr


def test_nothing_is_expanded_in_the_agents_command(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    printed = lines(v1("1", "t", agent=f"/bin/echo * ; touch {marker}"))
    assert f"output=* ; touch {marker}%0A" in printed[1]
    assert not marker.exists()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck() -> None:
    found = subprocess.run(["shellcheck", "-f", "json", str(COMMAND)], capture_output=True, check=False)
    assert json.loads(found.stdout) == []
