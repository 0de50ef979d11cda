"""The sections of a page: one file each, with the sentences that say what it shows."""
