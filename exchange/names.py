"""Names under which vectors and files are kept beside a model version."""

SCALE = "down/scale"  # a vector that peers fetch, see `exchange.downlink`
FACTOR = "up/factor"  # and another, of a size of its own, see `exchange.factors`
KEPT = "group/"  # begins the names of what is kept of algorithms' groups, which peers fetch: see `exchange.groups`
DELTA = "down/delta"  # the one name among them that is no vector: the step that made the version, encoded
