"""Networks for gray pictures of 32 x 32 pixels."""

from torch import nn

CLASSES = ("disc", "ring", "square")


class Net(nn.Sequential):
    """A small classifier: ``lenet`` with sigmoids, ``relu_cnn``, or ``norm_cnn`` with batch norm."""

    def __init__(self, network: str = "norm_cnn") -> None:
        self.network = network
        norm = [nn.BatchNorm2d(16)] if network == "norm_cnn" else []
        rectifier = nn.Sigmoid if network == "lenet" else nn.ReLU
        super().__init__(
            nn.Conv2d(1, 16, 5, stride=2, padding=2),
            *norm,
            rectifier(),
            nn.Conv2d(16, 16, 5, stride=2, padding=2),
            rectifier(),
            nn.Flatten(),
            nn.Linear(16 * 64, len(CLASSES)),
        )
        if network == "lenet":
            for parameter in self.parameters():
                nn.init.uniform_(parameter, -0.5, 0.5)
