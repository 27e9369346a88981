"""Messages that a person may want explained: their names for good (MESSAGE_ID), and the texts of `journalctl -x`.

A line of the log has the message that its words begin with. The catalog of the image is made of this table:

    python -m appliance.telemetry.messages > rootfs/usr/lib/systemd/catalog/dcmgate.catalog
"""

from __future__ import annotations

import sys
from dataclasses import dataclass

SUPPORT = "man:dcmgate-commands(1)"


@dataclass(frozen=True, slots=True)
class Message:
    """`begins`: the first words of the line. `id`: 32 hex digits that never change. `subject` and `text`: for people; a name
    between two @ is a field of the line."""

    begins: str
    id: str
    subject: str
    text: str


MESSAGES = (
    Message("ready", "cafea39f588a5754a128377f236fd270",
            "a stage is ready",
            "The stage @DCMGATE_STAGES@ of this gateway has started and works by generation @DCMGATE_GENERATION@\n"
            "of its configuration."),
    Message("draining", "fb1dba0e98cb5afab1d0db666c3bd746",
            "a stage is ending",
            "It was told to end: nothing more is taken, and what is under way is finished. The service manager starts it\n"
            "again unless somebody stopped it."),
    Message("configuration is in force", "3125638a20195b34a977a11deb094d73",
            "a configuration is in force",
            "Generation @DCMGATE_GENERATION@ of the configuration counts from now on. `dcmgate config show` shows it."),
    Message("the configuration file is bad", "41573829a96052be862ccff31bdc493d",
            "the configuration file is bad",
            "The last good configuration stays in force, and nothing stops. `dcmgate config check` names every mistake\n"
            "with its line, and what mends it."),
    Message("alarm: ", "5f9ee96221d959ca859ebc47a1a05e32",
            "an alarm has risen",
            "@DCMGATE_MEND@\n"
            "\n"
            "Its name is @DCMGATE_KEY@. `dcmgate status` shows all alarms that are up."),
    Message("alarm ended: ", "0d540226bf955f76821b4c6c89b5301f",
            "an alarm has ended",
            "What the alarm @DCMGATE_KEY@ told of is over."),
    Message("a held object is damaged", "6ef033aaafac5b3bb8a6ff96617ba646",
            "an object on the disk is damaged",
            "An object was read again, and is not what was received. It is set aside; its twin, if any, stands in for it.\n"
            "`dcmgate list --state quarantined` shows it. Have the disk looked at: this one loses what it keeps."),
    Message("a task of the keeper fails", "26bcc5c4ec04592faf3e01f8f7fcdaa1",
            "a task of the keeper fails",
            "It is tried again every ten seconds, and the other tasks go on meanwhile: @DCMGATE_ERROR@"),
    Message("a certificate cannot be enrolled", "4e2d158059e858b1aac272ead07976f0",
            "a certificate cannot be enrolled",
            "The one that is there goes on being used until it ends. `dcmgate cert check` says until when, and what is wrong."),
    Message("a certificate is enrolled", "cb381e7197155a9aa3ba34f60f118c95",
            "a certificate is enrolled",
            "A new certificate is used for every new connection from now on."),
    Message("tunnel cannot be set up", "4529124f368658248f65a4f43209e70e",
            "a tunnel cannot be set up",
            "What it had stays in force: @DCMGATE_ERROR@"),
    Message("tunnel is ", "6c14b11539df549a91ec73e1f0827639",
            "a tunnel has changed its state",
            "Where it is down, @DCMGATE_HOP@ is the hop at which it ends. `dcmgate status` shows since when."),
)


def find(line: str) -> Message | None:
    """The message of a line; None where nobody needs an explanation."""
    return next((message for message in MESSAGES if line.startswith(message.begins)), None)


def catalog() -> str:
    """The table as a catalog (https://systemd.io/CATALOG)."""
    parts = ["# Made of appliance/telemetry/messages.py: do not edit."]
    for message in MESSAGES:
        parts += ["", f"-- {message.id}", f"Subject: Dcmgate: {message.subject}", "Defined-By: Dcmgate",
                  f"Documentation: {SUPPORT}", "", message.text]
    return "\n".join([*parts, ""])


if __name__ == "__main__":
    sys.stdout.write(catalog())
