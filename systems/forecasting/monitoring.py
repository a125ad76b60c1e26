"""What to watch, and where to look first. All of it is free of how much is sold, which the season changes."""

from common.system import Monitor

MONITORS = (
    Monitor(name="score", column="score", look_at="wider intervals: the segments whose noise grew; then the blend"),
    Monitor(name="momentum", column="momentum", look_at="stores and categories that rose or fell; then their plans"),
    Monitor(name="tracking_signal", column="tracking_signal", look_at="series that err to one side; structural breaks"),
    Monitor(name="days_late", column="days_late", look_at="the feed of actuals: which stores have not reported"),
    Monitor(name="price_ratio", column="price_ratio", look_at="price lists: units, currency; then real changes"),
    Monitor(name="noise", column="noise", look_at="series that became erratic; duplicate or partial reports"),
    Monitor(name="sold_out", column="shelf.mean_sold_out_28d", look_at="orders that did not come; then forecasts"),
)
