"""One minute of the watch: ask, judge, record, and take traffic back where a verdict says so."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from cfn.errors import CfnError, RefusedError, UsageError
from cfn.judge.judge import judge
from cfn.judge.request import read_request
from cfn.judge.window import plan as window_plan
from cfn.ledger.chain import Entry
from cfn.ledger.entries import checked_entry
from cfn.ledger.joining import Known, unjoined
from cfn.ledger.store import LedgerStore
from cfn.metrics import checks
from cfn.metrics.times import format_ms
from cfn.rollout.cadence import Due, due, read_cadence
from cfn.rollout.plan import Plan
from cfn.rollout.records import facts
from cfn.rollout.standing import escalations_of
from cfn.watch import decide
from cfn.watch.decide import Fleet
from cfn.watch.guard import EPOCHS_UP
from cfn.watch.host import VERSION
from cfn.watch.memory import Memory, recall

BLIND = ("NO_DATA", "ERROR")
GUARDRAIL_WINDOW_S = 21_600.0
ANCHORED = 16  # heads that hosts are told at once: who recorded in between may come after

Answers = dict[str, dict[str, Any]]


class Asks(Protocol):
    """What reaches the hosts; cfn.watch.ssh.Hosts in earnest."""

    def ask(self, requests: Mapping[str, Mapping[str, Any]]) -> Answers:
        """Each host's answer, or `{"error": TEXT}`."""


@dataclass(slots=True, kw_only=True)
class Watch:
    """The watch of one environment. Not for threads; one process at a time (its unit sees to that).
    `said` is what was noteworthy, a line each."""

    plan: Plan
    hosts: Asks
    store: LedgerStore
    memory_path: Path
    actor: str
    said: list[str] = field(default_factory=list)
    _now_ms: int | None = None
    _recorded: bool = False
    _unrecorded: CfnError | None = None

    @property
    def blind_limit_s(self) -> float:
        """How long nothing may be seen while V2 has traffic."""
        own = self.plan.watch.get("blind_limit_s")
        objectives = self.plan.judged(self.plan.stage).get("objectives", {})
        limit = own or objectives.get("blind_limit_s", decide.BLIND_LIMIT_S)
        return checks.number(limit, "blind_limit_s", low=1)

    def tick(self, now_ms: int) -> list[str]:
        """Do what this minute asks for; returns what was noteworthy, a line each.

        What takes traffic back does not wait for the ledger: what could not be recorded is raised at the
        end, as CfnError. Hosts hear that the watch lives (`alive`) when all of it went well and is kept; to
        one that cannot see, record or remember they do not listen, and fall back when that lasts.
        """
        self._now_ms = now_ms
        memory = recall(self.memory_path, self.plan.stage)
        memory.catch_up(self.store)
        answers = self._ask({})
        self._take_in_spools(memory, answers)
        if self._finish_back(memory, answers, now_ms):
            answers = self._ask({})
        running = decide.fleet(answers, now_ms)
        if running is None:
            self._unseen(memory, now_ms, "no host answers", None)
        elif running.v2_pct == 0:
            memory.blind_since_ms, memory.last_word = None, ""
        else:
            try:
                self._look(memory, running, now_ms)
            except (UsageError, ValueError) as error:  # clocks that differ, a plan that cannot be judged by
                self._unseen(memory, now_ms, f"ERROR: {error}", running)
        self._fail_unrecorded()
        if self._recorded:
            memory.catch_up(self.store)
        memory.keep(self.memory_path)
        self._live()
        return self.said

    def stop(self) -> list[str]:
        """Tell every host that the watch ends on purpose, so that its silence means nothing."""
        answers = self._ask({"watching": False, "alive": True})
        self._record("watch", {"text": "stopped on purpose"})
        self._fail_unrecorded()
        self._live(watching=False)
        return [answer["error"] for answer in answers.values() if "error" in answer]

    # Looking

    def _look(self, memory: Memory, running: Fleet, now_ms: int) -> None:
        standing = self._due(memory, running, now_ms)
        self._tell_missed(memory, standing)
        whole = standing is not None and standing.now_due
        window_s = self.plan.watch.get("guardrail_window_s", GUARDRAIL_WINDOW_S)
        raw = decide.request(
            self.plan,
            running,
            facts(memory.people, self.plan.stage, running.since_ms),
            asked_by=self.actor,
            now_ms=now_ms,
            guardrails_only=not whole,
            guardrail_window_s=checks.number(window_s, "guardrail_window_s", low=1),
        )
        wanted = window_plan(read_request(raw))
        evidence = {
            "since": format_ms(wanted.since_ms),
            "until": format_ms(wanted.until_ms),
            "bucket_s": wanted.bucket_ms / 1_000,
        }
        answers = self._ask({"evidence": evidence})
        raw["evidence"] = {host: each["evidence"] for host, each in answers.items() if "evidence" in each}
        verdict = judge(read_request(raw))
        word = verdict["verdict"]
        if whole or word == "FAIL":
            self._record("verdict", {"request": raw, "verdict": verdict})
        elif word != memory.last_word:
            # A look at the guardrails alone is never a PASS of the gate: it is told, and decides nothing.
            text = f"guardrails: {word}: {'; '.join(verdict['reasons'][:3])}"
            self._record("watch", {"guardrails": word, "text": text})
        memory.last_word = word
        if word == "FAIL":
            target = decide.step_down(self.plan, running)
            self._back(running, target, f"FAIL: {'; '.join(verdict['reasons'][:3])}", now_ms)
        if word in BLIND:
            self._unseen(memory, now_ms, f"{word}: {'; '.join(verdict['reasons'][:3])}", running)
        else:
            memory.blind_since_ms = None
        if whole or word == "FAIL":
            self._escalate(now_ms)

    def _due(self, memory: Memory, running: Fleet, now_ms: int) -> Due | None:
        if memory.flip_ms is None:
            return None
        cadence = read_cadence(self.plan.window(self.plan.stage), running.traffic_pct, self.plan.scale)
        return due(cadence, memory.flip_ms, memory.looks_ms, now_ms)

    def _tell_missed(self, memory: Memory, standing: Due | None) -> None:
        if standing is None or standing.missed_count <= memory.missed_told:
            return
        more = standing.missed_count - memory.missed_told
        memory.missed_told = standing.missed_count
        last = format_ms(standing.missed[-1])
        self._record(
            "watch", {"missed": more, "text": f"{more} looks were missed, the last was due at {last}"}
        )

    def _unseen(self, memory: Memory, now_ms: int, why: str, running: Fleet | None) -> None:
        """Nothing can be seen: an alert when that begins to last too long, and the fall back."""
        memory.blind_since_ms = min(memory.blind_since_ms or now_ms, now_ms)  # a clock that was ahead
        if not decide.blind_too_long(memory.blind_since_ms, now_ms, self.blind_limit_s):
            return
        since = format_ms(memory.blind_since_ms)
        reason = f"blind since {since}, longer than {self.blind_limit_s:g} s: {why}"
        escalated = {"trigger": "blind", "level": "stage", "severity": "P1", "reason": reason}
        self._record("escalated", escalated)
        memory.blind_since_ms = None
        if running is not None:
            self._back(running, 0.0, reason, now_ms)

    def _escalate(self, now_ms: int) -> None:
        records = list(self.store.oldest())
        told = [each["data"] for each in records if each["kind"] == "escalated"]
        for each in escalations_of(records, self.plan, self.plan.stage, now_ms):
            if each.as_json() not in told:
                self._record("escalated", each.as_json())

    # Acting

    def _back(self, running: Fleet, target_pct: float, reason: str, now_ms: int) -> None:
        """Order every host to lower V2's share, 0 being V1, and record what became of it."""
        epoch = running.epoch + EPOCHS_UP
        order = {
            "id": f"{epoch}.{now_ms}",
            "percent": target_pct or None,
            "epoch": epoch,
            "reason": reason,
        }
        answers = self._ask({"order": order})
        done = {host: each.get("order") or {"error": each.get("error", "")} for host, each in answers.items()}
        missing = [host for host, each in done.items() if not each.get("confirmed")]
        where = f"{target_pct:g} % on V2" if target_pct else "V1"
        text = f"The watch took the traffic back to {where}, confirmed by {len(done) - len(missing)} of "
        text += f"{len(done)} hosts. {reason}"
        if missing:
            text += (
                f"\nNOT CONFIRMED on {', '.join(missing)}: they fall back by themselves if they are cut off"
            )
        self._record(
            "rolled_back",
            {"to_pct": target_pct, "epoch": epoch, "hosts": done, "pending": missing, "text": text},
        )

    def _finish_back(self, memory: Memory, answers: Answers, now_ms: int) -> bool:
        """Hosts that a way back could not reach are taken back as soon as they answer again."""
        left = decide.left_behind(memory.back, answers)
        if not left:
            return False
        epoch, target_pct = memory.back["epoch"], float(memory.back.get("to_pct") or 0)
        order = {
            "id": f"{epoch}.{now_ms}",
            "percent": target_pct or None,
            "epoch": epoch,
            "reason": "a way back did not reach this host",
        }
        request = self._request({"order": order})
        done = self.hosts.ask(dict.fromkeys(left, request))
        confirmed = [host for host in left if (done[host].get("order") or {}).get("confirmed")]
        if confirmed:
            where = f"{target_pct:g} % on V2" if target_pct else "V1"
            text = f"{', '.join(confirmed)} answered again, and followed the others back to {where}"
            self._record("watch", {"text": text})
        self.said += [f"{host} did not follow: {done[host]}" for host in left if host not in confirmed]
        return True

    def _take_in_spools(self, memory: Memory, answers: Answers) -> None:
        """What was done while nobody could record it is joined to the ledger, once: what could not be
        recorded now is not remembered as joined."""
        spooled = {host: answer.get("spooled", []) for host, answer in answers.items()}
        if not any(spooled.values()):
            return
        known = Known()

        def joined(newest: Iterator[dict[str, Any]]) -> list[Entry]:
            nonlocal known
            known = Known(**deepcopy(memory.known))
            for record in reversed(memory.unread(newest)):  # what somebody else joined meanwhile
                known.take_in(record)
            return [
                self._entry("rolled_back", each.data, stage=each.stage, actor=each.actor)
                for each in unjoined(spooled, known)
            ]

        if self._append(joined):
            memory.known = asdict(known)

    # The hosts and the ledger

    def _request(self, what: Mapping[str, Any]) -> dict[str, Any]:
        own = {"v": VERSION, "watching": True, "alive": False, "blind_limit_s": self.blind_limit_s}
        return own | dict(what)

    def _ask(self, what: Mapping[str, Any]) -> Answers:
        return self.hosts.ask(dict.fromkeys(self.plan.hosts, self._request(what)))

    def _record(self, kind: str, data: Mapping[str, Any]) -> None:
        entry = self._entry(kind, data)
        if not self._append(lambda _: [entry]):
            self.said.append(f"NOT RECORDED, {kind}: {_words(data)}")

    def _entry(self, kind: str, data: Mapping[str, Any], *, stage: str = "", actor: str = "") -> Entry:
        return checked_entry(
            kind=kind,
            stage=stage or self.plan.stage,
            actor=actor or self.actor,
            environment=self.plan.environment,
            data=data,
            now_ms=self._now_ms,
        )

    def _append(self, decide: Callable[[Iterator[dict[str, Any]]], Sequence[Entry]]) -> bool:
        """Whether the ledger has it; why not is raised at the tick's end."""
        try:
            records = self.store.append_all(decide)
        except (CfnError, OSError) as error:
            own = error if isinstance(error, CfnError) else RefusedError(f"the ledger: {error}")
            self._unrecorded = self._unrecorded or own
            return False
        self._recorded = self._recorded or bool(records)
        for each in records:
            self.said.append(f"record {each['sequence']}, {each['kind']}: {_words(each['data'])}")
        return True

    def _fail_unrecorded(self) -> None:
        if self._unrecorded is not None:
            raise self._unrecorded

    def _live(self, *, watching: bool = True) -> None:
        """Tell every host that all is well, with the ledger's head if it is another one."""
        what: dict[str, Any] = {"alive": True, "watching": watching}
        newest = list(islice(self.store.newest(), ANCHORED)) if self._recorded else []
        if newest:
            heads = [{name: each[name] for name in ("sequence", "hash")} for each in newest]
            what["anchor"] = {"environment": self.plan.environment, **heads[0], "earlier": heads[:0:-1]}
        for host, answer in self._ask(what).items():
            if answer.get("anchor"):
                self.said.append(f"{host}: {answer['anchor']}")


def _words(data: Mapping[str, Any]) -> str:
    """What a record says, in short."""
    return str(data.get("text") or data.get("reason") or data.get("verdict", {}).get("verdict", ""))
