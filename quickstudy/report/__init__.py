"""Run folders as HTML pages: self-contained files that need no network."""
