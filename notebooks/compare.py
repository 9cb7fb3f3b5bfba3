# %% [markdown]
# # Compare optimizers on your own model
#
# Three optimizers on a small convolutional net with batch norm and dropout, for scikit-learn's
# digits. Each is tuned with the same number of trials. The chosen settings run with fresh seeds.

# %%
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from adamw_jax import lab

images, labels = map(np.asarray, load_digits(return_X_y=True))
images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
data = lab.split((images[:900], labels[:900].astype(np.int32)), batch_size=60)


# %%
class Net(nnx.Module):
    """A convolution, batch norm, dropout and a linear layer."""

    def __init__(self, rngs):
        self.convolution = nnx.Conv(1, 8, (3, 3), strides=2, rngs=rngs)
        self.norm = nnx.BatchNorm(8, rngs=rngs)
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(8 * 16, 10, rngs=rngs)

    def __call__(self, x):
        hidden = nnx.relu(self.norm(self.convolution(x))).reshape(len(x), -1)
        return self.head(self.dropout(hidden))


def loss(net, batch):
    """Cross-entropy of every example."""
    return optax.softmax_cross_entropy_with_integer_labels(net(batch[0]), batch[1])


def evaluate(net, batch):
    """Loss and accuracy."""
    right = net(batch[0]).argmax(-1) == batch[1]
    return {"loss": loss(net, batch), "accuracy": right}


task = lab.from_nnx(Net, loss, data, evaluate, name="digits", about="A small convolutional net.")

# %% [markdown]
# First a look at the learning rate.

# %%
lab.lr_find(task, "adamw", steps=80).plot()

# %% [markdown]
# Then the comparison. The last optimizer is made of optax's parts.


# %%
def clipped(learning_rate, weight_decay):
    """AdamW behind a clip of the gradient's norm."""
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, weight_decay=weight_decay)
    )


found = lab.compare(
    task,
    ["adamw", "sgdw", clipped],
    budget=lab.Budget(steps=100, trials=4, tuning_seeds=1, evaluations=5),
    seeds=8,
)
found

# %% [markdown]
# The verdicts, each with its rule and with the difference that these seeds could have seen:

# %%
for verdict in found.result().verdicts:
    print(f"{verdict.word}: {verdict.claim}\n{verdict.evidence}\n{verdict.rule}\n")

# %% [markdown]
# The numbers behind it are plain rows.

# %%
found.rows[-1]
