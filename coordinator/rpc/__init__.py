"""The coordinator's calls: from a message to what answers it, and back."""
