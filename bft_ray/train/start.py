"""Log-probabilities of the training data under the weights that training starts from, which `token_weight: prior` reads."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from bft_ray.config import Config
from bft_ray.data.dataset import TokenDataset
from bft_ray.errors import BftError
from bft_ray.model.start_logps import StartLogps, path_of, read, write
from bft_ray.train.engine import Engine


def start_logps(engine: Engine, config: Config, dataset: TokenDataset, pad_id: int) -> tuple[StartLogps, bool]:
    """The log-probabilities of all supervised tokens under the weights that the engine has, and whether they were kept before.

    One forward pass over the dataset, shared by the ranks; kept beside the tokens of each node, where `bft-ray profile`
    finds them too, and the other way round. Every rank calls it, before a step is done or a checkpoint loaded.

    Raises:
        BftError: log-probabilities that are not finite; names the samples.
    """
    path = path_of(config.model, dataset)
    found = read(path)
    own = np.zeros((2, int(dataset.num_supervised.sum())), dtype=np.float32)
    holder = _first_holder(engine, found is not None)
    if found is not None and found.entropy is not None:
        own = np.stack([found.logp, found.entropy])
    table = torch.from_numpy(own).to(engine.device)
    if holder is None:
        _fill(engine, config, dataset, pad_id, table)
        dist.all_reduce(table)
    elif engine.world_size > 1:
        dist.broadcast(table, holder)
    logp, entropy = table.cpu().numpy()
    made = StartLogps(dataset.ids, logp, dataset.num_supervised.astype(np.int64), entropy=entropy)
    if broken := [name for index, name in enumerate(dataset.ids) if not np.isfinite(made.of(index)).all()]:
        raise BftError(f"log-probabilities are not finite for {', '.join(broken[:8])}; try model.dtype=fp32")
    if found is None:
        write(path, made, dataset.fingerprint)
    return made, holder is not None


def _first_holder(engine: Engine, is_here: bool) -> int | None:
    """The first rank whose node has them; None: none has."""
    flags = torch.zeros(engine.world_size, device=engine.device)
    flags[engine.rank] = float(is_here)
    dist.all_reduce(flags)
    holders = flags.nonzero().flatten().tolist()
    return int(holders[0]) if holders else None


@torch.no_grad()
def _fill(engine: Engine, config: Config, dataset: TokenDataset, pad_id: int, table: Tensor) -> None:
    """Fill in this rank's share of [2, N]: log-probability and relative entropy."""
    starts = np.concatenate([[0], np.cumsum(dataset.num_supervised)])
    for indices, micro in engine.passes(dataset, config.evaluation.batch_tokens, pad_id):
        places = [np.arange(starts[index], starts[index + 1]) for index in indices]
        logp, entropy = engine.logps(micro)
        if places:
            at = torch.from_numpy(np.concatenate(places)).to(engine.device)
            table[0, at], table[1, at] = logp.float(), entropy.float()
