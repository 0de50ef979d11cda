"""Meta-gradients recorded once, simplified, and replayed for all tasks together."""
