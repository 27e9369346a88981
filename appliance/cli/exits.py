"""Exit statuses, for scripts: documented in `dcmgate --help` and in the page `commands`."""

from __future__ import annotations

from appliance.errors import (
    CertificateError,
    ConfigError,
    ControlError,
    DcmgateError,
    FormatError,
    KeeperUnreachable,
    LedgerDamaged,
    ObjectDamaged,
    UsageError,
)

OK = 0
FINDING = 1
USAGE = 2
UNREACHABLE = 3
REFUSED = 4
FAILED = 70
INTERRUPTED = 130

MEANINGS = {
    OK: "done, and nothing found",
    FINDING: "a finding: a bad configuration, a damaged object, something unaccounted, an object not stored, a hop that fails",
    USAGE: "the command line asks for something that cannot be",
    UNREACHABLE: "spool, ledger, keeper, file or peer cannot be reached or opened",
    REFUSED: "the keeper refused: no such object, or not in this state",
    FAILED: "a fault in the program: report it",
    INTERRUPTED: "interrupted (Ctrl-C)",
}


def of_error(error: DcmgateError) -> int:
    """The exit status for an error of ours."""
    if isinstance(error, UsageError):
        return USAGE
    if isinstance(error, (ConfigError, ObjectDamaged, LedgerDamaged, FormatError, CertificateError)):
        return FINDING
    if isinstance(error, ControlError) and not isinstance(error, KeeperUnreachable):
        return REFUSED
    return UNREACHABLE


def epilogue() -> str:
    """The list for `--help`."""
    return "exit status:\n" + "".join(f"  {status:<4} {meaning}\n" for status, meaning in MEANINGS.items())
