"""A device made of threads: each stream works its queue off in order, with random pauses, beside the others.

It has the methods of `ssn.runtime.cuda.Cuda`, and keeps CUDA's rules: a stream's work is done in order, streams
don't wait for one another unless told, and waiting for an event means its latest record at the time of asking.
Device memory is host memory, so work that is done too early or too late leaves wrong numbers behind.
"""

import ctypes
import queue
import random
import threading
import time

import numpy as np


class _Record:
    def __init__(self):
        self.happened = threading.Event()
        self.at = 0.0


class _Stream(queue.Queue):
    def __int__(self):
        return id(self)


class SimulatedCuda:
    def __init__(self, seed=0, pause=2e-4, graphs_fail=False):
        self._random = random.Random(seed)
        self._pause, self._graphs_fail = pause, graphs_fail
        self._threads, self._queues, self._kept = [], [], []
        self._recording = None
        self.launches = 0
        self.error = None
        self.allocated = 0
        self.released = False
        self.device = None

    def stream(self):
        work = _Stream()
        thread = threading.Thread(target=self._work_off, args=(work,), daemon=True)
        thread.start()
        self._threads.append(thread)
        self._queues.append(work)
        return work

    def _work_off(self, work):
        while (task := work.get()) is not None:
            try:
                task()
            except BaseException as error:
                self.error = error

    @property
    def capturing(self):
        return self._recording is not None

    def put(self, stream, task, pause=True):
        """Queue work, as a kernel launch does; into the graph if one is being captured."""
        delay = self._random.random() * self._pause if pause else 0.0

        def run():
            time.sleep(delay)
            task()

        if self._recording is not None:
            self._recording.append(run)
        else:
            stream.put(run)

    def event(self):
        return {"record": None}

    def record(self, event, stream):
        record = _Record()
        event["record"] = record

        def happen():
            record.at = time.perf_counter()
            record.happened.set()

        stream.put(happen)

    def wait(self, stream, event):
        record = event["record"]
        if record is not None:
            stream.put(record.happened.wait)

    def synchronize(self, event):
        assert event["record"].happened.wait(60), "the host waits for what never happens"
        if self.error:
            raise self.error

    def synchronize_stream(self, stream):
        done = threading.Event()
        stream.put(done.set)
        assert done.wait(60)

    def seconds(self, begin, end):
        return end["record"].at - begin["record"].at

    def pinned(self, shape, dtype):
        return np.zeros(shape, dtype)

    def device_buffer(self, size):
        memory = np.full(max(size, 1), 0xAB, np.uint8)  # never zeros: real device memory isn't either
        self._kept.append(memory)
        self.allocated += size
        return memory.ctypes.data

    def copy_in(self, address, source, stream):
        self.put(stream, lambda: ctypes.memmove(address, source.ctypes.data, source.nbytes))

    def copy_out(self, target, address, stream):
        self.put(stream, lambda: ctypes.memmove(target.ctypes.data, address, target.nbytes))

    def capture(self, stream, fill):
        from ssn.core.errors import BackendError

        if self._graphs_fail:
            raise BackendError("graph capture failed")
        self._recording = tasks = []
        try:
            fill()
        finally:
            self._recording = None
        return tasks

    def launch(self, graph, stream):
        self.launches += 1
        for task in graph:
            stream.put(task)

    def drain(self):
        for stream in self._queues:
            self.synchronize_stream(stream)

    def release(self):
        if not self.released:
            self.drain()
            self.released = True
            self.close()

    def close(self):
        for work in self._queues:
            work.put(None)
        for thread in self._threads:
            thread.join(60)


def array_at(address, shape, dtype):
    """View of simulated device memory."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address)).view(dtype).reshape(shape)
