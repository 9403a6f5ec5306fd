"""A process that watches for how long the machine keeps others waiting: `stall_watch.py FD PID`.

It sleeps for a moment again and again. A stall is what it wakes late, or, on Linux, the time for
which the process PID or one of its children was ready to run and had no processor
(`/proc/PID/schedstat`), whichever is more. Into the file FD it writes, in seconds, the longest
stall and the sum of those that are longer than a moment.
"""

import mmap
import os
import struct
import sys
import time
from pathlib import Path

MOMENT = 0.005
SECONDS = struct.Struct("dd")
LOOK_FOR_CHILDREN = 20  # moments


def waited(pid: int) -> float:
    """Seconds for which a process has waited for a processor since it began."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_bytes().split()[1]) / 1e9
    except (OSError, IndexError):  # it ended, or this is no Linux
        return 0.0


def family(parent: int) -> set[int]:
    """The process and its children, without this one."""
    try:
        children = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="ascii")
    except OSError:
        return {parent}
    return {parent, *map(int, children.split())} - {os.getpid()}


def watch(file: int, parent: int) -> None:
    longest = total = 0.0
    before: dict[int, float] = {}
    moments = 0
    wake = time.monotonic()
    with mmap.mmap(file, SECONDS.size) as seconds:
        print("begun", flush=True)
        while os.getppid() == parent:
            if moments % LOOK_FOR_CHILDREN == 0:
                before = {pid: before.get(pid, waited(pid)) for pid in family(parent)}
            moments += 1
            time.sleep(MOMENT)
            earlier_wake, wake = wake, time.monotonic()
            stall = wake - earlier_wake - MOMENT
            for pid, earlier in before.items():
                before[pid] = now = max(waited(pid), earlier)
                stall = max(stall, now - earlier)
            longest = max(longest, stall)
            total += stall if stall > MOMENT else 0.0
            SECONDS.pack_into(seconds, 0, longest, total)


if __name__ == "__main__":
    watch(int(sys.argv[1]), int(sys.argv[2]))
