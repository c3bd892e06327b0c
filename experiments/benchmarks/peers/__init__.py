"""Scripts that run in a peer's own environment and time it on weights and shapes handed to them."""
