"""Fine-tune a network as the article did on Stanford Cars: first the head, then all layers."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from adamw_jax import create
from adamw_jax.direction import Rule, discriminative_rates, parameter_rules
from adamw_jax.lab.data import cars, folder
from adamw_jax.lab.data.photographs import PHOTOGRAPHS, photographs
from adamw_jax.lab.engine import Engine, Lane
from adamw_jax.lab.experiments.article_judge import AUGMENTED, Judge
from adamw_jax.lab.experiments.parts import column, columns, curves, network_experiment, where
from adamw_jax.lab.experiments.registry import Rows
from adamw_jax.lab.network_runs import Run, train_runs, trial, trial_result
from adamw_jax.lab.networks import WideResNet
from adamw_jax.lab.networks.images import Prepare, augmented_accuracy, image_task, standardize
from adamw_jax.lab.networks.resnet50 import ResNet50, load_weights
from adamw_jax.lab.plots.lines import lines
from adamw_jax.lab.recipes import ADAM, Arm, Carrier, Recipe, settings, tables
from adamw_jax.lab.results import Figure, Panel, Result, Row, Table
from adamw_jax.lab.stats import spread
from adamw_jax.lab.task import Data, Task

L2, ADAMW, AMSGRAD = "Adam + L2", "AdamW", "Adam + L2 + AMSGrad"
SAME = "Adam + L2, one rate"
TUNING, HEAD, FINAL = "tuning", "head", "final"
ACCURACY = "test_accuracy"
KEPT, HELD = PHOTOGRAPHS[:-5], PHOTOGRAPHS[-5:]
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WEIGHTS = "resnet50.safetensors"
TITLES = {
    "photographs": "five held-back photographs",
    "cars": "Stanford Cars",
    "twin": "Cars' twin",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of the article's fine-tuning.

    Attributes:
      data: name of the images.
      per_class: training images of each new class, for photographs.
      pretraining: epochs on the other photographs; 0 for weights from a file.
      network: ``"wide"`` or ``"resnet50"``.
      size: height and width of an image.
      pad: largest shift of a crop.
      dtype: of the arithmetic.
      batch_size: images per step.
      examples: training images, from which the number of steps follows.
      epochs: epochs of the head alone, and then of all layers.
      rates: peaks of the learning rate in the two phases, the second that of the head.
      spread: the rates of the first and the middle layers are that of the head by this and its
        root.
      tuning_seeds: seeds of the runs that choose coefficients.
      seeds: seeds of the other runs.
      l2: coefficients of L2, of which the best is chosen.
      decoupled: coefficients of decoupled decay.
      limit: steps of a trial; 0 for the experiment.
    """

    data: str = "photographs"
    per_class: int = 40
    pretraining: int = 5
    network: str = "wide"
    size: int = 32
    pad: int = 4
    dtype: str = "float32"
    batch_size: int = 32
    examples: int = 200
    epochs: tuple[int, int] = (6, 12)
    rates: tuple[float, float] = (1e-2, 3e-3)
    spread: float = 9.0
    tuning_seeds: tuple[int, ...] = (0, 1)
    seeds: tuple[int, ...] = (1000, 1001, 1002, 1003, 1004, 1005)
    l2: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    decoupled: tuple[float, ...] = (0.1, 1.0, 10.0)
    limit: int = 0

    @property
    def title(self) -> str:
        """The name of the task in reports."""
        return TITLES[self.data]

    def steps(self, phase: int) -> int:
        """Return the steps of a phase."""
        return self.epochs[phase] * (self.examples // self.batch_size)


FULL = Settings(
    data="cars", pretraining=0, network="resnet50", size=224, pad=16, dtype="bfloat16",
    batch_size=128, examples=8144, epochs=(20, 40), seeds=(1000, 1001, 1002, 1003, 1004),
    l2=(1e-3,), decoupled=(1e-3,),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of decay; ``amsgrad`` is PyTorch's."""

    coefficients: str
    key: str
    amsgrad: bool = False
    one_rate: bool = False


TUNED = {L2: Form("l2", "l2"), ADAMW: Form("decoupled", "weight_decay"),
         AMSGRAD: Form("l2", "l2", amsgrad=True)}  # fmt: skip
FORMS = {**TUNED, SAME: Form("l2", "l2", one_rate=True)}


def _recipe(s: Settings, form: Form, phase: int) -> Recipe:
    """Return Adam with the rules of a phase: only the head, or rates by group of layers."""
    if phase == 0:
        rules = parameter_rules({_head(s): Rule()}, default=Rule(freeze=True))
    elif form.one_rate:
        rules = None
    else:
        low = s.rates[1] / s.spread
        rules = discriminative_rates(low, s.rates[1], _groups(s))
    name = "amsgrad" if form.amsgrad else "adam"
    options = {"maximum": "raw"} if form.amsgrad else {}
    label = f"{name}, {'head' if phase == 0 else 'one rate' if form.one_rate else 'by layer'}"

    def build(carrier: Carrier, numbers: Mapping[str, Any]) -> optax.GradientTransformation:
        return create(name, carrier, b2=0.99, rules=rules, **options, **numbers)

    return Recipe(f"{label}, {s.network}", build)


def _head(s: Settings) -> str:
    return "head/*" if s.network == "wide" else "fc/*"


def _groups(s: Settings) -> list[tuple[str, ...]]:
    """Return patterns of the first, the middle and the last layers."""
    if s.network == "wide":
        return [("stem/*", "blocks/0/*"), ("blocks/1/*", "blocks/2/*", "norm/*"), ("head/*",)]
    return [("conv1/*", "bn1/*", "layer1/*", "layer2/*"), ("layer3/*", "layer4/*"), ("fc/*",)]


# What is trained


def _loaded(s: Settings) -> tuple[Data, Prepare, int, str]:
    """Return data, what is done to a batch of images first, the number of classes, a sentence."""
    if s.data == "photographs":
        found = photographs(HELD, per_class=s.per_class)
        parts = [(part.inputs, part.labels) for part in (found.train, found.validation, found.test)]
        return Data(*parts, batch_size=s.batch_size), lambda x: x, found.classes, found.about
    with tempfile.TemporaryDirectory() as temporary:
        if s.data == "twin":
            cars.write(Path(temporary) / "cars", s.batch_size)
            listed = cars.listed(Path(temporary) / "cars")
        else:
            listed = cars.verify(cars.place())
        train, test = (
            (cars.images(listed[part][0], s.size), listed[part][1]) for part in ("train", "test")
        )
    about = "Photographs of 196 models of cars; nothing is chosen on them."
    return Data(train, test, test, s.batch_size), standardize(*IMAGENET), cars.CLASSES, about


def _network(s: Settings, classes: int) -> Any:
    """Return ``rngs -> network``."""
    dtype = jnp.dtype(s.dtype)
    if s.network == "resnet50":
        return lambda rngs: ResNet50(classes, dtype=dtype, rngs=rngs)
    return lambda rngs: WideResNet(1, 1, classes, channels=1, stem_stride=2, dtype=dtype, rngs=rngs)


@functools.lru_cache(maxsize=2)
def _tasks(s: Settings) -> tuple[tuple[Task, Task], Any]:
    """Return the tasks of the two phases, and the test with augmented copies."""
    data, prepare, classes, about = _loaded(s)
    make = _network(s, classes)
    options = {"name": s.title, "about": about, "evaluated": 1000 if s.size < 100 else 100}
    body = _pretrained(s)

    def begin(key: jax.Array) -> Any:
        """Draw the head; the other weights are those of the pretrained network."""
        params, rest = nnx.split(make(nnx.Rngs(key)), nnx.Param, ...)[1:]
        if body is not None:
            head = _head(s).removesuffix("/*")
            drawn = params[head]
            params, rest = (
                nnx.merge_state(own, given) for own, given in zip((params, rest), body, strict=True)
            )
            params[head] = drawn
        return params, rest

    head, whole = (
        image_task(make, data, prepare, s.pad, frozen_norms=frozen, **options)
        for frozen in (True, False)
    )
    examples = 100 if s.size > 100 else 1000
    at_end = augmented_accuracy(make, prepare, s.pad, data.test, examples)
    tasks = (dataclasses.replace(head, init=begin), dataclasses.replace(whole, init=begin))
    return tasks, at_end


def _pretrained(s: Settings) -> tuple[nnx.State, nnx.State] | None:
    """Return weights and averages of batch norm without the head; None for drawn ones (a trial)."""
    if s.data == "twin":
        return None
    if not s.pretraining:
        path = folder() / WEIGHTS
        if not path.is_file():
            raise ValueError(
                f"ResNet-50 needs pretrained weights in {path}: put PyTorch's there as safetensors."
            )
        net = ResNet50(cars.CLASSES, rngs=nnx.Rngs(0))
        load_weights(net, path)
        params, rest = nnx.split(net, nnx.Param, ...)[1:]
    else:
        found = photographs(KEPT, per_class=300)
        parts = [(part.inputs, part.labels) for part in (found.train, found.validation, found.test)]
        data = Data(*parts, batch_size=128)
        task = image_task(_network(s, found.classes), data, pad=s.pad, name="other photographs")
        steps = s.pretraining * (len(found.train) // 128)
        numbers = {"b2": 0.99, "weight_decay": 0.03, "l2": 0.0}
        ends: dict[str, Any] = {}
        Engine(1).train(task, ADAM, [Lane(0, *tables("article", 0.01, steps), numbers)], [steps], 1,
                        at_end=lambda _, *weights: ends.update(weights=weights))  # fmt: skip
        params, rest = ends["weights"]
    head = _head(s).removesuffix("/*")
    kept = nnx.State({name: value for name, value in params.items() if name != head})
    return kept, nnx.State({name: value for name, value in rest.items() if name != head})


def _run(s: Settings, group: str, coefficient: float, seed: int, stage: str) -> Run:
    """Return the run of all layers after that of the head."""
    tasks, at_end = _tasks(s)
    form = FORMS[group]
    numbers = settings(**{"l2": 0.0, "weight_decay": 0.0, form.key: coefficient})
    runs: list[Run] = []
    for phase, epochs in enumerate(s.epochs):
        arm = Arm(group, _recipe(s, form, phase), "article", s.rates[phase], numbers)
        labels = {"stage": HEAD if phase == 0 and stage == FINAL else stage, "phase": phase}
        more = at_end if phase and stage == FINAL else None
        runs.append(Run(tasks[phase], arm, seed, s.steps(phase), epochs, labels, more,
                        runs[-1] if runs else None))  # fmt: skip
    return runs[-1]


def _chosen(s: Settings, rows: Sequence[Row]) -> dict[str, float]:
    """Return the best coefficient of every form, by validation accuracy."""
    best = {}
    ends = [row for row in rows if row["step"] == row["steps"]]
    for group, form in TUNED.items():
        mine = where(ends, group=group, stage=TUNING)

        def accuracy(value: float, form: Form = form, mine: Any = mine) -> float:
            found = where(mine, **{form.key: value})
            return spread(column(found, "validation_accuracy")).mean

        values = getattr(s, form.coefficients)
        best[group] = max(values, key=accuracy) if len(values) > 1 else values[0]
    return best


def _measure(s: Settings, runner: Any) -> Rows:
    if s.limit:
        whole = dataclasses.replace(FULL, limit=0)
        total = len(FORMS) * len(whole.seeds) * (whole.steps(0) + whole.steps(1))
        total = total * whole.batch_size // s.batch_size  # in batches of this size
        last = _run(s, L2, s.l2[0], 0, FINAL)
        return trial(dataclasses.replace(last, after=None), s.limit, total)
    tuning = [
        _run(s, group, value, seed, TUNING)
        for group, form in TUNED.items()
        if len(getattr(s, form.coefficients)) > 1
        for value in getattr(s, form.coefficients)
        for seed in s.tuning_seeds
    ]
    rows = train_runs(runner, tuning)
    best = _chosen(s, rows)
    last = [_run(s, group, best.get(group, best[L2]), seed, FINAL)
            for seed in s.seeds for group in FORMS]  # fmt: skip
    return rows + train_runs(runner, last)


def _analyse(s: Settings, rows: Rows) -> Result:
    if s.limit:
        return trial_result(rows)
    final = [row for row in rows if row["stage"] == FINAL]
    judge, best = Judge(s, rows), _chosen(s, rows)
    whole = {group: (group, group, ACCURACY, FINAL) for group in FORMS}
    verdicts = [
        judge.better(
            "AdamW reaches a higher accuracy than Adam with L2", whole[ADAMW], whole[L2],
            "2018 article, Stanford Cars: no gain, and no loss.",
        ),
        judge.better(
            "AMSGrad reaches a higher accuracy", whole[AMSGRAD], whole[L2],
            "2018 article: no, never.",
        ),
        judge.better(
            "Rates that grow with depth reach a higher accuracy than one rate", whole[L2],
            whole[SAME], "2018 article: it uses them, without a comparison.",
        ),
        judge.better(
            "Averaging over augmented copies in the test raises the accuracy",
            (f"{L2}, with copies", L2, AUGMENTED, FINAL), whole[L2],
            "2018 article, Stanford Cars: 90 % without and 91 % with copies.",
        ),
    ]  # fmt: skip
    table = []
    for group, form in FORMS.items():
        ends = [row for row in where(final, group=group) if row["step"] == row["steps"]]
        line = {"group": group, "coefficient": ends[0][form.key], "seeds": len(ends)}
        for metric in (ACCURACY, AUGMENTED, "test_loss", "train_loss"):
            found = spread(column(ends, metric))
            line |= {metric: found.mean, f"{metric}_sd": found.sd}
        table.append(line)
    shown = columns(
        "group: contender | coefficient {:g} | seeds {:d} | test_accuracy: test accuracy {:.1%} | "
        "test_accuracy_sd: ± sd {:.1%} | test_accuracy_augmented: with copies {:.1%} | "
        "test_loss: test loss {:.3f} | train_loss: training loss {:.3f}"
    )
    drawn = [{**row, "series": row["group"]} for row in final]
    panel = Panel(s.title, lines("epochs of all layers", "test accuracy", percent=True),
                  curves(drawn, "epoch", ACCURACY))  # fmt: skip
    figure = Figure(
        "accuracy", f"Fine-tuning ({s.title})",
        "Line plot of test accuracy against epochs after unfreezing, for Adam with L2 with rates "
        "by layer and with one rate, for AdamW and for AMSGrad; mean and deviation over seeds.",
        [panel],
    )  # fmt: skip
    chosen = ", ".join(f"{group} {value:g}" for group, value in best.items())
    how = "chosen by validation accuracy" if len(s.l2) > 1 else "those of the article"
    remarks = [f"Coefficients of decay, {how}: {chosen}."]
    return Result(verdicts, [Table("accuracy", s.title, shown, table)], [figure], remarks)


EXPERIMENT = network_experiment(
    "article_cars", _measure, _analyse,
    cpu=Settings(), full=FULL,
    tiny={"per_class": 8, "examples": 40, "batch_size": 20, "pretraining": 1, "epochs": (1, 1),
          "tuning_seeds": (0,), "seeds": (1000, 1001), "l2": (1e-3,), "decoupled": (1e-2, 1e-1)},
    trial={"data": "twin", "dtype": "float32", "batch_size": 32, "limit": 2},
    title="The article's fine-tuning",
    question="The article fine-tunes a ResNet-50 on Stanford Cars: 20 epochs of the head alone, "
    "then 40 epochs of all layers, with learning rates of lr/9, lr/3 and lr from the first to the "
    "last. Do decoupled decay and AMSGrad help there?",
    setup="In the first phase the other layers are frozen, the averages of batch norm too. Both "
    "phases have the article's 1cycle, b1 from 0.95 to 0.85 and back, b2 0.99, and an optimizer of "
    "their own. The small size trains on eleven photographs and fine-tunes on five others, with 40 "
    "patches of each; the preset full is Stanford Cars with weights from ImageNet. Images are "
    "cropped and flipped, but not zoomed, rotated or brightened as in the article.",
    reference="Gugger & Howard, AdamW and Super-convergence is now the fastest way to train neural "
    "nets, fast.ai, 2 July 2018",
    expected="about 90 % in 60 epochs, 91 % with augmented copies, and no gain of decoupled decay "
    "or AMSGrad (the fast.ai article of 2 July 2018 and its repository).",
)  # fmt: skip
