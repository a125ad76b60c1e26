"""The load generator counts what happened, once, and from when it was meant to happen."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from benchmarks.load import Plan, Result, generate, together

Answer = Callable[[int], Awaitable[bytes | None]]  # to the nth request of all; None drops the connection
PAYLOADS = [{"event_id": "", "event_timestamp": 0, "card": "a"}, {"event_id": "", "event_timestamp": 0, "card": "b"}]


def said(status: int, body: str = '{"degraded":null}', *headers: str) -> bytes:
    lines = (f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers)
    return ("\r\n".join(lines) + f"\r\n\r\n{body}").encode()


def play(answer: Answer, **plan: Any) -> tuple[Result, list[dict[str, Any]]]:
    """What the generator counts, and what the server heard."""
    heard: list[dict[str, Any]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length:")[2].partition(b"\r")[0])
                heard.append(json.loads(await reader.readexactly(length)))
                reply = await answer(len(heard))
                if reply is None:
                    break
                middle = len(reply) // 2  # an answer may come in pieces
                writer.write(reply[:middle])
                await asyncio.sleep(0)
                writer.write(reply[middle:])
                if b"connection: close" in reply.lower():
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def run() -> Result:
        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            return await generate(Plan(url=f"http://127.0.0.1:{port}/x", payloads=PAYLOADS, **plan))

    return asyncio.run(run()), heard


def test_each_answer_is_counted_by_its_status() -> None:
    script = [said(200), said(200, '{"degraded":"rule: because"}'), said(503), said(500)]

    async def answer(n: int) -> bytes:
        return script[n % 4]

    result, heard = play(answer, connections=3, seconds=0.3)
    assert result.sent == result.offered == len(heard) == sum(result.status.values())
    assert set(result.status) == {"200", "500", "503"}
    assert result.ok == result.status["200"] == sum(second["ok"] for second in result.timeline)
    assert result.degraded == sum(n % 4 == 1 for n in range(1, len(heard) + 1))
    assert result.status["503"] == sum(second["shed"] for second in result.timeline)
    assert result.failed == result.late == 0


def test_each_request_is_a_new_event_of_a_payload_in_turn() -> None:
    async def answer(n: int) -> bytes:
        return said(200)

    _, first = play(answer, connections=2, seconds=0.1)
    _, second = play(answer, connections=2, seconds=0.1)
    ids = [event["event_id"] for event in (*first, *second)]
    assert len(set(ids)) == len(ids)
    assert {event["card"] for event in first} == {"a", "b"}
    assert all(event["event_timestamp"] > 10**15 for event in first)


@pytest.mark.parametrize(("obeys", "many"), [(True, False), (False, True)])
def test_a_connection_that_was_shed_waits_only_where_it_obeys(obeys: bool, many: bool) -> None:
    async def answer(n: int) -> bytes:
        return said(503, "{}", "Retry-After: 60")

    result, _ = play(answer, connections=3, seconds=0.3, obeys=obeys)
    assert (result.sent > 3) == many
    assert result.sent >= 3


def test_a_lost_connection_is_one_failure_and_is_replaced() -> None:
    async def answer(n: int) -> bytes | None:
        return None if n % 3 == 0 else said(200)

    result, heard = play(answer, connections=2, seconds=0.3)
    assert result.failed == len(heard) // 3 > 2
    assert result.ok == len(heard) - result.failed
    assert result.sent == len(heard)


def test_a_connection_that_ends_after_its_answer_is_no_failure() -> None:
    async def answer(n: int) -> bytes:
        return said(200, "{}", "Connection: close")

    result, heard = play(answer, connections=2, seconds=0.3)
    assert result.failed == 0
    assert result.ok == len(heard) > 2


def test_what_is_never_answered_is_given_up_and_counted_once() -> None:
    async def answer(n: int) -> bytes:
        await asyncio.Event().wait()
        return b""

    result, heard = play(answer, connections=2, seconds=0.1, timeout=0.2)
    assert result.sent == result.failed == len(heard) >= 2
    assert result.ok == 0


def test_latency_counts_from_when_a_request_was_meant_to_be_sent() -> None:
    async def answer(n: int) -> bytes:
        if n == 1:
            await asyncio.sleep(0.4)  # all the others wait behind the first
        return said(200)

    result, _ = play(answer, connections=1, steps=((200.0, 0.5),), deadline=10.0)
    assert result.late == 0
    assert result.p50 > 0.1


def test_a_request_that_finds_no_connection_in_time_is_late() -> None:
    async def answer(n: int) -> bytes:
        if n == 1:
            await asyncio.sleep(0.4)
        return said(200)

    result, heard = play(answer, connections=1, steps=((200.0, 0.5),), deadline=0.1)
    assert result.late > 10
    assert result.offered == result.sent + result.late
    assert result.sent == len(heard) == result.ok


def test_a_seed_makes_the_same_arrivals() -> None:
    async def answer(n: int) -> bytes:
        return said(200)

    steps = ((300.0, 0.2), (100.0, 0.1))
    counts = [play(answer, connections=4, steps=steps, seed=seed, deadline=10.0)[0].offered for seed in (1, 1, 2)]
    assert counts[0] == counts[1] != counts[2]


def test_generators_that_ran_together_are_added_up() -> None:
    async def answer(n: int) -> bytes:
        return said(200 if n % 2 else 503)

    one, other = (play(answer, connections=2, seconds=0.1)[0] for _ in range(2))
    both = together([one, other])
    assert both.ok == one.ok + other.ok
    assert both.status == {status: one.status[status] + other.status[status] for status in ("200", "503")}
    assert sum(second["ok"] for second in both.timeline) == both.ok
    assert both.max == max(one.max, other.max)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"url": "http://example.org:80/"}, "url"),
        ({"url": "https://127.0.0.1:80/"}, "url"),
        ({"payloads": []}, "payloads"),
        ({"connections": 10_000}, "connections"),
        ({"seconds": 1e9}, "seconds"),
        ({"steps": ((1e6, 600.0),)}, "rate"),
    ],
)
def test_a_plan_stays_on_this_machine_and_within_bounds(changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named}: "):
        Plan(**{"url": "http://127.0.0.1:80/", "payloads": PAYLOADS} | changed)
