"""`bft-ray export`: the champion of a domain as one model for use elsewhere, checked, with a card that holds
the evidence.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bft_ray.config import Config, TrackingConfig, config_from_yaml
from bft_ray.errors import BadInput, BftError, first_line
from bft_ray.model.card import release_card
from bft_ray.model.release import Checks, check_release, release
from bft_ray.model.safe import CONFIG
from bft_ray.places import storage
from bft_ray.places.addresses import redact
from bft_ray.places.cache import check_out
from bft_ray.places.kept import write_text
from bft_ray.places.modes import settle
from bft_ray.places.scratch import scratch
from bft_ray.tracking.registry import Champion, find_champion
from bft_ray.waits import waiting

#: tag of a version -> what the card calls it
_EVIDENCE = {
    "study": "study",
    "arm": "settings",
    "verdict": "kind of winner",
    "metric": "metric",
    "value": "mean over seeds and items",
    "gain": "gain over the default",
    "interval": "interval of the gain",
    "detectable": "smallest detectable gain",
    "best_candidate": "the best candidate, which does not beat it beyond noise",
    "best_candidate_gain": "gain of that candidate",
    "best_candidate_interval": "interval of that gain",
    "data_fingerprint": "SHA-256 of the training tokens",
}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        folder: of the model, or its URI.
        champion: `bft-DOMAIN/VERSION`.
        pushed: address of the repository of a hub; "" where it was not pushed.
    """

    folder: str
    champion: str
    checks: Checks
    pushed: str = ""


def export_champion(
    domain: str,
    uri: str | None,
    version: str | None,
    out: str | None,
    push: str | None,
    line: Callable[[str], None],
    trust_code: bool = False,
) -> Exported:
    """Merge the champion, check it, write its card; and push it where asked.

    Args:
        uri: of the tracking server; None: the default.
        version: of the registered model; None: the champion.
        out: new or empty folder, or the URI of one; None: `bft-DOMAIN-VERSION` here.
        push: repository of a hub, `NAME/REPOSITORY`; it is made private where it does not exist. HF_ENDPOINT and HF_TOKEN
            of the environment say which hub, and who. None: none.
        trust_code: run the Python code that comes with the model, where its config says so.
        line: called with a line before each step.

    Raises:
        BadInput: no such champion, its weights are gone or changed, a folder that is not empty, a hub that refuses.
        BftError: the merged model does not load, has other probabilities, or does not stop where it should.
    """
    champion = find_champion(TrackingConfig(uri=uri or TrackingConfig().uri), domain, version, trust_code)
    config = config_from_yaml(champion.config_yaml, f"the config of {champion.name}/{champion.version}")
    place = out or f"{champion.name}-{champion.version}"
    _require_empty(place)
    push = push and _require_repository(push)  # before what takes minutes for a large model
    if not storage.is_remote(place):
        return _export(champion, config, Path(place), push, line)
    with scratch("export") as temporary:
        made = _export(champion, config, temporary / "model", push, line)
        line(f"storing it at {place}")
        with waiting("storing the export"):
            storage.put_folder(temporary / "model", place)
    return replace(made, folder=place)


def _require_empty(place: str) -> None:
    if storage.is_remote(place):
        storage.check_writable(place, "--out")
        is_empty = not storage.sizes_in(place)
    else:
        folder = Path(place)
        is_empty = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        check_out(folder)
    if not is_empty:
        raise BadInput("--out", place, "a new or empty folder", "Give another one: --out FOLDER.")


def _export(
    champion: Champion, config: Config, folder: Path, push: str | None, line: Callable[[str], None]
) -> Exported:
    source = _weights(champion)
    line(f"{champion.name}/{champion.version}: merging {champion.source}")
    try:
        release(source, config.model, folder)
        line("checking it with transformers")
        checks = check_release(folder, source, config)
    except BaseException:  # also Ctrl-C: what is not checked would look like an export, and --out would not be empty
        shutil.rmtree(folder, ignore_errors=True)
        raise
    name = f"{champion.name}/{champion.version}"
    card = release_card(
        config, name=name, evidence=_evidence(champion), checks=_told(checks), settings=_settings(config)
    )
    write_text(folder / "README.md", redact(card))
    settle(folder)
    pushed = ""
    if push:
        line(f"pushing it to {push}")
        pushed = _push(folder, push, name)
    return Exported(str(folder), name, checks, pushed)


def _weights(champion: Champion) -> Path:
    where = champion.source
    if not storage.exists(where):
        remedy = "Run this on the machine that has it; or train it again: `bft-ray train --champion DOMAIN`."
        raise BadInput("source", where, f"a folder with the weights of {champion.name}/{champion.version}", remedy)
    folder = storage.fetch_folder(where)
    if not any((folder / file).is_file() for file in ("config.json", CONFIG)):
        rule = f"a folder with config.json or {CONFIG}: a whole model or adapter"
        raise BadInput("source", where, rule, "Take a whole copy, or train again: `bft-ray train --champion DOMAIN`.")
    return folder


def _evidence(champion: Champion) -> dict[str, str]:
    found = {}
    for tag, what in _EVIDENCE.items():
        value = champion.tags.get(tag, "")
        try:
            number = float(value)
        except ValueError:
            found[what] = value
            continue
        found[what] = f"{number:.4g}" if math.isfinite(number) and tag not in ("data_fingerprint", "study") else value
    return found


def _settings(config: Config) -> dict[str, str]:
    loss, unused = config.loss, config.loss.unused_fields()
    own: dict[str, Any] = {
        f"loss.{name}": value for name, value in loss.model_dump().items() if name not in unused and value is not None
    }
    own |= {
        "optimizer.learning_rate": config.optimizer.learning_rate,
        "data.global_batch_size": config.data.global_batch_size,
        "schedule": f"{config.schedule.steps} steps" if config.schedule.steps else f"{config.schedule.epochs:g} epochs",
        "seed": config.seed,
    }
    return {name: str(value) for name, value in own.items()}


def _told(checks: Checks) -> dict[str, str]:
    return {
        "loads with plain transformers": f"yes, {checks.num_parameters:,} parameters",
        "largest difference of a next-token probability from the trained weights": f"{checks.difference:.2g}",
        "generation stops at": ", ".join(f"`{end}`" for end in checks.ends),
        "vLLM": checks.engine,
    }


@waiting("asking the hub")
def _require_repository(repository: str) -> str:
    """The whole name of the repository that a model goes to; it is made, private, if it is not there yet."""
    from huggingface_hub import HfApi

    with _hub_errors(repository, "Nothing was merged yet."):
        return HfApi().create_repo(repository, private=True, exist_ok=True).repo_id


@waiting("pushing the model")
def _push(folder: Path, repository: str, name: str) -> str:
    from huggingface_hub import HfApi

    api = HfApi()
    again = shlex.join(["hf", "upload", repository, str(folder)])
    with _hub_errors(repository, f"The model lies in {folder}; to push it again: `{again}`."):
        api.upload_folder(repo_id=repository, folder_path=folder, commit_message=f"{name}, exported by bft-ray")
    return f"{api.endpoint}/{repository}"


@contextlib.contextmanager
def _hub_errors(repository: str, state: str) -> Iterator[None]:
    """What the hub's client raises, as errors for a user.

    Args:
        state: a sentence on what was made, and how to go on with it.
    """
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import LocalTokenNotFoundError

    remedy = (
        f"Give NAME/REPOSITORY, and a token that may write there in HF_TOKEN; HF_ENDPOINT names another hub. {state}"
    )
    try:
        yield
    except (HFValidationError, LocalTokenNotFoundError) as error:
        raise BadInput("--push", repository, f"a repository of a hub: {first_line(error)}", remedy) from None
    except HfHubHTTPError as error:
        if error.response is not None and error.response.status_code in (401, 403):
            raise BadInput("--push", repository, f"a repository that takes this: {first_line(error)}", remedy) from None
        raise BftError(f"the hub did not take the model ({redact(first_line(error))}). {state}") from error
    except Exception as error:  # of the network: each version of the client has types of its own
        raise BftError(f"the hub does not answer ({redact(first_line(error))}). {state}") from error
