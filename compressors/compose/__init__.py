"""Codecs made of codecs: one after the other, or one for each layer."""
