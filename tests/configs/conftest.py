"""Reads mmdetection's and mmsegmentation's configs quickly."""

from quick_configs import quick_configs  # noqa: F401
