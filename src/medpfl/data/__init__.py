"""Where the private images come from: sources of labelled images, and how they are dealt to clients."""

from __future__ import annotations

from medpfl.data.dicom import Dicom
from medpfl.data.folder import ImageFolder
from medpfl.data.samples import Samples

__all__ = ["Dicom", "ImageFolder", "Samples"]
