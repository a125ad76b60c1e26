"""The servers that a test may find here. One that finds none is skipped, and says which."""

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

DATABASE_URL = os.environ.get("MLSYS_TEST_DATABASE_URL", "postgresql://postgres@127.0.0.1:5432/test")


@contextmanager
def schema() -> Iterator[str]:
    """The URL of an empty schema in PostgreSQL, which goes when the test is over."""
    psycopg = pytest.importorskip("psycopg")
    name = f"test_{uuid.uuid4().hex}"
    try:
        server = psycopg.connect(DATABASE_URL, autocommit=True, connect_timeout=2)
    except psycopg.OperationalError:
        pytest.skip(f"no PostgreSQL answers at {DATABASE_URL} (MLSYS_TEST_DATABASE_URL)")
    with server:
        server.execute(f"CREATE SCHEMA {name}")
        try:
            yield f"{DATABASE_URL}?options=-csearch_path%3D{name}"
        finally:
            server.execute(f"DROP SCHEMA {name} CASCADE")


REDIS_URL = os.environ.get("MLSYS_TEST_REDIS_URL", "redis://127.0.0.1:6379/0")


@contextmanager
def redis_names() -> Iterator[Callable[[], str]]:
    """Gives names that nobody else uses in Redis; what is kept under them goes when the test is over."""
    redis = pytest.importorskip("redis")
    of_this_test = f"test.{uuid.uuid4().hex}"
    with redis.Redis.from_url(REDIS_URL, socket_connect_timeout=2) as server:
        try:
            server.ping()
        except redis.RedisError:
            pytest.skip(f"no Redis answers at {REDIS_URL} (MLSYS_TEST_REDIS_URL)")
        try:
            yield (f"{of_this_test}.{i}" for i in count()).__next__
        finally:
            for key in server.scan_iter(match=f"mlsys:{of_this_test}.*", count=10_000):
                server.unlink(key)


class PrivateRedis:
    """A server of this test alone, to be killed, emptied and filled up."""

    def __init__(self, folder: Path) -> None:
        binary = shutil.which("redis-server")
        if binary is None:
            pytest.skip("no redis-server is installed")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._command = [binary, "--port", str(self.port), "--dir", str(folder), "--bind", "127.0.0.1"]
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        redis = pytest.importorskip("redis")
        self._process = subprocess.Popen([*self._command, *options], stdout=subprocess.DEVNULL)
        with redis.Redis.from_url(self.url) as server:
            for _ in range(200):
                with suppress(redis.RedisError):
                    server.ping()
                    return
                time.sleep(0.05)
        raise AssertionError("redis-server does not start")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def private_redis(folder: Path, *options: str) -> Iterator[PrivateRedis]:
    server = PrivateRedis(folder)
    server.start(*options)
    try:
        yield server
    finally:
        server.kill()
