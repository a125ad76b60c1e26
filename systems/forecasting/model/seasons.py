"""How many steps a season has, by the frequency of one's own data; of days it is a week."""

from typing import Final

from systems.forecasting.data.steps import Calendar

WEEK: Final = 7
SEASONS: Final = {  # steps, by what pandas calls a frequency, without what it is anchored to
    "h": 24, "D": WEEK, "B": 5, "W": 52, "ME": 12, "MS": 12, "BME": 12, "BMS": 12, "QE": 4, "QS": 4, "BQE": 4, "BQS": 4,
    "30min": 48, "15min": 96, "YE": 1, "YS": 1,
}  # fmt: skip


def of(calendar: Calendar | None) -> int:
    """A day of hours, a week of days, a year of what is longer; 1, none, where nothing is usual."""
    return WEEK if calendar is None else SEASONS.get(calendar.frequency.partition("-")[0], 1)
