"""What the bench says: a Markdown table for each case, and every ratio in `build/bench.json`."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests.bench.rounds import Load, Result
from tests.support.measure import Device
from tests.support.peers import NoPeer, program

TARGETS: dict[str, tuple[str, float | None]] = {
    "receive_ct_k1_vs_limit": (">=", 0.9),
    "receive_ct_k4_vs_limit": (">=", 0.9),
    "receive_ct_k1_cpu_vs_storescp": ("<=", 0.9),
    "receive_ct_k4_cpu_vs_storescp": ("<=", 0.9),
    "receive_ct_k1_vs_storescp": (">=", 1.0),
    "receive_ct_k4_vs_storescp": (">=", 0.8),
    "receive_sr_k16_vs_storescp": (">=", 1.3),
    "receive_ct_k1_vs_pynetdicom": (">=", 5.0),
    "route_ct_k1_vs_orthanc": (">=", 3.0),
    "route_ct_k1_cpu_vs_orthanc": ("<=", 0.25),
    "route_ct_k1_as_shipped_vs_naive": (">=", 5.0),
    "isolation_refusing": (">=", 0.95),
    "isolation_black-holed": (">=", 0.95),
    "isolation_hung": (">=", 0.95),
    "tls_receive_ct_k1_vs_storescp_tls": (">=", 1.0),
    "tls_forward_ct_k1_vs_plain": (">=", 0.7),
    "tunnel_vs_in_process_tls": (">=", None),
}
"""What is wanted of each ratio, ours over theirs; None: that it is reported."""

_SHORT = {"storescp --fork": "storescp", "storescp --fork -pdu 131072": "storescp_128k"}


def short(name: str) -> str:
    """A contestant's name as it stands in a ratio's."""
    return "limit" if name.startswith("limit") else _SHORT.get(name, name.replace(" ", "_"))


def paired(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Median of the rounds' ratios: each round is compared with its neighbour in time, so that a machine that drifts
    does not decide."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=False) if b]
    return round(statistics.median(pairs), 3) if pairs else None


def ratios(case: str, results: Sequence[Result]) -> dict[str, float]:
    """Ours over theirs: images per second and, with `_cpu`, processor seconds per gigabyte."""
    own = next((r for r in results if r.name == "dcmgate"), None)
    found: dict[str, float] = {}
    if own is None:
        return found
    for other in results:
        if other is own:
            continue
        for suffix, figure in (("", "images_per_second"), ("_cpu", "cpu_seconds_per_gigabyte")):
            ratio = paired([getattr(r, figure) for r in own.rounds], [getattr(r, figure) for r in other.rounds])
            if ratio is not None:
                found[f"{case}{suffix}_vs_{short(other.name)}"] = ratio
    return found


def table(title: str, load: Load, results: Sequence[Result], *, router: bool = False) -> str:
    """One case in Markdown: medians of the rounds."""
    lines = [f"### {title}", "", f"{load.count} objects a round over {load.k} association{'s' if load.k > 1 else ''}; "
             f"medians of {max((len(r.rounds) for r in results), default=0)} alternating rounds.", "",
             "| | images/s | MB/s | CPU-s/GB | PSS, MB | answer p50, ms | p99, ms | written/byte | flushes/image | syncs |",
             "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |"]
    notes = []
    for result in results:
        notes += [f"{result.name}: {note}" for note in result.notes]
        if not result.rounds:
            continue
        m = result.median
        lines.append(f"| {result.name} | {m('images_per_second'):.{1 if m('images_per_second') < 100 else 0}f} "
                     f"| {m('megabytes_per_second'):.1f} | {m('cpu_seconds_per_gigabyte'):.2f} "
                     f"| {_or_dash(result.pss_megabytes)} | {m('answer_p50_ms'):.2f} | {m('answer_p99_ms'):.2f} "
                     f"| {m('written_per_byte'):.2f} | {m('flushes_per_image'):.2f} | {result.syncs} |")
    if router:
        lines += ["", "Images per second until the last byte is at the destination; processor time and memory of the router."]
    return "\n".join([*lines, *(f"\n- {note}" for note in notes), ""])


def _or_dash(figure: float) -> str:
    return f"{figure:.0f}" if figure else "–"


def verdicts(found: dict[str, float]) -> str:
    """What is wanted, and whether it is met."""
    lines = ["### What is wanted", "", "| ratio (ours over theirs) | measured | wanted | |", "| --- | ---: | ---: | --- |"]
    for name, (relation, bound) in TARGETS.items():
        wanted = "reported" if bound is None else f"{relation} {bound}"
        if name not in found:
            lines.append(f"| {name} | – | {wanted} | not measured |")
            continue
        if bound is None:
            lines.append(f"| {name} | {found[name]:.2f} | {wanted} | |")
            continue
        met = found[name] >= bound if relation == ">=" else found[name] <= bound
        lines.append(f"| {name} | {found[name]:.2f} | {relation} {bound} | {'met' if met else '**missed**'} |")
    return "\n".join([*lines, ""])


def version(name: str, *arguments: str) -> str:
    try:
        said = subprocess.run([program(name), *arguments], capture_output=True, text=True, timeout=20, check=False)
    except NoPeer:
        return "missing"
    lines = (said.stdout + said.stderr).strip().splitlines()
    return next((line for line in lines if line.lower().startswith(f"{name} ")), lines[0] if lines else "unknown").strip("$ ")


def machine(folder: Path, device: Device) -> dict[str, Any]:
    """Where this was measured."""
    model = next((line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.lower().startswith("model name")), platform.machine())
    return {"processor": model, "cores": os.cpu_count(), "kernel": platform.release(), "python": platform.python_version(),
            "disk": ",".join(device.names), "file_system": file_system(folder), "dcmtk": version("storescp", "--version"),
            "orthanc": version("Orthanc", "--version"), "stunnel": version("stunnel", "-version"),
            "load_before": round(os.getloadavg()[0], 2)}


def file_system(folder: Path) -> str:
    """Its kind, and whether it has a journal, where the kernel says so."""
    number = folder.stat().st_dev
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == f"{os.major(number)}:{os.minor(number)}":
            kind, device = fields[fields.index("-") + 1:][:2]
            journal = kind != "ext4" or any(Path("/proc/fs/jbd2").glob(f"{Path(device).name}-*"))
            return kind if journal else f"{kind} without a journal"
    return "unknown"


def write(path: Path, where: dict[str, Any], cases: dict[str, Sequence[Result]], found: dict[str, float]) -> None:
    """All of it, for machines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    wanted = {name: "reported" if bound is None else f"{relation} {bound}" for name, (relation, bound) in TARGETS.items()}
    path.write_text(json.dumps({"machine": where, "ratios": dict(sorted(found.items())), "wanted": wanted,
                                "cases": {name: [asdict(result) for result in results] for name, results in cases.items()}},
                               indent=1) + "\n")
