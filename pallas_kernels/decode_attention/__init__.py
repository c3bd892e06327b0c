"""Attention of one new token per row to the live slots of the row's cache."""
