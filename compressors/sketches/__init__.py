"""Codecs that send coefficients of random directions, which both ends derive."""
