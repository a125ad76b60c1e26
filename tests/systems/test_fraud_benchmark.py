import gzip
import hashlib
import json
import os
import pickle
from collections.abc import Mapping
from datetime import date, timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from scipy.special import expit

from common.clock import DAY, SECOND
from common.data.public import Dataset
from common.data.splits import Split
from common.errors import BadBundle, NotFound
from common.features import offline, reference
from common.features.view import Array, ints
from common.schema import arrow_schema
from systems.fraud import benchmark as rooms
from systems.fraud.benchmark import benchmark, dataset, prepare, protocol, published, run, scenarios
from systems.fraud.benchmark.dataset import START, TRANSACTIONS, WINDOW, History, Transaction
from systems.fraud.evaluation import card_precision

Index = NDArray[np.int64]
DATA_DIR = os.environ.get("MLSYS_DATA_DIR")
real_data = pytest.mark.skipif(not DATA_DIR, reason="MLSYS_DATA_DIR is not set: it names the folder with fraud/")


def history(*payments: tuple[float, int, int, float, bool]) -> History:
    """Of (day, customer, terminal, amount, fraud), in the order of time."""
    day, customer, terminal, amount, fraud = zip(*payments, strict=True)
    table = pa.table(
        {
            "event_id": [str(i) for i in range(len(payments))],
            "event_timestamp": [START + int(d * DAY) for d in day],
            "customer_id": list(customer),
            "terminal_id": list(terminal),
            "amount": [float(a) for a in amount],
        }
    )
    return dataset.log(table, np.array(fraud, bool))


# The log


def test_a_chargeback_is_logged_a_week_after_its_payment_and_before_the_payments_of_the_same_second() -> None:
    log = history((0, 1, 1, 10, True), (3, 2, 1, 10, False), (7, 3, 1, 10, False), (7, 4, 1, 10, False))
    assert ints(log.transactions["position"]).tolist() == [1, 2, 4, 5]
    assert ints(log.chargebacks["position"]).tolist() == [3]
    assert ints(log.chargebacks["created_timestamp"]).tolist() == [START + 7 * DAY]
    assert ints(log.chargebacks["event_timestamp"]).tolist() == [START]


def small_files(folder: Path) -> tuple[Dataset, Mapping[str, str]]:
    (folder / "fraud").mkdir()
    (folder / "fraud/a.csv.gz").write_bytes(gzip.compress(b"1,2\n" * 1_000, 9, mtime=0))
    published = hashlib.sha256((folder / "fraud/a.csv.gz").read_bytes()).hexdigest()
    files = Dataset(name="payments", folder="fraud", files={"a.csv.gz": published}, how_to_get="ask")
    return files, {"a.csv.gz": hashlib.sha256(b"1,2\n" * 1_000).hexdigest()}


def test_the_same_content_compressed_by_another_program_is_accepted(tmp_path: Path) -> None:
    files, content = small_files(tmp_path)
    assert dataset.find(tmp_path, files, content) == tmp_path / "fraud"
    (tmp_path / "fraud/a.csv.gz").write_bytes(gzip.compress(b"1,2\n" * 1_000, 1))
    assert dataset.find(tmp_path, files, content) == tmp_path / "fraud"


@pytest.mark.parametrize("data", [gzip.compress(b"1,3\n"), b"1,2\n" * 1_000, gzip.compress(b"1,2\n" * 1_000)[:-9]])
def test_other_content_is_refused(tmp_path: Path, data: bytes) -> None:
    files, content = small_files(tmp_path)
    (tmp_path / "fraud/a.csv.gz").write_bytes(data)
    with pytest.raises(BadBundle, match=r"a.csv.gz: SHA-256 must be"):
        dataset.find(tmp_path, files, content)


def test_without_the_data_it_says_where_to_get_it_and_how_to_convert_it() -> None:
    with pytest.raises(NotFound, match=r"MLSYS_DATA_DIR.*simulated-data-transformed.*systems.fraud.benchmark.prepare"):
        benchmark(None)


# The protocol


def payments(*rows: tuple[float, int, bool]) -> protocol.Payments:
    """Of (day, customer, fraud)."""
    day, customer, fraud = zip(*rows, strict=True)
    return protocol.Payments(np.array([int(d * DAY) for d in day]), np.array(customer), np.array(fraud, bool))


WEEKS = Split(train=(0, 7 * DAY), test=(14 * DAY, 21 * DAY))


def test_a_card_leaves_the_test_a_week_after_the_day_of_its_fraud() -> None:
    known = payments(
        (1, 1, False), (6.9, 2, True), (7.5, 3, True), (13.5, 4, True), (14.0, 1, False), (14.1, 2, False),
        (14.9, 3, False), (15.0, 3, False), (20.9, 4, False), (20.95, 5, True), (21.0, 1, False),
    )  # fmt: skip
    fold = protocol.fold(known, WEEKS)
    assert fold.train.tolist() == [0, 1]
    # Card 2 is known by day 14, card 3 from day 15 on; card 4's chargeback falls into day 20, so it is known on day 21.
    assert fold.test.tolist() == [4, 6, 8, 9]


def test_a_fraud_before_the_training_week_removes_no_card() -> None:
    known = payments((0.5, 1, True), (3, 2, False), (16, 1, False))
    later = Split(train=(1 * DAY, 8 * DAY), test=(15 * DAY, 22 * DAY))
    assert protocol.fold(known, later).test.tolist() == [2]
    assert protocol.fold(known, WEEKS).test.tolist() == []


def test_the_training_weeks_are_the_published_ones() -> None:
    def starts(splits: list[Split]) -> list[str]:
        return [str(np.datetime64(s.train[0] // DAY, "D")) for s in splits]

    assert starts(protocol.TEST) == ["2018-07-25", "2018-08-01", "2018-08-08", "2018-08-15"]
    assert starts(protocol.VALIDATION) == ["2018-06-20", "2018-06-27", "2018-07-04", "2018-07-11"]
    assert all(s.test == (s.train[0] + 14 * DAY, s.train[0] + 21 * DAY) for s in protocol.TEST + protocol.VALIDATION)
    assert date(1970, 1, 1) + timedelta(days=START // DAY) == date(2018, 4, 1)


def handbook_card_precision(day: Index, card: Index, fraud: Array, p: Array, k: int) -> float:
    """Its card_precision_top_k with remove_detected_compromised_cards, written as the handbook describes it."""
    table = pd.DataFrame({"day": day, "card": card, "fraud": fraud, "p": p})
    detected: set[int] = set()
    shares = []
    for _, today in table.groupby("day"):
        cards = today[~today.card.isin(detected)].groupby("card")[["p", "fraud"]].max()
        top = cards.sort_values("p", ascending=False).head(k)
        hits = top.index[top.fraud == 1]
        detected |= set(hits)
        shares.append(len(hits) / k)
    return float(np.mean(shares))


def test_a_detected_card_is_not_counted_again_and_lets_the_next_one_in() -> None:
    # Day 0: of the top two, card 7 is found. Day 1: card 7 is out, so cards 8 and 9 are called, and 9 is found.
    card = np.array([7, 8, 9, 7, 8, 9], object)
    day = np.array([0, 0, 0, 1, 1, 1])
    fraud = np.array([1.0, 0, 0, 1, 0, 1])
    p = np.array([0.9, 0.8, 0.1, 0.9, 0.8, 0.7])
    assert card_precision(card, day, fraud, p, 2) == 0.5
    assert card_precision(card, day, fraud, p, 1) == 0.5  # card 7, then card 8


def test_of_cards_with_the_same_score_the_lower_number_is_called() -> None:
    first_is_last = payments((0.1, 101, True), *((0.2, card, False) for card in range(1, 101)))
    metrics = protocol.judge(first_is_last, np.arange(101), np.full(101, 0.5))
    assert metrics["card_precision_at_100"] == 0
    first_is_first = payments((0.1, 1, True), *((0.2, card, False) for card in range(2, 102)))
    assert protocol.judge(first_is_first, np.arange(101), np.full(101, 0.5))["card_precision_at_100"] == 0.01


def test_card_precision_is_the_handbooks() -> None:
    rng = np.random.default_rng(0)
    day, card = np.sort(rng.integers(0, 7, 3_000)), rng.integers(0, 300, 3_000)
    p = rng.random(3_000)
    fraud = (rng.random(3_000) < p**4).astype(float)
    for k in (5, 100):
        expected = handbook_card_precision(day, card, fraud, p, k)
        assert card_precision(card.astype(object), day, fraud, p, k) == pytest.approx(expected, abs=1e-12)


# The published features


PAIR = (
    (0.0, 1, 1, 10, True), (0.5, 1, 2, 20, False), (1.0, 1, 1, 30, False), (6.5, 1, 1, 60, True), (7.0, 2, 1, 5, False),
    (8.0, 3, 1, 5, False), (8.5, 2, 1, 15, False),
)  # fmt: skip


def test_published_windows_are_as_computed_by_hand() -> None:
    log = history(*PAIR)
    x = published.features(log, log.transactions)
    found = {f.name: x[:, i].tolist() for i, f in enumerate(published.ON_DEMAND)}
    assert found["CUSTOMER_ID_NB_TX_1DAY_WINDOW"] == [1, 2, 2, 1, 1, 1, 1]  # at day 1 the payment of day 0 has left
    assert found["CUSTOMER_ID_AVG_AMOUNT_1DAY_WINDOW"] == [10, 15, 25, 60, 5, 5, 15]
    assert found["CUSTOMER_ID_NB_TX_7DAY_WINDOW"] == [1, 2, 3, 4, 1, 1, 2]
    assert found["TERMINAL_ID_NB_TX_1DAY_WINDOW"] == [0, 0, 0, 0, 1, 1, 1]  # at day 8: only the payment of day 1
    assert found["TERMINAL_ID_RISK_1DAY_WINDOW"] == [0, 0, 0, 0, 1, 0, 0]
    assert found["TERMINAL_ID_NB_TX_7DAY_WINDOW"] == [0, 0, 0, 0, 1, 2, 2]
    assert found["TERMINAL_ID_RISK_7DAY_WINDOW"] == [0, 0, 0, 0, 1, 0.5, 0.5]


def test_nights_end_at_7_and_weekends_are_saturday_and_sunday() -> None:
    hours = START / DAY + np.array([0, 6.99, 7, 23.9, 24, 24 * 6]) / 24  # from a Sunday on
    c = {"event_timestamp": hours * DAY}
    assert published.during_night(c).tolist() == [1, 1, 0, 0, 1, 1]
    assert published.during_weekend(c).tolist() == [1, 1, 1, 1, 0, 1]


def test_a_feature_that_differs_from_the_published_one_is_seen(tmp_path: Path) -> None:
    log = history(*PAIR)
    x = published.features(log, log.transactions)
    table = pd.DataFrame(x, columns=[f.name for f in published.ON_DEMAND])
    table.insert(0, "TRANSACTION_ID", range(len(x)))
    table.iloc[::-1].to_csv(tmp_path / WINDOW, index=False)
    assert published.difference(tmp_path, log.transactions, x) == 0
    x[2, 7] += 0.25
    assert published.difference(tmp_path, log.transactions, x) == 0.25


# The scenarios


def seen(log: History) -> dict[str, Array]:
    """FEATURES by name, of all payments."""
    x = scenarios.features(log, log.transactions)
    return {f.name: x[:, i] for i, f in enumerate(scenarios.FEATURES)}


def campaign(*at_terminal: tuple[float, float, bool], day: float) -> float:
    """P(a campaign runs at a terminal on a day) after payments of (day, amount, fraud) there, each by another card."""
    past = [(d, i, 1, amount, fraud) for i, (d, amount, fraud) in enumerate(at_terminal)]
    return float(expit(seen(history(*past, (day, 999, 1, 50.0, False)))["terminal_campaign_log_odds"][-1]))


def test_an_unknown_terminal_is_in_a_campaign_with_the_published_chance() -> None:
    assert campaign(day=50) == pytest.approx(28 * 2e-4, rel=0.02)


def test_one_genuine_payment_leaves_only_campaigns_that_began_after_it() -> None:
    assert campaign((42.9, 50, False), day=50) == pytest.approx(7 * 2e-4, rel=0.02)


def test_small_frauds_at_a_terminal_reveal_its_campaign_and_large_ones_do_not() -> None:
    genuine = (39, 50, False)
    assert campaign(genuine, (40, 30, True), (41, 30, True), day=50) > 0.95
    assert campaign(genuine, (40, 230, True), (41, 230, True), day=50) < 0.01


def test_a_campaign_of_unknown_beginning_may_be_over() -> None:
    # Outcomes are known until day 43. The frauds of days 40 and 41 fit campaigns that began on 18 of the days since 22,
    # which still run on day 50, and on the 8 days before, which do not; those that began earlier were over by day 40.
    assert campaign((40, 30, True), (41, 30, True), day=50) == pytest.approx(18 / 26, abs=0.002)


def test_a_campaign_is_over_after_28_days() -> None:
    past = [(19, 50, False), (20, 30, True), (23, 30, True), (26, 30, True), (29, 30, True)]
    assert campaign(*past, day=40) > 0.95
    assert campaign(*past, day=70) < 0.01


def test_a_fraud_is_explained_by_its_amount() -> None:
    surprise = scenarios.surprise(np.array([220.01, 220, 195, 95, 20]))
    assert surprise.tolist() == [0, 2.5, 3.5, 7.5, 7.5]


def test_the_usual_amount_is_that_of_genuine_payments_whose_outcome_is_known() -> None:
    log = history((0, 1, 1, 10, False), (1, 1, 2, 90, True), (2, 1, 3, 30, False), (9, 1, 4, 70, False))
    # At day 9 all three earlier outcomes are known: (10 + 30 + 52 / 2) / 2.5; before day 7 nothing is: 52.
    assert seen(log)["amount_to_usual"] == pytest.approx([10 / 52, 90 / 52, 30 / 52, 70 / 26.4], rel=1e-12)


def test_amounts_have_a_density_that_integrates_to_one() -> None:
    amounts = np.linspace(0, 1_000, 2_000_001)
    assert np.trapezoid(scenarios.density(amounts, np.array(80.0)), amounts) == pytest.approx(1, abs=1e-4)


def test_theft_from_a_card_without_a_past_follows_from_the_prior_and_the_amount() -> None:
    c = {"usual_amount": np.array([50.0, 50.0]), "amount": np.array([50.0, 215.0])}
    c |= {f"card.count_{d}d": np.zeros(2) for d in scenarios.CARD_DAYS}
    c |= {f"card.max_{d}d": np.full(2, np.nan) for d in scenarios.CARD_DAYS}
    thief = 14 * 6e-4 / 3 * scenarios.stolen_to_genuine(c["amount"], c["usual_amount"], 1e-9)
    found = scenarios.card_theft(c)
    assert found == pytest.approx(thief / (thief + 14 * 6e-4 * 2 / 3 + 1), rel=1e-12)
    assert found[0] < 0.001
    assert found[1] > 0.6


def test_a_large_payment_makes_the_next_one_suspect_and_small_ones_calm_it() -> None:
    usual = [(d / 2, 1, d, 50.0, False) for d in range(40)]
    now = (28.0, 1, 99, 140.0, False)
    plain = seen(history(*usual, now))["card_theft_log_odds"][-1]
    after_large = seen(history(*usual, (27.0, 1, 98, 250.0, False), now))["card_theft_log_odds"][-1]
    small = [(27.5 + i / 20, 1, 90 + i, 50.0, False) for i in range(5)]
    after_small, after_many = (seen(history(*usual, *small[:n], now))["card_theft_log_odds"][-1] for n in (1, 5))
    assert after_many < after_small < plain < after_large - 1


def test_any_scenario_is_enough_and_none_is_certain() -> None:
    half = np.array([0.5, 0, 0])
    c = {"amount": np.array([10.0, 221, 10]), "terminal_campaign": half, "card_theft": half}
    assert scenarios.any_scenario(c)[:2] == pytest.approx([np.log(3), np.log((1 - 1e-7) / 1.01e-7)], rel=1e-6)
    assert scenarios.any_scenario(c)[2] == pytest.approx(np.log(1e-9), abs=1e-6)


@cache
def synthetic(n: int) -> History:
    """183 days of 60 cards and 40 terminals."""
    rng = np.random.default_rng(0)
    day = np.sort(rng.integers(0, 183 * 86_400, n)) / 86_400
    customer, terminal = rng.integers(0, 60, n), rng.integers(0, 40, n)
    amount = np.round(rng.gamma(2, 30, n), 2)
    fraud = (rng.random(n) < 0.02) | (amount > 220)
    return history(*zip(day, customer.tolist(), terminal.tolist(), amount, fraud, strict=True))


def test_a_fraud_younger_than_a_week_changes_no_feature() -> None:
    log = synthetic(5_000)
    day = (ints(log.transactions["event_timestamp"]) - START) / DAY
    inverted = dataset.log(log.transactions.select(arrow_schema(Transaction).names), (day >= 100) ^ log.fraud)
    for features in (scenarios.features, published.features):
        before, after = (features(h, h.transactions) for h in (log, inverted))
        np.testing.assert_allclose(before[day < 107], after[day < 107], rtol=1e-9, atol=1e-9)
        assert not np.allclose(before[day > 110], after[day > 110], equal_nan=True)


def test_the_views_mean_what_the_reference_says() -> None:
    log = synthetic(300)
    surprise = pa.array(scenarios.surprise(log.chargebacks["amount"].to_numpy()))
    chargebacks = log.chargebacks.append_column("surprise", surprise)
    for view in published.VIEWS + scenarios.VIEWS:
        events = log.transactions if view.source is Transaction else chargebacks
        expected = reference.compute(view, events, log.transactions)
        np.testing.assert_allclose(offline.compute(view, events, log.transactions), expected, rtol=1e-9, atol=1e-9)


# The whole


def write(folder: Path, log: History) -> None:
    """The two files, as a user has them."""
    t = log.transactions
    table = pd.DataFrame(
        {
            "TRANSACTION_ID": range(t.num_rows),
            "TX_TIME_SECONDS": (ints(t["event_timestamp"]) - START) // SECOND,
            "CUSTOMER_ID": ints(t["customer_id"]),
            "TERMINAL_ID": ints(t["terminal_id"]),
            "TX_AMOUNT": t["amount"].to_numpy(),
            "TX_FRAUD": log.fraud.astype(int),
            "TX_FRAUD_SCENARIO": log.fraud.astype(int),
        }
    )
    table.to_csv(folder / TRANSACTIONS, index=False)
    table[[f.name for f in published.ON_DEMAND]] = published.features(log, t)
    days = table.TX_TIME_SECONDS // 86_400
    table[(days >= 115) & (days < 136)].to_csv(folder / WINDOW, index=False)


def test_a_run_reports_both_protocols_beside_the_published_numbers_as_json(tmp_path: Path) -> None:
    write(tmp_path, synthetic(25_000))
    result = run(tmp_path)
    names = ("auc_roc", "average_precision", "card_precision_at_100")
    assert set(result.metrics) == {f"protocol_{p}/{name}" for p in "ab" for name in names}
    assert all(0 <= value <= 1 for value in result.metrics.values())
    assert all(set(m) == set(names) for methods in result.published.values() for m in methods.values())
    assert result.rows == 25_000
    details = json.loads(json.dumps(result.details))
    assert details["reproduced_features_max_abs_difference"] < 1e-9
    folds = details["protocol_b_folds"]
    for name in names:
        values = [fold[name] for fold in folds]
        assert result.metrics[f"protocol_a/{name}"] == values[0]
        assert result.metrics[f"protocol_b/{name}"] == pytest.approx(np.mean(values))
        assert details["protocol_b_sd"][name] == pytest.approx(np.std(values))


# The converter


def checkout(folder: Path, protocol: int = 4) -> pd.DataFrame:
    """Two days of pickles as the handbook writes them: ids as objects, a time, all 15 features."""
    (folder / "data").mkdir(parents=True)
    rng = np.random.default_rng(0)
    n = 40
    table = pd.DataFrame({"TRANSACTION_ID": np.arange(n)})
    table["TX_DATETIME"] = pd.Timestamp("2018-07-25") + pd.to_timedelta(np.arange(n) * 3_600, unit="s")
    for name in ("CUSTOMER_ID", "TERMINAL_ID", "TX_TIME_SECONDS"):
        table[name] = rng.integers(0, 9_999, n).astype(object)
    table["TX_AMOUNT"] = rng.integers(1, 9_999, n) / 100
    table["TX_FRAUD"], table["TX_FRAUD_SCENARIO"] = 0, 0
    for feature in published.ON_DEMAND[1:]:
        table[feature.name] = rng.random(n)
    table.columns = pd.Index(table.columns.tolist(), dtype=object)
    for day, part in table.groupby(table["TX_DATETIME"].dt.strftime("%Y-%m-%d")):
        part.iloc[::-1].to_pickle(folder / f"data/{day}.pkl", protocol=protocol)
    return table


@pytest.mark.parametrize("version", [4, 5])
def test_daily_pickles_become_the_two_files(tmp_path: Path, version: int) -> None:
    table = checkout(tmp_path / "repository", version)
    texts = {name: table[list(columns)].to_csv(index=False) for name, columns in prepare.COLUMNS.items()}
    content = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in texts.items()}
    prepare.convert(tmp_path / "repository", tmp_path / "out", content)
    assert {name: gzip.decompress((tmp_path / "out" / name).read_bytes()).decode() for name in texts} == texts
    log = dataset.read(tmp_path / "out")
    assert sorted(log.transactions["amount"].to_pylist()) == sorted(table["TX_AMOUNT"].tolist())


def test_files_that_are_not_the_published_ones_are_not_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout(tmp_path / "repository")
    assert prepare.main([str(tmp_path / "repository"), str(tmp_path / "out")]) == 1
    assert "SHA-256 of its content must be" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_without_pickles_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"must hold data/2018-04-01.pkl"):
        prepare.convert(tmp_path, tmp_path / "out")


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("version", range(6))
def test_a_pickle_that_runs_code_is_refused_before_it_does(tmp_path: Path, version: int) -> None:
    checkout(tmp_path / "repository")
    path = tmp_path / "repository/data/2018-07-25.pkl"
    path.write_bytes(pickle.dumps(Malicious(tmp_path / "owned"), protocol=version))
    with pytest.raises(BadBundle, match=r"asks for posix.mkdir|asks for nt.mkdir"):
        prepare.convert(tmp_path / "repository", tmp_path / "out")
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    "name", [("pandas", "DataFrame.eval"), ("pandas", "eval"), ("builtins", "eval"), ("numpy", "load")]
)
def test_what_hangs_on_an_allowed_name_is_refused(tmp_path: Path, name: tuple[str, str]) -> None:
    module, attribute = (pickle.SHORT_BINUNICODE + bytes([len(n)]) + n.encode() for n in name)
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.PROTO + b"\x04" + module + attribute + pickle.STACK_GLOBAL + b".")
    with path.open("rb") as file, pytest.raises(BadBundle, match=r"asks for"):
        prepare.load(file)


# On the published data


@cache
def published_history() -> tuple[Path, History]:
    folder = dataset.find(Path(str(DATA_DIR)))
    return folder, dataset.read(folder)


@real_data
def test_the_platform_reproduces_the_15_published_features() -> None:
    folder, log = published_history()
    paid = ints(log.transactions["event_timestamp"])
    requests = log.transactions.filter(pa.array((paid >= START + 115 * DAY) & (paid < START + 136 * DAY)))
    assert published.difference(folder, requests, published.features(log, requests)) <= 1e-6


@real_data
def test_the_protocol_selects_the_published_numbers_of_payments() -> None:
    _, log = published_history()
    t = log.transactions
    everything = protocol.Payments(ints(t["event_timestamp"]), ints(t["customer_id"]), log.fraud)
    fold = protocol.fold(everything, protocol.TEST[0])
    assert (t.num_rows, int(log.fraud.sum())) == (1_754_155, 14_681)
    assert (len(fold.train), len(fold.test)) == (67_240, 58_264)


@real_data
def test_knowledge_of_the_scenarios_helps_on_a_validation_week() -> None:
    _, log = published_history()
    data = rooms.weeks(log, protocol.VALIDATION[:1])
    fold = protocol.fold(data.payments, protocol.VALIDATION[0])
    final, generic = (
        protocol.judge(data.payments, fold.test, score)["average_precision"]
        for score in (rooms.final(data, fold), expit(rooms.generic_trees(data, fold)))
    )
    assert final == pytest.approx(0.7706, abs=0.003)
    assert generic == pytest.approx(0.624, abs=0.02)
