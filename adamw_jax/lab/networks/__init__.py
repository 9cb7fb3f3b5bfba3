"""Networks in Flax NNX: residual networks for images, with augmentation."""

from adamw_jax.lab.networks.augment import crop_and_flip, mean_probabilities
from adamw_jax.lab.networks.images import image_task
from adamw_jax.lab.networks.wide_resnet import WideResNet

__all__ = ["WideResNet", "crop_and_flip", "image_task", "mean_probabilities"]
