"""Are the intervals of neural processes right on unseen tasks? `python -m benchmarks.neural_processes`."""
