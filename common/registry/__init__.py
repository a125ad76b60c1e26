"""Versions of models: on disk, by name, and what one must clear to be promoted."""
