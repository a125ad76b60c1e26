"""Systems that are like the real ones, and so little that whole runs of them are cheap."""
