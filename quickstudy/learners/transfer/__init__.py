"""Pretraining on all classes, and a simple head: the bar for meta-learning."""
