"""Behavioural fakes of the vendors' APIs, over real HTTP; `kit.py` is what they share."""
