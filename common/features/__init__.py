"""The feature store: definitions as data, one specification, and two kernels that agree with it."""
