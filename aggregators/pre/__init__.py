"""Pre-rules: what is made of the updates before the rule sees them."""
