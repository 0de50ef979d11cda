"""How each kind of input is read: one file for each, and the table of all."""
