"""Recordings on disk labelled by the pipeline of the live system."""
