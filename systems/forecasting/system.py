"""The wiring of the rooms, and nothing else."""

from functools import partial

from common.clock import DAY
from common.system import ManyRows, Outcome, Presets, Surprising, System
from systems.forecasting import evaluation, model, serving
from systems.forecasting.benchmark import benchmark
from systems.forecasting.config import DRIFTS, FULL, SIMULATED, SMALL, Config
from systems.forecasting.data import EXAMPLES, LAYOUT, Actual, Order, Review, world
from systems.forecasting.features import ON_DEMAND, VIEWS
from systems.forecasting.model import Library, Plain, Predicted
from systems.forecasting.monitoring import MONITORS


def build(config: Config) -> System[Review, Predicted, Order]:
    library = Library(config)
    return System(
        name="forecasting",
        summary="forecast what will be sold, and order what is needed",
        request=Review,
        answer=Order,
        events=(Review, Actual),
        views=VIEWS,
        on_demand=ON_DEMAND,
        world=partial(world, config),
        drifts=DRIFTS,
        history=(config.start, config.start + config.history_days * DAY),
        validation_span=config.validation_days * DAY,
        test_span=config.test_days * DAY,
        retrain_span=config.retrain_days * DAY,
        outcome=Outcome(source=Actual, request=None, value="units", silence=None, is_even=lambda actual: False),
        hides=serving.hides,
        label_delay=config.label_delay,
        early_delay=config.early_delay,
        space=model.space,
        params=model.start(config),
        objective="skill",
        fit=library.fit,
        load=partial(model.load, config),
        score=lambda predicted: predicted.outside,
        decide=partial(serving.decide, config),
        degraded=(serving.rule,),
        unit_of_loss="EUR",
        losses=serving.losses,
        regret=serving.regret,
        unit=lambda review: f"{review.store_id}/{review.product_id}",
        redact=lambda review: review,
        evaluate=partial(evaluation.evaluate, config),
        gates=evaluation.gates(config),
        retrain_gates=evaluation.retrain_gates(config),
        monitors=MONITORS,
        routes=serving.ROUTES,
        examples=EXAMPLES,
        many=ManyRows(
            key="day",
            seen="known",
            replay=library.replay,
            kept=lambda predicted: range(predicted.protected),
            joined=("store_id", "product_id", "day"),
            watched=serving.watched,
            fan=lambda order: order.forecast,
        ),
        before=partial(Plain, config),
        hears=Actual,
        surprise=Surprising(below=(0.5, 1.0), dispersion=1.0),
        at_once=100,
        layout=LAYOUT,
        benchmark=benchmark,
    )


SYSTEM = Presets(
    small=lambda: build(SMALL), full=lambda: build(FULL), simulated=lambda: build(SIMULATED)
)  # fmt: skip
