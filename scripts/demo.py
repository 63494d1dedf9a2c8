"""The demo: stage 1 on real hosts under a real load, a gate, a degraded release, and the way back.

Run by `make demo`, which has set everything up. It types what an operator would type, says why, and
stops at the first thing that is not as it should be. A second run finds most of it done and says so.
"""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HOSTS = ("cfn1", "cfn2", "cfn3")
CFN = "/opt/cfn/current/bin/cfn"
DEGRADED = Path("build/artifacts/degraded.json")

# A steady stream on every host: the gate passes on proof, and wants some four hundred requests on V2.
LOAD_RATE_PER_S = 20
LOAD_SIZES = "1:95,10:5"
LOAD_DEADLINE_MS = 2_000
LOAD_UNIT = "cfn-load.service"
LOAD_AT_MOST_S = 600
GATE_PATIENCE_S = 180
WINDOW_S = 33

# How gate.yml and a stage's first look end, docs/reference/stage-run.md.
EXIT_CODE = {"PASS": 0, "FAIL": 10}

Reports = dict[str, dict[str, Any]]


class NotAsItShouldBeError(Exception):
    """A step of the demo did not end as it should; its text says which and how."""


def say(text: str) -> None:
    """A line of the story."""
    print(f"\n\033[1m== {text}\033[0m" if sys.stdout.isatty() else f"\n== {text}", flush=True)


def play(*arguments: str, expect: tuple[int, ...] = (0,)) -> str:
    """Run a playbook as an operator would, and return its whole output.

    Shows its plays and its messages; shows everything when it does not end with one of `expect`.
    """
    argv = ["ansible-playbook", *arguments]
    print(f"$ {' '.join(argv)}", flush=True)
    started = time.monotonic()
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    output, in_message, seen = "", False, set()
    assert process.stdout is not None  # noqa: S101 - for the type checker: it was asked for above
    for line in process.stdout:
        output += line
        heading = re.match(r"PLAY \[(.+)\]", line)
        if heading and heading[1] not in seen:
            seen.add(heading[1])
            print(f"    {heading[1]}", flush=True)
        # A message is indented, and may hold empty lines.
        in_message = line.startswith("    msg: ") or (in_message and line.startswith((" " * 8, "\n")))
        if in_message and line.strip():
            print(f"  | {line[4:].rstrip()}", flush=True)
    code = process.wait()
    changed = sum(int(count) for count in re.findall(r"changed=(\d+)", output))
    words = f"{changed} changes" if changed else "nothing had to be changed"
    print(f"    {words}, {time.monotonic() - started:.0f} s", flush=True)
    if code not in expect:
        print(output)
        raise NotAsItShouldBeError(f"{' '.join(argv)} ended with {code}, not {expect}")
    return output


def on_host(host: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a host of the lab."""
    return subprocess.run(["lab", "sh", host, "--", *argv], capture_output=True, text=True, check=False)


def load(host: str, name: str) -> dict[str, Any]:
    """A steady load on one host's router, as a unit of its own; blocks until that is told to end.
    Returns the generator's account."""
    result = on_host(
        host, "sudo", "systemd-run", "--quiet", "--pipe", "--wait", "--collect", f"--unit={LOAD_UNIT}",
        "--uid=cfn", "--gid=cfn", CFN, "load", "--json", "--rate", str(LOAD_RATE_PER_S),
        "--seconds", str(LOAD_AT_MOST_S), "--sizes", LOAD_SIZES, "--deadline-ms", str(LOAD_DEADLINE_MS),
        "--prefix", f"{name}-{host}",
    )  # fmt: skip
    try:
        report: dict[str, Any] = json.loads(result.stdout)
    except ValueError as error:
        raise NotAsItShouldBeError(f"cfn load on {host}: {result.stdout} {result.stderr}") from error
    return report


@contextmanager
def loaded(name: str) -> Iterator[None]:
    """Load on every host while the block runs; afterwards every request is accounted for."""
    print(f"$ cfn load --rate {LOAD_RATE_PER_S} --sizes {LOAD_SIZES}   (on every host, until told to end)")
    for host in HOSTS:
        on_host(host, "sudo", "systemctl", "stop", LOAD_UNIT)  # what a demo that was killed left behind
    with ThreadPoolExecutor() as pool:
        futures: dict[str, Future[dict[str, Any]]] = {host: pool.submit(load, host, name) for host in HOSTS}
        try:
            yield
        finally:
            for host in HOSTS:
                on_host(host, "sudo", "systemctl", "kill", "--signal=INT", LOAD_UNIT)
        show({host: future.result() for host, future in futures.items()})


def show(reports: Reports) -> None:
    """The generators' accounts in one line a host. Raises unless every request has one answer."""
    for host, report in reports.items():
        print(f"  | {host}: {account(report)}")
    bad = [host for host, report in reports.items() if not report["ok"]]
    if bad:
        print(json.dumps({host: reports[host]["failures"] for host in bad}, indent=2))
        raise NotAsItShouldBeError(f"requests were lost, failed or answered twice on {', '.join(bad)}")


def account(report: dict[str, Any]) -> str:
    """One report in words; the shares are what the router did and what it was ordered to do."""
    ordered = report["by_ordered"]
    return (
        f"{report['sent']} sent, {report['answered_once']} answered once, {report['answered_twice']} twice, "
        f"{report['never']} never, {report['failed'] + report['partial']} not done, "
        f"{report['retries']} retries; {ordered.get('v2', 0)} on V2, {report['observed_share_pct']} % "
        f"(ordered {report['expected_share_pct']} %); {report['fallbacks']} fallbacks"
    )


def gate_until(wanted: str) -> None:
    """Ask the gate until it gives a verdict for good; it must be `wanted`. On a busy machine samples may be
    late: NO_DATA is asked again too."""
    deadline = time.monotonic() + GATE_PATIENCE_S
    while True:
        result = subprocess.run(["ansible-playbook", "gate.yml"], capture_output=True, text=True, check=False)
        found = re.search(r"msg: .*?\b(PASS|FAIL|INCONCLUSIVE|NO_DATA|ERROR)\b", result.stdout, re.DOTALL)
        verdict = found[1] if found else "none"
        if verdict not in ("INCONCLUSIVE", "NO_DATA") or time.monotonic() > deadline:
            break
        print(f"    {verdict} so far: the window is not full yet", flush=True)
        time.sleep(3)
    play("gate.yml", expect=(EXIT_CODE[wanted],))
    if verdict != wanted:
        raise NotAsItShouldBeError(f"the gate says {verdict}, not {wanted}")


def degraded_was_shown() -> str:
    """When the ledger says that the gate refused this degraded release; empty if it has not yet."""
    version = json.loads(DEGRADED.read_text())["version"]
    answer = on_host("cfn1", "sudo", CFN, "ledger", "show", "--json", "--last", "1000")
    for record in json.loads(answer.stdout)["records"] if answer.returncode == 0 else []:
        verdict = record["data"].get("verdict", {}) if record["kind"] == "verdict" else {}
        if verdict.get("verdict") == "FAIL" and record["data"]["request"]["release"] == version:
            return f"{record['time']}, record {record['sequence']} of the ledger"
    return ""


def main() -> None:
    """The whole story."""
    name = f"demo-{time.time_ns() // 1_000_000_000}"
    say("Three real systemd hosts; all run the engine, the first keeps the ledger")
    print("$ lab up", flush=True)
    subprocess.run(["lab", "up", "--inventory", "inventories/lab"], check=True)

    say("Stage 1: 100 agents, flat, 10 % of the traffic")
    play("stage1.yml")

    say("A live load; V2 takes its share, and the gate judges a week that the lab makes half a minute")
    with loaded(f"{name}-good"):
        time.sleep(WINDOW_S)
        gate_until("PASS")
    play("status.yml")

    shown = degraded_was_shown()
    if shown:
        say(f"A degraded release was refused already ({shown}); make lab-down demo shows it again")
    else:
        degraded(name)

    say("What you have seen")
    print(CLOSING)


def degraded(name: str) -> None:
    """A release that loses messages, refused by the same gate, and taken back under load."""
    say("A degraded V2 that loses most of its messages, deployed in a hurry without the smoke test")
    with loaded(f"{name}-bad"):
        argv = ("stage1.yml", "-e", "artifact=degraded", "--skip-tags", "smoke")
        if "FAIL at its first look" in play(*argv, expect=(0, EXIT_CODE["FAIL"])):
            say("Its own first look has seen enough, and took the traffic back")
        else:
            say("The same gate")
            gate_until("FAIL")
        say("Back, under load")
        play("rollback_stage1.yml")
    say("No caller lost a request: V1 finished what V2 lost. Forward again, with the good release")
    play("stage1.yml")
    play("status.yml")


CLOSING = """\
Three hosts run V2 at 10 % of the traffic and V1 for the rest. A gate said PASS to a good release and
FAIL to one that lost messages, and a rollback brought everything back to V1 while the load went on.

Look at:
  ansible-playbook status.yml                      what every host runs
  lab sh cfn1 -- sudo /opt/cfn/current/bin/cfn ledger show     what was done and decided
  lab sh cfn1 -- sudo /coordination/message-bus.sh coordinate 100 my-task
Type next:
  ansible-playbook stage1.yml -e traffic=5         a flip within the stage, in seconds
  ansible-playbook rollback_stage1.yml             everything to V1, proved
  lab sh cfn1                                      a shell on a host
  make lab-down                                    the end
(source .venv/bin/activate puts these commands on your PATH)"""


if __name__ == "__main__":
    try:
        main()
    except NotAsItShouldBeError as error:
        sys.exit(f"demo: {error}")
