"""What all rules share: the pipeline, plans, the survey of the updates, options."""
