"""The fraud system with a bank so little that a whole run takes seconds: for what does not hang on how good it is."""

from dataclasses import replace

from common.system import AnySystem, Presets
from systems.fraud.config import SMALL
from systems.fraud.system import build

# Much fraud among few cards, and few trees
TINY = replace(
    SMALL, cards=250, history_days=66, validation_days=10, test_days=10, stolen=2e-3, takeover=4e-3, trees=60
)


def little() -> AnySystem:
    """What it learns is promoted, whatever it is worth, unless it knows what it cannot."""
    system = build(replace(TINY, history_days=100))  # tuning learns from the first weeks alone
    return replace(system, gates=tuple(gate for gate in system.gates if gate.needs_ceiling))


SYSTEM = Presets(small=little, full=little, simulated=little)
