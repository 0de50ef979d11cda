"""Which layers and functions of torch every engine differentiates rightly."""
