"""What the pipeline says, in files."""
