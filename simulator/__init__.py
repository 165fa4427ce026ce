"""Muster without machines: tools for users' own tests."""

from muster.runtime.installation import check_together

# A user's own program and its folder come first on sys.path.
check_together(("aggregators", "compressors", "coordinator", "exchange", "methods", "peer", "protos"))
