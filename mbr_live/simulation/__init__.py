"""A simulated camera over an arena, with the truth of every frame."""
