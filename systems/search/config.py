"""Every knob of the search system with its unit. FULL is a shop of 20,000 products, SMALL lives in seconds."""

from dataclasses import dataclass, replace
from typing import Literal, get_args

from common.clock import DAY, SECOND

# What the world's shop sells; a shop's own categories may be any
CATEGORIES = (
    "furniture", "shoes", "electronics", "kitchen", "clothing", "garden", "sports", "beauty", "toys", "lighting",
)  # fmt: skip
Device = Literal["desktop", "phone"]
DEVICES: tuple[str, ...] = get_args(Device)
DRIFTS = ("vocabulary",)

PerWish = tuple[float, float, float, float, float, float]  # colour, material, feature, brand, size, budget
PerGrade = tuple[float, float, float, float]  # relevance 0, 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Config:
    # The world's size
    start: int = 1_767_225_600 * SECOND  # us since the epoch: 2026-01-01, a Thursday
    days: int  # how long the world lasts
    history_days: int  # the log of a new world begins with so many days
    categories: int  # how many of CATEGORIES are sold
    products: int
    new_products: float = 0.2  # share of products that are first listed while the world lasts
    shoppers: int
    queries_per_day: float  # mean

    # What is sold
    kind_zipf: float = 0.9  # exponent of the law of demand over kinds
    taste: float = 0.35  # concentration of the Dirichlet law of what is wished of a kind; smaller: more of one value
    supply: float = 2.0  # likewise of what is on offer
    log_price_products: float = 0.55  # standard deviation between products of a kind
    brand_log_price: float = 0.25  # standard deviation between brands
    untold: float = 0.25  # chance that a title leaves an attribute to the description
    sale_share: float = 0.15  # share of products whose price is cut on some day
    sale_cut: float = 0.2  # share of the price
    sold_out: float = 0.05  # share of products that cannot be had for some days
    sold_out_days: float = 6.0  # mean

    # What is wanted
    activity_shape: float = 0.6  # of the gamma law of how often shoppers search; smaller: they differ more
    favourites: int = 3  # categories per shopper, at most
    favourite_lift: float = 4.0  # demand of a favourite category, as a multiple
    purse_lift: float = 3.0  # wish for the budget that is the shopper's own, as a multiple
    wishes: PerGrade = (0.20, 0.35, 0.30, 0.15)  # share of intents with 0, 1, 2, 3 wishes beside the kind
    wish_weight: PerWish = (3.0, 1.5, 2.0, 2.0, 1.2, 2.5)  # how readily each is wished
    unsaid: float = 0.5  # chance that one of the wishes is not said

    # How it is said
    word_share: tuple[float, float, float, float] = (0.50, 0.28, 0.12, 0.10)  # name, synonym, shared word, use
    first_form: float = 0.75  # share of the usual form of a value
    shuffled: float = 0.2  # share of queries with the kind in front
    filler: float = 0.05  # share of queries with a word that says nothing
    by_filter: float = 0.12  # chance that a wish for a colour, brand or budget is set as a filter
    category_filter: float = 0.06  # share of queries
    under: float = 0.5  # share of low budgets said in EUR
    typos: float = 0.12  # share of queries, mean over shoppers
    phones: float = 0.6  # share of shoppers who search on a small screen

    # The drift: new words for old things, new kinds of things, makers that nobody knew
    wave_share: float = 0.6  # of the queries for a thing that has a new name, those that use it
    wave_demand: float = 0.15  # share of queries for the new kinds
    newcomer_taste: float = 0.25  # share of wishes for a brand that are for the new one
    wave_products: float = 0.08  # products that it brings, as a share of all
    wave_days: float = 30.0  # over which they are listed
    wave_titles: float = 0.3  # share of those of an old kind whose text uses its new name

    # What is done about the results
    examined: tuple[float, float] = (0.7, 1.1)  # on desktop, phone: rank r is looked at with chance r ** -examined
    next_page: float = 0.3  # chance of any look at the next page, given this one
    click: PerGrade = (0.03, 0.12, 0.35, 0.65)  # given that it is looked at, for a product of usual looks
    looks: float = 0.35  # standard deviation of the log of how much looks multiply that by; no sign of relevance
    purchase: PerGrade = (0.0, 0.02, 0.10, 0.25)  # given a click, for a product of usual quality
    quality: float = 0.4  # standard deviation of the log of how much quality multiplies that by
    look_seconds: float = 4.0  # mean, per result
    decision_minutes: float = 25.0  # median, from the click to the purchase
    decision_spread: float = 1.2  # standard deviation of the log
    latest_hours: float = 24.0  # nothing is heard of a query after that

    # Retrieval
    k1: float = 0.6  # of BM25: the smaller, the less it matters how often a document has a term
    b: float = 0.75  # of BM25: how much longer documents are marked down
    title_repeats: int = 2  # so often a term of the title counts
    candidates: int = 100  # rows of a query; as many are taken from each retriever
    lexical_weight: float = 0.75  # of BM25 in the first order; that of the vectors is the rest of 1
    similarity_floor: float = 0.3  # cosine; what is less near is not found by its vector alone
    asked_by: int = 3  # different shoppers, before others are told what was asked
    left_alone: int = 10  # different shoppers who must ask for a word before it is taken for one

    # The answer
    swapped: float = 0.1  # share of first pages on which the first hit changes places with another

    # The ranker
    steepness: float = 1.0  # rank r is looked at with chance r ** -steepness: what is thought before clicks tell
    steepness_spread: float = 0.5  # standard deviation of that thought
    most_weight: float = 10.0  # of a click, as a multiple of one at the first rank
    passed_over: int = 50  # candidates from this one on that were not shown count as not clicked
    seed: int = 0
    threads: int = 1  # of LightGBM: another number sums in another order
    trees: int = 400  # at most
    patience: int = 20  # trees without improvement
    learning_rate: float = 0.1
    max_bin: int = 63  # values of a feature that trees tell apart
    num_leaves: int = 15
    min_data_in_leaf: int = 50
    feature_fraction: float = 0.5
    lambda_l2: float = 5.0

    # The segments
    head_share: float = 0.33  # of queries, those of the most frequent texts
    tail_count: int = 2  # texts asked so often at most, or less, while the world lasts
    new_days: float = 14.0  # a product is new for so long

    # The judgement
    label_delay: int = DAY  # us; all clicks and purchases have come by then
    validation_days: int = 7
    test_days: int = 7
    retrain_days: int = 4  # on so many a model is judged that is made in a hurry


FULL = Config(days=120, history_days=90, categories=10, products=20_000, shoppers=8_000, queries_per_day=600.0)

# As large as 90 days of it can be lived through in about two minutes.
SIMULATED = replace(FULL, queries_per_day=250.0, shoppers=4_000)

# Four departments of ten.
SMALL = replace(
    FULL, days=90, history_days=60, categories=4, products=2_000, shoppers=500, queries_per_day=80.0, tail_count=1,
    test_days=10,
)  # fmt: skip
