"""The four methods, one file each, as pure functions of arrays; ``entropy_rl.objectives`` makes recipes of them."""
