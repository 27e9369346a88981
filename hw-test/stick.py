"""The commissioning stick, as a device sees it: plugged in and pulled out.

`StickProtocol` is what the suites know; here is the one of a virtual machine. A
bench has a USB multiplexer, or a person.
"""

from __future__ import annotations

import abc
import os
from pathlib import Path

import attr
from labgrid.driver import Driver
from labgrid.factory import target_factory


class StickProtocol(abc.ABC):
    @abc.abstractmethod
    def plug(self, image: Path) -> None:
        """Have a stick with this content (a file system image) in the device."""

    @abc.abstractmethod
    def pull(self) -> None:
        """Take it out."""

    @abc.abstractmethod
    def plug_keyboard(self) -> None:
        """Have a keyboard in the same port: nothing that a gateway should take."""

    @abc.abstractmethod
    def pull_keyboard(self) -> None:
        """Take it out."""


@target_factory.reg_driver
@attr.s(eq=False)
class VirtualStick(Driver, StickProtocol):
    """USB mass storage that QEMU plugs in while the machine runs."""

    bindings = {"power": "QEMUDriver"}  # noqa: RUF012  labgrid's way

    @Driver.check_active
    def plug(self, image: Path) -> None:
        self.power.monitor_command("blockdev-add", {"driver": "raw", "node-name": "stick", "read-only": True,
                                                    "file": {"driver": "file", "filename": os.fspath(image)}})
        self.power.monitor_command("device_add", {"driver": "usb-storage", "id": "stick", "drive": "stick", "bus": "usb.0",
                                                  "removable": True})

    @Driver.check_active
    def pull(self) -> None:
        self.power.monitor_command("device_del", {"id": "stick"})

    @Driver.check_active
    def plug_keyboard(self) -> None:
        self.power.monitor_command("device_add", {"driver": "usb-kbd", "id": "keyboard", "bus": "usb.0"})

    @Driver.check_active
    def pull_keyboard(self) -> None:
        self.power.monitor_command("device_del", {"id": "keyboard"})
