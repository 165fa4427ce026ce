"""What all codecs share: the interface, the registry, entropy coding."""
