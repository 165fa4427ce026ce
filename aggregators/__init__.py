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

What a plug-in is written against: `Rule` (registered in "muster.rules" or "muster.peer_rules"), `PreRule`
("muster.pre_rules") and `Attack` ("muster.attacks"): frozen keyword-only dataclasses whose fields are their options.
"""

from aggregators.attacks.attack import Attack, Forgery
from aggregators.core.aggregate import Aggregate, aggregate
from aggregators.core.describe import Description, describe, everything
from aggregators.core.gram import Gram
from aggregators.core.options import RuleError, check_integer, check_number
from aggregators.core.pipeline import Pipeline, build
from aggregators.core.plan import Plan
from aggregators.core.rule import ColumnReducer, Geometry, Mix, Needs, PreMix, PreRule, Rule, Sampling
from aggregators.core.sources import MatrixSource, RowsSource, Source
from aggregators.core.survey import Survey

__all__ = [
    "Aggregate",
    "Attack",
    "ColumnReducer",
    "Description",
    "Forgery",
    "Geometry",
    "Gram",
    "MatrixSource",
    "Mix",
    "Needs",
    "Pipeline",
    "Plan",
    "PreMix",
    "PreRule",
    "RowsSource",
    "Rule",
    "RuleError",
    "Sampling",
    "Source",
    "Survey",
    "aggregate",
    "build",
    "check_integer",
    "check_number",
    "describe",
    "everything",
]
