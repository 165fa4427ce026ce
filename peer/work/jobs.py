"""What a peer's worker process does: the task's own code runs here and nowhere else.

A task, its datasets and its module are kept from job to job of a run; each run has a worker process of its own. The
module is filled anew from the base before each job, so what a task wants to last from round to round belongs in its
`state_dict`.
"""

from __future__ import annotations

import gc
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

# cuBLAS is deterministic only with a fixed workspace, and reads this when it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from torch import nn
from torch.utils.data import Dataset

from compressors import build_feedback
from exchange.contexts import ChunkContexts
from exchange.contribution import Contribution
from exchange.mechanisms import Sealing, build_named
from exchange.rebuild import rebuild as follow
from exchange.tensorfile import read_tensors, write_tensors
from exchange.update import write_delta, write_update
from muster.errors import ConfigError, TaskError
from muster.model.initial import draw as draw_model
from muster.model.initial import draw_version, seed_generators
from muster.model.layout import ParameterLayout
from muster.model.modelfile import ModelFile, check_unchanged, load_into, load_local, local_of
from muster.runtime.secret_random import SecretRandom
from muster.seeds import derive_seed, initial_seed
from muster.spec.model import ExchangeTable
from muster.task import trial
from muster.task.copies import copied, spared, without_inference
from muster.task.defaults import code_of
from muster.task.fitreport import checked
from muster.task.fittrial import has_own_fit, try_fit
from muster.task.loading import keep_data, load_task
from muster.task.metrics import EXAMPLES_MAX, Measured, in_words, measured
from muster.task.sources import source_digest
from muster.task.task import FitContext, Site, Task
from muster.work import EVALUATE, evaluates
from peer.training.attack_simulation import AttackSimulation, bootstrap
from peer.training.batches import size_of
from peer.training.contributing import STATE, RunAlgorithm, as_contribution
from peer.work.orders import DrawOrder, Evaluated, EvaluateOrder, Order, PrepareOrder, Trained, TrainOrder

PLACES_MAX = 64  # sites whose datasets are kept in memory at once
_places_max = PLACES_MAX
MODULES_BYTES_MAX = 256 << 20  # of modules that other sites on the CPU keep while one works
LOCAL_STATE = "local"  # the state array that holds what of the model is this peer's own
ENCODING_SHARE = 0.1  # of a training job's progress
NOTE_CHARACTERS_MAX = 300

Progress = Callable[[float], None]


class Place:
    """A task at this site, with what it has loaded."""

    def __init__(self, order: Order) -> None:
        self.task: Task = load_task(order.task, order.task_folders, order.options)
        self.source_digest = source_digest(order.task, order.task_folders)
        _require_sources(order, self.source_digest)
        self.site = Site(
            name=order.site_name, data=order.site_data, options=order.options, seed=order.site_seed
        )
        self.ready: set[str] = set()  # roles that it is prepared for
        self.notes: list[str] = []  # warnings that go with the next training
        keep_data(self.task)
        self.model: nn.Module | None = None
        self.model_bytes = 0
        self._data: dict[str, Dataset[Any]] = {}

    def train_data(self, drill: AttackSimulation | None, drill_key: str) -> Dataset[Any]:
        """This site's examples, poisoned if the drill does that."""
        if "" not in self._data:
            seed_generators(derive_seed(self.site.seed, "data", self.site.name))
            with code_of(self.task):
                self._data[""] = self.task.train_data(self.site)
        if drill is None or not drill.poisons:
            return self._data[""]
        if drill_key not in self._data:
            self._data[drill_key] = drill.poison(self._data[""], self.site.seed)
        return self._data[drill_key]

    def module(
        self, base: ModelFile, device: torch.device, state: Mapping[str, str] = MappingProxyType({})
    ) -> nn.Module:
        """The task's module on the device, holding the base and what of it this peer's `state` has values of its own
        of. Raises `TransferError` `model.layout_mismatch`."""
        if self.model is None:
            self.keep(draw_model(self.task, initial_seed(self.site.seed)))
        model = self.model
        assert model is not None
        model.to(device)
        load_into(model, base)
        if base.layout.local and LOCAL_STATE in state:
            load_local(model, base.layout, read_tensors(Path(state[LOCAL_STATE])))
        return model

    def keep(self, model: nn.Module) -> None:
        tensors = (*model.parameters(), *model.buffers())
        self.model, self.model_bytes = model, sum(each.numel() * each.element_size() for each in tensors)

    def drop_module(self) -> None:
        if self.model is not None:
            self.model, self.model_bytes = None, 0
            gc.collect()  # it may refer to itself, and would stay for as long as nobody looks


def _require_sources(order: Order, found: str) -> None:
    if order.source_digest and found != order.source_digest:
        raise ConfigError(
            "task.other_sources",
            f"the source code of {order.task} here is not the coordinator's",
            cause=f"its digest is {found[:12] or 'unknown'} here and {order.source_digest[:12]} there, and the run "
            'has task_sources = "same"',
            fix="install the same version of the task here; a new run, or a restarted peer, loads it anew",
        )


_places: OrderedDict[tuple[str, str], Place] = OrderedDict()


def start_over(places_max: int = PLACES_MAX) -> None:
    """As in a process that has just started. It keeps what so many sites load."""
    global _places_max  # noqa: PLW0603  # jobs are functions, and this is what their process is like
    _places.clear()
    _places_max = places_max


def _key(order: Order) -> tuple[str, str]:
    return (
        order.run_id,
        repr((order.task, order.site_name, order.site_data, order.options, order.site_seed)),
    )


def _place(order: Order) -> Place:
    key = _key(order)
    place = _places.pop(key, None) or Place(order)
    if place.model is None or order.device != "cpu":  # otherwise none is added to those that there are
        _trim_modules(order.device)
    _places[key] = place
    while len(_places) > _places_max:
        _places.popitem(last=False)
    return place


def _trim_modules(device: str) -> None:
    """Sites that share this process keep their modules while those are small; on a device one at a time."""
    most = MODULES_BYTES_MAX if device == "cpu" else 0
    held = sum(place.model_bytes for place in _places.values())
    for other in _places.values():  # who worked longest ago first
        if held < most:
            return
        held -= other.model_bytes
        other.drop_module()


def describe(args: dict[str, Any], progress: Progress) -> dict[str, Any]:  # noqa: ARG001  # every job's form
    """The devices that torch finds here, best first; being asked, the worker is warm for its first real
    job."""
    if torch.cuda.is_available():
        return {"devices": [f"cuda:{i}" for i in range(torch.cuda.device_count())]}
    return {"devices": ["mps" if torch.backends.mps.is_available() else "cpu"]}


def rest(args: dict[str, Any], progress: Progress) -> dict[str, Any]:  # noqa: ARG001  # every job's form
    """Another run's worker has the turn: nothing stays on the device, the datasets stay in memory."""
    for place in _places.values():
        place.drop_module()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return {}


def is_ready(args: dict[str, Any], progress: Progress) -> dict[str, Any]:  # noqa: ARG001  # every job's form
    """Whether this process is prepared for what a `PrepareOrder` asks for."""
    order = PrepareOrder(**args)
    place = _places.get(_key(order))
    return {"ready": place is not None and order.role in place.ready}


def get_ready(args: dict[str, Any], progress: Progress) -> dict[str, Any]:  # noqa: ARG001  # every job's form
    """Loads what a `PrepareOrder` asks for and tries the task out on a batch of it; leaves no trace in what is
    computed later."""
    order = PrepareOrder(**args)
    device = _prepare(order)
    place = _place(order)
    with closing(ModelFile(Path(order.base))) as base:
        model = place.module(base, device)
        if not evaluates(order.role):
            with code_of(place.task):
                _try_training(order, place, model, base)
            place.ready.add(order.role)
        if evaluates(order.role) or order.evaluates:
            if place.model is None:
                model = place.module(base, device)
            try:
                with code_of(place.task):
                    _try_evaluation(place, model)
                place.ready.add(EVALUATE)
            except TaskError as error:
                if evaluates(order.role):
                    raise
                # It costs no training, and who evaluates is told again.
                place.notes.append(
                    f"the trial of the evaluation failed: {error.message[:NOTE_CHARACTERS_MAX]}"
                )
    return {}


def _try_training(order: PrepareOrder, place: Place, model: nn.Module, base: ModelFile) -> None:
    algorithm = order.train["algorithm"]
    data: Dataset[Any] | None = None
    try:
        data = trial.loaded("train_data", lambda: place.train_data(None, ""))
    except TaskError as error:
        if not has_own_fit(place.task):
            raise
        # A loop of its own may never ask for them; where it does, it fails there and says so.
        print(f"train_data of {order.task} was not loaded ahead of its fit: {error.message}", file=sys.stderr)
    if has_own_fit(place.task) and not _leaves_training(order, place, model, base, data):
        return
    if data is None or not trial.asks_loss(algorithm):
        return
    batch = trial.first_batch(data, min(size_of(data), order.train["batch_size"]))
    # What loading has set in the task is in the copy.
    with _spared(place, model) as (task, tried):
        # A later version may have diverged, which is not the task's fault.
        trial.try_loss(task, tried, batch, algorithm=algorithm, finite=order.base_version == 0)
        check_unchanged(tried, base)


def _leaves_training(
    order: PrepareOrder, place: Place, model: nn.Module, base: ModelFile, data: Dataset[Any] | None
) -> bool:
    """Tries out the task's own loop; whether it leaves training to the run's algorithm, as far as that can be told."""
    tried = try_fit(
        place.task,
        model,
        data,
        _context(order, place, base.layout, progress=lambda _share: None),
        who=f"{order.task}.fit",
        check=lambda trained: check_unchanged(trained, base),
    )
    if not tried.ended:
        print(f"{order.task}.fit was not tried to its end: {tried.told}", file=sys.stderr)
    return tried.ended and tried.report is None


def _context(
    order: PrepareOrder | TrainOrder, place: Place, layout: ParameterLayout, *, progress: Progress
) -> FitContext:
    return FitContext(
        site=place.site,
        device=torch.device(order.device),
        seed=order.seed,
        train=order.train,
        progress=progress,
        codec=order.codec,
        places=ChunkContexts(
            layout=layout, base_digest=order.base_digest, round=order.round, sender=order.seed
        ),
    )


def _try_evaluation(place: Place, model: nn.Module) -> None:
    seed_generators(derive_seed(place.site.seed, "data", place.site.name))
    data = trial.loaded("test_data", lambda: place.task.test_data(place.site))
    if data is not None and trial.run("the length of test_data", lambda: trial.has_examples(data)):
        with _spared(place, model) as (task, tried):
            trial.try_evaluation(task, tried, data)


@contextmanager
def _spared(place: Place, model: nn.Module) -> Generator[tuple[Task, nn.Module]]:
    """Copies of the task and its module for a trial. Where there can be none, the trial puts back what it can, and the
    module is drawn anew."""
    task, tried, _ = spared(place.task, model)
    try:
        yield task, tried
    finally:
        without_inference(place.task)
        if tried is model:
            place.drop_module()


def train(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """`TrainOrder` to `Trained`: a pure function of the order and the files that it names."""
    order = TrainOrder(**args)
    device = _prepare(order)
    place = _place(order)
    groups, sealing = _algorithm(order).groups(), _sealing(order, place)
    if sealing is not None:
        sealing.check_groups(groups)  # what is not installed or does not go together is told before training
    drill = None if order.attack is None else AttackSimulation(order.attack, order.aggregation or {})
    views: list[Path] = []
    base = ModelFile(Path(order.base))
    try:
        if drill is not None:
            _train_views(order, place, base, drill, views, progress=progress)
        model = place.module(base, device, order.state)
        share = _part(progress, len(views), len(views) + 1)
        contribution = _fit(order, place, model, drill, share, layout=base.layout)
        model.zero_grad(set_to_none=True)
        report = contribution.report
        found = measured(report.metrics, f"the metrics of {order.task}.fit")
        contribution = contribution.measured(found.values)
        written = write_update(
            order.request(),
            model,
            base,
            contribution,
            groups=groups,
            source_digest=place.source_digest,
            sealing=sealing,
            attacker=drill,
            views=views,
        )
        staged = {key: str(path) for key, path in written.staged.items()}
        if contribution.state:
            staged[STATE] = f"{order.staged}.{STATE}"
            write_tensors(Path(staged[STATE]), contribution.state)
        if own := local_of(model, base.layout):
            staged[LOCAL_STATE] = f"{order.staged}.{LOCAL_STATE}"
            write_tensors(Path(staged[LOCAL_STATE]), own)
    finally:
        base.close()
        for path in views:
            path.unlink(missing_ok=True)
    progress(1.0)
    trained = Trained(
        digest=written.info.digest,
        size_bytes=written.info.size_bytes,
        examples=report.examples,
        steps=report.steps,
        staged=staged,
        metrics=found.values,
        warnings=(*found.warnings, *place.notes),
    )
    place.notes.clear()
    return asdict(trained)


def _train_views(
    order: TrainOrder,
    place: Place,
    base: ModelFile,
    drill: AttackSimulation,
    files: list[Path],
    *,
    progress: Progress,
) -> None:
    """Trains the drill's further views, each from the base and with its own seed, and puts what each changed in
    a file, which `files` names."""
    for number in range(1, drill.views):
        model = place.module(base, torch.device(order.device), order.state)
        own = replace(order, seed=derive_seed(order.seed, "view", number))
        share = _part(progress, number - 1, drill.views)
        _fit(own, place, model, drill, share, layout=base.layout, bootstrapped=True)
        files.append(Path(f"{order.staged}.view{number}"))
        write_delta(model, base, files[-1])


def _part(progress: Progress, number: int, count: int) -> Progress:
    """The progress of one of `count` trainings as that of the whole job."""
    return lambda share: progress((number + share) / count)


def _fit(
    order: TrainOrder,
    place: Place,
    model: nn.Module,
    drill: AttackSimulation | None,
    progress: Progress,
    *,
    layout: ParameterLayout,
    bootstrapped: bool = False,
) -> Contribution:
    """The task's own training loop if it has one, else the run's algorithm, on this site's data or on a
    bootstrap of them."""
    context = _context(order, place, layout, progress=lambda share: progress(share * (1.0 - ENCODING_SHARE)))
    seed_generators(order.seed)
    with code_of(place.task):
        given: Any = place.task.fit(model, context)
    if given is None:
        algorithm = _algorithm(order)
        data = place.train_data(drill, repr(order.attack))
        if bootstrapped:
            data = bootstrap(data, order.seed)
        _check_whole(order, data)
        seed_generators(order.seed)
        with code_of(place.task):
            given = algorithm.build().fit(place.task, model, data, algorithm.context(context, layout))
        return as_contribution(given, f"the algorithm {algorithm.name!r}")
    algorithm = _algorithm(order)
    if groups := algorithm.groups():
        raise TaskError(
            "train.own_loop",
            f"{order.task} trains by itself, and the run's algorithm {algorithm.name!r} sends {groups[0].name!r}, "
            "which only that algorithm makes",
            cause="Task.fit gave a report, so the algorithm was not asked",
            fix="return None from Task.fit, or set train.algorithm to one that sends nothing else, such as sgd",
        )
    return Contribution.of(checked(given, f"{order.task}.fit"))


def _sealing(order: TrainOrder, place: Place) -> Sealing | None:
    """The run's mechanism at this site. Raises `ConfigError` `plugin.unknown`, `mechanism.bad_options`."""
    found = build_named(order.mechanism.get("name", ""), order.mechanism.get("options", {}))
    return None if found is None else Sealing(mechanism=found, site=place.site, secret=SecretRandom())


def _algorithm(order: TrainOrder) -> RunAlgorithm:
    return RunAlgorithm(
        name=order.train["algorithm"],
        options=order.train["options"],
        received=order.received,
        state=order.state,
    )


def _check_whole(order: TrainOrder, data: Dataset[Any]) -> None:
    """MASHA takes the difference of two gradients, each of all examples: of two batches it would be their noise.

    Raises `ConfigError` `train.batch_not_whole`.
    """
    if not build_feedback(order.feedback).whole_batches:
        return
    examples, batch_size = size_of(data), order.train["batch_size"]
    if examples > batch_size:
        raise ConfigError(
            "train.batch_not_whole",
            f"this site has {examples} examples, and the run takes {batch_size} of them a step",
            cause=f"compression.feedback {order.feedback} compares each step's gradient with the anchor's, "
            "which only that of all examples can be",
            fix=f"set [train] batch_size to {examples} or above; it may be larger than any site's data",
        )


def evaluate(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """`EvaluateOrder` to `Evaluated`."""
    order = EvaluateOrder(**args)
    device = _prepare(order)
    place = _place(order)
    base = ModelFile(Path(order.base))
    try:
        model = place.module(base, device, order.state)
    finally:
        base.close()
    seed_generators(order.seed)
    with _scored(place, model) as scored, code_of(place.task), torch.no_grad():
        scored.eval()
        found = measured(place.task.evaluate(scored, place.site), f"{order.task}.evaluate")
    progress(1.0)
    return asdict(replace(_counted(order, found), source_digest=place.source_digest))


def _counted(order: EvaluateOrder, found: Measured) -> Evaluated:
    """Metrics and, apart from them, of how many examples they are. Those of no example are none."""
    metrics = dict(found.values)
    examples = metrics.pop("examples", None)
    if examples is None:
        return Evaluated(metrics=metrics, examples=0, warnings=found.warnings)
    told = f"{order.task}.evaluate says that it scored {in_words(examples)} examples"
    if examples == 0:
        warnings = (*found.warnings, f"{told}: its metrics do not count") if metrics else found.warnings
        return Evaluated(metrics={}, examples=0, warnings=warnings)
    if not 1 <= examples <= EXAMPLES_MAX:
        told = f"{told}, which is no count: it is taken as if it did not say"
        return Evaluated(metrics=metrics, examples=0, warnings=(*found.warnings, told))
    return Evaluated(metrics=metrics, examples=int(examples), warnings=found.warnings)


@contextmanager
def _scored(place: Place, model: nn.Module) -> Generator[nn.Module]:
    """A copy of the module, to be evaluated; one that cannot be copied is evaluated itself, and drawn anew for the next
    training."""
    copy = copied(model)
    try:
        yield model if copy is None else copy
    finally:
        without_inference(place.task)
        if copy is None:
            place.drop_module()


def draw(args: dict[str, Any], progress: Progress) -> dict[str, Any]:  # noqa: ARG001  # every job's form
    """`DrawOrder` to the digest of what was drawn. The module stays, for training that comes to this worker."""
    order = DrawOrder(**args)
    _prepare(order)
    place = _place(order)
    place.drop_module()  # never two at once
    exchange = ExchangeTable.model_validate(order.exchange)
    drawn = draw_version(place.task, order.seed, Path(order.base), exchange)
    place.keep(drawn.model)
    return {"digest": drawn.info.digest}


def _prepare(order: Order) -> torch.device:
    """Sets torch up so that the same work gives the same bits on the same machine."""
    torch.set_num_threads(
        order.threads or torch.get_num_threads()
    )  # said aloud, it also stops MKL from choosing anew
    if not torch.is_deterministic_algorithms_warn_only_enabled():
        torch.use_deterministic_algorithms(True, warn_only=True)
    # Filling fresh memory would cost time and help only code that reads what it never wrote.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
    torch.backends.cudnn.benchmark = False
    return torch.device(order.device)


def rebuild(args: dict[str, Any], progress: Progress) -> dict[str, Any]:  # noqa: ARG001  # every job's form
    """A model version of an older one and its deltas."""
    scale = Path(args["scale"]) if args["scale"] else None
    made = follow(Path(args["base"]), [Path(path) for path in args["deltas"]], Path(args["target"]), scale)
    return {"digest": made.digest}


JOBS = {
    "describe": describe,
    "rest": rest,
    "is_ready": is_ready,
    "get_ready": get_ready,
    "train": train,
    "evaluate": evaluate,
    "draw": draw,
    "rebuild": rebuild,
}
