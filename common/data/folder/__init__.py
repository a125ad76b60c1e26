"""A user's own data: a folder of CSV or Parquet files in the layout that a system declares."""

from common.data.folder.events import Appended, append
from common.data.folder.layout import Layout, UserTable
from common.data.folder.reading import Part, read

__all__ = ["Appended", "Layout", "Part", "UserTable", "append", "read"]
