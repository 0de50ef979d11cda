"""Published results on real data, trained and tested again: `python -m benchmarks.reproduce`."""
