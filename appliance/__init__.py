"""Dcmgate: a store-and-forward DICOM gateway. `appliance/man/overview.md` draws the path of an image."""

__version__ = "0.1.0"
