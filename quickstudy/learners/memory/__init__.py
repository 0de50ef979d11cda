"""Learners that read the support set as a sequence."""
