"""What is read of this machine and its processes."""

import multiprocessing as mp
import os

import pytest

from lerobot_smoothvla import machine


def test_the_memory_of_processes_is_read():
    now, peak = machine.resident_bytes("self"), machine.resident_bytes("self", peak=True)
    assert 10**7 < machine.private_bytes("self") < now <= peak
    available, total = machine.machine_bytes()
    assert now < total and 0 < available <= total
    with pytest.raises(OSError, match=r"/proc/meminfo should have a line `NoSuchLine`; this needs Linux"):
        machine._proc_bytes("meminfo", "NoSuchLine")


def test_the_parent_of_a_process_is_found():
    process = mp.get_context("spawn").Process(target=input)
    process.start()
    assert machine.parent_of(process.pid) == os.getpid()
    process.kill()
