"""Cut any model into blocks: the model runs its own forward pass, and blocks end inside it."""
