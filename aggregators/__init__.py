"""Aggregation rules, pre-rules and attacks: pure functions on tensors.

    result = aggregate(updates, "trimmed-mean", pre=("arc", "nnm"), faults=2)     # updates [n, d]

or, chunk by chunk, as a coordinator does it, which holds n x chunk and no more:

    pipeline = build("trimmed-mean", pre=("arc", "nnm"), faults=2)
    refusal = pipeline.refuse(n)                  # a sentence if n updates are too few for f
    survey = Survey(pipeline, n, size)
    if survey.needed:
        for start, X in chunks: survey.add(start, X)   # X [n, c]
    plan = survey.plan()                          # decided: scores, weights, treatment and reason
    for X, out in chunks: plan.reduce(X, out)     # the second pass

Updates are deltas from the model that the round began with, never the weights themselves, whose common part
would take the digits of every distance. They have been admitted before, so NaN and infinities are not
expected; what a rule does with them is told in `Pipeline.plan` and in the rules.
"""

from aggregators.core.aggregate import Aggregate, aggregate
from aggregators.core.describe import Description, describe, everything
from aggregators.core.gram import Gram
from aggregators.core.options import RuleError
from aggregators.core.pipeline import Pipeline, build
from aggregators.core.plan import Plan
from aggregators.core.sources import MatrixSource, RowsSource, Source
from aggregators.core.survey import Survey

__all__ = [
    "Aggregate",
    "Description",
    "Gram",
    "MatrixSource",
    "Pipeline",
    "Plan",
    "RowsSource",
    "RuleError",
    "Source",
    "Survey",
    "aggregate",
    "build",
    "describe",
    "everything",
]
