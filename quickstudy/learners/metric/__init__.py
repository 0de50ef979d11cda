"""Learners that compare with the support set, or solve for a head in closed form."""
