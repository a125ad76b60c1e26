"""The systems, one package each; `systems.<name>.system.SYSTEM` wires its rooms."""
