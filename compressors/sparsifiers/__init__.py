"""Codecs that keep few of the values."""
