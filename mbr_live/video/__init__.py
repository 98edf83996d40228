"""Recorded frames: read, written in segments, cut into clips."""
