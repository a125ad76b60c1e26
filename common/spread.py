"""The same work on many chunks: in this process, over processes of this machine, or over a Ray cluster."""

import logging
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Final, TypeVar

from threadpoolctl import threadpool_limits

from common.errors import BadSetting, MissingExtra, Unavailable

T = TypeVar("T")
R = TypeVar("R")
F = TypeVar("F")

WAITING: Final = 2  # chunks under way for each processor: one is computed, one is ready to be
RETRIES: Final = 3  # of a chunk whose worker or node was lost; one that kills whoever takes it must end
DEADLINE: Final = 30  # s, for a cluster to say whether it knows our token
KNOCK: Final = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"


def spread(work: Callable[[T], R], chunks: Iterable[T], *, address: str | None, workers: int = 1) -> Iterator[R]:
    """work(chunk) of each chunk, in their order, bit by bit the same wherever it was done.

    Chunks are taken as results are: there are never more in memory than `WAITING` for each processor, and one. `work`
    is a function of a module, or a partial of one, that other processes can import; done twice, it must give the same.
    `address` is host:port of a Ray cluster of which this machine is a node, and which asks for a token; there, a chunk
    whose worker or node is lost is done again; a lost head ends this process after a minute, which is Ray's doing.
    Without an address `workers` processes share the chunks; with one worker it is this process.

    Whatever `work` raises is raised here. Raises MissingExtra without Ray, BadSetting when the token is not asked for
    or not known, Unavailable when no cluster answers, or when a chunk was lost for good."""
    if address is not None:
        return _over_cluster(work, chunks, address)
    if workers > 1:
        return _over_processes(work, chunks, workers)
    return (_alone(work, chunk) for chunk in chunks)


def _alone(work: Callable[[T], R], chunk: T) -> R:
    with threadpool_limits(1):  # sums of floats depend on how many threads share them
        return work(chunk)


def _in_order(start: Callable[[T], F], result: Callable[[F], R], chunks: Iterable[T], processors: int) -> Iterator[R]:
    under_way: deque[F] = deque()
    for chunk in chunks:
        under_way.append(start(chunk))
        if len(under_way) > WAITING * processors:
            yield result(under_way.popleft())
    while under_way:
        yield result(under_way.popleft())


def _over_processes(work: Callable[[T], R], chunks: Iterable[T], workers: int) -> Iterator[R]:
    pool = ProcessPoolExecutor(workers, get_context("spawn"))  # fork copies locks that other threads hold
    try:
        yield from _in_order(lambda chunk: pool.submit(_alone, work, chunk), lambda f: f.result(), chunks, workers)
    except BrokenProcessPool:
        raise Unavailable("a worker process was killed, perhaps for want of memory: smaller chunks need less") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _over_cluster(work: Callable[[T], R], chunks: Iterable[T], address: str) -> Iterator[R]:
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ModuleNotFoundError as error:
        raise MissingExtra(f"MLSYS_RAY_ADDRESS: needs {error.name}; pip install -e '.[ray]'") from None
    ours = not ray.is_initialized()  # or else somebody here spreads already, and hangs up when done
    try:
        if ours:
            _check_token(address)
            try:
                ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
            except (ConnectionError, RuntimeError) as error:  # no node is here, or versions differ
                raise Unavailable(f"MLSYS_RAY_ADDRESS: no node of {address} can be used from here: {error}") from error
        processors = int(ray.cluster_resources().get("CPU", 0))
        if processors == 0:
            raise Unavailable(f"MLSYS_RAY_ADDRESS: no node of the cluster at {address} has a processor for tasks")
        task = ray.remote(max_retries=RETRIES)(_alone)
        sent = ray.put(work)  # once, not with every chunk
        yield from _in_order(lambda chunk: task.remote(sent, chunk), ray.get, chunks, processors)
    except RayTaskError as error:
        raise error.cause from error
    except RayError as error:
        lost = str(error).partition("\n")[0]
        raise Unavailable(f"MLSYS_RAY_ADDRESS: the cluster at {address} lost work: {lost}") from error
    finally:
        if ours:
            ray.shutdown()


def _check_token(address: str) -> None:
    """Ray runs whatever it is sent, so a cluster has to ask who sends; raises BadSetting, Unavailable."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        raise BadSetting("RAY_AUTH_MODE: must be token, here and on every node of the cluster")
    nobody = _knock(address, "disabled")
    if nobody.returncode == 0:
        raise BadSetting(f"MLSYS_RAY_ADDRESS: {address} must ask for a token; start its nodes with RAY_AUTH_MODE=token")
    if "AuthenticationError" not in nobody.stderr:
        raise Unavailable(f"MLSYS_RAY_ADDRESS: no Ray cluster answers at {address}")
    if _knock(address, "token").returncode:  # without any token Ray aborts
        raise BadSetting(
            f"RAY_AUTH_TOKEN: must be the token of the cluster at {address}, or RAY_AUTH_TOKEN_PATH or "
            "~/.ray/auth_token a file that holds it"
        )


def _knock(address: str, mode: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: Ray remembers its first token, and insists for minutes when nobody answers."""
    try:
        return subprocess.run(
            [sys.executable, "-c", KNOCK, address], env=os.environ | {"RAY_AUTH_MODE": mode},
            capture_output=True, text=True, timeout=DEADLINE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Unavailable(f"MLSYS_RAY_ADDRESS: no Ray cluster answers at {address} within {DEADLINE} s") from None
