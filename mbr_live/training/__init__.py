"""From a dataset to a bundle. The only package with torch beside its engine."""
