"""Hypothesis without a clock, because a shared machine may be slow at any moment; in CI with fixed examples, elsewhere with new ones each run."""

import os

from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("steady")
