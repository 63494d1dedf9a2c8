"""Every bound is reached: what its sender is told, what the metric says, and that the rest goes on."""

import contextlib
import itertools
import os
import socket
import time

import pytest

from cfn.engine.messages import datagram
from cfn.errors import RefusedError

from .conftest import Hubs
from .test_bus import in_background, note, raw_agent, received


def started(hubs: Hubs, **bounds: int) -> Hubs:
    hubs.plan(t=(0, ["a", "b", "c"]))
    hubs.start(0, hubs=1, **bounds)
    return hubs


def refused(hubs: Hubs, bound: str) -> int:
    return int(hubs.ask(0, "report").get(f"refused_{bound}", 0))


def test_a_payload_over_the_limit_is_refused_and_one_at_the_limit_is_not(hubs: Hubs) -> None:
    started(hubs, max_payload_bytes=10)
    with hubs.bus("a") as a:
        a.send("b", "n", b"x" * 10)
        with pytest.raises(RefusedError, match="larger than CFN_MAX_PAYLOAD"):
            a.send("b", "n", b"x" * 11)
        with pytest.raises(RefusedError, match="at most 131072 can be sent"):
            a.send("b", "n", b"x" * 131_073)
    assert refused(hubs, "payload") == 1
    assert "CFN_MAX_PAYLOAD" in hubs.ask(0, "put", "s", "a", "b", "x" * 11)["error"]


def test_a_full_inbox_holds_its_senders_back_then_refuses(hubs: Hubs) -> None:
    started(hubs, max_inbox_messages=3, inbox_wait_ms=300)
    with hubs.bus("a") as a:
        for number in range(3):
            a.send("b", "n", str(number).encode())
        begin = time.monotonic()
        with pytest.raises(RefusedError, match="CFN_MAX_INBOX"):
            a.send("b", "n", b"too many")
        assert time.monotonic() - begin >= 0.3
        a.send("c", "n", b"another receiver")
        report = hubs.ask(0, "report")
        assert (report["held_back"], report["refused_inbox_full"]) == (1, 1)
        with pytest.raises(RefusedError, match="CFN_MAX_INBOX"):  # it was full long enough: at once
            a.send("b", "n", b"too many")
        assert hubs.ask(0, "report")["held_back"] == 1
    assert hubs.ask(0, "put", "s", "a", "b", "too many") == {"reason": datagram.FULL}
    with hubs.bus("b") as b:
        assert received(b, 3) == [b"0", b"1", b"2"]
        assert b.receive(0.05) is None


def test_a_held_sender_goes_on_when_the_inbox_has_room(hubs: Hubs) -> None:
    started(hubs, max_inbox_messages=3, inbox_wait_ms=60_000)
    sent = [str(number).encode() for number in range(100)]
    with hubs.bus("a") as a:
        for payload in sent:
            a.post("b", "n", payload)
        with hubs.bus("b") as b:
            assert received(b, 100) == sent
            assert b.receive(0) is None
            a.flush(5)
    report = hubs.ask(0, "report")
    assert report["held_back"] > 0
    assert report["queued_messages"] == report["queued_bytes"] == 0


def test_what_a_held_sender_sent_before_it_left_is_handled(hubs: Hubs) -> None:
    started(hubs, max_inbox_messages=3, inbox_wait_ms=60_000)
    sender = raw_agent(hubs, "a")
    for number in range(8, 28):
        sender.send(note(number=number))
    sender.close()
    hubs.until(0, held_back=1)
    with hubs.bus("b") as b:
        assert received(b, 20) == [b"x"] * 20


def across(hubs: Hubs, **bounds: int) -> Hubs:
    hubs.plan(t=(0, ["a"]), u=(1, ["b"]))
    hubs.start(0, 1, hubs=2, max_inbox_messages=3, **bounds)
    return hubs


def test_a_full_inbox_on_another_hub_refuses_in_the_end(hubs: Hubs) -> None:
    across(hubs, inbox_wait_ms=200)
    with hubs.bus("a") as a:
        for number in range(3):
            a.send("b", "n", str(number).encode())
        with pytest.raises(RefusedError, match="CFN_MAX_INBOX"):
            a.send("b", "n", b"too many")
        with hubs.bus("b") as b:
            assert received(b, 3) == [b"0", b"1", b"2"]
            assert b.receive(0) is None
            a.send("b", "n", b"fits")
            assert received(b, 1) == [b"fits"]


def test_a_sender_held_by_another_hub_goes_on_when_the_inbox_has_room(hubs: Hubs) -> None:
    across(hubs, inbox_wait_ms=60_000)
    sent = [str(number).encode() for number in range(40)]
    with hubs.bus("a") as a:
        for payload in sent:
            a.post("b", "n", payload)
        with hubs.bus("b") as b:
            assert received(b, 40) == sent
            a.flush(5)


def test_a_broadcast_skips_full_inboxes_and_says_so(hubs: Hubs) -> None:
    started(hubs, max_inbox_messages=1)
    with hubs.bus("a") as a:
        a.send("b", "n", b"first")
        with pytest.raises(RefusedError, match=r"1 inboxes refused.*CFN_MAX_INBOX"):
            a.broadcast("n", b"all")
    with hubs.bus("b") as b, hubs.bus("c") as c:
        assert received(b, 1) == [b"first"]
        assert received(c, 1) == [b"all"]


def test_the_rate_of_a_sender_is_held_down(hubs: Hubs) -> None:
    started(hubs, max_sender_rate_per_s=400)
    with hubs.bus("a") as a:
        begin = time.monotonic()
        for number in range(400):
            a.post("b", "n", str(number).encode())
        a.flush(10)
        # a burst of 100, then 400 a second, and at most one turn's worth ahead
        assert time.monotonic() - begin > 0.5
    assert hubs.ask(0, "report")["rate_limited"] > 0


def test_the_rate_of_callers_is_refused(hubs: Hubs) -> None:
    started(hubs, max_sender_rate_per_s=2)
    assert hubs.ask(0, "put", "s", "a", "b", "x") == {"reason": 0}
    assert "CFN_MAX_SENDER_RATE" in hubs.ask(0, "put", "s", "a", "b", "x")["error"]
    assert hubs.ask(0, "put", "s", "c", "b", "x") == {"reason": 0}
    assert hubs.ask(0, "report")["rate_limited"] == 1


@pytest.mark.parametrize(
    ("bounds", "bound", "text"),
    [
        ({"max_queued_messages": 2}, "queued_messages", "CFN_MAX_QUEUED_MESSAGES"),
        ({"max_queued_bytes": 2_500}, "queued_bytes", "CFN_MAX_QUEUED_SIZE"),
    ],
)
def test_what_waits_in_all_inboxes_is_bounded(
    hubs: Hubs, bounds: dict[str, int], bound: str, text: str
) -> None:
    started(hubs, **bounds)
    with hubs.bus("a") as a:
        a.send("b", "n", b"x" * 1_000)
        a.send("c", "n", b"y" * 1_000)
        with pytest.raises(RefusedError, match=text):
            a.send("b", "n", b"z" * 1_000)
        assert refused(hubs, bound) == 1
        with hubs.bus("c") as c:
            assert received(c, 1) == [b"y" * 1_000]
        a.send("b", "n", b"z" * 1_000)


def test_without_room_in_tmpfs_messages_are_refused_until_there_is_some(hubs: Hubs) -> None:
    started(hubs)
    with hubs.bus("a") as a:
        a.send("b", "n", b"before")
        size = hubs.journal("t").stat().st_size
        hubs.ask(0, "limit", size + 20)  # so that a part of the next one can be written
        with pytest.raises(RefusedError, match="no room in tmpfs"):
            a.send("b", "n", b"during")
        assert hubs.journal("t").stat().st_size == size
        assert refused(hubs, "no_room") == 1
        with hubs.bus("b") as b:
            assert received(b, 1) == [b"before"]
        hubs.ask(0, "limit", -1)
        a.send("b", "n", b"after")
    hubs.kill(0)
    hubs.restart(0)
    with hubs.bus("b") as b:
        assert received(b, 1) == [b"after"]


def test_the_journal_of_a_long_stream_stays_small(hubs: Hubs) -> None:
    started(hubs, max_sender_rate_per_s=10_000_000)
    payload = os.urandom(1_000)
    with hubs.bus("a") as a, hubs.bus("b") as b:
        for _ in range(20):
            a.post_all("b", "n", [payload] * 200)
            received(b, 200)
            assert hubs.journal("t").stat().st_size < 3 << 20
        a.send("b", "n", b"last")
    hubs.until(0, queued_messages=1)  # it knows that b is done with the others
    hubs.kill(0)
    hubs.restart(0)
    with hubs.bus("b") as b:
        message = b.receive(5)
        assert message is not None
        assert (message.number, message.payload) == (4_001, b"last")


def test_an_agent_that_never_reads_harms_only_its_inbox(hubs: Hubs) -> None:
    started(hubs, max_inbox_messages=2_000, inbox_wait_ms=0)
    deaf = raw_agent(hubs, "b")
    with hubs.bus("a") as a, hubs.bus("c") as c:
        a.post_all("b", "n", [b"x" * 1_000] * 2_000)
        a.flush(5)
        with pytest.raises(RefusedError, match="CFN_MAX_INBOX"):
            a.send("b", "n", b"x")
        a.send("c", "n", b"fine")
        assert received(c, 1) == [b"fine"]
    deaf.close()
    with hubs.bus("b") as b:
        assert received(b, 2_000) == [b"x" * 1_000] * 2_000


def test_a_flooder_that_reads_no_decision_is_cut_off_and_others_are_served(hubs: Hubs) -> None:
    started(hubs, max_sender_rate_per_s=10_000_000, max_inbox_messages=10, inbox_wait_ms=0)
    flooder = raw_agent(hubs, "a")

    def flood() -> None:
        with contextlib.suppress(OSError):
            for number in itertools.count(8):
                flooder.send(note(number=number))

    thread = in_background(flood)
    with hubs.bus("b") as b, hubs.bus("c") as c:
        for number in range(50):
            b.send("c", "n", str(number).encode())
            assert received(c, 1) == [str(number).encode()]
    thread.join(10)
    assert not thread.is_alive()
    assert hubs.ask(0, "report")["malformed"] == 1
    flooder.close()


def test_a_stranger_that_says_nothing_is_disconnected(pair: Hubs) -> None:
    silent = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    silent.settimeout(10)
    silent.connect(pair.environment("a")["CFN_BUS"])
    assert datagram.Header(silent.recv(200)).answers == datagram.MALFORMED
