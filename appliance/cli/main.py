"""`dcmgate`: reads the command line, runs one command, and turns every error into one line that names thing and mend.

Promises: never a traceback; the exit statuses of `exits`; a reader that goes
away (`dcmgate list | head`) is no error.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import NoReturn

from appliance.cli import exits
from appliance.cli.context import Site
from appliance.config.findings import did_you_mean
from appliance.errors import ConfigError, DcmgateError, UsageError

_CHOICE = re.compile(r"argument \S+: invalid choice: '([^']*)' \(choose from (.*)\)")

Run = Callable[[Site, argparse.Namespace], int]

FAMILIES = {
    "status_command": ("status",),
    "listing": ("list", "show", "export"),
    "person_commands": ("hold", "release", "requeue", "discard"),
    "balance_commands": ("balance", "verify"),
    "peer_commands": ("peers", "admit"),
    "route_commands": ("route",),
    "diagnose_command": ("diagnose",),
    "send_command": ("send",),
    "config_commands": ("config", "reload"),
    "cert_commands": ("cert",),
    "proxy_commands": ("proxy",),
    "spool_commands": ("spool",),
    "disk_commands": ("disk", "factory-reset"),
    "install_command": ("install",),
    "archive_commands": ("archive",),
    "stage_commands": ("run", "receiver", "forwarder", "keeper"),
    "tunnel_command": ("tunnel",),
    "update_command": ("update",),
    "watchdog_commands": ("watch", "degraded", "escalate", "boot"),
    "observe_command": ("observe",),
}
"""The modules of `appliance.cli` that add commands, and which ones. Only what is asked for is imported: the box starts nine of
these programs at its boot, and its services stay."""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ours, so that they look like all others, and that takes options anywhere."""

    _within = False

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Options may stand between the things that a command is about: `dcmgate hold 1a --reason x 1b`."""
        if self._within or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._within = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._within = False

    def error(self, message: str) -> NoReturn:
        if found := _CHOICE.fullmatch(message):
            known = re.findall(r"'([^']+)'", found[2]) or re.split(r",\s*", found[2])
            raise UsageError(f'`{self.prog}` knows no "{found[1]}"', mend=did_you_mean(found[1], known))
        raise UsageError(message, mend=f"`{self.prog} --help` shows what there is")


def _common() -> argparse.ArgumentParser:
    """Options that stand before or behind the command; SUPPRESS so that the one behind does not undo the one before."""
    common = Parser(add_help=False)
    common.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS,
                        help="the configuration (default: $DCMGATE_CONFIG, else /etc/dcmgate/dcmgate.toml)")
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="answer in JSON")
    return common


def parser(argv: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The command line; of it only what `argv` asks for, where that is plain."""
    common = _common()
    top = Parser(prog="dcmgate", parents=[common], formatter_class=_Formatter, epilog=exits.epilogue(),
                 description="A store-and-forward DICOM gateway: keeps what scanners send, and delivers it.")
    top.add_argument("--version", action="store_true", help="show the version")
    commands = top.add_subparsers(metavar="COMMAND", dest="command", parser_class=Parser)
    for family in _families(argv):
        importlib.import_module(f"appliance.cli.{family}").add(commands, common)
    return top


def _families(argv: Sequence[str] | None) -> Iterable[str]:
    """Where the command is. All of them where it is not known: then there is help, or a word that somebody meant."""
    words = iter(argv or ())
    for word in words:
        if word == "--config":
            next(words, None)
        elif word != "--json":
            return [family for family, known in FAMILIES.items() if word in known] or FAMILIES
    return FAMILIES


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status. The entry point of `dcmgate`."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    site = None
    argv = sys.argv[1:] if argv is None else argv
    as_json = "--json" in argv
    try:
        arguments = parser(argv).parse_args(argv)
        if arguments.version:
            from appliance import __version__
            sys.stdout.write(f"dcmgate {__version__}\n")
            return exits.OK
        run: Run | None = getattr(arguments, "run", None)
        if run is None:
            raise UsageError("a command is missing", mend="`dcmgate --help` lists them")
        site = Site(getattr(arguments, "config", ""), as_json=getattr(arguments, "json", False))
        status = run(site, arguments)
        sys.stdout.flush()
        return status
    except DcmgateError as e:
        if as_json and (site is None or not site.emitted):
            what = e.what if isinstance(e, ConfigError) else e.message
            sys.stdout.write(json.dumps({"error": what, "mend": e.mend, "status": exits.of_error(e)}) + "\n")
        return _failed(str(e), exits.of_error(e))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())      # so that the flush at exit is quiet too
        return exits.OK
    except KeyboardInterrupt:
        return _failed("interrupted", exits.INTERRUPTED)
    except OSError as e:
        place = f"{e.filename}: " if e.filename else ""
        return _failed(f"{place}{e.strerror or e}", exits.UNREACHABLE)
    except Exception as e:  # the top of the program: one line, and how to see more
        if os.environ.get("DCMGATE_TRACE"):
            raise
        return _failed(f"a fault in the program: {type(e).__name__}: {e} — report it with what DCMGATE_TRACE=1 shows",
                       exits.FAILED)
    finally:
        if site is not None:
            site.close()


def _failed(text: str, status: int) -> int:
    sys.stdout.flush()
    sys.stderr.write("dcmgate: " + " ".join(text.split()) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
