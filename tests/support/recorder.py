"""A display that keeps what it was to show."""

from __future__ import annotations

from bft_ray.train.progress import Display


class Recorder(Display):
    """Keeps events, and calls a hook on each step."""

    def __init__(self, on_step=lambda step: None):
        super().__init__(every=1)
        self.events: list[tuple[str, dict]] = []
        self._on_step = on_step

    def show(self, event, values):
        self.events.append((event, values))
        if event == "step":
            self._on_step(values["step"])
