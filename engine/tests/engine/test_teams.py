"""Teams: who is in which, what the conductor and a coordinator say to each other, what comes of it."""

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfn.coordination import AgentResult, AgentState, Coordination, Tally
from cfn.engine import placement, team_calls
from cfn.engine.directory import SwarmDirectory, TeamPlace
from cfn.engine.lean.control import Channel
from cfn.engine.outcome import Outcome, TeamState
from cfn.engine.request_log import Request, TeamPlan
from cfn.engine.teams import TeamOrder, TeamOutcome, results_json
from cfn.errors import DamagedError

S = AgentState

# Placement


@pytest.mark.parametrize(
    ("agents", "configured", "coordinators"),
    [(1, 7, 0), (27, 7, 0), (28, 7, 7), (708, 7, 7), (3, 1, 0), (4, 1, 1), (100, 0, 0), (2000, 32, 32)],
)
def test_few_agents_run_flat(agents: int, configured: int, coordinators: int) -> None:
    assert placement.coordinators_for(agents, configured) == coordinators


@given(agents=st.integers(1, 2_000), coordinators=st.integers(0, 32))
def test_everybody_is_in_one_team_and_teams_are_alike(agents: int, coordinators: int) -> None:
    coordinators = placement.coordinators_for(agents, coordinators)
    plans = placement.numbered(agents, coordinators)
    workers = [agent for plan in plans for agent in plan.agents]
    assert workers == [f"agent-{number}" for number in range(1, agents - coordinators + 1)]
    sizes = [plan.size for plan in plans]
    assert max(sizes) - min(sizes) <= 1
    assert [plan.shard for plan in plans] == (list(range(1, coordinators + 1)) or [0])


@given(
    names=st.lists(st.text("abc", min_size=1), min_size=1, max_size=60, unique=True), teams=st.integers(0, 7)
)
def test_named_agents_keep_their_order(names: list[str], teams: int) -> None:
    plans = placement.named(names, teams)
    assert [agent for plan in plans for agent in plan.agents] == names
    assert all(plan.size for plan in plans)
    assert len({plan.shard for plan in plans}) == len(plans) <= max(1, teams)


@pytest.mark.parametrize(("load", "hub"), [({3: 5, 1: 5, 2: 9}, 1), ({7: 0}, 7), ({1: 4, 2: 3}, 2)])
def test_the_least_loaded_hub(load: Mapping[int, int], hub: int) -> None:
    assert placement.least_loaded(load) == hub


def test_without_hubs_there_is_none() -> None:
    with pytest.raises(ValueError, match="empty"):
        placement.least_loaded({})


def test_names() -> None:
    assert placement.team_name(3) == "team-3"
    assert placement.coordinator_agent("team-3") == "coordinator-3"


# Directory


def test_agents_are_found_by_number_and_by_name() -> None:
    directory = SwarmDirectory()
    directory.set(
        "s",
        [
            TeamPlace(team="team-1", hub=1, first=1, count=10),
            TeamPlace(team="team-2", hub=2, first=11, count=10),
            TeamPlace(team="guests", hub=0, named=("eve", "agent-07")),
        ],
    )
    expected = {
        "agent-1": "team-1",
        "agent-10": "team-1",
        "agent-11": "team-2",
        "agent-20": "team-2",
        "eve": "guests",
        "agent-07": "guests",
        "agent-21": None,
        "agent-0": None,
        "agent-": None,
        "agent-x": None,
        "agent-٣": None,
        "agent": None,
        "other-3": None,
    }
    assert {agent: directory.team_of("s", agent) for agent in expected} == expected
    assert directory.team_of("t", "agent-1") is None
    assert directory.hub_of("s", "team-2") == 2
    assert directory.hub_of("s", "none") is directory.hub_of("t", "team-1") is None
    assert (directory.teams("s"), directory.teams("t")) == (["team-1", "team-2", "guests"], [])
    copy = SwarmDirectory()
    copy.set_json("s", [json.loads(json.dumps(place.as_json())) for place in directory.places("s")])
    assert copy.places("s") == directory.places("s")
    copy.set("s", ())
    copy.set("s", ())
    assert (copy.swarms, directory.swarms) == ([], ["s"])


@pytest.mark.parametrize("place", [{}, {"team": "a", "hub": 1}, {"named": [], "what": 1}])
def test_a_place_that_is_none_is_refused(place: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError)):
        SwarmDirectory().set_json("s", [place])


# Calls


@pytest.mark.parametrize("tail", [b"", b"\0\xff", b"x" * 100_000])
def test_a_call_is_read_as_it_was_written(tail: bytes) -> None:
    head = {"do": "begin", "ask": 3, "text": "ü"}
    assert team_calls.decode(team_calls.encode(head, tail)) == (head, tail)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\1\0",
        b"\5\0\0\0{}",
        b"\2\0\0\0{]",
        b"\2\0\0\0[]",
        b"\4\0\0\0null",
        b"\1\0\0\0\xff",
        b"\xff\xff\xff\xff{}",
        b"\x40\x9c\0\0" + b"[" * 40_000,
    ],
)
def test_what_is_no_call_is_refused(raw: bytes) -> None:
    with pytest.raises(DamagedError):
        team_calls.decode(raw)


@given(st.binary(max_size=100))
def test_no_bytes_break_a_call(raw: bytes) -> None:
    try:
        head, _ = team_calls.decode(raw)
    except DamagedError:
        return
    assert isinstance(head, dict)


class Wire(Channel):
    """Keeps what would be sent."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, raw: bytes, _descriptors: object = ()) -> None:
        self.sent.append(raw)


@pytest.mark.parametrize("size", [0, 1, 150_000, 150_001, 300_000, 450_001])
def test_a_long_tail_comes_in_parts_and_whole(size: int) -> None:
    wire, parts = Wire(), team_calls.Parts()
    tail = bytes(range(256)) * (size // 256 + 1)
    team_calls.send(wire, {"ask": 4, "done": 1}, tail[:size])
    team_calls.send(wire, {"ask": 5, "done": 2}, b"other")
    whole = []
    for raw in wire.sent:
        assert len(raw) < 200_000
        head, part = team_calls.decode(raw)
        came = parts.add(head, part)
        if came is not None:
            whole.append((head, came))
    assert whole == [({"ask": 4, "done": 1}, tail[:size]), ({"ask": 5, "done": 2}, b"other")]


def test_parts_of_two_answers_may_be_mixed() -> None:
    parts = team_calls.Parts()
    assert parts.add({"ask": 1, "more": True}, b"a") is None
    assert parts.add({"ask": 2, "more": True}, b"x") is None
    assert parts.add({"ask": 1}, b"b") == b"ab"
    assert parts.add({"ask": 2}, b"y") == b"xy"
    assert parts.add({"ask": 1}, b"c") == b"c"


# Orders and outcomes

ORDER = TeamOrder(
    task_id="t",
    swarm_id="s",
    team="team-1",
    kept=True,
    shared=False,
    key=9,
    epoch=8,
    shard=1,
    base=4,
    agents=("agent-1", "agent-2"),
    accepted_at_s=100.0,
    deadline_ms=1_500,
    command=("/bin/true",),
    timeout_ms=10,
    max_output_bytes=20,
    slow_ms=0,
    lost=(1,),
    fresh=True,
)


def test_an_order_crosses_a_socket() -> None:
    assert TeamOrder.from_json(json.loads(json.dumps(ORDER.as_json()))) == ORDER
    assert ORDER.deadline_at_s == 101.5


@pytest.mark.parametrize("change", [{"agents": None}, {"lost": 3}, {"unknown": 1}])
def test_what_is_no_order_is_refused(change: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        TeamOrder.from_json({**ORDER.as_json(), **change})


def test_an_order_without_a_field_is_refused() -> None:
    value = ORDER.as_json()
    del value["command"]
    with pytest.raises(KeyError):
        TeamOrder.from_json(value)


def part(
    *results: AgentResult, ack_s: float = 100.1, end_s: float = 100.2, unclaimed: int = 0
) -> TeamOutcome:
    return TeamOutcome(
        tally=Tally(str(result.state) for result in results),
        last_ack_s=ack_s,
        last_end_s=end_s,
        unclaimed=unclaimed,
        long_outputs=False,
        results=results_json(results),
    )


def done(agent: str) -> AgentResult:
    return AgentResult(agent=agent, state=S.DONE, exit_code=0, output='"x"\n')


def test_an_outcome_crosses_a_socket() -> None:
    outcome = part(done("a"), AgentResult(agent="b", state=S.UNKNOWN, reason="r"))
    head = json.loads(json.dumps(outcome.head()))
    assert TeamOutcome.from_head(head, outcome.results) == outcome
    for broken in ({**head, "tally": 3}, {}, {**head, "unclaimed": "x"}):
        with pytest.raises((KeyError, TypeError, ValueError, AttributeError)):
            TeamOutcome.from_head(broken, b"")


def test_results_are_json_whatever_agents_print() -> None:
    results = [done("a"), done("b"), AgentResult(agent="c", state=S.FAILED, exit_code=-9, output=',"state":')]
    assert json.loads(b"[" + results_json(results) + b"]") == [
        {"agent": r.agent, "state": str(r.state), "exit_code": r.exit_code, "output": r.output, "reason": ""}
        for r in results
    ]
    assert results_json([]) == b""


def outcome_of(*teams: TeamState, hybrid: bool = True, now_s: float = 100.5, **changes: object) -> Outcome:
    request = Request(
        task_id="t",
        key=1,
        teams=tuple(team.plan for team in teams),
        hybrid=hybrid,
        payload=b"",
        command=(),
        deadline_ms=1_000,
        swarm_id="",
        accepted_at_s=100.0,
    )
    return Outcome(request=request, swarm_id="s", teams=list(teams), now_s=now_s, **changes)  # type: ignore[arg-type]


def team(
    number: int, final: TeamOutcome | None, begun_s: float = 100.01, shard: int | None = None
) -> TeamState:
    plan = TeamPlan(
        team=f"team-{number}",
        shard=number if shard is None else shard,
        base=0,
        first=number * 2 - 1,
        count=2,
    )
    return TeamState(plan=plan, host=number, begun_s=begun_s, final=final)


def read(outcome: Outcome) -> Coordination:
    value = json.loads(outcome.as_json())
    parsed = Coordination.from_json(value)
    assert parsed.as_json() == value  # what is derived is derived alike
    return parsed


def test_a_complete_hybrid_outcome() -> None:
    first, second = (
        part(done("agent-1"), done("agent-2")),
        part(done("agent-3"), done("agent-4"), ack_s=100.3),
    )
    outcome = outcome_of(team(1, first), team(2, second))
    parsed = read(outcome)
    assert parsed.states == {"done": 6, "failed": 0, "undelivered": 0, "unknown": 0}
    assert parsed.complete
    assert [r.agent for r in parsed.results][:3] == ["coordinator-1", "coordinator-2", "agent-1"]
    assert (round(parsed.coordination_time_ms), round(parsed.total_time_ms)) == (300, 200)
    assert parsed.hybrid is not None
    assert [
        (p.team, p.coordinator, p.agents, round(p.coordination_time_ms)) for p in parsed.hybrid.teams
    ] == [
        ("team-1", 1, 3, 100),
        ("team-2", 2, 3, 300),
    ]
    assert parsed.hybrid.mesh_delivery_rate_pct == parsed.hybrid.worker_delivery_rate_pct == 100


def test_a_team_that_no_coordinator_took() -> None:
    lost = part(
        *(AgentResult(agent=f"agent-{n}", state=S.UNDELIVERED, reason="late") for n in (3, 4)),
        ack_s=101.2,
        end_s=101.2,
    )
    taken = part(done("agent-1"), done("agent-2"))
    outcome = outcome_of(team(1, taken), team(2, lost, begun_s=0.0), now_s=101.3, given_up="revoked")
    parsed = read(outcome)
    assert parsed.states == {"done": 3, "failed": 0, "undelivered": 3, "unknown": 0}
    assert parsed.results[1].reason == "revoked"
    assert parsed.coordination_time_ms == 1_000  # the deadline
    assert parsed.hybrid is not None
    assert (parsed.hybrid.mesh_delivery_rate_pct, parsed.hybrid.worker_delivery_rate_pct) == (50, 50)


@pytest.mark.parametrize(
    ("begun_s", "now_s", "time_ms", "state"),
    [(0.0, 100.5, 500, S.WAITING), (100.1, 100.5, 500, S.RUNNING), (100.1, 102.0, 1_000, S.RUNNING)],
)
def test_what_nobody_has_told_yet(begun_s: float, now_s: float, time_ms: int, state: AgentState) -> None:
    outcome = outcome_of(team(1, None, begun_s=begun_s), now_s=now_s)
    parsed = read(outcome)
    assert {result.state for result in parsed.results} == {state}
    assert not parsed.complete
    assert round(parsed.coordination_time_ms) == time_ms
    assert round(parsed.total_time_ms) == round((now_s - 100) * 1000)


def test_a_snapshot_stands_in_for_an_end() -> None:
    snapshot = part(done("agent-1"), AgentResult(agent="agent-2", state=S.WAITING), end_s=0.0, unclaimed=1)
    outcome = outcome_of(team(1, None), snapshots={"team-1": snapshot})
    parsed = read(outcome)
    assert [result.state for result in parsed.results] == [S.RUNNING, S.DONE, S.WAITING]


def test_a_flat_outcome_says_nothing_of_teams() -> None:
    outcome = outcome_of(team(1, part(done("agent-1"), done("agent-2")), shard=0), hybrid=False)
    assert "teams" not in outcome.head()
    assert read(outcome).states["done"] == 2
