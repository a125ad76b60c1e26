"""What a few units were forecast on a day or two of a simulated run, beside what was observed."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from common.clock import DAY
from common.lifecycle.simulation import Simulation
from common.system import Fan

WEEK = 7  # days from a drift to the forecasts that are shown; within so many a unit must have been forecast
BEFORE = 28  # days before a forecast, of which is shown what was observed
COLUMNS = ("median", "lower_80", "upper_80", "lower_95", "upper_95")


class Said(NamedTuple):
    at: int  # us
    fan: Fan


def fans(simulation: Simulation) -> dict[str, Any] | None:
    """Before and after the drift, or as late as all days of it could be observed; None: the system has no fans."""
    many = simulation.system.many
    if many is None or many.fan is None:
        return None
    said = [_said(simulation, many.fan, day) for day in _days(simulation, many.fan)]
    observed = _observed(simulation, many.key)
    units = [unit for unit in observed if said and all(unit in found for found in said)]
    shown = [
        _shown(simulation, unit, why, found[unit], observed[unit])
        for unit, why in _chosen(simulation, {unit: observed[unit] for unit in units}).items()
        for found in said
    ]
    return {"value": simulation.system.outcome.value or "", "shown": shown}


def _days(simulation: Simulation, fan: Callable[[Any], Fan | None]) -> list[int]:
    """Since the simulated start."""
    days, drift = simulation.days, simulation.drift_day
    if drift is not None:
        return sorted({max(drift - WEEK, 0), min(drift + WEEK, days - 1)})
    last = next((found for answer in reversed(simulation.journal.answers) if (found := fan(answer))), None)
    return [] if last is None else [max(days - len(last.median), 0)]


def _said(simulation: Simulation, fan: Callable[[Any], Fan | None], day: int) -> dict[str, Said]:
    """By unit, the first forecast from a day on."""
    journal, start = simulation.journal, simulation.start + day * DAY
    rows, columns = journal.rows(start, start + WEEK * DAY), journal.columns
    found: dict[str, Said] = {}
    for row in range(rows.start, rows.stop):
        if columns.unit[row] not in found and (forecast := fan(journal.answers[row])):
            found[columns.unit[row]] = Said(int(columns.as_of[row]), forecast)
    return found


def _observed(simulation: Simulation, key: str) -> dict[str, dict[int, float]]:
    """By unit and day: that of a request is what its answer's first day came to, so later ones tell the days ahead."""
    unit, outcome = simulation.journal.columns.unit, simulation.system.outcome
    found: dict[str, dict[int, float]] = {}
    for row, event in sorted(simulation.journal.outcomes.items()):
        found.setdefault(unit[row], {})[getattr(event, key)] = outcome.label(event)
    return found


def _chosen(simulation: Simulation, observed: Mapping[str, Mapping[int, float]]) -> dict[str, str]:
    """Units that differ, and what each of them is."""
    if not observed:
        return {}
    size = {unit: sum(values.values()) / len(values) for unit, values in observed.items()}
    by_size = sorted(observed, key=lambda unit: (size[unit], unit))
    chosen = {by_size[-1]: "the largest"}
    chosen.setdefault(by_size[len(by_size) // 2], "the median")
    if rare := [unit for unit in by_size if 2 * list(observed[unit].values()).count(0) > len(observed[unit])]:
        chosen.setdefault(rare[len(rare) // 2], "mostly zero")
    columns = simulation.journal.columns
    first: dict[str, int] = {}
    for unit, at in zip(columns.unit.tolist(), columns.as_of.tolist(), strict=True):
        first.setdefault(unit, at)
    newest = max(observed, key=lambda unit: (first[unit], unit))
    if first[newest] > min(first.values()) + BEFORE * DAY:
        chosen.setdefault(newest, "the newest")
    return chosen


def _shown(simulation: Simulation, unit: str, why: str, said: Said, observed: Mapping[int, float]) -> dict[str, Any]:
    first, ahead = said.fan.first_day, len(said.fan.median)
    days = range(first - BEFORE, first + ahead)
    return {
        "unit": unit,
        "why": why,
        "asked": round((said.at - simulation.start) / DAY, 3),
        "days": [round((day * DAY - simulation.start) / DAY, 3) for day in days],
        "observed": [observed.get(day) for day in days],
        **{name: [*[None] * BEFORE, *getattr(said.fan, name)] for name in COLUMNS},
    }
