"""The log of what happened, tables cut from it, public data sets, and splits by time."""
