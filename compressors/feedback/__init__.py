"""Feedbacks: what becomes of what a codec leaves behind."""
