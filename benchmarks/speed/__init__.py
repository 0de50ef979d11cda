"""The time and memory of one meta-gradient, beside other libraries and plain training: `python -m benchmarks.speed`."""
