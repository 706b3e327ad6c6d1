"""What is learned: how a slot of text becomes a batch, and a batch a loss. One file an objective."""
