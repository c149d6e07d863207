"""Networks that a federation trains: a file per architecture. ``__all__`` is the registry."""

from medpfl.models.lenet import LeNet
from medpfl.models.resnet import ResNet

__all__ = ["LeNet", "ResNet"]
