"""The version of the package: its metadata, its files and its pages read it here."""

__version__ = "0.1.0"
