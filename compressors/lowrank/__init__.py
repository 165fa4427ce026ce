"""Codecs that keep a matrix as factors of low rank."""
