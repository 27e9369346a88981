"""DICOM without input or output: bytes in, events and bytes out. Nothing in here knows a socket, a file or the time."""
