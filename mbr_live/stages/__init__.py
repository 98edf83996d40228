"""The stages between a frame and a label: pure functions with explicit state."""
