"""Labels against the truth: figures, comparisons and the report."""
