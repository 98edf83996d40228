"""Logs in a database."""
