"""The tree of errors. Every error that Dcmgate raises on purpose is one of these.

    DcmgateError                    message + mend: what a person does about it
     ├── UsageError                 the command line asks for something that cannot be
     ├── ConfigError                file, line, key, suggestion
     ├── ProtocolError              bytes from a peer break PS3.7 or PS3.8
     │    ├── PduError              a PDU cannot be parsed, or is longer than allowed
     │    ├── StateError            a PDU that table 9-10 does not allow here
     │    └── DimseError            a command set cannot be parsed or makes no sense
     ├── FormatError                a Part 10 head or a data set cannot be parsed
     │    └── HeadError             the head of a spooled object is not a whole, valid one
     ├── SpoolError                 the spool cannot do what was asked
     │    ├── SpoolRefused          missing, foreign, empty or too new: never "started fresh"
     │    ├── SpoolFull             the space state or the disk leaves no room
     │    ├── SpoolFault            an I/O error: this disk is out of intake until restart
     │    └── ObjectDamaged         what was read is not what was acknowledged
     ├── LedgerError                the ledger cannot do what was asked
     │    ├── LedgerDamaged         not a database, schema wrong, or chain of hashes broken
     │    ├── LedgerTooNew          written by a later release than this one can read
     │    └── LedgerFault           a write failed: intake stops
     │         └── LedgerBusy       it was not our turn in time, or the disk is full: nothing changed, try again
     ├── DeliveryError              one attempt at one destination failed; carries a fault class
     ├── CertificateError           a certificate, key, request or revocation list cannot be used or kept
     ├── TunnelError                a tunnel cannot be set up or run
     ├── SandboxError               the limited child died, timed out or answered nonsense
     └── ControlError               the keeper refused or cannot be reached
          └── KeeperUnreachable     it cannot be asked, or does not answer
               └── KeeperAbsent     no keeper runs: the verbs may be done in this process
"""

from __future__ import annotations


class DcmgateError(Exception):
    """Base of all errors of our own.

    `mend` is one sentence that tells a person what to do; it may be empty where
    the peer, and not the person, is at fault.
    """

    def __init__(self, message: str, *, mend: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.message} — {self.mend}" if self.mend else self.message


class UsageError(DcmgateError):
    """The command line asks for something that cannot be. Exit status 2."""


class ConfigError(DcmgateError):
    """A configuration is wrong at a known place.

    `file` and `line` (1-based, 0 if unknown) say where, `key` is dotted
    (`destination.pacs.port`).
    """

    def __init__(self, message: str, *, file: str = "", line: int = 0, key: str = "", mend: str = "") -> None:
        super().__init__(message, mend=mend)
        self.file = file
        self.line = line
        self.key = key

    @property
    def what(self) -> str:
        """The message with its place, without the mend."""
        place = f"{self.file}:{self.line}: " if self.line else (f"{self.file}: " if self.file else "")
        key = f"{self.key}: " if self.key else ""
        return place + key + self.message

    def __str__(self) -> str:
        return f"{self.what} — {self.mend}" if self.mend else self.what


class ProtocolError(DcmgateError):
    """Bytes from a peer break PS3.7 or PS3.8. `reason` is the A-ABORT reason to send (PS3.8 9.3.8)."""

    def __init__(self, message: str, *, reason: int = 0) -> None:
        super().__init__(message)
        self.reason = reason


class PduError(ProtocolError):
    """A PDU cannot be parsed, or is longer than allowed."""


class StateError(ProtocolError):
    """A PDU that the state machine (PS3.8 table 9-10) does not allow here."""


class DimseError(ProtocolError):
    """A command set (PS3.7 annex E) cannot be parsed or makes no sense."""


class FormatError(DcmgateError):
    """A Part 10 head or a data set cannot be parsed."""


class HeadError(FormatError):
    """The first 4096 bytes of a spooled object are not a whole, valid head of ours."""


class SpoolError(DcmgateError):
    """The spool cannot do what was asked."""


class SpoolRefused(SpoolError):
    """The spool is missing, foreign, empty or of a version that this release cannot use."""


class SpoolFull(SpoolError):
    """No room: by the space state, by quota or by the disk (ENOSPC, EDQUOT)."""


class SpoolFault(SpoolError):
    """An I/O error on the write path: the disk is out of intake until a restart (I6).

    `io`: the disk itself said so, which takes it out of intake for every process of the gateway.
    """

    io = False


class DiskFault(DcmgateError):
    """A disk of the box cannot be looked at, made or opened."""


class DiskRefused(DiskFault):
    """What is on the disks is not what this box may open or make anew."""


class ObjectDamaged(SpoolError):
    """The bytes read for `number` are not those that were acknowledged (I5)."""

    def __init__(self, number: int, message: str) -> None:
        super().__init__(f"object {number:016x}: {message}")
        self.number = number


class LedgerError(DcmgateError):
    """The ledger cannot do what was asked."""


class LedgerDamaged(LedgerError):
    """Not a database, wrong schema, or the chain of hashes is broken."""


class LedgerTooNew(LedgerError):
    """Written by a later release than this one can read."""


class LedgerFault(LedgerError):
    """A write to the ledger failed; intake stops. `io` as in SpoolFault."""

    io = False


class LedgerBusy(LedgerFault):
    """Somebody else wrote for too long, or the disk is full. Nothing changed and nothing was lost: it may be tried again."""


class DeliveryError(DcmgateError):
    """One attempt at one destination failed as a whole. `fault` is a `model.Fault`'s value."""

    def __init__(self, message: str, *, fault: str, status: int | None = None, mend: str = "") -> None:
        super().__init__(message, mend=mend)
        self.fault = fault
        self.status = status


class CertificateError(DcmgateError):
    """A certificate, key, request or revocation list cannot be used or kept."""


class TunnelError(DcmgateError):
    """A tunnel cannot be set up or run."""


class SandboxError(DcmgateError):
    """The limited child died, timed out or answered nonsense."""


class ControlError(DcmgateError):
    """The keeper refused, or cannot be reached."""


class KeeperUnreachable(ControlError):
    """The keeper cannot be asked, or does not answer."""


class KeeperAbsent(KeeperUnreachable):
    """Nobody listens at the control socket."""
