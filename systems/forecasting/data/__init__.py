"""A chain of stores, simulated so that nothing needs downloading; the world knows the distribution of demand."""
