"""A server of a test's own: `mlsys serve` as a process, on a free port of this machine."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WAIT = 60  # s, for a process to start or to end


@dataclass(frozen=True)
class Serving:
    process: subprocess.Popen[str]
    said: Mapping[str, Any]  # what it printed when it was ready

    @property
    def port(self) -> int:
        return int(self.said["url"].rpartition(":")[2])

    @property
    def workers(self) -> list[int]:
        """Their process ids."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def request(self, method: str, path: str, body: bytes = b"", headers: str = "") -> bytes:
        return (
            f"{method} {path} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {self.said['key']}\r\n"
            f"{headers}content-length: {len(body)}\r\n\r\n"
        ).encode() + body

    def stop(self) -> int:
        """SIGTERM, and the exit status."""
        self.process.terminate()
        return self.process.wait(WAIT)


@contextmanager
def serving(home: Path, *systems: str, workers: int = 1, **environment: str) -> Iterator[Serving]:
    command = [
        sys.executable,
        "-m",
        "common.cli",
        "serve",
        *systems,
        "--json",
        "--port",
        "0",
        "--workers",
        str(workers),
    ]
    # a test is about answers, not about how long they take where many tests run
    said = {"MLSYS_HOME": str(home), "MLSYS_DEADLINE_MS": "20000", **environment}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **said}) as process:
        try:
            if process.stdout is None:
                raise RuntimeError("no stdout")
            lines: list[str] = []
            while not lines or lines[-1] not in ("}\n", ""):
                lines.append(process.stdout.readline())
            yield Serving(process, json.loads("".join(lines)))
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(WAIT)
                except subprocess.TimeoutExpired:
                    process.kill()


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    """The status, the headers and the body of the next response; raises EOFError where the connection has ended."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    status, *lines = head.rstrip().split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return int(status.split()[1]), headers, await reader.readexactly(int(headers.get("content-length", 0)))
