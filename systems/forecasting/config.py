"""Every knob of the forecasting system with its unit. FULL is a chain of 20 stores, SMALL lives in seconds."""

from dataclasses import dataclass, replace

from common.clock import DAY, HOUR, SECOND

CATEGORIES = ("dairy", "bakery", "drinks", "snacks", "household", "garden", "toys", "stationery")
DRIFTS = ("break",)


@dataclass(frozen=True, kw_only=True)
class Config:
    # The world's size
    start: int  # us since the epoch, the beginning of a day
    history_days: int  # the log of a new world begins with so many days
    days: int  # how long the world lasts
    stores: int
    categories: int  # how many of CATEGORIES are sold
    products: int  # each is sold in every store
    new_products: float = 0.15  # share of products that are first sold while the world lasts
    review_days: int = 400  # of the history, the last ones, on which shelves are reviewed
    review_every: int = 7  # days between two reviews of a shelf
    daily_days: int = 63  # of the history, the last ones, since which each shelf is reviewed every day; 0: never

    # Demand
    level: float = 6.0  # units a day, of a median product in a median store
    level_spread: float = 0.8  # of the log of the level, over products
    store_spread: float = 0.35  # over stores
    series_spread: float = 0.3  # over products of a store
    slow: float = 0.25  # share of products that are sold rarely
    slow_level: float = 0.25  # units a day, of a median one of them
    least_level: float = 0.05  # units a day, of any
    dispersion: float = 0.12  # of a median series: variance = mean + dispersion * mean^2
    dispersion_spread: float = 0.5  # of its log
    trend: float = 0.12  # of the log of demand a year, over series
    price_change: float = 0.04  # chance per product and week
    promotion: float = 0.1  # chance per product and week that one begins
    taking_part: float = 0.75  # share of stores in a promotion
    cannibalised: float = 0.6  # log of demand that a product loses when all others of its category are promoted

    # Shelves
    sold_out: float = 0.03  # share of days with demand, before shelves are reviewed
    sold_out_promoted: float = 0.09  # likewise, of promoted days

    # When things are heard of
    told: int = 6 * HOUR  # us after midnight, when the day before is reported
    reviewed: int = 8 * HOUR  # us after midnight
    late: float = 0.03  # share of a store's days that are reported later
    late_days: float = 1.5  # mean, beyond the next morning; at most label_delay allows

    # The model
    seed: int = 0
    threads: int = 1  # of LightGBM: another number sums in another order
    memory: int = 728  # days of a series that local methods look back
    most_days: int = 1_500  # that are kept of a series
    rows: int = 60_000  # of reviews times days, that are learned from, at most
    trees: int = 80
    learning_rate: float = 0.08
    max_bin: int = 63  # values of a feature that trees tell apart
    num_leaves: int = 15
    min_data_in_leaf: int = 30
    feature_fraction: float = 0.8
    lambda_l2: float = 5.0
    held_out: int = 56  # days of reviews whose backtests choose the combination and make intervals honest

    # The judgement
    label_delay: int = 33 * DAY  # us; the last of 28 days is over, and has been reported
    early_delay: int = 3 * DAY  # us; the first days are
    validation_days: int = 28
    test_days: int = 28
    retrain_days: int = 4  # on so many a model is judged that is made in a hurry


SMALL = Config(
    start=1_714_521_600 * SECOND,  # 2024-05-01: what follows the history is an ordinary spring
    history_days=730, days=822, stores=4, categories=4, products=30,
)  # fmt: skip

# As large as 90 days of it can be lived through in minutes.
SIMULATED = replace(
    SMALL, start=1_682_899_200 * SECOND, history_days=1_096, days=1_188, stores=6, categories=6, products=50
)

FULL = replace(
    SMALL, start=1_682_899_200 * SECOND,  # 2023-05-01
    history_days=1_096, days=1_188, stores=20, categories=8, products=200, review_every=14, daily_days=0,
    rows=400_000, trees=150, num_leaves=31, threads=2,
)  # fmt: skip
