"""What this machine has, and what processes hold of it; from Linux' /proc."""

import math
from pathlib import Path


def machine_bytes() -> tuple[int, int]:
    """Available to new processes, and in all; a container's limit bounds both.

    Raises:
        OSError: On other systems.
    """
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    bound = math.inf if text == "max" else int(text)
    available, total = (_proc_bytes("meminfo", name) for name in ("MemAvailable", "MemTotal"))
    return int(min(available, bound)), int(min(total, bound))


def resident_bytes(pid: int | str, peak: bool = False) -> int:
    """Of a process, now or at its peak, with what it shares."""
    return _proc_bytes(f"{pid}/status", "VmHWM" if peak else "VmRSS")


def private_bytes(pid: int | str) -> int:
    """What a process shares with no other, now."""
    return sum(_proc_bytes(f"{pid}/smaps_rollup", f"Private_{kind}") for kind in ("Clean", "Dirty"))


def parent_of(pid: int) -> int:
    """The process that started it."""
    # After the command's name, which is in parentheses, come its state and its parent.
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def _proc_bytes(file: str, name: str) -> int:
    """A value of /proc that is given in kB."""
    for line in Path("/proc", file).read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0]) * 1024
    raise OSError(f"/proc/{file} should have a line `{name}`; this needs Linux.")
