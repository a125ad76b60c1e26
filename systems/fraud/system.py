"""The wiring of the rooms, and nothing else."""

from functools import partial

from common.clock import DAY
from common.system import Outcome as Label
from common.system import Presets, System
from systems.fraud import evaluation, model, serving
from systems.fraud.benchmark import benchmark
from systems.fraud.config import DRIFTS, FULL, SIMULATED, SMALL, Config
from systems.fraud.data import EXAMPLES, LAYOUT, Decision, Outcome, Payment, world
from systems.fraud.features import ON_DEMAND, VIEWS
from systems.fraud.model import Scored
from systems.fraud.monitoring import MONITORS


def build(config: Config) -> System[Payment, Scored, Decision]:
    return System(
        name="fraud",
        summary="stop card payments that would be charged back",
        request=Payment,
        answer=Decision,
        events=(Payment, Outcome),
        views=VIEWS,
        on_demand=ON_DEMAND,
        world=partial(world, config),
        drifts=DRIFTS,
        history=(config.start, config.start + config.history_days * DAY),
        validation_span=config.validation_days * DAY,
        test_span=config.test_days * DAY,
        retrain_span=config.retrain_days * DAY,
        outcome=Label(
            source=Outcome,
            request="payment_id",
            value="fraud",
            silence=0.0,
            is_even=lambda outcome: outcome.source == "inspection",
        ),  # fmt: skip
        hides=serving.hides,
        label_delay=config.label_delay,
        early_delay=config.early_delay,
        space=model.space,
        params=model.start(config),
        objective="average_precision",
        fit=partial(model.fit, config),
        load=partial(model.load, config),
        score=lambda scored: scored.probability,
        decide=partial(serving.decide, config),
        degraded=(partial(serving.rule, config),),
        unit_of_loss="EUR",
        losses=partial(serving.losses, config),
        regret=partial(serving.regret, config),
        unit=lambda payment: payment.card_id,
        redact=serving.redact,
        evaluate=partial(evaluation.evaluate, config),
        gates=evaluation.gates(config),
        retrain_gates=evaluation.retrain_gates(config),
        monitors=MONITORS,
        routes=(),
        examples=EXAMPLES,
        layout=LAYOUT,
        benchmark=benchmark,
    )


SYSTEM = Presets(
    small=lambda: build(SMALL), full=lambda: build(FULL), simulated=lambda: build(SIMULATED)
)  # fmt: skip
