"""Modules a user runs; the only code that reads a config."""
