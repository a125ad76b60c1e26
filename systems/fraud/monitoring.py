"""What to watch, and where to look first. Labels come weeks late, so inputs and scores speak before quality can."""

from common.system import Monitor

MONITORS = (
    Monitor(name="score", column="score", look_at="canary and champion side by side; then the features that moved"),
    Monitor(
        name="amount", column="log_amount", look_at="a merchant with a wrong currency or unit; then small test payments"
    ),
    Monitor(name="amount_to_card", column="amount_to_card", look_at="blocks and reviews by reason UNUSUAL_AMOUNT"),
    Monitor(name="new_devices", column="card_device.count_90d", look_at="the device service; then account take-over"),
    Monitor(name="pace", column="pace", look_at="retries of a broken terminal; then drained cards"),
    Monitor(name="distance", column="km_from_usual", look_at="the location service; then cloned cards"),
    Monitor(name="hour", column="hour", look_at="client clocks and time zones"),
)
