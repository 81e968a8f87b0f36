"""An event loop of our own: its clock is virtual, and a seed decides its order.

Every handle belongs to a *process*, a context variable that tasks inherit. One that was killed is
never scheduled again: no `finally` of its own runs, as with kill -9. One that is frozen keeps its
handles until it is woken, as with SIGSTOP.

Time passes while code runs: each step costs something, and some stall. Where the clock stands still
while code runs, no timer fires between two steps, and the races that need one hide.
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import heapq
from array import array
from collections.abc import Callable, Coroutine
from random import Random
from typing import Any

PROCESS: contextvars.ContextVar[str] = contextvars.ContextVar("PROCESS", default="world")

STALL_SECONDS = 0.5
SWAP_SHARE = 0.001
"""So often a task that was favoured so far is put last, under `priorities`."""


class Stuck(Exception):
    """Nothing is ready and nothing is due: everybody waits for somebody."""


class _Numbered:
    """Hashed by its number in the run: a set of tasks has the same order in any process."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class SimTask(_Numbered, asyncio.Task):  # type: ignore[type-arg]
    """A task with a number, and with a rank under `priorities`."""

    rank = 0.0

    def __init__(self, number: int, coro: Coroutine[Any, Any, Any], **options: Any) -> None:
        # First: asyncio hashes a task as it is made, for its own set of all tasks.
        self.number = number
        super().__init__(coro, **options)


class SimFuture(_Numbered, asyncio.Future):  # type: ignore[type-arg]
    """A future with a number."""


class SimHandle(asyncio.TimerHandle):
    """What is to be called, at once or at a time; some are made at every step.

    asyncio's own asks its loop for the debug mode again and again.

    Attributes:
        task: Whose step it is; None for a plain callback.
    """

    __slots__ = ("task",)

    def __init__(
        self,
        when: float,
        callback: Callable[..., Any],
        args: tuple[Any, ...],
        loop: SimLoop,
        context: contextvars.Context | None,
    ) -> None:
        self._when = when
        self._callback: Any = callback
        self._args: Any = args
        self._loop = loop
        self._context = contextvars.copy_context() if context is None else context
        self._cancelled = self._scheduled = False
        self._repr = self._source_traceback = None
        owner = getattr(callback, "__self__", None)
        self.task = owner if isinstance(owner, SimTask) else None

    def cancel(self) -> None:
        """It will not be called; the loop finds out when it is due."""
        self._cancelled = True
        self._callback = self._args = None


class SimLoop(asyncio.BaseEventLoop):
    """See the module.

    Args:
        rng: Decides the order, and which steps stall.
        policy: `fifo`, as asyncio has it; `random`; `priorities`, where a slow task stays slow.
        step_seconds: What a step costs.
        stall_share: The share of steps that cost up to `STALL_SECONDS` more.
        keep_trace: Keep every step and effect, to be read.
    """

    def __init__(
        self,
        rng: Random,
        policy: str = "fifo",
        *,
        step_seconds: float = 0.0,
        stall_share: float = 0.0,
        keep_trace: bool = False,
    ) -> None:
        super().__init__()
        self._ready: list[SimHandle] = []
        self._timers: list[tuple[float, int, SimHandle]] = []
        self._now = 0.0
        self._rng = rng
        self._policy = policy
        self._step_seconds = step_seconds
        self._stall_share = stall_share
        self._count = 0
        self._notes: list[str] = []
        self._picks = array("d")
        self._dead: set[str] = set()
        self._frozen: dict[str, list[SimHandle]] = {}
        self.steps = 0
        self.tasks: list[SimTask] = []
        self.at_step: dict[int, Callable[[], None]] = {}
        self.trace: list[str] | None = [] if keep_trace else None
        self.set_task_factory(self._make_task)

    # What asyncio asks of a loop

    def time(self) -> float:
        """The virtual clock, in seconds from 0."""
        return self._now

    def create_future(self) -> SimFuture:
        """As asyncio's, numbered."""
        future = SimFuture(loop=self)
        self._count = future.number = self._count + 1
        return future

    def _make_task(self, _: Any, coro: Coroutine[Any, Any, Any], **options: Any) -> SimTask:
        self._count = number = self._count + 1
        # asyncio's own names go on counting from one run to the next.
        name = options.pop("name", None) or f"t{number}"
        task = SimTask(number, coro, loop=self, name=name, **options)
        task.rank = self._rng.random()
        self.tasks.append(task)
        return task

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> SimHandle:
        """As asyncio's."""
        if self._closed:  # type: ignore[attr-defined]
            raise RuntimeError("Event loop is closed")
        handle = SimHandle(self._now, callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Any, *args: Any, context: Any = None) -> SimHandle:
        """The same: there are no threads."""
        return self.call_soon(callback, *args, context=context)

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> SimHandle:
        """As asyncio's; timers of the same time fire in the order in which they were set."""
        timer = SimHandle(when, callback, args, self, context)
        self._count = number = self._count + 1
        heapq.heappush(self._timers, (when, number, timer))
        return timer

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> SimHandle:
        """As asyncio's."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., Any], *args: Any) -> Any:
        """There are no threads here: what runs in one needs a model."""
        raise NotImplementedError(f"{func} would run in a thread: give it a model")

    def _write_to_self(self) -> None:
        pass

    def _process_events(self, event_list: Any) -> None:
        pass

    def _run_once(self) -> None:
        ready, timers, is_fifo = self._ready, self._timers, self._policy == "fifo"
        while not self._stopping:  # type: ignore[attr-defined]
            while timers and timers[0][2]._cancelled:
                heapq.heappop(timers)
            if not ready:
                if not timers:
                    raise Stuck
                self._now = max(self._now, timers[0][0])
            while timers and timers[0][0] <= self._now:
                ready.append(heapq.heappop(timers)[2])
            self._step(ready.pop(0 if is_fifo or len(ready) == 1 else self._picked(ready)))

    def _step(self, handle: SimHandle) -> None:
        if handle._cancelled:
            return
        context, callback, args = handle._context, handle._callback, handle._args
        if self._dead or self._frozen:
            process = context.get(PROCESS)
            if process in self._dead:
                return
            if process in self._frozen:
                self._frozen[process].append(handle)
                return
        self.steps = step = self.steps + 1
        if step in self.at_step:
            self.at_step.pop(step)()
            if context.get(PROCESS) in self._dead:
                return
        task = handle.task
        self._picks.append(self._now)
        self._picks.append(0.0 if task is None else task.number)
        if self.trace is not None:
            name = "-" if task is None else task.get_name()
            self.trace.append(f"{self._now:.6f} {context.get(PROCESS)} step {name}")
        try:
            context.run(callback, *args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - as asyncio's: its handler judges
            what = getattr(callback, "__qualname__", callback)
            self.call_exception_handler({"message": f"callback {what}", "exception": error})
        if self._step_seconds:
            self._now += self._step_seconds
            if self._stall_share and self._rng.random() < self._stall_share:
                self._now += self._rng.random() * STALL_SECONDS

    def _picked(self, ready: list[SimHandle]) -> int:
        if self._policy == "random":
            index = self._rng.randrange(len(ready))
        else:
            ranks = [2.0 if one.task is None else one.task.rank for one in ready]
            index = ranks.index(max(ranks))
            if self._rng.random() < SWAP_SHARE and (task := ready[index].task) is not None:
                task.rank = self._rng.random() - 1
        if ready[index].task is None:
            # asyncio promises an order to plain callbacks, and its own code relies on it. Of tasks
            # it promises nothing.
            return next(at for at, one in enumerate(ready) if one.task is None)
        return index

    # What a world asks of it

    def spawn(self, process: str, coro: Coroutine[Any, Any, Any]) -> SimTask:
        """Start a task of a process: all that it starts belongs to that, too."""
        context = contextvars.copy_context()
        context.run(PROCESS.set, process)
        return self._make_task(self, coro, name=process, context=context)

    def kill(self, process: str) -> None:
        """SIGKILL."""
        self._dead.add(process)
        self._frozen.pop(process, None)

    def is_dead(self, process: str) -> bool:
        """Whether it was killed."""
        return process in self._dead

    def freeze(self, process: str) -> None:
        """SIGSTOP."""
        self._frozen.setdefault(process, [])

    def thaw(self, process: str) -> None:
        """SIGCONT."""
        self._ready += self._frozen.pop(process, ())

    def note(self, *what: Any) -> None:
        """Make something a part of the trace and of its hash."""
        line = " ".join(map(str, what))
        self._notes.append(line)
        self._picks.append(self._now)
        if self.trace is not None:
            self.trace.append(f"{self._now:.6f} {PROCESS.get()} {line}")

    @property
    def digest(self) -> str:
        """Runs with the same one did the same, at the same times, in the same order."""
        digest = hashlib.blake2b("".join(self._notes).encode(), digest_size=8)
        digest.update(self._picks.tobytes())
        return digest.hexdigest()

    def waiting(self) -> list[str]:
        """Who waits where, for a world that is stuck."""
        return [repr(task) for task in self.tasks if not task.done()]

    def discard(self) -> None:
        """Close what is left of all processes; what still runs thereby does not count."""
        for task in self.tasks:
            if not task.done():
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                for _ in range(50):  # A coroutine may refuse to close, some times.
                    try:
                        task.get_coro().close()  # type: ignore[union-attr]
                        break
                    except BaseException:  # noqa: BLE001, S112 - whatever a dead process raises
                        continue
        self.tasks.clear()
        self._ready.clear()
        self._timers.clear()
        self.close()
