"""Attention of one query per row over a rewindable cache."""
