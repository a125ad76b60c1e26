import os
import signal
import sys
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_info

from common import spread as room
from common.errors import BadData, BadSetting, MissingExtra, Unavailable
from common.settings import Settings
from common.spread import WAITING, spread
from tests.nodes import cluster, known

Array = NDArray[np.float64]
CHUNKS = 14
NOBODY = "127.0.0.1:9"


def panel() -> Iterator[tuple[int, Array]]:
    for number in range(CHUNKS):
        yield number, np.random.default_rng(number).gamma(2.0, 5.0, (40, 120))


def forecast(chunk: tuple[int, Array]) -> Array:
    """Each series' level, smoothed by what served it best, and a regression on the other series' lags."""
    _, y = chunk
    best, error = np.zeros(len(y)), np.full(len(y), np.inf)
    for alpha in np.linspace(0.1, 0.9, 9):
        level, squares = y[:, 0], np.zeros(len(y))
        for now in y.T[1:]:
            squares += (now - level) ** 2
            level = level + alpha * (now - level)
        best, error = np.where(squares < error, level, best), np.minimum(squares, error)
    weights, *_ = np.linalg.lstsq(y.T[:-1], y.T[1:], rcond=None)
    return np.stack([best, y.T[-1] @ weights])


def forecast_and_threads(chunk: tuple[int, Array]) -> tuple[Array, int]:
    return forecast(chunk), max(pool["num_threads"] for pool in threadpool_info())


def break_down(chunk: int) -> int:
    if chunk == 3:
        raise BadData(f"chunk: must not be 3, got {chunk}")
    return chunk


def die(chunk: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return chunk


def test_forecasts_are_the_same_bit_by_bit_in_this_process_and_in_others() -> None:
    here, there = (list(spread(forecast_and_threads, panel(), address=None, workers=n)) for n in (1, 2))
    for (mine, threads), (other, others) in zip(here, there, strict=True):
        assert np.array_equal(mine, other)
        assert threads == others == 1


@pytest.mark.parametrize("workers", [1, 2])
def test_chunks_are_taken_as_results_are(workers: int) -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = spread(abs, endless(), address=None, workers=workers)
    for done in range(1, 20):
        assert next(results) == done
        assert taken <= done + WAITING * workers
    results.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_what_the_work_raises_is_raised_in_its_place(workers: int) -> None:
    results = spread(break_down, range(5), address=None, workers=workers)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(BadData, match="^chunk: must not be 3, got 3$"):
        next(results)


def test_a_killed_process_of_this_machine_is_one_line() -> None:
    with pytest.raises(Unavailable, match="^a worker process was killed"):
        list(spread(die, range(4), address=None, workers=2))


def test_without_its_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"^MLSYS_RAY_ADDRESS: needs ray; pip install -e '.\[ray\]'$"):
        next(spread(abs, [1], address=NOBODY))


def test_a_cluster_that_lets_everybody_in_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    known(monkeypatch, "any")
    with cluster(None, 1) as (address, _):
        with pytest.raises(BadSetting, match=f"^MLSYS_RAY_ADDRESS: {address} must ask for a token"):
            next(spread(abs, [1], address=address))


@pytest.mark.parametrize("address", ["auto", "ray://head:10001", "http://head:8265", "head", "head:6379/0", ":6379"])
def test_an_address_is_a_host_and_a_port(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("MLSYS_RAY_ADDRESS", address)
    with pytest.raises(BadSetting, match="^MLSYS_RAY_ADDRESS: string should match"):
        Settings()
    monkeypatch.setenv("MLSYS_RAY_ADDRESS", "head-0.ray.svc:6379")
    assert Settings().ray_address == "head-0.ray.svc:6379"


def test_without_a_token_nobody_is_even_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with pytest.raises(BadSetting, match="^RAY_AUTH_MODE: must be token"):
        next(spread(abs, [1], address=NOBODY))


def test_an_address_where_nobody_answers_is_named_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[ray]'")
    known(monkeypatch, "any")
    monkeypatch.setattr(room, "DEADLINE", 2)
    with pytest.raises(Unavailable, match=f"^MLSYS_RAY_ADDRESS: no Ray cluster answers at {NOBODY} within 2 s$"):
        next(spread(abs, [1], address=NOBODY))
