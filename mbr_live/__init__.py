"""mbr-live: behaviour labels for a mouse, live from a camera and the same from a file."""

__version__ = "0.1.0"
