"""What people marked, from whatever file."""
