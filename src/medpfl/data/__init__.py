"""Sources of private images, and rules that distribute the images among clients."""

from __future__ import annotations

from medpfl.data.arrays import Arrays
from medpfl.data.dicom import Dicom
from medpfl.data.folder import ImageFolder
from medpfl.data.kaggle import Kaggle
from medpfl.data.medmnist import MedMNIST
from medpfl.data.nifti import Nifti
from medpfl.data.samples import Samples
from medpfl.data.segmented import Segmented
from medpfl.data.thresholded import Thresholded

__all__ = ["Arrays", "Dicom", "ImageFolder", "Kaggle", "MedMNIST", "Nifti", "Samples", "Segmented", "Thresholded"]
