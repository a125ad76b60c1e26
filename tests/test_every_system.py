"""One conformance suite for all systems."""

from collections.abc import Callable

import pytest

from common.checks import ALL, Bench
from common.data.splits import forward
from common.system import Presets, find, names


@pytest.fixture(scope="module", params=names("systems"))
def lived(request: pytest.FixtureRequest, benches: Callable[[str, str], Bench]) -> Bench:
    return benches("systems", request.param)


@pytest.mark.parametrize("check", ALL, ids=lambda check: check.__name__.removeprefix("check_"))
def test_every_system(check: Callable[[Bench], None], lived: Bench) -> None:
    check(lived)


@pytest.mark.parametrize("preset", Presets.__dataclass_fields__)
@pytest.mark.parametrize("name", names("systems"))
def test_the_history_of_every_preset_is_long_enough_to_learn_from(name: str, preset: str) -> None:
    system = find("systems", name, preset)
    start, end = system.history
    forward(
        start, end - system.label_delay, label_delay=system.label_delay,
        test_span=system.test_span, validation_span=system.validation_span,
    )  # fmt: skip
