"""What the reliability campaign (`tools/chaos.py`) does to a system, and how it counts what is left."""
