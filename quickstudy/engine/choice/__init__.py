"""Which engine runs: what is raced, what is foretold, and what is chosen."""
