"""What every command is given: where the configuration is, how to say things, and ways to the spool and the keeper.

Heavy modules are imported when a command first needs them, so that `--help`
and `status` are quick.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TextIO

from appliance.cli.text import BOLD, DIM, GREEN, PLAIN, RED, YELLOW

if TYPE_CHECKING:
    from appliance.cli.services import Opened
    from appliance.manage.control import Asking

DEFAULT_CONFIG = "/etc/dcmgate/dcmgate.toml"


class Site:
    """One call of the command line."""

    def __init__(self, config_path: str = "", *, as_json: bool = False, out: TextIO | None = None) -> None:
        self.config_path = config_path or os.environ.get("DCMGATE_CONFIG") or DEFAULT_CONFIG
        self.as_json = as_json
        self.out = out or sys.stdout
        self._opened: Opened | None = None
        self._asking: Asking | None = None
        self.emitted = False
        self._closing: list[Callable[[], None]] = []

    # saying

    def say(self, text: str = "") -> None:
        """A line for people; nothing with --json."""
        if not self.as_json:
            self.out.write(text + "\n")

    def emit(self, value: Any) -> None:
        """The one JSON value of a command; nothing without --json."""
        if self.as_json:
            self.emitted = True
            json.dump(value, self.out, indent=1, ensure_ascii=True, default=str)
            self.out.write("\n")

    def line(self, value: Any) -> None:
        """One JSON value a line, for commands that tell as they go; nothing without --json."""
        if self.as_json:
            self.out.write(json.dumps(value, ensure_ascii=True, default=str) + "\n")
            self.out.flush()

    def note(self, text: str) -> None:
        """A line beside the result: progress, remarks."""
        sys.stderr.write(text + "\n")

    @property
    def is_terminal(self) -> bool:
        return self.out.isatty()

    @property
    def columns(self) -> int:
        """Width of the terminal; 0 where there is none, and nothing is to be cut."""
        return shutil.get_terminal_size().columns if self.is_terminal else 0

    def style(self, style: str, text: str) -> str:
        """A text in colour, on terminals that want it (https://no-color.org)."""
        return f"{style}{text}{PLAIN}" if self.is_terminal and not os.environ.get("NO_COLOR") else text

    def bold(self, text: str) -> str:
        return self.style(BOLD, text)

    def dim(self, text: str) -> str:
        return self.style(DIM, text)

    def good(self, text: str) -> str:
        return self.style(GREEN, text)

    def warn(self, text: str) -> str:
        return self.style(YELLOW, text)

    def bad(self, text: str) -> str:
        return self.style(RED, text)

    # reaching

    def opened(self) -> Opened:
        """The spool, its ledger and the configuration in force. SpoolRefused, LedgerError, ConfigError."""
        if self._opened is None:
            from appliance.cli.services import open_site
            self._opened = open_site(self.config_path)
            self.on_close(self._opened.close)
            if self._opened.problem is not None:
                self.note(f"dcmgate: the configuration file is bad, generation {self._opened.config.generation} is in force: "
                          f"{self._opened.problem}")
        return self._opened

    def asking(self) -> Asking:
        """The verbs: those of the running keeper, else done in this process."""
        if self._asking is None:
            from appliance.cli.services import asking
            self._asking = asking(self)
        return self._asking

    def on_close(self, close: Callable[[], None]) -> None:
        self._closing.append(close)

    def close(self) -> None:
        while self._closing:
            self._closing.pop()()
