"""The live system: capture, inference, their supervisor, and what must be so before they start."""
