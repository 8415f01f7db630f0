"""Timing engines against each other: one process for each, one awake at a time."""
