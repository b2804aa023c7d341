"""The time of a few steps by operation: a torch profiler trace, and a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from bft_ray.places.scratch import scratch

_SKIPPED = 2  # steps before the profiled ones: the first is slow for reasons of its own, the second warms the profiler
_PREFIX = "bft/"
#: parts of a step, in its order
PHASES = {
    "data": "waiting for the next batch",
    "start": "forward pass under the starting weights, with an anchor",
    "decoder": "forward pass up to the hidden states",
    "head": "head and loss, with the gradient of the hidden states",
    "backward": "backward pass, with the reduction of gradients",
    "metrics": "sums over ranks, and the wait for the device",
    "optimizer": "clipping and update",
}


def phase(name: str) -> Any:
    """Context of a part of the step, seen by the profiler; costs a microsecond where there is none."""
    return record_function(_PREFIX + name)


@contextmanager
def profiled(
    num_steps: int, device: torch.device, publish: Callable[[Path, str], None]
) -> Iterator[Callable[[], None]]:
    """A context that profiles `num_steps` steps, after two others; it gives what is to be called after each step.

    Args:
        num_steps: steps to profile; with 0 nothing happens.
        publish: called once, with a folder that holds `trace.json.gz` (for chrome://tracing or ui.perfetto.dev) and
            `table.txt`, and with the table.
    """
    if not num_steps:
        yield lambda: None
        return
    recorded = 0

    def ready(made: profile) -> None:
        with scratch("trace") as folder:
            made.export_chrome_trace(str(folder / "trace.json.gz"))
            text = table(made.key_averages(), max(recorded - _SKIPPED, 1), device.type)
            (folder / "table.txt").write_text(text)
            publish(folder, text)

    def step() -> None:
        nonlocal recorded
        recorded = min(recorded + 1, _SKIPPED + num_steps)
        made.step()

    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    plan = schedule(wait=_SKIPPED - 1, warmup=1, active=num_steps, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=ready, acc_events=True) as made:
        yield step


def table(events: Any, num_steps: int, device: str) -> str:
    """Milliseconds a step by phase, and the operators that took most, as text."""
    times = {event.key: event.cpu_time_total / 1e3 / num_steps for event in events}
    total = sum(times.get(_PREFIX + name, 0.0) for name in PHASES)
    lines = [f"{'phase':<10} {'ms/step':>9} {'share':>6}"]
    for name, what in PHASES.items():
        spent = times.get(_PREFIX + name, 0.0)
        lines.append(f"{name:<10} {spent:9.2f} {spent / max(total, 1e-12):6.1%}  {what}")
    lines.append(f"{'sum':<10} {total:9.2f}")
    if device == "cuda":
        lines.append("Times are the host's: kernels run behind it, and the wait for them shows where it waits.")
    own = "self_device_time_total" if device == "cuda" else "self_cpu_time_total"
    operators = sorted(
        (e for e in events if not e.key.startswith((_PREFIX, "ProfilerStep"))), key=lambda e: -getattr(e, own)
    )
    lines += ["", f"{'operator (self time on ' + device + ')':<58} {'ms/step':>9} {'calls/step':>11}"]
    for event in operators[:15]:
        lines.append(
            f"{event.key[:58]:<58} {getattr(event, own) / 1e3 / num_steps:9.2f} {event.count / num_steps:11.1f}"
        )
    return "\n".join(lines) + "\n"
