"""Networks for images: sizes of the papers, weights of PyTorch's model, augmentation."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from adamw_jax.lab.networks import WideResNet, crop_and_flip
from adamw_jax.lab.networks.augment import mean_probabilities
from adamw_jax.lab.networks.resnet50 import Bottleneck, ResNet50, load_weights

pytestmark = pytest.mark.quick


def parameters(make):
    abstract = nnx.eval_shape(make)
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract, nnx.Param)))


@pytest.mark.parametrize(
    ("depth", "width", "millions"), [(16, 8, 11.0), (22, 8, 17.2), (28, 10, 36.5), (40, 4, 8.9)]
)
def test_wide_resnets_have_the_sizes_of_their_paper(depth, width, millions):
    """Table 4 of Zagoruyko & Komodakis."""
    found = parameters(lambda: WideResNet((depth - 4) // 6, width, 10, rngs=nnx.Rngs(0)))
    assert found / 1e6 == pytest.approx(millions, abs=0.06)


def test_sizes_of_the_articles_networks():
    assert parameters(lambda: WideResNet(3, 6, 10, rngs=nnx.Rngs(0))) / 1e6 == pytest.approx(
        9.7, abs=0.05
    )
    small = parameters(lambda: WideResNet(1, 1, 16, channels=1, rngs=nnx.Rngs(0)))
    assert small / 1e3 == pytest.approx(78, abs=0.5)
    assert parameters(lambda: ResNet50(1000, rngs=nnx.Rngs(0))) == 25_557_032  # PyTorch's


def test_a_block_is_what_its_docstring_says():
    """Without the branch it is the shortcut; the branch is scaled."""
    net = WideResNet(1, 1, 3, channels=1, rngs=nnx.Rngs(0))
    block = net.blocks[0]
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 16))
    branch = block(x) - x
    block.scale = 2 * block.scale
    np.testing.assert_allclose(block(x) - x, 2 * branch, atol=1e-5)
    assert net.blocks[0].shortcut is None
    assert net.blocks[1](x).shape == (2, 4, 4, 32)


@pytest.mark.skipif(not importlib.util.find_spec("safetensors"), reason="needs safetensors")
class TestWeights:
    """Weights in the names and order of PyTorch."""

    @staticmethod
    def stored(net):
        """Return the arrays of a network as PyTorch would store them, written out by hand."""
        kinds = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean",
                 "var": "running_var"}  # fmt: skip
        out = {}
        for path, leaf in nnx.to_flat_state(nnx.state(net, (nnx.Param, nnx.BatchStat))):
            array = np.asarray(leaf.get_value())
            array = np.moveaxis(array, [3, 2], [0, 1]) if array.ndim == 4 else array.T
            out[".".join([*map(str, path[:-1]), kinds[path[-1]]])] = np.ascontiguousarray(array)
        return out

    class Small(nnx.Module):
        """The beginning and the end of a ResNet, with PyTorch's names."""

        def __init__(self, classes, rngs):
            self.layer1 = nnx.List([Bottleneck(8, 4, 1, jnp.float32, rngs)])
            self.fc = nnx.Linear(16, classes, rngs=rngs)

        def __call__(self, x):
            return self.fc(self.layer1[0](x).mean((1, 2)))

    def test_they_give_the_same_outputs(self, tmp_path):
        from safetensors.numpy import save_file

        one, other = (self.Small(3, nnx.Rngs(seed)) for seed in (0, 1))
        stored = self.stored(one)
        assert "layer1.0.downsample.1.running_mean" in stored
        assert stored["layer1.0.conv2.weight"].shape == (4, 4, 3, 3)
        stored["layer1.0.bn1.num_batches_tracked"] = np.zeros((), np.int64)
        save_file(stored, tmp_path / "w.safetensors")
        x = jax.random.normal(jax.random.key(0), (2, 6, 6, 8))
        for net in (one, other):
            net.eval()
        assert not np.allclose(one(x), other(x))
        load_weights(other, tmp_path / "w.safetensors")
        np.testing.assert_allclose(one(x), other(x), rtol=1e-6)

    def test_another_head_is_kept_and_the_rest_must_fit(self, tmp_path):
        from safetensors.numpy import save_file

        path, net = tmp_path / "w.safetensors", self.Small(5, nnx.Rngs(1))
        stored, head = self.stored(self.Small(3, nnx.Rngs(0))), np.asarray(net.fc.kernel)
        save_file(stored, path)
        load_weights(net, path)
        np.testing.assert_array_equal(net.fc.kernel, head)
        lacking = {name: a for name, a in stored.items() if name != "layer1.0.conv1.weight"}
        for wrong, message in (
            (lacking, r"must have layer1.0.conv1.weight .* but it is not there"),
            ({**stored, "layer1.0.bn2.bias": np.zeros(7)}, r"but it has the shape \(7,\)"),
        ):
            save_file(wrong, path)
            with pytest.raises(ValueError, match=message):
                load_weights(net, path)
        path.write_bytes(path.read_bytes()[:-9])
        with pytest.raises(ValueError, match="cannot read the weights"):
            load_weights(net, path)


def test_crops_are_windows_of_the_reflected_image():
    image = np.arange(64.0).reshape(1, 8, 8, 1)
    padded = np.pad(image[0, :, :, 0], 2, mode="reflect")
    windows = {padded[i : i + 8, j : j + 8].tobytes() for i in range(5) for j in range(5)}
    mirrored = {np.ascontiguousarray(padded[i : i + 8, j : j + 8][:, ::-1]).tobytes()
                for i in range(5) for j in range(5)}  # fmt: skip
    images = jnp.asarray(np.repeat(image, 64, 0), jnp.float32)
    made = np.asarray(crop_and_flip(jax.random.key(0), images, 2), np.float64)[..., 0]
    kinds = [each.tobytes() in windows for each in made]
    assert all(kind or each.tobytes() in mirrored for kind, each in zip(kinds, made, strict=True))
    assert 16 < sum(kinds) < 48  # about half are mirrored
    assert len({each.tobytes() for each in made}) > 25


def test_probabilities_in_the_test_are_the_mean_over_copies():
    images = jax.random.normal(jax.random.key(0), (3, 8, 8, 1))

    def flat(x):
        return jnp.stack([x.mean((1, 2, 3)), jnp.zeros(len(x))], -1)

    key = jax.random.key(1)
    copies = [crop_and_flip(one, images, 1) for one in jax.random.split(key, 4)]
    each = [jax.nn.softmax(flat(x)) for x in (images, *copies)]
    found = mean_probabilities(flat, key, images, 1)
    np.testing.assert_allclose(found, sum(each) / 5, rtol=1e-6)
    np.testing.assert_allclose(found.sum(-1), 1, rtol=1e-6)
