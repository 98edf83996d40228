"""The dataset file: recordings, their truth and split, and all that a training may be told."""
