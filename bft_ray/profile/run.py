"""`bft-ray profile`: what window, epsilon and cap would do to a dataset, before anything is trained."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bft_ray.config import Config
from bft_ray.config.load import parse_yaml, read_yaml, validate
from bft_ray.data.dataset import prepare
from bft_ray.data.passing import tokens_pass
from bft_ray.errors import BadInput
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.model.check import check_model
from bft_ray.page.html import to_html
from bft_ray.places.addresses import redacted_yaml
from bft_ray.places.cache import check_out
from bft_ray.places.kept import write_kept
from bft_ray.places.modes import kept_for
from bft_ray.places.scratch import scratch
from bft_ray.profile import tokens as files
from bft_ray.profile.analyse import analyse
from bft_ray.profile.page import page_of
from bft_ray.profile.result import Profile
from bft_ray.profile.rewrite import replaced, rewrite
from bft_ray.profile.weights import TokenLogps
from bft_ray.space.definition import SearchSpace
from bft_ray.space.load import check_space
from bft_ray.tracking.run import Tracker
from bft_ray.tracking.server import check_server
from bft_ray.waits import waiting

log = logging.getLogger(__name__)
TOKENS_FILE = "tokens.parquet"
#: what else `write` leaves: numbers, a page and names of settings, without sample ids
SHOWN_FILES = ("profile.html", "profile.json", "search_space.yaml")


def profile_data(
    config: Config,
    out: Path,
    against: Path | None = None,
    source: str = "starter",
    track: bool = True,
    progress: Callable[[int, int], None] | None = None,
    space: Path | None = None,
) -> Profile:
    """Profile `data.train` with `config.model`; write JSON and a page to `out`, and to MLflow.

    Args:
        against: folder of an earlier profile of the same data (such as the base model's): the profile then shows how far weights moved.
        source: recipe or file that the config came from: the proposed space names it, and fixes what differs from it.
        track: also record an MLflow run of kind `profile`.
        progress: called with (shards done, shards in all).
        space: the search space that `bft-ray init` wrote for this config (`space_beside`): it is rewritten for what
            was found, and is the proposal.

    Raises:
        BadInput: bad data or model, an earlier profile of other data, or one that `out` would overwrite, a server that
            does not answer.
    """
    with tokens_pass(), kept_for(config.cluster.file_mode):
        check_out(out)
        if against and out.resolve() == against.resolve():
            rule = "another folder than that of `against`, whose files would be overwritten"
            raise BadInput("out", str(out), rule, "Give --out a folder of its own.")
        if track:
            check_server(config.tracking)
        earlier = _earlier(against) if against else None
        tokenizer = load_tokenizer(config.model)
        for note in check_model(config, tokenizer):
            log.warning("note: %s", note)
        dataset = prepare(config.data.train, tokenizer, config.data, "data.train")
        if earlier is not None and earlier.ids != dataset.ids:
            raise BadInput(
                "against",
                str(against),
                "a profile of the same data",
                "The samples differ: profile the earlier model again, with this config.",
            )
        began = time.perf_counter()
        with waiting("profiling: the forward pass"):
            tokens, cached = files.token_logps(config, dataset, progress)
        forward_s = time.perf_counter() - began
        title = f"{config.domain}, {model_label(config.model.path)}"
        with waiting("profiling: the weights of all settings"):
            profile = analyse(tokens, config.profile, title, config, source, earlier)
        if space is not None:
            profile = _rewriting(profile, space, config)
        profile.seconds.update({"forward": forward_s, "cached": float(cached)})
        with waiting("profiling: the page"):
            write(profile, out)
        if profile.rewritten is not None:
            profile.rewritten.save()
        if track:
            _record(config, profile, out)
        return profile


def _rewriting(profile: Profile, space: Path, config: Config) -> Profile:
    """With the space of `init` as the proposal: the same text, its config named by the absolute path.

    Raises:
        BadConfig: the rewritten space does not fit the config, because of its other fields.
    """
    rewritten = rewrite(space, profile.parameters)
    named = space.with_name(read_yaml(space)["config"]).resolve()
    check_space(validate(SearchSpace, parse_yaml(rewritten.text, str(space)), str(space)), config, str(space))
    return replace(profile, proposal=replaced(rewritten.text, ("config",), str(named)), rewritten=rewritten)


def write(profile: Profile, out: Path) -> None:
    """`profile.json`, `profile.html`, `search_space.yaml` and `tokens.parquet`."""
    out.mkdir(parents=True, exist_ok=True)
    tree = profile.to_dict()
    write_kept(out / "profile.json", tree, indent=1)
    (out / "search_space.yaml").write_text(profile.proposal)
    (out / "profile.html").write_text(to_html(page_of(tree, profile.proposal)))
    files.write(out / TOKENS_FILE, profile.tokens)


def _earlier(folder: Path) -> TokenLogps:
    found = files.read(folder / TOKENS_FILE)
    if found is None:
        raise BadInput(
            "against",
            str(folder),
            f"the folder of a profile, with a whole {TOKENS_FILE}",
            "Give what `bft-ray profile CONFIG --out FOLDER` wrote.",
        )
    return found


def model_label(path: str) -> str:
    """A short name of a model's folder or hub id: the run's name for its `export`."""
    folder = Path(path).resolve()
    return folder.parent.name if folder.name == "export" else folder.name


def _record(config: Config, profile: Profile, out: Path) -> None:
    """An MLflow run of kind `profile` with the files, but not the tokens."""
    numbers = {"profile/num_settings": float(len(profile.settings)), "profile/num_distinct": float(len(profile.equal))}
    with Tracker.start(
        config.tracking,
        experiment=config.experiment,
        run_name=f"profile {profile.title}",
        run_id=None,
        params={"domain": config.domain, "model.path": config.model.path},
        tags={"bft.domain": config.domain, "bft.kind": "profile", "mlflow.note.content": "\n\n".join(profile.findings)},
    ) as tracker:
        tracker.log_metrics(numbers, step=0)
        tracker.log_text(redacted_yaml(config), "config.yaml")
        log_files(tracker, out)


def log_files(tracker: Tracker, out: Path) -> None:
    """What `write` has left in `out`, but not the tokens, as artifacts of a run; never another file of that folder.

    Raises:
        FileNotFoundError: one of them is not there.
    """
    with scratch("profile") as folder:
        for name in SHOWN_FILES:
            shutil.copy(out / name, folder)
        tracker.log_artifacts(folder, "profile")
