"""A user's own data: a folder of CSV or Parquet files in the layout that a system declares."""

from common.data.folder.contract import Fault
from common.data.folder.events import Appended, append
from common.data.folder.layout import Derived, Layout, Shaped, UserTable
from common.data.folder.reading import Part, read

__all__ = ["Appended", "Derived", "Fault", "Layout", "Part", "Shaped", "UserTable", "append", "read"]
