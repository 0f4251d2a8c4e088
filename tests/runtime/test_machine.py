import os

import pytest

from ssn.runtime.machine import cores, physical_cores

AFFINITY = pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no CPU affinity")


def topology(folder, siblings):
    for cpu, text in siblings.items():
        (folder / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (folder / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(text + "\n")
    return folder


@AFFINITY
def test_the_second_thread_of_a_core_is_not_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 4})
    folder = topology(tmp_path, {0: "0,4", 1: "1,5", 2: "2,6", 4: "0,4"})
    assert cores() == 4
    assert physical_cores(folder) == 3


@AFFINITY
def test_where_the_system_does_not_say_every_core_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3})
    assert physical_cores(topology(tmp_path, {0: "0,2"})) == cores() == 4
