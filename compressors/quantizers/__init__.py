"""Codecs that keep every value with fewer bits."""
