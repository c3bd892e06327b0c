"""Attention of whole rows to themselves, for prefill and training; several responses may share one prompt."""
