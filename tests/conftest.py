"""Hypothesis without a clock: a shared machine may be slow at any moment, and a failure should repeat."""

from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")
