"""`muster task check`: does here once what a site does with a task, and reports each step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar, cast

from muster.spec.model import RunSpec

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

    from muster.model.modelfile import ModelFile
    from muster.task.task import FitContext, Site, Task

T = TypeVar("T")


@dataclass(kw_only=True)
class Seen:
    """What was seen so far; `seconds` by step, in their order."""

    task: str
    facts: dict[str, Any] = field(default_factory=dict[str, Any])
    warnings: list[str] = field(default_factory=list[str])
    seconds: dict[str, float] = field(default_factory=dict[str, float])

    def to_json(self) -> dict[str, Any]:
        rounded = {name: round(value, 3) for name, value in self.seconds.items()}
        return {"task": self.task, **self.facts, "warnings": self.warnings, "seconds": rounded}


@dataclass(kw_only=True)
class _Check:
    spec: RunSpec
    site: Site
    seen: Seen
    on_step: Callable[[str], None]

    def step(self, name: str, work: Callable[[], T]) -> T:
        self.on_step(name)
        began = time.monotonic()
        try:
            return work()
        finally:
            self.seen.seconds[name] = time.monotonic() - began

    def model(self, task: Task, path: Path) -> nn.Module:
        """Drawn, and written to `path` as the version that training begins with."""
        from muster.model.initial import draw, write_drawn
        from muster.model.modelfile import check_takes
        from muster.seeds import initial_seed

        model: nn.Module = self.step(
            "model", lambda: trial().run("model", lambda: draw(task, initial_seed(self.spec.seed)))
        )
        check_takes(model)
        write_drawn(task, model, path, self.spec.exchange)
        parameters = list(model.parameters())
        trained = sum(each.numel() for each in parameters if each.requires_grad)
        self.seen.facts["parameters_trained"] = trained
        self.seen.facts["parameters_frozen"] = sum(each.numel() for each in parameters) - trained
        return model

    def data(self, task: Task) -> Dataset[Any]:
        from muster.model.initial import seed_generators
        from muster.seeds import derive_seed

        seed_generators(derive_seed(self.spec.seed, "data", self.site.name))
        return self.step(
            "train_data", lambda: trial().loaded("train_data", lambda: task.train_data(self.site))
        )

    def train(self, task: Task, model: nn.Module) -> None:
        """One step of the run's own algorithm where it takes steps by gradients; else the loss alone."""
        from muster.model.initial import seed_generators
        from muster.model.modelfile import layout_of
        from peer.training.batches import size_of
        from peer.training.contributing import RunAlgorithm

        train, facts = self.spec.train, self.seen.facts
        data = self.data(task)
        facts["examples"] = size_of(data)
        batch = self.step(
            "batch", lambda: trial().first_batch(data, min(facts["examples"], train.batch_size))
        )
        facts["batch"] = trial().form(batch)
        seed_generators(self.spec.seed)
        facts["loss_before"] = self.step(
            "forward and backward", lambda: trial().try_loss(task, model, batch, algorithm=train.algorithm)
        )
        if train.algorithm != "sgd":
            return
        algorithm = RunAlgorithm(name=train.algorithm, options=train.options, received={}, state={})
        layout = layout_of(model, task.buffers, self.spec.exchange)
        context = algorithm.context(self._context(), layout)
        self.step(
            "one step",
            lambda: trial().run("the step", lambda: algorithm.build().fit(task, model, data, context)),
        )
        seed_generators(self.spec.seed)
        after = facts["loss_after"] = trial().try_loss(task, model, batch, finite=False)
        if not math.isfinite(after):
            self.seen.warnings.append(
                f"the loss is {after} after one step; train.lr is {train.lr:g}: try less"
            )

    def fit(self, task: Task, model: nn.Module, base: ModelFile) -> bool:
        """The task's own loop, on one batch; whether it leaves training to the run's algorithm."""
        from muster.errors import TaskError
        from muster.model.modelfile import check_unchanged
        from muster.task.fittrial import try_fit

        data: Dataset[Any] | None = None
        try:
            data = self.data(task)
        except TaskError as error:  # its own loop may never ask for them
            self.seen.warnings.append(error.message)
        context = replace(self._context(), train=self.spec.train.model_dump(mode="json"))
        tried = self.step(
            "fit on one batch",
            lambda: try_fit(
                task,
                model,
                data,
                context,
                who=f"{self.spec.task}.fit",
                check=lambda trained: check_unchanged(trained, base),
            ),
        )
        if not tried.ended:
            self.seen.warnings.append(f"fit was not tried to its end: {tried.told}")
        elif tried.report is not None:
            self.seen.facts |= {"examples": tried.report.examples, "steps": tried.report.steps}
        if trial().has_examples(data):
            self.seen.facts["examples"] = len(cast(Any, data))
        return tried.ended and tried.report is None

    def learn(self, task: Task, model: nn.Module, base: ModelFile) -> None:
        from muster.task.fittrial import has_own_fit

        if has_own_fit(task) and not self.fit(task, model, base):
            return
        algorithm = self.spec.train.algorithm
        if trial().asks_loss(algorithm):
            self.train(task, model)
        else:
            told = f"nothing was trained: {algorithm} is not tried out here"
            self.seen.warnings.append(told)

    def evaluate(self, task: Task, model: nn.Module) -> None:
        import torch

        from muster.task.metrics import measured, plain

        data: Any = self.step(
            "test_data", lambda: trial().loaded("test_data", lambda: task.test_data(self.site))
        )
        self.seen.facts["test_examples"] = len(data) if trial().has_examples(data) else None
        model.eval()
        with torch.no_grad():
            found = self.step(
                "evaluate", lambda: trial().run("evaluate", lambda: task.evaluate(model, self.site))
            )
        told = measured(found, f"{self.spec.task}.evaluate")
        self.seen.facts["metrics"] = {name: plain(value) for name, value in told.values.items()}
        self.seen.warnings += told.warnings
        if not found:
            nothing = (
                "nothing is evaluated on this site: test_data gives no examples, and evaluate no metrics"
            )
            self.seen.warnings.append(nothing)

    def _context(self) -> FitContext:
        import torch

        from muster.task.task import FitContext

        train = {**self.spec.train.model_dump(mode="json"), "steps": 1, "epochs": None}
        return FitContext(
            site=self.site,
            device=torch.device("cpu"),
            seed=self.spec.seed,
            train=train,
            progress=lambda _share: None,
        )


def check(
    spec: RunSpec, *, data: Mapping[str, Any], folders: Sequence[Path], on_step: Callable[[str], None]
) -> Seen:
    """Loads the site's data, takes one step and evaluates, on the CPU. Raises `ConfigError` or `TaskError` at the first
    thing that fails, as a peer would report it."""
    from muster.model.modelfile import ModelFile, check_unchanged
    from muster.task.defaults import code_of
    from muster.task.loading import keep_data, load_task
    from muster.task.task import Site

    site = Site(name="check", data=data, options=spec.task_options, seed=spec.seed)
    made = _Check(spec=spec, site=site, seen=Seen(task=spec.task), on_step=on_step)
    task = made.step("import", lambda: load_task(spec.task, folders, spec.task_options))
    keep_data(task)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "version"
        model = made.model(task, path)
        with closing(ModelFile(path)) as base, code_of(task):
            made.learn(task, model, base)
            check_unchanged(model, base)
            made.evaluate(task, model)
    return made.seen


def trial() -> Any:
    """The module, which imports torch, at its first use."""
    import muster.task.trial

    return muster.task.trial
