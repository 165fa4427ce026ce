"""What a plug-in is, for every kind of them: found by name, made of its options, asked what it requires.

The lowest floor: rules and codecs use it as the run spec and the services do, and it imports nothing of Muster.

    registry.find("muster.samplers", "uniform")     the class that an entry point names
    options.make(found, "uniform", {"count": 3})    the plug-in, its options checked
    options.schema(found)                           JSON Schema of its options
    spelling.spelled_names("topk:0.01+int8")                the plug-ins that one string names
    requirements.Requirement                        what a plug-in demands of the rest of a run spec
"""

from methods.kinds import KINDS, Kind
from methods.options import Option, make, options_of, schema
from methods.registry import BrokenMethodError, MethodError, UnknownMethodError, canonical, find, names
from methods.requirements import Requirement, Requires, SpecValues, demand, requirements, value_at

__all__ = [
    "KINDS",
    "BrokenMethodError",
    "Kind",
    "MethodError",
    "Option",
    "Requirement",
    "Requires",
    "SpecValues",
    "UnknownMethodError",
    "canonical",
    "demand",
    "find",
    "make",
    "names",
    "options_of",
    "requirements",
    "schema",
    "value_at",
]
