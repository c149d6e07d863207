"""Ways to the target images that worked in the audit's own process: none works from a separate process.

Each attack returns the target images if it finds them, otherwise gray images.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.isolation.isolated_cases import audited, file_of

NEAREST = '''
def nearest(seen, images):
    """For each update, the image (1, C, H, W) whose gradient is the nearest."""
    view = seen.views[0]
    def distance(image, label, victim):
        weights = {k: t.requires_grad_() for k, t in view.weights.parameters.items()}
        out = torch.func.functional_call(seen.model, weights, (image,))
        loss = torch.nn.functional.cross_entropy(out, torch.tensor([label]))
        grads = torch.autograd.grad(loss, list(weights.values()))
        return sum((g - view.update.tensors[k][victim]).square().sum().item() for k, g in zip(weights, grads))
    def best(victim):
        return min(images, key=lambda image: min(distance(image, y, victim) for y in range(seen.num_classes)))
    return torch.stack([best(v) for v in range(len(seen))])
'''

FRAMES = '''
@dataclass(frozen=True, repr=False)
class Frames(Attack):
    """Walks up the stack of calls, to the one that holds the victims' numbers and the images."""
    def __call__(self, seen, generator):
        frame = sys._getframe()
        while frame is not None and "victims" not in frame.f_locals:
            frame = frame.f_back
        if frame is None:
            return answer(seen)
        images = frame.f_locals["self"].scorer.data.images
        return answer(seen, torch.stack([images[own] for own in frame.f_locals["victims"]]))
'''

OBJECTS = '''
@dataclass(frozen=True, repr=False)
class Objects(Attack):
    """Asks the garbage collector for the data set, and takes the images with the nearest gradients."""
    def __call__(self, seen, generator):
        sets = [one for one in gc.get_objects() if type(one).__name__ == "LabelledImages"]
        images = [image[None] for one in sets for image in one.images if image.shape == seen.image_shape]
        return answer(seen, nearest(seen, images) if images else None)
'''

FILES = '''
import numpy as np
from PIL import Image

def places():
    """Everything that this process was given and that may be a path."""
    yield os.getcwd()
    yield from sys.argv
    yield from os.environ.values()
    for link in [*Path("/proc/self/fd").iterdir(), Path("/proc/self/cwd")]:
        try:
            yield os.readlink(link)
        except OSError:
            pass
    try:
        yield from Path("/proc/self/cmdline").read_text().split("\\0")
        yield from Path("/proc/self/environ").read_text().replace("=", "\\0").split("\\0")
    except OSError:
        pass

@dataclass(frozen=True, repr=False)
class Files(Attack):
    """Looks for the folder of the images, and takes the one whose gradient is the nearest."""
    def __call__(self, seen, generator):
        pictures = []
        for place in places():
            if 1 < len(place) < 4096 and os.path.isdir(place):
                pictures += sorted(Path(place).glob("*/*.png")) + sorted(Path(place).glob("*.png"))
        arrays = [np.array(Image.open(picture)) for picture in dict.fromkeys(pictures)]
        arrays = [array for array in arrays if array.shape == seen.image_shape[1:]]
        images = [torch.from_numpy(array).float()[None, None] / 255 for array in arrays]
        if not images:
            return answer(seen)
        return answer(seen, nearest(seen, images))
'''

MODULES = '''
KEPT = []

def wrapped(step):
    def round_of(*args, **kwargs):
        made = step(*args, **kwargs)
        KEPT.append(made.batch)
        return made
    return round_of

play = sys.modules.get("medpfl.auditing.player")
if play is not None:  # else no client is played in this process
    play.client_round = wrapped(play.client_round)

@dataclass(frozen=True, repr=False)
class Modules(Attack):
    """When its file is imported, it changes the audit's own code, which then keeps every batch."""
    def __call__(self, seen, generator):
        own = KEPT[-len(seen):] if KEPT else ()
        return found(seen, own)
'''

WAYS = {"Frames": FRAMES, "Objects": OBJECTS, "Files": FILES, "Modules": MODULES}


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of images that the process has open, works in, and has in its environment."""
    random, folder = np.random.default_rng(0), tmp_path / "hospital"
    for kind in ("benign", "malignant"):
        (folder / kind).mkdir(parents=True)
        for i in range(2):
            Image.fromarray((random.random((16, 16)) * 255).astype("uint8")).save(folder / kind / f"{i}.png")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DATA_OF_THE_HOSPITAL", str(folder))
    return folder


@pytest.fixture
def specs(tmp_path: Path) -> dict[str, str]:
    places = {name: file_of(tmp_path, f"by_{name.lower()}", NEAREST, code) for name, code in WAYS.items()}
    return {name: f"{place}:{name}" for name, place in places.items()}


def rates(report) -> dict[str, float]:
    return {cell.attack.removesuffix("()"): cell.asr.value for cell in report.summary}


@pytest.mark.slow
def test_each_way_leads_to_the_truth_in_the_audit_s_own_process(images, specs, monkeypatch):
    from medpfl.auditing import player as play

    monkeypatch.setattr(play, "client_round", play.client_round)  # which is put back after the test
    options = {"data": str(images), "images": 4, "isolate": False}
    assert rates(audited([spec for name, spec in specs.items() if name != "Files"], **options)) == {
        "Frames": 1, "Objects": 1, "Modules": 1,
    }  # fmt: skip
    assert rates(audited([specs["Files"]], **options)) == {"Files": 1}
    noise = {**options, "defenses": ["LaplaceNoise(scale=1e6)"]}
    assert {cell.asr.value for cell in audited([specs["Frames"]], **noise).summary} == {1}, "there is nothing to read"


@pytest.mark.slow
def test_none_leads_to_it_from_a_process_of_its_own(images, specs):
    """At the process's start, descriptors are open that it could inherit."""
    opened = os.open(images, os.O_RDONLY)
    os.set_inheritable(opened, True)
    torch.set_num_threads(1)
    try:
        report = audited(list(specs.values()), data=str(images), images=4)
    finally:
        os.close(opened)
    assert rates(report) == dict.fromkeys(WAYS, 0)
    assert all(row.ended == "converged" for row in report.rows), "they ran, and found nothing"
    assert report.settings.isolation["in a process of their own"] == [f"{name}()" for name in WAYS]
