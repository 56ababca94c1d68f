"""The one place of the version: pyproject.toml, the command and what is written read it here."""

__version__ = "0.2.0"
