"""The log in PostgreSQL: what is committed there is durable, and nobody sees it before."""

import re
from collections.abc import Iterator, Sequence

from common.data.database import Found, Postgres, Values
from common.data.log.rows import CHECKED, COPIED, END, NEWEST, TABLES, checked


class PostgresStorage(Postgres):
    """Two tables in the search_path of the url, named after the log."""

    def __init__(self, url: str, name: str) -> None:
        self._prefix = name
        self.notes: list[str] = []
        super().__init__(url, f"{name}_log", TABLES)

    def execute(self, statement: str, values: Values = ()) -> Found:
        return super().execute(self._named(statement), values)

    def executemany(self, statement: str, rows: Sequence[Values]) -> None:
        super().executemany(self._named(statement), rows)

    def stream(self, statement: str, values: Values, size: int) -> Iterator[Found]:
        return super().stream(self._named(statement), values, size)

    def was_replaced(self) -> bool:
        return False  # a connection finds its tables by their names

    def settle(self, position: int, created: int) -> None:
        """A commit that returned is durable: the server waited for its disk."""

    def head(self) -> tuple[int, int]:
        position, created = (self.execute(NEWEST) or [(0, 0)])[0]
        return position, created

    def check(self) -> None:
        """Read all of it; raises Damaged at the first event that is not what was acknowledged."""
        for _ in checked(self.stream(COPIED, (END,), CHECKED), f"log {self._prefix}"):
            pass

    def _named(self, statement: str) -> str:
        return re.sub(r"\b(header|payload)\b", rf'"{self._prefix}_\1"', statement)
