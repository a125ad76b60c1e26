"""One conformance suite for all systems."""

from collections.abc import Callable, Iterator

import pytest

from common.checks import ALL, Bench, bench
from common.system import find, names


@pytest.fixture(scope="module", params=names("systems"))
def lived(request: pytest.FixtureRequest) -> Iterator[Bench]:
    with bench(find("systems", request.param)) as made:
        yield made


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__.removeprefix("check_"))
def test_every_system(check: Callable[[Bench], None], lived: Bench) -> None:
    check(lived)
