"""Hypothesis without a clock, because a shared machine may be slow at any moment, and with the same examples in every run.

`pytest --hypothesis-profile=new` looks for new ones: one that fails is then found by whoever looks, and not by an unrelated change.
"""

from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True)
settings.register_profile("new", deadline=None)
settings.load_profile("steady")
