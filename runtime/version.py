"""This package's version: the one place that says it. pyproject.toml reads it from here, as does each record."""

VERSION = "0.1.0"
