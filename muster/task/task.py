"""What a user writes: a `Task`, and what it is given: a `Site`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol

from muster.runtime.secret_random import SecretRandom

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.utils.data import Dataset

    from muster.model.layout import ParameterLayout


@dataclass(frozen=True, kw_only=True)
class Site:
    """Where the task runs.

    `data` comes from this machine's own policy file and never leaves it; `options` come from the run spec's
    `[task_options]` and are the same everywhere. `seed` is for partitioning and augmentation (the run's, not the
    round's).
    """

    name: str
    data: Mapping[str, Any] = field(default_factory=dict[str, Any])
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int = 0
    coordinator: bool = False  # True where the coordinator makes the initial model or evaluates its hold-out


class ChunkContexts(Protocol):
    """What both ends know of each chunk of an update; `exchange.contexts` makes them."""

    @property
    def layout(self) -> ParameterLayout: ...

    def at(self, index: int) -> Any:
        """The `compressors.ChunkContext` of chunk `index`."""
        ...


@dataclass(frozen=True, kw_only=True)
class FitContext:
    """What a training loop of the user's own is given (see `Task.fit`)."""

    site: Site
    device: torch.device
    seed: int  # for this run, round and peer
    train: Mapping[str, Any]  # the `[train]` table of the run spec
    progress: Callable[[float], None]  # call with the share done, 0 to 1
    codec: str = "identity"  # that will encode what training changed
    places: ChunkContexts | None = (
        None  # where the chunks of that lie: randomness that the coordinator derives too
    )
    # Noise for privacy: unlike `seed`, nobody can derive it, and each attempt draws anew.
    secret: SecretRandom = field(default_factory=SecretRandom)
    trial: bool = False  # True in the trial before the first round, see `Task.fit`


@dataclass(frozen=True, kw_only=True)
class FitReport:
    """What a training loop of the user's own gives back; the model was changed in place."""

    examples: int
    steps: int
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])


class Task(ABC):
    """One learning problem. Made once in each worker process with no arguments, then asked as needed.

    A worker keeps one `model()` between rounds and fills it from the round's base version, so whatever a module keeps
    outside its `state_dict` outlives a round. A peer evaluates a copy: what evaluation leaves there is gone.
    Map-style data are loaded once for a run, before its first round, and kept.
    What evaluation makes in inference mode and keeps in globals, class attributes or closures is not found, and no
    training can use it.
    What the task sets for all of torch (`set_default_dtype`, `set_default_device`) holds for its own code.

    `options` is the run spec's `[task_options]`, set before anything else is asked (also found as `site.options`).

    A peer needs `model`, `train_data` and, unless `loss` suits, nothing else. The coordinator needs `model` for the
    initial version and, if it is to score rounds on its own hold-out, `test_data` or `evaluate`.
    """

    options: Mapping[str, Any] = MappingProxyType({})

    buffers: Mapping[str, str] = MappingProxyType({})
    """How what is not trained moves from round to round: names in `state_dict()`, or patterns of them such as
    "*.amax", to one of

        "mean"  as the parameters do, by the plain aggregate: floating buffers, unless something else is said
        "max"   the greatest of the updates' values, "min" the least: integers, "max" unless something else is said;
                floating buffers
        "any"   flags: set where an update has set them, unless something else is said ("min": where all have)
        "trimmed-max", "trimmed-min", "trimmed-any"
                the same without the f greatest (or least) values, f being the round's
        "keep"  the first value in every round: parameters that require no gradient, unless something else is said
        "local" each peer's own, which it keeps from round to round and never sends

    "max", "min" and "any" believe each update: a mask of classes that one site alone has seen survives, and one
    liar can set a flag, or a counter to the greatest number of its dtype. Trimmed, f liars can do neither, and what
    no more than f sites have seen is lost. Say so where a number decides something ("*.num_batches_tracked" does with
    BatchNorm's momentum=None).
    """

    @abstractmethod
    def model(self) -> nn.Module:
        """A new model. Its initial values come from the global generators (torch, numpy, `random`), which are seeded by
        the run before the call. Peers draw it too, and fetch it only if theirs comes out otherwise."""

    @abstractmethod
    def train_data(self, site: Site) -> Dataset[Any]:
        """This site's own examples: a map-style dataset of (input, target)."""

    def test_data(self, site: Site) -> Dataset[Any] | None:
        """Examples to evaluate on, or None if this site has none."""
        return None

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        """Mean loss of a batch, a scalar. The default: cross entropy of `model(inputs)` against `targets`."""
        from torch.nn import functional

        inputs, targets = batch
        return functional.cross_entropy(model(inputs), targets)

    def evaluate(self, model: nn.Module, site: Site) -> dict[str, float]:
        """Metrics of a model on this site; empty if it has nothing to evaluate on.

        A metric is one number, of Python, NumPy or PyTorch, and may be NaN; at most 100 are kept, with names of at most
        100 characters. Whatever else is among them is left out, and the run is warned of it by name. "examples" is how
        many the metrics are of, and their weight in the mean over peers; a peer that leaves it out counts like the
        median of those that do not.

        The default: loss and accuracy over `test_data`, with `examples` the number of them.
        """
        from muster.task.evaluation import evaluate_classifier

        data = self.test_data(site)
        return {} if data is None else evaluate_classifier(self, model, data)

    def fit(self, model: nn.Module, context: FitContext) -> FitReport | None:
        """A training loop of the user's own; None (the default) leaves it to the run's algorithm.

        It is tried before the first round, on copies of task and module: `train_data` and `test_data` give one batch
        then, and `context.train` says one pass or step. What a loop writes to files or keeps in globals it should leave
        while `context.trial` is set.
        """
        return None
