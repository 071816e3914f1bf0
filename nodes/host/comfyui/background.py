"""Stages that run in the background of other nodes, on a device that those do not use.

ComfyUI's memory manager is not thread-safe. So only the thread that runs the nodes places models, between nodes, and never on a
device that computes.
"""

import asyncio
import contextvars
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from weakref import WeakKeyDictionary

import comfy.model_management as model_management
import torch
from comfy.model_patcher import ModelPatcher

from ....glmimage_core.component import Component
from ....glmimage_core.placement.residency import current
from ..protocol import Result

POLL_SECONDS = 0.02
WORKING_STEP = 2**29  # bytes; working memory is rounded up to it, so that a next job with a longer prompt fits too

_stopped: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("stopped", default=None)
"""Of a stage that runs in the background: set when nobody waits for its result any more."""


class Worker:
    """A thread that computes on one device with one model at a time, one job after another.

    Whoever holds the lock `at_work` may place a model on the device.
    """

    def __init__(self):
        self.at_work = threading.Lock()
        self.node: int | None = None  # the thread whose node holds the lock
        self._waiting: queue.SimpleQueue[tuple[Future, Callable[[], None]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._counting = threading.Lock()
        self._jobs = 0  # running or waiting
        self._placed: tuple[ModelPatcher, int, Component] | None = None

    async def component(self, patcher: ModelPatcher, working_bytes: int, place: Callable[[int], Component]) -> Component:
        """The component for a job that the caller then begins or gives up.

        If a job with the same model and no less working memory runs or waits, the component is in place. Otherwise `place` is
        called with the working memory in bytes once the device is free.
        """
        working_bytes = -(-working_bytes // WORKING_STEP) * WORKING_STEP
        while True:
            with self._counting:
                joins = self._jobs > 0 and self._placed[0] is patcher and working_bytes <= self._placed[1]
                if joins or self.at_work.acquire(blocking=False):
                    self._jobs += 1
                    break
            await asyncio.sleep(POLL_SECONDS)  # waiting for the lock would block the loop that runs the nodes
        if not joins:
            try:
                self._placed = patcher, working_bytes, place(working_bytes)
            except BaseException:
                self.give_up()
                raise
        return self._placed[2]

    def begin(self, work: Callable[[], Result]) -> "Future[Result]":
        """Queue a job that uses the component from `component`."""
        job: Future[Result] = Future()
        job.add_done_callback(lambda _: self.give_up())
        self._waiting.put((job, work))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="glm-image", daemon=True)  # ComfyUI can exit
            self._thread.start()
        return job

    def give_up(self) -> None:
        """Count a job as done, or as never begun."""
        with self._counting:
            self._jobs -= 1
            if not self._jobs:
                self._placed = None
                self.at_work.release()

    def _run(self) -> None:
        while True:
            job, work = self._waiting.get()
            if job.set_running_or_notify_cancel():
                try:
                    job.set_result(work())
                except BaseException as error:  # raised where the job is awaited
                    job.set_exception(error)
            del job, work  # while this thread waits it must keep no model alive


_of_devices: dict[torch.device, Worker] = defaultdict(Worker)
_of_models: WeakKeyDictionary[torch.nn.Module, Worker] = WeakKeyDictionary()


def worker_for(patcher: ModelPatcher) -> Worker:
    """The worker of the patcher's device. On the CPU each model has its own, because no model there makes room for another."""
    if model_management.is_device_cpu(patcher.load_device):
        return _of_models.setdefault(patcher.model, Worker())
    return _of_devices[patcher.load_device]


def others_compute(patcher: ModelPatcher) -> bool:
    """Whether a stage runs in the background on another device, or on the CPU with another model, than the patcher's."""
    workers = [*_of_devices.values(), *_of_models.values()]
    return any(worker.at_work.locked() for worker in workers if worker is not worker_for(patcher))


@contextmanager
def at_work(patcher: ModelPatcher) -> Iterator[None]:
    """Hold the patcher's device for one stage of a node, and make it the current one. Stages of one node may nest."""
    worker, thread = worker_for(patcher), threading.get_ident()
    with current(patcher.load_device):
        if worker.node == thread:
            yield
            return
        with worker.at_work:
            worker.node = thread
            try:
                yield
            finally:
                worker.node = None


def sampled_alone(executor, *arguments, **options):
    """A wrapper around a whole sampling of ComfyUI, in which it also places the model."""
    with at_work(executor.class_obj.model_patcher):
        return executor(*arguments, **options)


async def beside_nodes(worker: Worker, work: Callable[[], Result]) -> Result:
    """Await a job. The user's stop ends it and the node that runs beside it. Cancelling the wait ends the job too."""
    stopped, context = threading.Event(), contextvars.copy_context()

    def run() -> Result:
        _stopped.set(stopped)
        try:
            return work()
        except model_management.InterruptProcessingException:
            if not stopped.is_set():  # this job consumed the stop; the node beside it must get it too
                model_management.interrupt_current_processing(True)
            raise

    job = worker.begin(lambda: context.run(run))
    try:
        return await asyncio.wrap_future(job)
    except asyncio.CancelledError:
        stopped.set()
        raise


def stop_if_asked() -> Callable[[], None]:
    """A function that raises if the user asked to stop, or if nobody waits any more for the stage that runs here."""
    stopped = _stopped.get()

    def check() -> None:
        if stopped is not None and stopped.is_set():
            raise model_management.InterruptProcessingException
        model_management.throw_exception_if_processing_interrupted()

    return check
