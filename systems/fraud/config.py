"""Every knob of the fraud system with its unit. FULL is a small bank, SMALL trains in seconds."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from common.clock import DAY, SECOND

Category = Literal["groceries", "fuel", "restaurants", "health", "fashion", "electronics", "travel", "digital"]
CATEGORIES: tuple[str, ...] = get_args(Category)
Channel = Literal["terminal", "online"]
Scenario = Literal["honest", "stolen", "skimmed", "takeover", "collusion"]
SCENARIOS: tuple[str, ...] = get_args(Scenario)
DRIFTS = ("tactics",)

PerCategory = tuple[float, float, float, float, float, float, float, float]  # in the order of CATEGORIES


@dataclass(frozen=True, kw_only=True)
class Tactic:
    """How a fraudster pays in one stage of a campaign; draws the payments, and judges them in the ceiling."""

    gap: float  # hours, mean time to the next payment
    relative: bool  # the amount is measured against the victim's typical amount
    log_amount: float  # log EUR; what is added to the victim's if relative
    log_spread: float  # standard deviation of log_amount
    goes_on: float  # chance of another payment in this stage
    categories: PerCategory  # weights
    near_home: float = 0.0  # share of online payments that seem to come from the victim's address
    spoofed: bool  # shows the victim's device, else one that the card has never used
    round_amounts: float = 0.08  # share of amounts in whole tens
    night: float = 0.5  # share of campaigns that begin between 0 and 6 o'clock; clones: at any hour


@dataclass(frozen=True, kw_only=True)
class Tactics:
    test: Tactic  # stolen cards: does it still work?
    drain: Tactic  # stolen cards: then all at once
    takeover: Tactic
    clone: Tactic  # skimmed cards, at terminals of one town
    ring: Tactic  # a merchant and cards of its own


USUAL = Tactics(
    test=Tactic(gap=0.2, relative=False, log_amount=1.5, log_spread=0.8, goes_on=0.4, near_home=0.6, spoofed=False,
                categories=(0, 0, 1, 0, 1, 0, 1, 5)),
    drain=Tactic(gap=0.7, relative=True, log_amount=1.0, log_spread=0.7, goes_on=0.7, near_home=0.6, spoofed=False,
                 categories=(0, 0, 0, 1, 3, 4, 1, 3)),
    takeover=Tactic(gap=3.0, relative=True, log_amount=1.0, log_spread=0.7, goes_on=0.6, near_home=0.6, spoofed=False,
                    categories=(0, 0, 0, 0, 3, 5, 3, 1)),
    clone=Tactic(gap=5.0, relative=True, log_amount=0.9, log_spread=0.6, goes_on=0.6, spoofed=True,
                 categories=(2, 3, 0, 1, 3, 4, 0, 0)),
    ring=Tactic(gap=36.0, relative=False, log_amount=5.4, log_spread=0.5, goes_on=0.8, near_home=1.0, spoofed=True,
                round_amounts=0.7, categories=(1, 1, 1, 1, 1, 1, 1, 1)),
)  # fmt: skip

# Gift cards instead of goods: many round amounts that are not large, for digital goods and groceries, from the victim's
# own device and address, by day. What gave fraudsters away before no longer does; what does now, no model has seen.
_GIFT_CARD = Tactic(gap=1.5, relative=False, log_amount=3.5, log_spread=0.3, goes_on=0.9, near_home=1.0, spoofed=True,
                    night=0.1, round_amounts=0.9, categories=(0, 0, 0, 0, 0, 0, 0, 1))  # fmt: skip
GIFT_CARDS = Tactics(
    test=replace(_GIFT_CARD, goes_on=0.4),
    drain=_GIFT_CARD,
    takeover=_GIFT_CARD,
    clone=replace(_GIFT_CARD, gap=3.0, near_home=0.0, categories=(5, 1, 0, 0, 0, 0, 0, 0)),
    ring=replace(_GIFT_CARD, gap=36.0, log_amount=3.8, categories=(1, 1, 1, 1, 1, 1, 1, 1)),
)


@dataclass(frozen=True, kw_only=True)
class Config:
    # The world's size
    start: int = 1_767_225_600 * SECOND  # us since the epoch: 2026-01-01, a Thursday
    days: int  # how long the world lasts
    history_days: int  # the log of a new world begins with so many days
    cards: int
    new_cards: float = 0.2  # share of cards that are first issued while the world runs
    towns: int
    terminals: int  # per town and category, even: a shop has two
    online_shops: int  # per category

    # Honest life
    payments_per_day: float = 0.8  # mean over cards
    rate_shape: float = 2.0  # of the gamma law of cards' rates; smaller: cards differ more
    payday_every: int = 30  # days
    payday_lift: float = 1.6  # payments on a pay day and the two days after it, as a multiple
    log_amount: float = 3.0  # log EUR, mean of cards' typical amounts
    log_amount_cards: float = 0.6  # log EUR, standard deviation between cards
    log_amount_payments: float = 0.6  # log EUR, standard deviation between payments of a card
    category_log_amount: PerCategory = (0.2, 0.6, 0.0, 0.1, 0.6, 1.2, 1.3, -0.7)  # log EUR, added to the card's
    category_share: PerCategory = (0.32, 0.10, 0.20, 0.06, 0.12, 0.05, 0.05, 0.10)
    category_habit: float = 8.0  # concentration of the Dirichlet law of a card's categories; smaller: more own habits
    category_online: PerCategory = (0.10, 0.0, 0.15, 0.20, 0.40, 0.50, 0.70, 1.0)  # share of payments
    round_amounts: float = 0.08  # share of amounts from 20 EUR in whole tens
    habit: float = 1.5  # concentration of the Dirichlet process of a card's shops; smaller: fewer favourites
    elsewhere: float = 0.06  # share of a card's favourite places that are in another town
    map_km: float = 300.0  # side of the map
    town_km: float = 4.0  # standard deviation of terminals and homes around their town's centre
    address_km: float = 1.5  # standard deviation of an online position around its home
    wandering_address: float = 0.08  # share of honest online payments whose position is somewhere else
    new_device: float = 0.012  # chance per payment that it is the first from a new phone
    second_device: float = 0.10  # chance per payment that it is made with an older device
    sprees: float = 0.015  # per card and day: shopping in several shops
    spree_gap: float = 0.35  # hours between payments
    spree_more: float = 0.7  # chance of another one
    spree_categories: PerCategory = (1, 0, 1, 1, 4, 2, 0, 0)
    trips: float = 0.025  # chance per payment at a terminal that it begins a trip to another town
    trip_days: float = 4.0  # mean

    # Fraud
    stolen: float  # campaigns per card and day
    takeover: float  # campaigns per card and day
    collusion: float  # cards that join a ring, per card and day
    skimmed_terminals: float  # chance per terminal and slot
    skimming_days: int = 10  # length of a slot
    cloned: float = 0.4  # chance per payment at a skimmed terminal
    clone_wait: float = 4.0  # days, mean time until a clone is used
    colluding_merchants: float  # chance per merchant and slot
    collusion_days: int = 30  # length of a slot
    usual: Tactics = USUAL
    drifted: Tactics = GIFT_CARDS  # from the day of the drift

    # What becomes of a fraud
    never_reported: float = 0.06  # share
    early_report: float = 0.35  # share of reports by customers who watch their account
    early_report_hours: float = 20.0  # mean
    late_report_days: float  # median
    late_report_spread: float = 0.5  # standard deviation of the log
    stopped_by_block: float = 0.7  # chance that a block makes the bank call the customer, which ends the campaign
    inspection_hours: tuple[float, float] = (0.5, 24.0)  # after the payment

    # The decision
    label_delay: int  # us; nearly all reports have come by then
    early_delay: int  # us; four of five have
    review_cost: float = 4.0  # EUR, one look by an analyst
    friction_cost: float = 12.0  # EUR, an honest customer turned away
    chargeback_fee: float = 15.0  # EUR, on top of the amount
    reviews_per_day: int
    let_through: float = 0.01  # share of payments that would be blocked, approved at random: their outcome is seen
    rule_amount: float = 300.0  # EUR, the rule without a model refuses more
    rule_probability: float = 0.5  # of fraud, what that rule says of a payment that it refuses
    base_rate: float  # of fraud, what is said of a payment that nothing is known about

    # The model
    seed: int = 0
    threads: int = 2  # of LightGBM: another number sums in another order
    trees: int = 400  # at most
    patience: int = 30  # trees without improvement
    learning_rate: float = 0.05
    max_bin: int = 255  # values of a feature that trees tell apart
    num_leaves: int = 15
    min_data_in_leaf: int = 20
    feature_fraction: float = 0.5
    lambda_l2: float = 5.0

    # The judgement
    validation_days: int
    test_days: int
    retrain_days: int  # on so many a model is judged that is made in a hurry
    cards_per_day: int = 100  # that analysts can call


FULL = Config(
    days=180,
    history_days=160,
    cards=8_400,
    towns=10,
    terminals=20,
    online_shops=40,
    stolen=2.5e-4,
    takeover=5e-4,
    collusion=2e-4,
    skimmed_terminals=0.003,
    colluding_merchants=0.006,
    late_report_days=9.0,
    label_delay=30 * DAY,
    early_delay=12 * DAY,
    reviews_per_day=60,
    base_rate=0.004,
    validation_days=20,
    test_days=20,
    retrain_days=7,
)

# A third of the bank, so that three months of it can be lived through in minutes.
SIMULATED = replace(FULL, cards=2_850, history_days=140, reviews_per_day=25, cards_per_day=30)

# More fraud than in FULL (0.4 %): about 1.2 %, so that a few hundred frauds can be learned from.
SMALL = replace(
    FULL,
    days=170,
    history_days=130,
    cards=900,
    towns=4,
    terminals=6,
    online_shops=10,
    stolen=5e-4,
    takeover=1.0e-3,
    collusion=6e-4,
    # many skimmers that copy few cards: in so small a place, one at a busy terminal would be an epidemic
    skimmed_terminals=0.036,
    cloned=0.1,
    colluding_merchants=0.03,
    late_report_days=4.0,
    label_delay=14 * DAY,
    early_delay=5 * DAY,
    reviews_per_day=12,
    base_rate=0.012,
    validation_days=20,
    test_days=20,
    cards_per_day=10,
    threads=1,  # so little data is learned from faster by one
    let_through=0.1,
    learning_rate=0.1,  # with fewer bins: as good on so little data, in half the time
    max_bin=63,
)
