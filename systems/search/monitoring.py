"""What to watch, and where to look first. What shoppers say changes before what they click."""

from common.system import Monitor

MONITORS = (
    Monitor(name="score", column="score", look_at="canary and champion side by side; then the features that moved"),
    Monitor(
        name="unknown_words", column="unknown_words", look_at="the most frequent words that no product has; new things"
    ),
    Monitor(name="best_lexical", column="best_lexical", look_at="products that lost their texts; then new words"),
    Monitor(name="best_dense", column="best_dense", look_at="the encoder; then things that the shop does not sell"),
    Monitor(name="results", column="results", look_at="the feed of products: sold out, or gone; then filters"),
    Monitor(name="corrected", column="is_corrected", look_at="the spelling of brands that have just been listed"),
    Monitor(name="query_words", column="query_words", look_at="clients that cut or join texts; then bots"),
)
