"""The client: it trains the global model on the pictures of its site."""

import argparse
from pathlib import Path

import nvflare.client as flare
import torch
from net import CLASSES, Net
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import to_tensor


def pictures(folder: Path) -> TensorDataset:
    """Return gray pictures in folders named after their class."""
    files = sorted(folder.glob("*/*.png"))
    images = torch.stack([to_tensor(Image.open(path).convert("L")) for path in files])
    return TensorDataset(images, torch.tensor([CLASSES.index(path.parent.name) for path in files]))


def train(model: nn.Module, data: TensorDataset) -> int:
    """Train for two epochs in batches of 4, and return the number of steps."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    loss = nn.CrossEntropyLoss()
    model.train()
    steps = 0
    for _ in range(2):
        for images, labels in DataLoader(data, batch_size=4, shuffle=True):
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
            steps += 1
    return steps


def main() -> None:
    """Answer the server's tasks until the job ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--network", default="norm_cnn")
    given = parser.parse_args()
    flare.init()
    data = pictures(given.pictures / flare.get_site_name())
    while flare.is_running():
        received = flare.receive()
        model = Net(given.network)
        model.load_state_dict({name: torch.as_tensor(value) for name, value in received.params.items()})
        steps = train(model, data)
        state = {name: value.cpu() for name, value in model.state_dict().items()}
        flare.send(flare.FLModel(params=state, meta={"NUM_STEPS_CURRENT_ROUND": steps}))


if __name__ == "__main__":
    main()
