"""A PostgreSQL of a test's own, which it may stop and start."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SETTINGS = "listen_addresses = '127.0.0.1'\nunix_socket_directories = ''\nmax_connections = 40\n"


class Cluster:
    def __init__(self, programs: Path, folder: Path, port: int, user: list[str]) -> None:
        self._programs, self._folder, self._user = programs, folder, user
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"

    def run(self, program: str, *arguments: str) -> None:
        command = [*self._user, str(self._programs / program), "-D", str(self._folder / "data"), *arguments]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=self._folder, timeout=60)

    def start(self) -> None:
        self.run("pg_ctl", "start", "-w", "-l", str(self._folder / "log"))

    def stop(self) -> None:
        """As if its power had gone."""
        self.run("pg_ctl", "stop", "-w", "-m", "immediate")


@contextmanager
def cluster() -> Iterator[Cluster]:
    pytest.importorskip("psycopg")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    where = found[-1] if found else shutil.which("initdb")
    if where is None:
        pytest.skip("no PostgreSQL is installed: there is no initdb")
    user, owner = [], None
    if os.getuid() == 0:  # it refuses to run as root
        with suppress(KeyError):
            owner = pwd.getpwnam("postgres")
        if owner is None or shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres or no runuser")
        user = ["runuser", "-u", "postgres", "--"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        if owner is not None:
            os.chown(folder, owner.pw_uid, owner.pw_gid)
        made = Cluster(Path(where).parent, Path(folder), port, user)
        made.run("initdb", "-U", "postgres", "-A", "trust", "--no-sync", "--no-instructions")
        with (Path(folder) / "data/postgresql.conf").open("a") as settings:
            settings.write(f"{SETTINGS}port = {port}\n")
        made.start()
        try:
            yield made
        finally:
            with suppress(subprocess.CalledProcessError):  # it may be stopped already
                made.stop()
