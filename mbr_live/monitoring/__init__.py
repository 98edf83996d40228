"""What people and their alarms see of a running system."""
