"""Networks for federated training, one architecture per file. ``__all__`` is the registry."""

from medpfl.models.convnet import ConvNet
from medpfl.models.densenet import DenseNet121
from medpfl.models.lenet import LeNet
from medpfl.models.mlp import MLP
from medpfl.models.resnet import ResNet
from medpfl.models.unet import UNet
from medpfl.models.vit import ViT

__all__ = ["ConvNet", "DenseNet121", "LeNet", "MLP", "ResNet", "UNet", "ViT"]  # noqa: RUF022
