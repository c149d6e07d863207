"""A site's own training, with no framework and no MedPFL: it saves the model before and after a round."""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import to_tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from make_pictures import write


def make_model() -> nn.Module:
    """Return a small network with sigmoids and wide weights."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 5, stride=2, padding=2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, stride=2, padding=2),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(12 * 64, 3),
    )
    for parameter in model.parameters():
        nn.init.uniform_(parameter, -0.5, 0.5)
    return model


def pictures(folder: Path) -> TensorDataset:
    """Return gray pictures in folders named after their class."""
    names = sorted(place.name for place in folder.iterdir())
    files = sorted(folder.glob("*/*.png"))
    images = torch.stack([to_tensor(Image.open(path).convert("L")) for path in files])
    return TensorDataset(images, torch.tensor([names.index(path.parent.name) for path in files]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="new folder for pictures and checkpoints")
    given = parser.parse_args()
    write(given.out / "pictures", per_class=1)
    model = make_model()
    torch.save(model.state_dict(), given.out / "before.pt")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for images, labels in DataLoader(pictures(given.out / "pictures" / "site-1"), batch_size=4, shuffle=True):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    torch.save(model.state_dict(), given.out / "after.pt")
