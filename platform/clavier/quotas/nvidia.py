"""What ``nvidia-smi`` says of a machine's GPUs and MIG devices. Standard library only."""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
import time
from dataclasses import dataclass

TIMEOUT_S = 20
QUERY = "index,uuid,name,memory.total"
LOAD_QUERY = "uuid,utilization.gpu,memory.used"
#: "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-...)"
GPU_LINE = re.compile(r"GPU (?P<index>\d+): (?P<name>.*?) \(UUID: (?P<uuid>GPU-[0-9A-Za-z-]+)\)")
#: "  MIG 1g.10gb     Device  0: (UUID: MIG-...)"; before driver 470 the id is MIG-GPU-.../7/0.
MIG_LINE = re.compile(r"\s+MIG (?P<profile>\S+)\s+Device\s+(?P<index>\d+): \(UUID: (?P<uuid>MIG-[0-9A-Za-z/-]+)\)")
PROFILE = re.compile(r"\d+[cg](?:\.\d+[cg])?\.(?P<gb>\d+)gb(?:\+\S+)?")


class InventoryError(Exception):
    """The listing can not be had or not be understood; the message says why."""


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, or a MIG device with its ``parent_uuid``. ``memory_mib`` of a MIG device is what its profile is called."""

    uuid: str
    index: int
    name: str
    memory_mib: int
    mig_profile: str = ""
    parent_uuid: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """How busy a GPU is now: percent of the last moments, and MiB in use by whichever program."""

    percent: int
    memory_mib: int


LOAD_AGE_S = 5.0
_seen: tuple[float, dict[str, Load]] = (float("-inf"), {})


def read_devices() -> list[Device]:
    """The devices of this machine; [] where there is no nvidia-smi. Raises InventoryError."""
    if shutil.which("nvidia-smi") is None:
        return []
    table = ask(f"--query-gpu={QUERY}", "--format=csv,noheader,nounits")
    return parse_devices(table, ask("-L"))


def read_load() -> dict[str, Load]:
    """UUID -> load of this machine's GPUs; {} where there is no nvidia-smi. Raises InventoryError."""
    if shutil.which("nvidia-smi") is None:
        return {}
    return parse_load(ask(f"--query-gpu={LOAD_QUERY}", "--format=csv,noheader,nounits"))


def recent_load() -> dict[str, Load]:
    """The same, at most LOAD_AGE_S old, for pages that many people watch; {} when nvidia-smi fails."""
    global _seen
    if time.monotonic() - _seen[0] > LOAD_AGE_S:
        try:
            _seen = (time.monotonic(), read_load())
        except InventoryError:
            _seen = (time.monotonic(), {})
    return _seen[1]


def parse_devices(table: str, listing: str) -> list[Device]:
    """Devices from the CSV of QUERY (with or without header and units) and from ``nvidia-smi -L``.

    Raises InventoryError on a line that is none of the documented ones.
    """
    gpus = {}
    for row in rows_of(table):
        if len(row) != 4:
            raise InventoryError(f"nvidia-smi: {','.join(row)!r} is no line of {QUERY}.")
        gpus[row[1]] = Device(row[1], whole(row[0]), row[2], whole(row[3]))
    devices, parent = list(gpus.values()), ""
    for line in listing.splitlines():
        if found := GPU_LINE.match(line):
            parent = found["uuid"]
        elif found := MIG_LINE.match(line):
            if parent not in gpus:
                raise InventoryError(f"nvidia-smi: {line.strip()!r} belongs to no GPU that was listed.")
            memory = profile_memory_mib(found["profile"])
            name = f"{gpus[parent].name} MIG {found['profile']}"
            devices.append(Device(found["uuid"], whole(found["index"]), name, memory, found["profile"], parent))
        elif line.strip():
            raise InventoryError(f"nvidia-smi -L: {line.strip()!r} is neither a GPU nor a MIG device.")
    return devices


def parse_load(table: str) -> dict[str, Load]:
    """UUID -> load. A GPU that does not tell (``[N/A]`` with MIG) is left out. Raises InventoryError."""
    found = {}
    for row in rows_of(table):
        if len(row) != 3:
            raise InventoryError(f"nvidia-smi: {','.join(row)!r} is no line of {LOAD_QUERY}.")
        if not any("N/A" in cell or "Not Supported" in cell for cell in row):
            found[row[0]] = Load(whole(row[1]), whole(row[2]))
    return found


def profile_memory_mib(profile: str) -> int:
    """MiB that a MIG profile is called after: 1g.10gb -> 10240. Raises InventoryError."""
    found = PROFILE.fullmatch(profile)
    if found is None:
        raise InventoryError(f"{profile!r} is no MIG profile such as 1g.10gb.")
    return int(found["gb"]) * 1024


def ask(*arguments: str) -> str:
    """The output of nvidia-smi. Raises InventoryError when it fails, with its own words."""
    command = ["nvidia-smi", *arguments]
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InventoryError(f"{' '.join(command)}: {error}") from error
    if told.returncode:
        words = (told.stderr or told.stdout).strip()[:300]
        raise InventoryError(f"{' '.join(command)} ended with {told.returncode}: {words}")
    return told.stdout


def rows_of(table: str) -> list[list[str]]:
    """The cells of a CSV without its header."""
    rows = [[cell.strip() for cell in row] for row in csv.reader(table.splitlines()) if row]
    return [row for row in rows if row[0] not in ("index", "uuid")]


def whole(cell: str) -> int:
    """``81559``, ``81559 MiB`` or ``12 %`` as a number. Raises InventoryError."""
    number = cell.split(" ")[0]
    if not number.isdecimal():
        raise InventoryError(f"nvidia-smi: {cell!r} is no number.")
    return int(number)
