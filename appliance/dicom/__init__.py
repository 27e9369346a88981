"""DICOM, pure and sans-IO: bytes in, values out."""
