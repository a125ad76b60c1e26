"""How products are found and ordered: by words, by vectors, both fused, and ranked by what shoppers clicked."""

from systems.search.model.clicks import swap
from systems.search.model.ranker import space, start
from systems.search.model.searcher import Found, Library, Plain, Searcher, load

__all__ = ["Found", "Library", "Plain", "Searcher", "load", "space", "start", "swap"]
