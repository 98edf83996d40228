"""Live pictures: connections that come back, their clocks, their health, what belongs to one camera."""
