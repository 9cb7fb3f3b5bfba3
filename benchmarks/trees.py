"""Generate parameter trees with the shapes of known networks.

A tree is a flat dict from leaf name to shape; nothing here needs jax or torch.

    >>> sum(math.prod(shape) for shape in shapes("resnet50").values())
    25557032
"""

import math
from collections.abc import Callable

Shape = tuple[int, ...]
Tree = dict[str, Shape]


def _norm(tree: Tree, name: str, width: int) -> None:
    tree[f"{name}.scale"] = (width,)
    tree[f"{name}.bias"] = (width,)


def resnet50() -> Tree:
    """Return ResNet-50 for 1,000 classes: bottlenecks of 3, 4, 6 and 3 blocks, 161 leaves."""
    tree: Tree = {"stem.conv": (7, 7, 3, 64)}
    _norm(tree, "stem.norm", 64)
    channels = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            at = f"stage{stage}.block{block}"
            convolutions = {
                "conv0": (1, 1, channels, width),
                "conv1": (3, 3, width, width),
                "conv2": (1, 1, width, 4 * width),
            }
            if block == 0:
                convolutions["shortcut"] = (1, 1, channels, 4 * width)
            for name, shape in convolutions.items():
                tree[f"{at}.{name}"] = shape
                _norm(tree, f"{at}.{name}.norm", shape[-1])
            channels = 4 * width
    return tree | {"head.kernel": (channels, 1000), "head.bias": (1000,)}


def wrn22_6() -> Tree:
    """Return Wide ResNet 22-6 for 10 classes: 3 groups of 3 blocks, 96 to 384 wide, 62 leaves."""
    tree: Tree = {"stem.conv": (3, 3, 3, 16)}
    channels = 16
    for group, width in enumerate((96, 192, 384)):
        for block in range(3):
            at = f"group{group}.block{block}"
            _norm(tree, f"{at}.norm0", channels)
            tree[f"{at}.conv0"] = (3, 3, channels, width)
            _norm(tree, f"{at}.norm1", width)
            tree[f"{at}.conv1"] = (3, 3, width, width)
            if channels != width:
                tree[f"{at}.shortcut"] = (1, 1, channels, width)
            channels = width
    _norm(tree, "norm", channels)
    return tree | {"head.kernel": (channels, 10), "head.bias": (10,)}


def _gpt2_block(width: int) -> Tree:
    tree: Tree = {}
    for norm, layers in (
        ("ln1", {"qkv": (width, 3 * width), "attention_out": (width, width)}),
        ("ln2", {"mlp_in": (width, 4 * width), "mlp_out": (4 * width, width)}),
    ):
        _norm(tree, norm, width)
        for name, shape in layers.items():
            tree[f"{name}.kernel"] = shape
            tree[f"{name}.bias"] = (shape[-1],)
    return tree


def gpt2(layers: int = 12, width: int = 768, *, stacked: bool = False) -> Tree:
    """Return GPT-2 small with tied embeddings: 12 layers of width 768, 148 leaves (16 stacked).

    A smaller width has a smaller vocabulary in proportion, so that the embedding keeps its share.
    """
    tree: Tree = {"wte": (50257 * width // 768, width), "wpe": (1024, width)}
    for name, shape in _gpt2_block(width).items():
        if stacked:
            tree[f"layers.{name}"] = (layers, *shape)
        else:
            tree |= {f"layer{i}.{name}": shape for i in range(layers)}
    _norm(tree, "ln_f", width)
    return tree


def one(size: int) -> Tree:
    """Return one matrix of about `size` elements, with rows of 8,192 if that divides it."""
    return {"kernel": (size // 8192, 8192) if size % 8192 == 0 else (size,)}


def tiny(leaves: int) -> Tree:
    """Return `leaves` vectors of 64 elements: many leaves, hardly any arithmetic."""
    return {f"leaf{i}": (64,) for i in range(leaves)}


def same(leaves: int, *shape: int) -> Tree:
    """Return `leaves` arrays of one shape: `same:8:256:128`."""
    return {f"leaf{i}": shape for i in range(leaves)}


TREES: dict[str, Callable[..., Tree]] = {
    "resnet50": resnet50,
    "wrn22-6": wrn22_6,
    "gpt2": gpt2,
    "gpt2-stacked": lambda: gpt2(stacked=True),
    "one67m": lambda: one(2**26),
    "small": lambda: same(8, 256, 128),
    "one": one,
    "tiny": tiny,
    "same": same,
}


def shapes(name: str) -> Tree:
    """Return the shapes of the tree `name`, for example `gpt2` or `tiny:1000`."""
    kind, *sizes = name.split(":")
    if kind not in TREES:
        raise ValueError(f"tree: no tree {name!r}; there are {', '.join(TREES)}")
    try:
        tree = TREES[kind](*(int(size) for size in sizes))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"tree: {name!r} does not fit; write tiny:LEAVES, one:SIZE, same:LEAVES:DIM:..., "
            "gpt2:LAYERS:WIDTH or a bare name"
        ) from error
    if not tree or any(size < 1 for shape in tree.values() for size in shape):
        raise ValueError(f"tree: {name!r} is empty; give sizes of at least 1")
    return tree


def count(tree: Tree) -> int:
    """Return the number of parameters."""
    return sum(math.prod(shape) for shape in tree.values())
