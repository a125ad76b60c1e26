"""Versions change under load, and no caller notices but by the version that its answer names."""

import asyncio
from pathlib import Path
from typing import Any

from common.clock import WallClock, stopwatch
from common.registry.keys import Keys
from common.registry.registry import Registry
from tests.common.test_app import started
from tests.common.test_inference import SHOP, Times

SWAPS, CALLERS = 200, 16


def test_of_all_that_is_asked_during_200_swaps_nothing_fails_and_each_answer_is_of_a_version_that_was_live(
    tmp_path: Path,
) -> None:
    home, keys = tmp_path / "home", Keys(tmp_path / "keys")
    with Registry(home, WallClock(), keys) as registry:
        factors = {}
        for factor in (1.0, 2.0):
            (tmp_path / str(factor)).mkdir()
            Times(factor).save(tmp_path / str(factor))
            factors[registry.publish("shop", tmp_path / str(factor), {}, {}, []).name] = factor
        first, second = factors
        registry.promote("shop", first, who="ada", why="first")
        with started(home, keys.folder, [SHOP], rate_limit="1000000/second") as client:
            key = client.key("score")
            live = client.app.state.runtime.served["shop"].live
            was_live = [(stopwatch(), first)]  # from when on
            said: list[tuple[int, int, int, Any, float]] = []

            async def caller(number: int, swapping: "asyncio.Task[None]") -> None:
                asked = 0
                while not swapping.done():
                    minutes = float(asked)
                    visit = {**SHOP.examples[0].model_dump(), "event_id": f"{number}.{asked}", "minutes": minutes}
                    visit |= {"user": f"{number}.{asked}"}
                    start = stopwatch()
                    answer = await client.asking("POST", "/v1/shop/score", visit, key)
                    said.append((start, stopwatch(), answer.status, answer.json, minutes))
                    asked += 1

            async def swap() -> None:
                for i in range(SWAPS):
                    name = (second, first)[i % 2]
                    await asyncio.to_thread(registry.promote, "shop", name, who="ada", why="swap", force=True)
                    await asyncio.to_thread(live.refresh)  # unless the watcher was faster
                    assert live.current.champion.name == name
                    was_live.append((stopwatch(), name))

            async def scene() -> None:
                swapping = asyncio.create_task(swap())
                await asyncio.gather(swapping, *(caller(i, swapping) for i in range(CALLERS)))

            client.run(scene())
    assert len(was_live) == SWAPS + 1
    assert len(said) > SWAPS
    assert {status for _, _, status, _, _ in said} == {200}
    assert {answer["version"] for _, _, _, answer, _ in said} == {first, second}
    for start, end, _, answer, minutes in said:
        assert answer["degraded"] is None
        assert answer["answer"]["value"] == factors[answer["version"]] * minutes, "the version that it names"
        before = [i for i, (at, _) in enumerate(was_live) if at <= start][-1]
        # a swap is seen a moment before it is written down
        around = was_live[before : before + 2 + sum(start < at <= end for at, _ in was_live)]
        assert answer["version"] in {name for _, name in around}
