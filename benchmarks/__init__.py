"""Speed, measured: `make bench`. Figures beside the plain way of doing the same work, in the same run."""
