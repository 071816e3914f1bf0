"""Stages that run beside other nodes, on a device that those do not use."""

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import comfy.model_management as model_management
import torch
from comfy.model_patcher import ModelPatcher

from ...glmimage_core.component import Component
from . import Result

POLL_SECONDS = 0.02
ROOM = 2**29  # working memory is asked for in pieces of so many bytes, so that the next job, with a longer prompt, fits too

_stopped: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("stopped", default=None)
"""Of a stage that runs aside: set when nobody waits for it any more."""


class Worker:
    """Computes on one device, beside the nodes, with one model at a time: jobs for it follow each other in a thread.

    Models are placed by whoever calls, between nodes, and never while one computes: ComfyUI's memory manager is not made for
    threads. Who holds `at_work` may place a model on the device.
    """

    def __init__(self):
        self.at_work = threading.Lock()
        self._thread = ThreadPoolExecutor(1, "glm-image")
        self._counting = threading.Lock()
        self._jobs = 0  # begun or waiting
        self._placed: tuple[ModelPatcher, int, Component] | None = None

    async def component(self, patcher: ModelPatcher, working_bytes: int, place: Callable[[int], Component]) -> Component:
        """The model, placed for a job that is to be begun next: by an earlier job for it, or when the device is free."""
        working_bytes = -(-working_bytes // ROOM) * ROOM
        while True:
            with self._counting:
                joins = self._jobs and self._placed[0] is patcher and working_bytes <= self._placed[1]
                if joins or self.at_work.acquire(blocking=False):
                    self._jobs += 1
                    break
            await asyncio.sleep(POLL_SECONDS)  # to wait in one go would keep other nodes from running
        if joins:
            return self._placed[2]
        try:
            self._placed = patcher, working_bytes, place(working_bytes)
        except BaseException:
            self._done()
            raise
        return self._placed[2]

    def begin(self, work: Callable[[], Result]) -> "Future[Result]":
        """Have a job done with the component that was asked for."""
        job = self._thread.submit(work)
        job.add_done_callback(lambda _: self._done())
        return job

    def _done(self) -> None:
        with self._counting:
            self._jobs -= 1
            if not self._jobs:
                self._placed = None
                self.at_work.release()


async def beside_nodes(worker: Worker, work: Callable[[], Result]) -> Result:
    """Await a job. A stop that the user asks for ends it and whatever runs at the same time; the end of the run ends it too."""
    stopped, context = threading.Event(), contextvars.copy_context()

    def run() -> Result:
        _stopped.set(stopped)
        try:
            return work()
        except model_management.InterruptProcessingException:
            if not stopped.is_set():  # the asking was used up here, and the node beside this one is to hear of it
                model_management.interrupt_current_processing(True)
            raise

    job = worker.begin(lambda: context.run(run))
    try:
        return await asyncio.wrap_future(job)
    except asyncio.CancelledError:
        stopped.set()
        raise


def stop_if_asked() -> Callable[[], None]:
    """A function that raises where the user asked to stop, or where nobody waits any more for what runs here."""
    stopped = _stopped.get()

    def check() -> None:
        if stopped is not None and stopped.is_set():
            raise model_management.InterruptProcessingException
        model_management.throw_exception_if_processing_interrupted()

    return check


def current(device: torch.device) -> AbstractContextManager:
    """Have a GPU be the current one, which kernels of other libraries go by."""
    return nullcontext() if device.type in ("cpu", "mps") else torch.get_device_module(device).device(device)
