"""Kaggle's layouts: found by path, and by name only through kagglehub."""

from __future__ import annotations

import sys
import types

import pytest
from PIL import Image

from medpfl.core.errors import InputError
from medpfl.data import Kaggle

LAYOUTS = {
    "brain_mri": ("Training/{}", "Testing/{}", ["glioma", "meningioma", "notumor", "pituitary"]),
    "covid_xray": ("Covid19-dataset/train/{}", "Covid19-dataset/test/{}", ["Covid", "Normal", "Viral Pneumonia"]),
    "melanoma": ("melanoma_cancer_dataset/train/{}", "melanoma_cancer_dataset/test/{}", ["benign", "malignant"]),
}


def lay_out(root, name):
    *folders, classes = LAYOUTS[name]
    for count, folder in enumerate(folders, 1):
        for label in classes:
            place = root / folder.format(label)
            place.mkdir(parents=True)
            for i in range(count):
                Image.new("L", (20, 20), 50 * i).save(place / f"{i}.jpg")
    return root


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_published_layouts(tmp_path, name):
    lay_out(tmp_path, name)
    train, test = Kaggle(name, tmp_path).load(), Kaggle(name, tmp_path, "test", size=16).load()
    assert list(train.classes) == sorted(LAYOUTS[name][2])
    assert len(test) == 2 * len(train) == 2 * len(train.classes)
    assert test.shape == (1, 16, 16)
    assert Kaggle(name, (tmp_path / LAYOUTS[name][0]).parents[0].parent).load().names == train.names


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_layout_is_refused(tmp_path, name):
    with pytest.raises(InputError, match=r"is not laid out as kaggle.com/datasets/\w+/"):
        Kaggle(name, tmp_path).load()


def test_by_name_through_kagglehub(tmp_path, monkeypatch):
    lay_out(tmp_path, "melanoma")
    hub = types.ModuleType("kagglehub")
    hub.asked = []
    hub.dataset_download = lambda handle: hub.asked.append(handle) or str(tmp_path)
    monkeypatch.setitem(sys.modules, "kagglehub", hub)
    assert Kaggle("melanoma").load().classes == ("benign", "malignant")
    assert hub.asked == ["hasnainjaved/melanoma-skin-cancer-dataset-of-10000-images"]

    def fails(_):
        raise ConnectionError("no route")

    hub.dataset_download = fails
    with pytest.raises(InputError, match=r"kagglehub could not download hasnainjaved/.*no route"):
        Kaggle("melanoma").load()


def test_without_kagglehub(monkeypatch):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(InputError, match=r"pip install kagglehub, or download kaggle.com/datasets/pranavraikokte/"):
        Kaggle("covid_xray").load()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("covid",), "did you mean 'covid_xray'"), (("melanoma", None, "val"), "there is no split 'val'")],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(InputError, match=message):
        Kaggle(*arguments)
