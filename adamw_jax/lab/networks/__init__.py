"""Networks in Flax NNX: residual ones for images, with augmentation; recurrent ones for text."""

from adamw_jax.lab.networks.augment import crop_and_flip, mean_probabilities
from adamw_jax.lab.networks.cache_pointer import Cache
from adamw_jax.lab.networks.images import image_task
from adamw_jax.lab.networks.language_model import (
    LSTM_CELLS,
    QRNN_CELLS,
    LanguageModel,
    LanguageShape,
)
from adamw_jax.lab.networks.reading import Reading, language_task
from adamw_jax.lab.networks.wide_resnet import WideResNet

__all__ = [
    "LSTM_CELLS",
    "QRNN_CELLS",
    "Cache",
    "LanguageModel",
    "LanguageShape",
    "Reading",
    "WideResNet",
    "crop_and_flip",
    "image_task",
    "language_task",
    "mean_probabilities",
]
