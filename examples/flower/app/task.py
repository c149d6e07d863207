"""Networks, pictures and local training."""

from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import to_tensor

CLASSES = ("disc", "ring", "square")


def lenet() -> nn.Module:
    """Return a network with sigmoids, like the one with which gradient inversion was shown first."""
    model = nn.Sequential(
        nn.Conv2d(1, 12, 5, stride=2, padding=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, stride=2, padding=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, padding=2),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(12 * 64, len(CLASSES)),
    )
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def relu_cnn() -> nn.Module:
    """Return a small network with ReLU."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 64, len(CLASSES)),
    )


def norm_cnn() -> nn.Module:
    """Return a small network with batch norm."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 64, len(CLASSES)),
    )


NETWORKS = {"lenet": lenet, "relu_cnn": relu_cnn, "norm_cnn": norm_cnn}


class Pictures(Dataset):
    """Gray pictures in folders named after their class."""

    def __init__(self, folder: str) -> None:
        self.files = sorted(Path(folder).glob("*/*.png"))

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        path = self.files[index]
        return to_tensor(Image.open(path).convert("L")), CLASSES.index(path.parent.name)


def train(model: nn.Module, folder: str, epochs: int, learning_rate: float, momentum: float) -> int:
    """Train on a site's pictures in batches of 4, and return their number."""
    pictures = Pictures(folder)
    optimizer = torch.optim.SGD(model.parameters(), lr=learning_rate, momentum=momentum)
    loss = nn.CrossEntropyLoss()
    model.train()
    for _ in range(epochs):
        for images, labels in DataLoader(pictures, batch_size=4, shuffle=True):
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
    return len(pictures)
