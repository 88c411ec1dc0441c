"""vLLM's scheduler, which admits a request only if the slots hold its adapters and those of all running requests."""

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from .codec import mixtures_of


class _AdapterLimit:
    """Makes waiting requests wait while they need more adapters than there are slots.

    vLLM's own limit (`max_loras`) counts one adapter per request. A request keeps its adapters until it ends, also in
    steps that do not schedule it, so a batch never needs more than the slots.
    """

    lora_config: Any
    running: list[Any]
    _held: set[int]
    _counted: int

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Schedule a step; adapters are counted again, since requests have ended."""
        self._held, self._counted = set(), 0
        return super().schedule(*args, **kwargs)  # type: ignore[misc]

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        """Return whether a waiting request may be scheduled in this step; it is asked again in the next one."""
        return bool(super()._handle_blocked_waiting_request(request)) and self._fits(request)  # type: ignore[misc]

    def _fits(self, request: Any) -> bool:
        # While requests are admitted, `running` only grows at its end.
        for running in self.running[self._counted :]:
            self._held |= mixtures_of(running.sampling_params).adapters
        self._counted = len(self.running)
        needed = mixtures_of(request.sampling_params).adapters
        slots: int = self.lora_config.max_loras
        return len(self._held | needed) <= slots


class MixtureScheduler(_AdapterLimit, Scheduler):  # type: ignore[misc]
    """The scheduler of engines that wait for each step, as on CPUs."""


class AsyncMixtureScheduler(_AdapterLimit, AsyncScheduler):  # type: ignore[misc]
    """The scheduler of engines that prepare the next step while one runs."""


def create_scheduler(vllm_config: Any, **kwargs: Any) -> Scheduler:
    """Return the scheduler of an engine; vLLM finds this function by its name (`scheduler_cls`)."""
    is_async = vllm_config.scheduler_config.async_scheduling
    return (AsyncMixtureScheduler if is_async else MixtureScheduler)(vllm_config=vllm_config, **kwargs)
