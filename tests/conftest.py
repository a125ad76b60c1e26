"""What all tests share."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING

import pytest

from tests.servers import schema

if TYPE_CHECKING:
    from common.checks import Bench

pytest.register_assert_rewrite("common.checks")


@pytest.fixture(scope="session")
def benches() -> Iterator[Callable[[str, str], "Bench"]]:
    """Of a package and a system: its world lives once and its model is made once, for all tests, which only read."""
    from common.checks import bench  # its assertions are rewritten by now
    from common.system import find

    with ExitStack() as stack:
        yield cache(lambda package, name: stack.enter_context(bench(find(package, name))))


@pytest.fixture(scope="session", autouse=True)
def _keys_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test signs with a person's key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLSYS_KEYS", str(tmp_path_factory.mktemp("keys")))
        yield


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """The same test on both: embedded, and in a schema of its own on a server."""
    if request.param == "sqlite":
        yield None
    else:
        with schema() as url:
            yield url
