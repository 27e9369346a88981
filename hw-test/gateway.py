"""The states of a gateway: off → booted → provisioned → serving. A test asks for a state, not for steps.

Bound to labgrid's protocols alone: the same suites run on a virtual machine and on a real box with a power switch and a
serial cable.
"""

from __future__ import annotations

import enum
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attr
from labgrid.factory import target_factory
from labgrid.strategy import Strategy, StrategyError
from stick import StickProtocol
from waiting import seconds_until

SCANNER_SIDE = "10.99.1.2"
PORT = 11112
BOOT_SECONDS = 600
PROVISION_SECONDS = 400
SERVE_SECONDS = 500


FIRMWARE = r"\x1b\[2J|BdsDxe: |EFI stub: |U-Boot "
"""The first that a firmware shows: it clears the screen, which nothing of ours does."""


class Status(enum.Enum):
    unknown = 0
    off = 1
    booted = 2
    provisioned = 3
    serving = 4


def echo(address: str = SCANNER_SIDE, port: int = PORT, seconds: int = 10) -> bool:
    """Whether a C-ECHO is answered."""
    command = ["echoscu", "-to", str(seconds), "-ta", str(seconds), "-aet", "CT1", "-aec", "DCMGATE", address, str(port)]
    return subprocess.run(command, capture_output=True, timeout=4 * seconds).returncode == 0


@target_factory.reg_driver
@attr.s(eq=False)
class GatewayStrategy(Strategy):
    """`stick_image`: what is on the stick. `figures`: seconds of the states. `when_off`: is called once, at the next off."""

    bindings = {"power": "PowerProtocol", "console": "ConsoleProtocol", "stick": StickProtocol, "ssh": "SSHDriver"}  # noqa: RUF012
    status = attr.ib(default=Status.unknown)

    def __attrs_post_init__(self) -> None:
        super().__attrs_post_init__()
        self.stick_image = Path()
        self.figures: dict[str, float] = {}
        self.when_off: Callable[[], object] | None = None
        self._on_at: float | None = None
        self._set_up_on_this_boot = False

    def transition(self, status: Status | str) -> None:
        """Come to that state, through those before it."""
        wanted = status if isinstance(status, Status) else Status[status]
        if wanted is Status.unknown:
            raise StrategyError("unknown is no state to come to")
        if wanted is Status.off or self.status is Status.unknown or wanted.value < self.status.value:
            self._off()
        while self.status is not wanted:
            {Status.off: self._boot, Status.booted: self._provision, Status.provisioned: self._serve}[self.status]()

    def _off(self) -> None:
        self.target.deactivate(self.ssh)
        self.target.activate(self.power)
        self.power.off()
        self.status = Status.off
        if self.when_off is not None:
            then, self.when_off = self.when_off, None
            then()

    def _boot(self) -> None:
        self.target.activate(self.console)
        began = self._on_at = time.monotonic()
        self.power.on()
        self.console.expect(r"Reached target .*multi-user\.target", timeout=BOOT_SECONDS)
        self.figures["power to multi-user"] = time.monotonic() - began
        self.status = Status.booted

    def _provision(self) -> None:
        """From the stick, unless the box is set up already: then it serves after a while by itself."""
        self.target.activate(self.stick)
        self._set_up_on_this_boot = "provisioning" not in self.figures
        if self._set_up_on_this_boot:
            began = time.monotonic()
            self.stick.plug(self.stick_image)
            self.console.expect("dcmgate: set up", timeout=PROVISION_SECONDS)
            self.figures["provisioning"] = time.monotonic() - began
            self.stick.pull()
        self.status = Status.provisioned

    def _serve(self) -> None:
        began = time.monotonic()
        if seconds_until(echo, SERVE_SECONDS) is None:
            raise StrategyError(f"no C-ECHO is answered within {SERVE_SECONDS} s")
        if self._set_up_on_this_boot:
            self.figures["set up to serving"] = time.monotonic() - began
        elif self._on_at is not None:
            self.figures["power to serving"] = time.monotonic() - self._on_at
        self.target.activate(self.ssh)
        self.status = Status.serving

    def restarted(self) -> None:
        """The box has restarted by itself, nobody knows when: come back to serving."""
        self.target.deactivate(self.ssh)
        self._on_at = None
        self._set_up_on_this_boot = False
        self.status = Status.provisioned
        self.transition(Status.serving)

    def returns(self, fault: Callable[[], object], seconds: float) -> tuple[float, float]:
        """Do the fault. The device resets itself within so many seconds of it, by its console: wait until it serves again.
        The seconds to both."""
        self.target.deactivate(self.ssh)      # before the clock starts: it takes long where nobody answers
        began = time.monotonic()
        fault()
        self.status = Status.unknown
        self.console.expect(FIRMWARE, timeout=seconds)
        reset = self._on_at = time.monotonic()
        self.console.expect(r"Reached target .*multi-user\.target", timeout=BOOT_SECONDS)
        self.status = Status.provisioned
        self._set_up_on_this_boot = False
        self.transition(Status.serving)
        return reset - began, time.monotonic() - began

    def run(self, command: str, seconds: float = 60.0) -> str:
        """A command as the person on the management side; its output. Raises where it fails."""
        lines: Any = self.ssh.run_check(command, timeout=seconds)
        return "\n".join(lines)

    def updates(self) -> dict[str, Any]:
        """What runs, what is in the boot menu, and what happened: of `dcmgate update status`."""
        found: dict[str, Any] = json.loads(self.run("dcmgate --json update status", 120))
        return found
