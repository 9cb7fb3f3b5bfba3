"""Compare optimizers on your own model, by a protocol that you can believe.

``compare`` is described on the page "Compare optimizers on your own model". Here are also the
experiments on claims of the literature, their reports and the command line ``adamw-jax``. The
library never imports the lab. It needs the extra ``demo`` (flax, scikit-learn, matplotlib, rich,
tyro, filelock), and uses the public names of the library.
"""

from adamw_jax.lab.adapters import from_equinox, from_linen, from_nnx
from adamw_jax.lab.comparison import Comparison
from adamw_jax.lab.contenders import Optimizer
from adamw_jax.lab.event_files import tensorboard
from adamw_jax.lab.protocol import compare
from adamw_jax.lab.range_test import lr_find
from adamw_jax.lab.spaces import log_uniform, uniform
from adamw_jax.lab.study import Budget
from adamw_jax.lab.task import Data, Task, split

__all__ = [
    "Budget",
    "Comparison",
    "Data",
    "Optimizer",
    "Task",
    "compare",
    "from_equinox",
    "from_linen",
    "from_nnx",
    "log_uniform",
    "lr_find",
    "split",
    "tensorboard",
    "uniform",
]
