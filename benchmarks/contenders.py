"""Build contenders by name: `ours:adamw(weight_decay=0.1)`, `optax:adamw`, `torch:adamw-fused`.

A name is `[label=]library[@folder]:recipe`. A recipe is a call whose arguments are Python
literals; the learning rate is 1e-3 unless the first call gives one, and `+` adds stages after it:

    ours:adamw(weight_decay=0.1)+lookahead(sync_period=6)     compose(adamw(...), lookahead(...))
    ours:adamw+pack_small_leaves                              pack_small_leaves(adamw(...))
    ours:adamw+accumulate(every=4)                            accumulate(adamw(...), every=4)
    optax:adamw+lookahead                                     optax.lookahead(adamw(...), ...)
    optax:adamw+MultiSteps(4)                                 optax.MultiSteps(adamw(...), 4)
    f32m=optax:adamw(mu_dtype="float32")                      shown under the label f32m
    torch:adamw-fused  torch:amsgrad-foreach  torch:radam-loop
    bnb:adamw8bit                                             bitsandbytes, on a CPU too
    before=ours@../old:adamw                                  adamw_jax of another checkout

Nothing is imported before a contender is built.
"""

import ast
import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LEARNING_RATE = 1e-3
_NAME = re.compile(
    r"(?:(?P<label>[\w.-]+)=)?(?P<library>[a-z]+)(?:@(?P<folder>[^:]+))?:(?P<recipe>.+)"
)


@dataclasses.dataclass(frozen=True)
class Call:
    """One call in a recipe."""

    name: str
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] = dataclasses.field(default_factory=dict)

    def with_learning_rate(self) -> "Call":
        """Return the call, with the default learning rate first if it has none."""
        if self.arguments or "learning_rate" in self.keywords:
            return self
        return dataclasses.replace(self, arguments=(LEARNING_RATE,))


@dataclasses.dataclass(frozen=True)
class Contender:
    """A parsed name; `folder` is the folder to import the library from, if given."""

    label: str
    library: str
    calls: tuple[Call, ...]
    folder: str | None = None


@dataclasses.dataclass(frozen=True)
class Rule:
    """An update rule in JAX.

    Attributes:
        transformation: The optax transformation.
        carry: Maps the parameters to the carry of the step.
    """

    transformation: Any
    carry: Callable[[Any], Any] = lambda params: params


def _calls(node: ast.expr, name: str) -> list[Call]:
    match node:
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _calls(left, name) + _calls(right, name)
        case ast.Name(id=function):
            return [Call(function)]
        case ast.Call(func=ast.Name(id=function), args=arguments, keywords=keywords) if all(
            keyword.arg for keyword in keywords
        ):
            return [
                Call(
                    function,
                    tuple(ast.literal_eval(argument) for argument in arguments),
                    {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in keywords},
                )
            ]
    raise ValueError(f"contender: cannot read {name!r}; write library:name(argument=literal)")


def parse(name: str) -> Contender:
    """Parse a contender's name; raise ValueError if it is wrong."""
    match = _NAME.fullmatch(name.strip())
    if match is None or match["library"] not in LIBRARIES:
        raise ValueError(
            f"contender: {name!r} names no library; write one of "
            f"{', '.join(f'{library}:...' for library in LIBRARIES)}"
        )
    head, parenthesis, tail = match["recipe"].partition("(")
    try:
        node = ast.parse(head.replace("-", "_") + parenthesis + tail, mode="eval").body
        calls = _calls(node, name)
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"contender: cannot read {name!r}; write library:name(argument=literal)"
        ) from error
    label = match["label"] or name.strip()
    return Contender(label, match["library"], tuple(calls), match["folder"])


def _public(module: Any, name: str) -> Callable[..., Any]:
    """Return a public function of `module`."""
    listed = getattr(module, "__all__", None) or dir(module)
    function = getattr(module, name, None)
    if name.startswith("_") or name not in listed or not callable(function):
        raise ValueError(f"contender: {module.__name__} has no public function {name!r}")
    return function


#: Functions that take the whole optimizer, which stands before them in a contender's name.
AROUND = ("pack_small_leaves", "skip_bad_steps", "accumulate")
OPTAX_AROUND = ("MultiSteps", "apply_if_finite")


def ours(calls: tuple[Call, ...]) -> Rule:
    """Build a function of adamw_jax and the stages after it by `compose`, or what is around all."""
    import adamw_jax

    *stages, last = calls
    if stages and last.name in AROUND:
        around = _public(adamw_jax, last.name)
        whole = around(ours(tuple(stages)).transformation, *last.arguments, **last.keywords)
        return Rule(whole)
    first, *tails = calls
    first = first.with_learning_rate()
    stages = [
        _public(adamw_jax, call.name)(*call.arguments, **call.keywords) for call in (first, *tails)
    ]
    return Rule(adamw_jax.compose(*stages) if tails else stages[0])


def optax(calls: tuple[Call, ...]) -> Rule:
    """Build a function of optax and the stages after it by `optax.chain`, or what is around it."""
    import optax

    *stages, last = calls
    if stages and last.name in OPTAX_AROUND:
        inner = LIBRARIES["optax"](tuple(stages)).transformation
        whole = _public(optax, last.name)(inner, *last.arguments, **last.keywords)
        return Rule(getattr(whole, "gradient_transformation", lambda: whole)())
    first, *tails = calls
    first = first.with_learning_rate()
    inner = _public(optax, first.name)(*first.arguments, **first.keywords)
    if tails and tails[-1].name == "lookahead":
        options = {"sync_period": 5, "slow_step_size": 0.5} | tails[-1].keywords
        # The carry holds fast and slow weights instead of the parameters.
        return Rule(optax.lookahead(inner, **options), optax.LookaheadParams.init_synced)
    if tails:
        stages = [_public(optax, call.name)(*call.arguments, **call.keywords) for call in tails]
        inner = optax.chain(inner, *stages)
    return Rule(inner)


#: torch optimizer and the arguments that make it equal to the JAX contenders.
TORCH: dict[str, tuple[str, dict[str, Any]]] = {
    "adam": ("Adam", {}),
    "adamw": ("AdamW", {"weight_decay": 1e-4}),
    "amsgrad": ("Adam", {"amsgrad": True}),
    "radam": ("RAdam", {}),
    "adamax": ("Adamax", {}),
    "nadam": ("NAdam", {}),
    "adafactor": ("Adafactor", {}),
    "sgd": ("SGD", {}),
}
TORCH_FORMS: dict[str, dict[str, bool]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "loop": {"foreach": False},
}


def torch(calls: tuple[Call, ...]) -> Callable[[Any], Any]:
    """Return one form of a torch optimizer, as a function of the parameters."""
    import torch  # pyright: ignore[reportMissingImports]

    (call,) = calls
    name, _, form = call.name.rpartition("_")
    if name not in TORCH or form not in TORCH_FORMS:
        raise ValueError(
            f"contender: torch has no {call.name.replace('_', '-')!r} here; the names are "
            f"{', '.join(TORCH)}, each with {', '.join('-' + form for form in TORCH_FORMS)}"
        )
    kind, defaults = TORCH[name]
    options = {"lr": LEARNING_RATE} | defaults | TORCH_FORMS[form] | call.keywords
    return lambda params: getattr(torch.optim, kind)(params, **options)


def bnb(calls: tuple[Call, ...]) -> Callable[[Any], Any]:
    """Return the 8-bit AdamW of bitsandbytes, as a function of the parameters."""
    import bitsandbytes  # pyright: ignore[reportMissingImports]

    (call,) = calls
    if call.name != "adamw8bit":
        raise ValueError(f"contender: bnb has adamw8bit only here, got {call.name!r}")
    options = {"lr": LEARNING_RATE, "weight_decay": 1e-4} | call.keywords
    return lambda params: bitsandbytes.optim.AdamW8bit(params, **options)


LIBRARIES: dict[str, Callable[[tuple[Call, ...]], Any]] = {
    "ours": ours,
    "optax": optax,
    "torch": torch,
    "bnb": bnb,
}
#: Libraries whose steps run eagerly over torch's tensors.
EAGER = ("torch", "bnb")


def build(contender: Contender) -> Any:
    """Return the rule of a contender; raise ImportError without its library."""
    if contender.folder and (folder := str(Path(contender.folder).resolve())) not in sys.path:
        sys.path.insert(0, folder)
    return LIBRARIES[contender.library](contender.calls)
