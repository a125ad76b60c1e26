"""The wiring of the rooms, and nothing else."""

from functools import partial

from common.clock import DAY
from common.system import ManyRows, Outcome, Presets, System
from systems.search import evaluation, model, serving
from systems.search.benchmark import benchmark
from systems.search.config import DRIFTS, FULL, SIMULATED, SMALL, Config
from systems.search.data import EXAMPLES, LAYOUT, Feedback, Product, Query, Results, redacted, world
from systems.search.features import ON_DEMAND, VIEWS
from systems.search.model import Found, Library, Plain
from systems.search.monitoring import MONITORS


def build(config: Config) -> System[Query, Found, Results]:
    library = Library(config)
    return System(
        name="search",
        summary="find the products that a shopper means",
        request=Query,
        answer=Results,
        events=(Query, Product, Feedback),
        views=VIEWS,
        on_demand=ON_DEMAND,
        world=partial(world, config),
        drifts=DRIFTS,
        history=(config.start, config.start + config.history_days * DAY),
        validation_span=config.validation_days * DAY,
        test_span=config.test_days * DAY,
        retrain_span=config.retrain_days * DAY,
        outcome=Outcome(source=Feedback, request="query_id", value=None, silence=0.0, is_even=lambda told: False),
        hides=serving.hides,
        label_delay=config.label_delay,
        early_delay=config.label_delay,
        space=model.space,
        params=model.start(config),
        objective="ndcg_at_10",
        fit=library.fit,
        load=partial(model.load, config),
        score=lambda found: found.satisfaction,
        decide=partial(serving.decide, config),
        degraded=(serving.rule,),
        unit_of_loss="nDCG@10",
        losses=serving.losses,
        regret=serving.regret,
        unit=lambda query: query.shopper_id,
        redact=redacted,
        evaluate=partial(evaluation.evaluate, config),
        gates=evaluation.gates(config),
        retrain_gates=evaluation.retrain_gates(config),
        monitors=MONITORS,
        routes=serving.ROUTES,
        examples=EXAMPLES,
        many=ManyRows(key="product_id", seen="shown", replay=library.replay, kept=lambda found: found.order),
        before=partial(Plain, config),
        hears=Product,
        at_once=50,
        layout=LAYOUT,
        benchmark=benchmark,
    )


SYSTEM = Presets(
    small=lambda: build(SMALL), full=lambda: build(FULL), simulated=lambda: build(SIMULATED)
)  # fmt: skip
