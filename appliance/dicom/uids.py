"""Names of the UIDs that Dcmgate decides on, and its own (PS3.6 annex A, PS3.7 D.3.3.2)."""

from __future__ import annotations

ROOT = "2.25.47685116307926861569039846464805111369"
"""Root of all UIDs of our own: a UUID (PS3.5 B.2), drawn once for this product."""

IMPLEMENTATION_UID = f"{ROOT}.1"
"""Implementation Class UID, sent in every association and written in every head."""

IMPLEMENTATION_VERSION = "DCMGATE_0_1"
"""Implementation Version Name: 1 to 16 characters."""

PRIVATE_INFORMATION_CREATOR = f"{ROOT}.2"
"""Private Information Creator UID (0002,0100) of the custody record."""

CANARY_INSTANCE, CANARY_STUDY, CANARY_SERIES = f"{ROOT}.3", f"{ROOT}.4", f"{ROOT}.5"
"""Roots of the UIDs of test objects: 18 digits follow."""

APPLICATION_CONTEXT = "1.2.840.10008.3.1.1.1"

# Transfer syntaxes (PS3.5 annex A)
IMPLICIT_LE = "1.2.840.10008.1.2"
EXPLICIT_LE = "1.2.840.10008.1.2.1"
DEFLATED_LE = "1.2.840.10008.1.2.1.99"
EXPLICIT_BE = "1.2.840.10008.1.2.2"
ENCAPSULATED_UNCOMPRESSED_LE = "1.2.840.10008.1.2.1.98"
JPEG_BASELINE = "1.2.840.10008.1.2.4.50"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
JPEG_LOSSLESS = "1.2.840.10008.1.2.4.57"
JPEG_LOSSLESS_SV1 = "1.2.840.10008.1.2.4.70"
JPEG_LS_LOSSLESS = "1.2.840.10008.1.2.4.80"
JPEG_LS_NEAR = "1.2.840.10008.1.2.4.81"
JPEG_2000_LOSSLESS = "1.2.840.10008.1.2.4.90"
JPEG_2000 = "1.2.840.10008.1.2.4.91"
HTJ2K_LOSSLESS = "1.2.840.10008.1.2.4.201"
HTJ2K_LOSSLESS_RPCL = "1.2.840.10008.1.2.4.202"
HTJ2K = "1.2.840.10008.1.2.4.203"
RLE_LOSSLESS = "1.2.840.10008.1.2.5"
MPEG2_MAIN = "1.2.840.10008.1.2.4.100"
MPEG4_HIGH_41 = "1.2.840.10008.1.2.4.102"
HEVC_MAIN_51 = "1.2.840.10008.1.2.4.107"

TRANSFER_SYNTAX_ROOT = "1.2.840.10008.1.2"

RECODABLE = frozenset({IMPLICIT_LE, EXPLICIT_LE})
"""Syntaxes between which a data set is re-encoded without loss while it is sent."""

TRANSFER_SYNTAX_NAMES = {
    IMPLICIT_LE: "Implicit VR Little Endian",
    EXPLICIT_LE: "Explicit VR Little Endian",
    DEFLATED_LE: "Deflated Explicit VR Little Endian",
    EXPLICIT_BE: "Explicit VR Big Endian",
    ENCAPSULATED_UNCOMPRESSED_LE: "Encapsulated Uncompressed Explicit VR Little Endian",
    JPEG_BASELINE: "JPEG Baseline",
    JPEG_EXTENDED: "JPEG Extended",
    JPEG_LOSSLESS: "JPEG Lossless",
    JPEG_LOSSLESS_SV1: "JPEG Lossless, First-Order Prediction",
    JPEG_LS_LOSSLESS: "JPEG-LS Lossless",
    JPEG_LS_NEAR: "JPEG-LS Near-Lossless",
    JPEG_2000_LOSSLESS: "JPEG 2000 Lossless Only",
    JPEG_2000: "JPEG 2000",
    HTJ2K_LOSSLESS: "High-Throughput JPEG 2000 Lossless Only",
    HTJ2K_LOSSLESS_RPCL: "High-Throughput JPEG 2000 Lossless Only with RPCL",
    HTJ2K: "High-Throughput JPEG 2000",
    RLE_LOSSLESS: "RLE Lossless",
    MPEG2_MAIN: "MPEG2 Main Profile / Main Level",
    MPEG4_HIGH_41: "MPEG-4 AVC/H.264 High Profile / Level 4.1",
    HEVC_MAIN_51: "HEVC/H.265 Main Profile / Level 5.1",
}

# SOP classes
VERIFICATION = "1.2.840.10008.1.1"
STORAGE_COMMITMENT_PUSH = "1.2.840.10008.1.20.1"
STORAGE_COMMITMENT_PUSH_INSTANCE = "1.2.840.10008.1.20.1.1"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
STUDY_ROOT_MOVE = "1.2.840.10008.5.1.4.1.2.2.2"
STUDY_ROOT_GET = "1.2.840.10008.5.1.4.1.2.2.3"
MODALITY_WORKLIST_FIND = "1.2.840.10008.5.1.4.31"
MODALITY_PERFORMED_PROCEDURE_STEP = "1.2.840.10008.3.1.2.3.3"
CT_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.2"
MR_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.4"
SECONDARY_CAPTURE_IMAGE_STORAGE = "1.2.840.10008.5.1.4.1.1.7"
ENHANCED_SR_STORAGE = "1.2.840.10008.5.1.4.1.1.88.22"


def is_uid(text: str) -> bool:
    """Whether `text` is made like a UID: 1 to 64 digits and dots. Leading zeros pass: real senders use them (PS3.5 9.1)."""
    return 0 < len(text) <= 64 and text.isascii() and text.replace(".", "").isdigit()


def syntax_name(uid: str) -> str:
    """The name of a transfer syntax for people; its UID where we have none."""
    return TRANSFER_SYNTAX_NAMES.get(uid, uid)
