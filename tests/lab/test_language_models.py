"""AWD-LSTM, QRNN and the neural cache against plain NumPy formulas, and how text is read."""

import bz2
import dataclasses
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from adamw_jax.lab.data import plays
from adamw_jax.lab.data.text import END, Text
from adamw_jax.lab.data.wikitext import MEMBERS, WORDS, read_tokens, write_tokens
from adamw_jax.lab.networks.cache_pointer import Cache
from adamw_jax.lab.networks.language_model import (
    LSTM,
    LSTM_CELLS,
    QRNN,
    QRNN_CELLS,
    LanguageModel,
    LanguageShape,
    pooled,
)
from adamw_jax.lab.networks.reading import EVALUATED, Reading, language_task

pytestmark = pytest.mark.quick

SPACE = 'xmlns="http://www.mediawiki.org/xml/export-0.10/"'
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
SMALL = LanguageShape(LSTM_CELLS, vocabulary=11, embedding=6, hidden=8, layers=2)


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_lstm_is_the_formula():
    cell, x = LSTM(3, 4, 0.0, rngs=nnx.Rngs(0)), drawn(5, 2, 3)
    h, c = drawn(2, 4, seed=1), drawn(2, 4, seed=2)
    outputs, states = cell(jnp.asarray(x), (jnp.asarray(h), jnp.asarray(c)))
    for t in range(5):
        w, u, b = map(np.asarray, (cell.input, cell.recurrent, cell.bias))
        gates = x[t] @ w + h @ u + b
        i, f, o, g = np.split(gates, 4, axis=1)
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        np.testing.assert_allclose(outputs[t], h, **CLOSE)
        np.testing.assert_allclose(states[1][t], c, **CLOSE)


@pytest.mark.parametrize("window", [1, 2])
def test_qrnn_is_the_formula(window):
    cell, x = QRNN(3, 4, 0.0, window, rngs=nnx.Rngs(0)), drawn(7, 2, 3)
    c, before = drawn(2, 4, seed=1), drawn(2, 3, seed=2)
    outputs, states = cell(jnp.asarray(x), (jnp.asarray(c), jnp.asarray(before))[:window])
    for t in range(7):
        seen = np.concatenate([x[t], before], axis=1) if window == 2 else x[t]
        gates = seen @ np.asarray(cell.kernel) + np.asarray(cell.bias)
        z, f, o = np.split(gates, 3, axis=1)
        c = sigmoid(f) * c + (1 - sigmoid(f)) * np.tanh(z)
        before = x[t]
        np.testing.assert_allclose(outputs[t], sigmoid(o) * c, **CLOSE)
        np.testing.assert_allclose(states[0][t], c, **CLOSE)


def test_associative_scan_and_its_gradient_equal_the_loop():
    f, z = jax.nn.sigmoid(drawn(13, 2, 3)), jnp.asarray(drawn(13, 2, 3, seed=1))
    before = jnp.asarray(drawn(2, 3, seed=2))

    def loop(f, z, before):
        found, c = [], before
        for t in range(13):
            c = f[t] * c + (1 - f[t]) * z[t]
            found.append(c)
        return jnp.stack(found)

    np.testing.assert_allclose(pooled(f, z, before), loop(f, z, before), **CLOSE)
    slopes = [
        jax.jit(jax.grad(lambda *args, own=own: jnp.sum(own(*args) ** 2), (0, 1, 2)))(f, z, before)
        for own in (pooled, loop)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *slopes)


@pytest.mark.parametrize(
    ("shape", "count"),
    [
        # embedding, its bias, and for each layer both matrices and one bias a gate; PyTorch's LSTM
        # has a second bias, 21,600 numbers
        (LanguageShape(), 33_278 * 401 + 4 * (1150 * 1551 + 1150 * 2301 + 400 * 1551)),
        (
            LanguageShape(QRNN_CELLS, hidden=1550, layers=4),
            33_278 * 401 + 3 * (1550 * 801 + 2 * 1550 * 1551 + 400 * 1551),
        ),
    ],
)
def test_sizes_of_the_papers(shape, count):
    model = nnx.eval_shape(lambda: LanguageModel(shape, rngs=nnx.Rngs(0)))
    found = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert found == count
    assert 33e6 < found < 33.6e6  # both papers say 33 M


@pytest.mark.parametrize("cells", [LSTM_CELLS, QRNN_CELLS])
def test_reading_in_two_parts_is_reading_at_once(cells):
    model = LanguageModel(dataclasses.replace(SMALL, cells=cells), rngs=nnx.Rngs(0))
    model.eval()
    words = jnp.asarray(np.random.default_rng(0).integers(0, 11, (9, 3)))
    read = jax.jit(model)
    whole, _, end = read(words, model.start(3), 9)
    first, _, state = read(words, model.start(3), 4)  # what follows does not count
    second, _, same = jax.jit(model)(words[4:], state)
    np.testing.assert_allclose(jnp.concatenate([first[:4], second]), whole, **CLOSE)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), same, end)


def test_dropout_is_locked_and_drops_whole_words_and_weights():
    words = jnp.asarray(np.random.default_rng(0).integers(0, 11, (40, 3)))
    kept = dataclasses.replace(SMALL, drop_input=0, drop_hidden=0, drop_weights=0, drop_words=0)
    _, dropped, _ = (model := LanguageModel(kept, rngs=nnx.Rngs(0)))(words, model.start(3))
    zero = np.asarray(dropped == 0)
    assert zero.any()
    assert (zero.all(0) == zero.any(0)).all()  # one mask for all times

    only = dataclasses.replace(SMALL, drop_input=0, drop_hidden=0, drop_output=0, drop_weights=0,
                               drop_words=0.5, layers=1, embedding=8)  # fmt: skip
    model = LanguageModel(only, rngs=nnx.Rngs(1))
    seen = []
    model.layers[0].__class__ = type("Spy", (LSTM,), {
        "__call__": lambda self, x, state: (seen.append(x), LSTM.__call__(self, x, state))[1]
    })  # fmt: skip
    model(words, model.start(3))
    rows = np.asarray(seen[0]).reshape(-1, 8)
    flat = np.asarray(words).ravel()
    lost = {word for word in range(11) if (rows[flat == word] == 0).all()}
    assert 0 < len(lost) < 11
    for word in set(flat.tolist()) - lost:
        expected = 2 * model.embedding[word]  # kept words are scaled
        np.testing.assert_allclose(rows[flat == word][0], expected, rtol=1e-6)

    cell = LSTM(3, 4, 0.99, rngs=nnx.Rngs(0))
    plain = LSTM(3, 4, 0.0, rngs=nnx.Rngs(0))
    x, start = jnp.asarray(drawn(6, 2, 3)), cell.start(2)
    plain.recurrent.set_value(jnp.zeros_like(plain.recurrent[...]))
    np.testing.assert_allclose(cell(x, start)[0], plain(x, start)[0], **CLOSE)


@pytest.mark.parametrize("portion", [1, 4, 20])
def test_cache_is_the_formula(portion):
    cache = Cache(theta=0.7, share=0.2, window=6)
    hidden, rng = drawn(20, 5), np.random.default_rng(3)
    targets, p = rng.integers(0, 4, 20), rng.uniform(0.05, 0.9, 20).astype(np.float32)
    expected = []
    for t in range(20):
        past = range(max(0, t - 6), t)
        weights = np.exp([0.7 * hidden[t] @ hidden[i] for i in past])
        right = sum(w for w, i in zip(weights, past, strict=True) if targets[i] == targets[t])
        mixed = 0.8 * p[t] + 0.2 * right / weights.sum() if len(past) else p[t]
        expected.append(-np.log(mixed))
    held, found = cache.start(5), []
    for i in range(0, 20, portion):
        part = slice(i, i + portion)
        now = hidden[part], targets[part], -np.log(p[part])
        held, losses = cache(held, *map(jnp.asarray, now))
        found.append(losses)
    np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5)


def text_of(size, held=EVALUATED + 1, vocabulary=11):
    rng = np.random.default_rng(0)
    parts = [rng.integers(0, vocabulary, n).astype(np.int32) for n in (size, held, held)]
    return Text(*parts, words=tuple(map(str, range(vocabulary))))


def test_batches_read_every_word_of_every_column_in_order():
    reading = Reading(batch_size=3, length=10, scatter=2)
    text = np.arange(3 * 101)
    source, seen, lengths = reading.batches(text, seed=0), [], []
    for number, batch in enumerate(source):
        assert batch["words"].shape == (reading.longest + 1, 3)
        if number and batch["first"]:
            break
        seen.append(batch["words"][: batch["length"]])
        np.testing.assert_array_equal(seen[-1][:, 0] + 1,  # the next words are the targets
                                      batch["words"][1 : batch["length"] + 1, 0])  # fmt: skip
        lengths.append(int(batch["length"]))
    read = np.concatenate(seen)
    assert len(read) >= 99  # a last single word is left out
    np.testing.assert_array_equal(read, text.reshape(3, 101).T[: len(read)])
    assert len(set(lengths)) > 1
    assert max(lengths) <= reading.longest


def test_loss_ignores_words_beyond_the_length_and_carries_the_state():
    reading = Reading(batch_size=3, length=10, scatter=2)
    shape = LanguageShape(LSTM_CELLS, 11, 6, 8, 2, 0.0, 0.0, 0.0, 0.0, 0.0)
    task = language_task(text_of(600), shape, reading)
    params, state = task.start(jax.random.key(0))
    first, second = (next(batches) for batches in [task.data.batches(0)] * 2)
    other = {**first, "words": np.where(np.arange(reading.longest + 1)[:, None] > first["length"],
                                        0, first["words"])}  # fmt: skip
    assert first["length"] < reading.longest
    loss, after = task.losses(params, state, first, jax.random.key(0))
    np.testing.assert_allclose(
        loss, task.losses(params, state, other, jax.random.key(0))[0], rtol=1e-6
    )
    carried = task.losses(params, after, second, jax.random.key(0))[0]
    anew = task.losses(params, after, {**second, "first": np.True_}, jax.random.key(0))[0]
    assert carried != anew


def test_penalties_and_metrics_are_their_formulas():
    text = text_of(600)
    shape = LanguageShape(LSTM_CELLS, 11, 6, 8, 1, 0.0, 0.0, 0.0, 0.0, 0.0)
    plain, with_ar, with_tar = (
        language_task(text, shape, Reading(3, 10, 2, *own), Cache(window=20))
        for own in ((0.0, 0.0), (200.0, 0.0), (0.0, 300.0))
    )
    params, state = plain.start(jax.random.key(0))
    batch = next(plain.data.batches(0))
    losses = [float(task.losses(params, state, batch, jax.random.key(0))[0])
              for task in (plain, with_ar, with_tar)]  # fmt: skip
    model = LanguageModel(shape, rngs=nnx.Rngs(0))
    nnx.update(model, params["model"])
    model.eval()
    h = np.asarray(model(batch["words"][:-1], model.start(3))[0])[: batch["length"]]
    np.testing.assert_allclose(losses[1] - losses[0], 200 * np.mean(h**2), rtol=1e-4)
    change = np.diff(h, axis=0)
    np.testing.assert_allclose(losses[2] - losses[0], 300 * np.mean(change**2), rtol=1e-4)

    words = text.test[: EVALUATED + 1]
    logits = model.logits(model(words[:-1, None], model.start(1))[0])[:, 0]
    expected = -jax.nn.log_softmax(logits)[np.arange(EVALUATED), words[1:]]
    found = plain.metrics(params, state, plain.data.test)
    np.testing.assert_allclose(found["loss"], expected.mean(), rtol=1e-5)
    np.testing.assert_allclose(found["perplexity"], np.exp(expected.mean()), rtol=1e-5)
    assert found["cache_loss"] != found["loss"]


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match=r"290 words or more .* got 90"):
        next(Reading(10, 20, 4).batches(np.zeros(90, np.int32), 0))
    with pytest.raises(ValueError, match="vocabulary must be that of the text, 11, got 12"):
        language_task(text_of(600), dataclasses.replace(SMALL, vocabulary=12), Reading())
    with pytest.raises(ValueError, match="more than 250 words, got 100"):
        language_task(text_of(600, held=100), SMALL, Reading())


def test_wikitext_archive_and_its_twin(tmp_path):
    path = tmp_path / "twin.zip"
    write_tokens(path, {"train": 900, "validation": 200, "test": 300}, vocabulary=40)
    text = read_tokens(path)
    assert [len(part) for part in (text.train, text.validation, text.test)] == [900, 200, 300]
    assert len(text.words) == 40
    assert text.words[0] == "<unk>"
    assert "<eos>" in text.words

    with zipfile.ZipFile(path, "w") as archive:  # as in the original: blank lines, spaces at ends
        for name in MEMBERS.values():
            archive.writestr(name, " \n = Title = \n \n A <unk> b\x85c \n")
    text = read_tokens(path)
    read = [text.words[i] for i in text.train]
    expected = "<eos> = Title = <eos> <eos> A <unk> b c <eos>"
    assert read == expected.split()
    assert sum(WORDS.values()) == 2_551_843


def test_plays_are_read_by_scene():
    found = plays.scenes()
    assert len(found) == 170
    assert " ".join(found[0][:8]) == "alexandria . a room in cleopatra's palace ."
    assert found[0][8] == END
    text = plays.plays(500, limit=2000, held_out=300)
    assert [len(part) for part in (text.train, text.validation, text.test)] == [2000, 300, 300]
    assert len(text.words) == 500
    assert "170 scenes of seven tragedies of Shakespeare" in text.about


def test_another_text_is_refused(monkeypatch):
    monkeypatch.setattr(plays, "SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"tragedies\.txt is not the text .*install adamw_jax"):
        plays.scenes()


def test_without_gensim_the_plays_are_read():
    """In a process of its own, whose imports find no gensim."""
    program = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "gensim" else find(name, *more)
from adamw_jax.lab.experiments import get_experiment
from adamw_jax.lab.experiments.language_runs import text_of
settings = get_experiment("article_wikitext").settings("cpu")
assert settings.data == "Shakespeare", settings.data
assert len(text_of(settings).train) == 100_000
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_wikipedia_markup_is_cleaned(tmp_path):
    pytest.importorskip("gensim")
    from adamw_jax.lab.data.wikipedia import articles

    body = (
        "{{Infobox|name=x}}\n'''Ants''' ({{lang|x}}) are [[insect|small insects]] that live in "
        "big groups, 3 or more.&lt;ref&gt;A book&lt;/ref&gt;\n== Life ==\n* a list that is long "
        "enough to be a line of words\nToo short."
    )
    pages = "".join(
        f"<page><title>{title}</title><ns>{space}</ns><id>1</id><revision><text>{text}</text>"
        "</revision></page>"
        for title, space, text in [
            ("Ants", 0, body),
            ("Ant", 0, "#REDIRECT [[Ants]]"),
            ("Talk:Ants", 1, body),
        ]
    )
    path = tmp_path / "dump.xml.bz2"
    path.write_bytes(bz2.compress(f"<mediawiki {SPACE}>{pages}</mediawiki>".encode()))
    expected = "ants are small insects that live in big groups , 3 or more . <eos>"
    assert list(articles(path)) == [expected.split()]
