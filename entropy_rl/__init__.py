"""entropy_rl: reinforcement learning of reasoning language models, steered by the policy's own entropy."""

__version__ = "0.1.0"
