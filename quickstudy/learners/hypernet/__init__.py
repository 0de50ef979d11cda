"""Learners whose networks make the parameters or the answers of a task."""
