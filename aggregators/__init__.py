"""Aggregation rules, pre-rules and attacks: pure functions on tensors.

    pipeline = build("trimmed-mean", pre=("arc", "nnm"), faults=2)
    refusal = pipeline.refuse(n)                  # a sentence if n updates are too few for f
    gram = Gram(n)                                # only if pipeline.needs_gram
    for X in chunks: gram.add(X)                  # X [n, c]
    plan = pipeline.plan(n, gram.matrix)          # decided: scores, weights, treatment and reason
    for X, out in chunks: plan.reduce(X, out)     # the second pass

Updates are deltas from the model that the round began with, never the weights themselves, whose common part
would take the digits of every distance. They have been admitted before, so NaN and infinities are not
expected; what a rule does with them is told in `Pipeline.plan` and in the rules.
"""

from aggregators.gram import Gram
from aggregators.options import RuleError
from aggregators.pipeline import Pipeline, build
from aggregators.plan import Plan

__all__ = ["Gram", "Pipeline", "Plan", "RuleError", "build"]
