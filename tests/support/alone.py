"""A training run without Ray, in this process."""

from __future__ import annotations

from pathlib import Path

import torch

from bft_ray.config import make_config
from bft_ray.train.checkpoint import LoopState


def run_alone(
    tree: dict,
    folder: str,
    stop_after: int | None = None,
    device: str = "cpu",
    until: int | None = None,
    asked_in: int | None = None,
) -> dict:
    """Train without Ray; stop as a crash would after `stop_after` steps, or on all ranks after the checkpoint of step
    `until`, or save and end because it is asked in the middle of the step that many steps after its start; returns weights and events.
    """
    from bft_ray.data.dataset import prepare
    from bft_ray.model.causal_lm import load_tokenizer
    from bft_ray.train.engine import Engine
    from bft_ray.train.loop import Data, fit
    from tests.support.local_host import LocalHost

    config = make_config(tree)
    tokenizer = load_tokenizer(config.model)
    data = Data(
        prepare(config.data.train, tokenizer, config.data),
        prepare(config.data.validation, tokenizer, config.data, "data.validation"),
        tokenizer.pad_token_id,
    )
    events = []

    def listen(event, values):
        events.append((event, values))
        if event == "step" and values["step"] == stop_after:
            raise KeyboardInterrupt

    looks = iter(range(1, 1_000_000))
    engine = Engine(config, torch.device(device), asked=lambda: next(looks) == asked_in)
    own = Path(folder) if engine.rank == 0 else Path(f"{folder}-{engine.rank}")  # a LocalHost is one process's

    class Ends(LocalHost):
        def keep(self, folder, step, score):
            super().keep(folder, step, score)
            if step == until:
                raise KeyboardInterrupt

    host = Ends(own, engine.device, config.checkpoint.keep, listen if engine.rank == 0 else None)
    try:
        state = fit(engine, config, data, host)
    except KeyboardInterrupt:
        state = LoopState()
    weights = {name: value.float().numpy() for name, value in (engine.weights() or {}).items()}
    return {
        "weights": weights,
        "events": events,
        "best": state.best_step,
        "kept": sorted(p.name for p in Path(folder).iterdir()),
    }
