"""Stages that run beside other nodes, on a device that those do not use.

ComfyUI's memory manager is not made for threads: models are placed between nodes, by the thread that runs them, and never on a
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
ROOM = 2**29  # working memory is asked for in pieces of so many bytes, so that the next job, with a longer prompt, fits too

_stopped: contextvars.ContextVar[threading.Event | None] = contextvars.ContextVar("stopped", default=None)
"""Of a stage that runs in the background: set when nobody waits for its result any more."""


class Worker:
    """Computes on one device, beside the nodes, with one model at a time: jobs for it follow each other in a thread.

    Who holds `at_work` may place a model on the device.
    """

    def __init__(self):
        self.at_work = threading.Lock()
        self.node: int | None = None  # the thread whose node holds it
        self._waiting: queue.SimpleQueue[tuple[Future, Callable[[], None]]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._counting = threading.Lock()
        self._jobs = 0  # begun or waiting
        self._placed: tuple[ModelPatcher, int, Component] | None = None

    async def component(self, patcher: ModelPatcher, working_bytes: int, place: Callable[[int], Component]) -> Component:
        """The model, placed by an earlier job for it or when the device is free, for a job to be begun or given up next."""
        working_bytes = -(-working_bytes // ROOM) * ROOM
        while True:
            with self._counting:
                joins = self._jobs > 0 and self._placed[0] is patcher and working_bytes <= self._placed[1]
                if joins or self.at_work.acquire(blocking=False):
                    self._jobs += 1
                    break
            await asyncio.sleep(POLL_SECONDS)  # to wait in one go would keep other nodes from running
        if not joins:
            try:
                self._placed = patcher, working_bytes, place(working_bytes)
            except BaseException:
                self.give_up()
                raise
        return self._placed[2]

    def begin(self, work: Callable[[], Result]) -> "Future[Result]":
        """Have a job done with the component that was asked for."""
        job: Future[Result] = Future()
        job.add_done_callback(lambda _: self.give_up())
        self._waiting.put((job, work))
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="glm-image", daemon=True)  # does not keep ComfyUI from ending
            self._thread.start()
        return job

    def give_up(self) -> None:
        """A job is over, or will not be begun."""
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
            del job, work  # what they hold


_of_devices: dict[torch.device, Worker] = defaultdict(Worker)
_of_models: WeakKeyDictionary[torch.nn.Module, Worker] = WeakKeyDictionary()


def worker_for(patcher: ModelPatcher) -> Worker:
    """Of the patcher's device; on the CPU, where nothing has to make room, of its model."""
    if model_management.is_device_cpu(patcher.load_device):
        return _of_models.setdefault(patcher.model, Worker())
    return _of_devices[patcher.load_device]


def others_compute(patcher: ModelPatcher) -> bool:
    """Whether a stage runs in the background on another device, or on the CPU with another model, than the patcher's."""
    workers = [*_of_devices.values(), *_of_models.values()]
    return any(worker.at_work.locked() for worker in workers if worker is not worker_for(patcher))


@contextmanager
def at_work(patcher: ModelPatcher) -> Iterator[None]:
    """Have the device to oneself, and be on it. One stage of a node may hold it within another."""
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
    """ComfyUI's wrapper of a whole sampling, in which it places the model."""
    with at_work(executor.class_obj.model_patcher):
        return executor(*arguments, **options)


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
