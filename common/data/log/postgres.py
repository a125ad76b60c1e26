"""The log in PostgreSQL: what is committed there is durable, and nobody sees it before."""

import re
import threading
from collections.abc import Iterator, Sequence

from common.data.database import Found, Postgres, Values
from common.data.log.rows import CHECKED, COPIED, END, NEWEST, TABLES, checked


class PostgresStorage(Postgres):
    """Two tables in the search_path of the url, named after the log."""

    def __init__(self, url: str, name: str) -> None:
        self._prefix = name
        self.notes: list[str] = []
        self._reader: Postgres | None = None
        self._looking = threading.Lock()
        super().__init__(url, f"{name}_log", TABLES)

    def execute(self, statement: str, values: Values = ()) -> Found:
        return super().execute(self._named(statement), values)

    def executemany(self, statement: str, rows: Sequence[Values]) -> None:
        super().executemany(self._named(statement), rows)

    def look(self, statement: str, values: Values) -> Found:
        """As `execute`, over a connection that no writer waits for, made when it is first needed."""
        with self._looking:
            if self._reader is None:
                self._reader = Postgres(self._url, f"{self._prefix}_reader", "")
        return self._reader.execute(self._named(statement), values)

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

    def close(self) -> None:
        super().close()
        if self._reader is not None:
            self._reader.close()

    def _named(self, statement: str) -> str:
        return re.sub(r"\b(header|payload)\b", rf'"{self._prefix}_\1"', statement)
