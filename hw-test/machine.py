"""Another box than the one of the other suites: new disks, another TPM or none. Only where the machine is virtual.

QEMU is started by hw-test/qemu, which reads $DCMGATE_TPM and $DCMGATE_MORE.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from gateway import GatewayStrategy, Status

ROOT = Path(os.environ["LG_DCMGATE_ROOT"])
FOLDER = Path(os.environ["LG_DCMGATE_VM"])
DEVICE = os.environ["DCMGATE_IMAGE_DEVICE"]
IMAGES = ROOT / "build" / ("image" if DEVICE == "x86-64" else f"image-{DEVICE}")
"""Where `image-build/build` puts what it builds for devices of this type."""
FIRST = FOLDER / "disk.raw"
GIB = 1 << 30


@contextmanager
def environment(**values: str) -> Iterator[None]:
    """Variables of hw-test/qemu for the next starts."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def tpm(name: str) -> str:
    """The memory of a TPM of that name, for $DCMGATE_TPM; a new name is another machine's."""
    return str(FOLDER / name)


def blank(name: str, size: int) -> Path:
    """A disk with nothing on it."""
    path = FOLDER / name
    path.unlink(missing_ok=True)
    path.touch()
    os.truncate(path, size)
    return path


def more(disks: Sequence[tuple[Path, str]]) -> str:
    """More disks, (file, serial number), for $DCMGATE_MORE. Each can be pulled by QMP: its device is called as its serial."""
    words = []
    for number, (path, serial) in enumerate(disks):
        words += [f"-drive if=none,id=more{number},format=raw,cache=unsafe,werror=report,rerror=report,file={path}",
                  f"-device pcie-root-port,id=port{number},chassis={40 + number}",
                  f"-device virtio-blk-pci,drive=more{number},serial={serial},id={serial},bus=port{number}"]
    return " ".join(words)


def stick_of(label: str, *files: Path) -> Path:
    """A FAT stick with that label and these files."""
    name = f"{label.lower()}.img"
    made = f"rm -f {name}; truncate -s 16M {name}; mkfs.vfat -n {label} {name}; mcopy -i {name} {' '.join(map(str, files))} ::"
    enter = [ROOT / "image-build" / "enter", "--work", FOLDER, "bash", "-ec", made]
    subprocess.run(enter, check=True, capture_output=True)
    return FOLDER / name


@contextmanager
def new_box(box: GatewayStrategy, image: Path | None, **values: str) -> Iterator[GatewayStrategy]:
    """A new box in the place of the old one, which comes back afterwards, off and untouched. Without an image: a blank disk."""
    box.transition(Status.off)
    kept = FOLDER / "kept"
    kept.mkdir(exist_ok=True)
    set_up = box.figures.pop("provisioning", None)
    for name in ("disk.raw", "vars.fd"):
        (FOLDER / name).rename(kept / name)
    shutil.copyfile(kept / "vars.fd", FOLDER / "vars.fd")
    if image is None:
        FIRST.touch()
    else:
        subprocess.run(["cp", "--sparse=always", image, FIRST], check=True)
    os.truncate(FIRST, 8 * GIB)
    try:
        with environment(**{"DCMGATE_TPM": tpm("other-tpm"), "DCMGATE_MORE": "", **values}):
            yield box
            box.transition(Status.off)
    finally:
        box.transition(Status.off)
        for name in ("disk.raw", "vars.fd"):
            (kept / name).replace(FOLDER / name)
        box.figures.pop("provisioning", None)
        if set_up is not None:
            box.figures["provisioning"] = set_up
