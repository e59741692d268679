"""The benchmarks by the names of `--bench`; each file holds those of one kind."""
