"""Log-prob, entropy and log-sum-exp of a token straight from hidden states and the unembedding."""
