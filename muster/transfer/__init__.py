"""Files over calls, in chunks that are checked and can be resumed."""
