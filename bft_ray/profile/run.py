"""`bft-ray profile`: what window, epsilon and cap would do to a dataset, before anything is trained."""

from __future__ import annotations

import itertools
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bft_ray.config import Config, LossConfig, to_yaml
from bft_ray.config.load import parse_yaml, read_yaml, validate
from bft_ray.config.profile import ProfileConfig
from bft_ray.config.space import SearchSpace
from bft_ray.config.study import check_space
from bft_ray.data.cache import check_out
from bft_ray.data.dataset import prepare
from bft_ray.data.kept import write_kept
from bft_ray.data.modes import kept_for
from bft_ray.data.passing import tokens_pass
from bft_ray.data.scratch import scratch
from bft_ray.errors import BadInput
from bft_ray.model.causal_lm import load_tokenizer
from bft_ray.model.check import check_model
from bft_ray.profile import tokens as files
from bft_ray.profile.page import png, to_html
from bft_ray.profile.pictures import PICTURES, draw
from bft_ray.profile.propose import parameters_for, propose
from bft_ray.profile.rewrite import Rewritten, replaced, rewrite
from bft_ray.profile.weights import (
    Setting,
    TokenLogps,
    distance,
    equal_groups,
    near_pairs,
    rank_correlations,
    weigh_settings,
    window_figures,
)
from bft_ray.tracking.run import Tracker
from bft_ray.tracking.server import check_server, redact
from bft_ray.waits import waiting

_FIELDS = {"sample_weight", "confidence", "window", "epsilon", "weight_cap"}
TOKENS_FILE = "tokens.parquet"
#: what else `write` leaves: numbers, pictures and names of settings, without sample ids
SHOWN_FILES = ("profile.html", "profile.json", "search_space.yaml", *(f"{name}.png" for name in PICTURES))


@dataclass(frozen=True)
class Profile:
    """What was found; indices are places in `settings`.

    Args:
        title: domain and model.
        windows: a row a window, see `window_figures`.
        settings: a row a setting: its name, fields, and `Setting.figures`.
        equal: groups that are the same run at every step, singles among them.
        near: pairs of different groups that start alike: (index, index, share of the weight that differs).
        distinct: one setting of each group.
        ranks: rank correlations of the starting weights of `distinct`.
        drift: how far the weights have moved since an earlier profile, by setting's name; empty without one.
        findings: sentences.
        parameters: what a search space varies on this data, as it declares it.
        proposal: a search space, YAML.
        rewritten: the space that `bft-ray init` wrote, with these parameters; None where it stays as it is.
    """

    title: str
    tokens: TokenLogps
    windows: list[dict[str, float]]
    settings: list[dict[str, Any]]
    equal: list[list[int]]
    near: list[tuple[int, int, float]]
    ranks: np.ndarray
    drift: dict[str, dict[str, float]]
    findings: list[str]
    parameters: dict[str, Any]
    proposal: str
    rewritten: Rewritten | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def distinct(self) -> list[int]:
        return [group[0] for group in self.equal]

    def near_rows(self, limit: int | None = None) -> list[dict[str, Any]]:
        """The pairs of `near` by name, with the rank correlation of their weights; at most `limit`, nearest first."""
        place = {index: row for row, index in enumerate(self.distinct)}
        return [
            {
                "a": self.settings[a]["name"],
                "b": self.settings[b]["name"],
                "moved": apart,
                "rank_correlation": _number(self.ranks[place[a], place[b]]),
            }
            for a, b, apart in self.near[:limit]
        ]

    def to_dict(self) -> dict[str, Any]:
        """Everything but the tokens and the pictures, for JSON."""
        lengths = self.tokens.num_tokens
        names = [row["name"] for row in self.settings]
        return {
            "title": self.title,
            "num_samples": len(lengths),
            "num_supervised_tokens": int(lengths.sum()),
            "lengths": {f"p{level}": float(np.percentile(lengths, level)) for level in (0, 5, 25, 50, 75, 95, 99, 100)},
            "windows": self.windows,
            "settings": self.settings,
            "equal": [[names[index] for index in group] for group in self.equal if len(group) > 1],
            "near": self.near_rows(),
            "rank_correlations": {
                "settings": [names[index] for index in self.distinct],
                "matrix": [[_number(value) for value in row] for row in self.ranks],
            },
            "drift": self.drift,
            "findings": self.findings,
            "seconds": self.seconds,
        }


def _number(value: float) -> float | None:
    """For JSON, which has no NaN."""
    return None if math.isnan(value) else round(float(value), 6)


def profile_data(
    config: Config,
    out: Path,
    against: Path | None = None,
    source: str = "starter",
    track: bool = True,
    progress: Callable[[int, int], None] | None = None,
    space: Path | None = None,
) -> Profile:
    """Profile `data.train` with `config.model`; write JSON, pictures and a page to `out`, and to MLflow.

    Args:
        against: folder of an earlier profile of the same data (the base model's, say): tells how far weights moved.
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
        return _profile_data(config, out, against, source, track, progress, space)


def _profile_data(
    config: Config,
    out: Path,
    against: Path | None,
    source: str,
    track: bool,
    progress: Callable[[int, int], None] | None,
    space: Path | None,
) -> Profile:
    check_out(out)
    if against and out.resolve() == against.resolve():
        rule = "another folder than that of `against`, whose files would be overwritten"
        raise BadInput("out", str(out), rule, "Give --out a folder of its own.")
    if track:
        check_server(config.tracking)
    earlier = _earlier(against) if against else None
    tokenizer = load_tokenizer(config.model)
    check_model(config, tokenizer)
    dataset = prepare(config.data.train, tokenizer, config.data, "data.train")
    if earlier is not None and earlier.ids != dataset.ids:
        raise BadInput("against", str(against), "a profile of the same data", "The samples differ.")
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
    with waiting("profiling: pictures and page"):
        write(profile, out)
    if profile.rewritten is not None:
        profile.rewritten.save()
    if track:
        _record(config, profile, out)
    return profile


def analyse(
    tokens: TokenLogps,
    settings: ProfileConfig,
    title: str,
    config: Config,
    source: str,
    earlier: TokenLogps | None = None,
) -> Profile:
    """Everything that follows from the log-probabilities; no model."""
    began = time.perf_counter()
    windows = window_figures(tokens, settings.windows)
    windows_s = time.perf_counter() - began
    made = weigh_settings(tokens, _losses(settings, config.loss.gamma))
    longest = int(tokens.num_tokens.max())
    equal = equal_groups(made, longest)
    near = near_pairs(made, equal, settings.near)
    drift = _drift(made, earlier) if earlier is not None else {}
    rows = [{"name": setting.name} | setting.loss.model_dump(include=_FIELDS) | setting.figures() for setting in made]
    parameters = parameters_for(config, made, equal, longest, windows)
    return Profile(
        title=title,
        tokens=tokens,
        windows=windows,
        settings=rows,
        equal=equal,
        near=near,
        ranks=rank_correlations([made[group[0]] for group in equal]),
        drift=drift,
        findings=_findings(tokens, windows, rows, equal, near, settings, drift),
        parameters=parameters,
        proposal=propose(config, source, parameters, len(made[0].weight)),
        seconds={"windows": windows_s, "analysis": time.perf_counter() - began},
    )


def _rewriting(profile: Profile, space: Path, config: Config) -> Profile:
    """With the space of `init` as the proposal: the same text, its config named by the absolute path.

    Raises:
        BadConfig: the rewritten space does not fit the config, by what else stands in it.
    """
    rewritten = rewrite(space, profile.parameters)
    named = space.with_name(read_yaml(space)["config"]).resolve()
    check_space(validate(SearchSpace, parse_yaml(rewritten.text, str(space)), str(space)), config, str(space))
    return replace(profile, proposal=replaced(rewritten.text, ("config",), str(named)), rewritten=rewritten)


def write(profile: Profile, out: Path) -> None:
    """`profile.json`, `profile.html`, `search_space.yaml`, `tokens.parquet` and a PNG a picture."""
    out.mkdir(parents=True, exist_ok=True)
    pictures = {name: png(figure) for name, figure in draw(profile).items()}
    for name, content in pictures.items():
        (out / f"{name}.png").write_bytes(content)
    write_kept(out / "profile.json", profile.to_dict(), indent=1)
    (out / "search_space.yaml").write_text(profile.proposal)
    (out / "profile.html").write_text(to_html(profile, pictures))
    files.write(out / TOKENS_FILE, profile.tokens)


def _earlier(folder: Path) -> TokenLogps:
    found = files.read(folder / TOKENS_FILE)
    if found is None:
        raise BadInput("against", str(folder), f"the folder of a profile, with a whole {TOKENS_FILE}")
    return found


def model_label(path: str) -> str:
    """A short name of a model's folder or hub id: the run's name for its `export`."""
    folder = Path(path).resolve()
    return folder.parent.name if folder.name == "export" else folder.name


def _losses(settings: ProfileConfig, gamma: float) -> list[LossConfig]:
    """Each form of the sample weight that a named method has, over all windows; `inverse` over epsilons and caps too.

    `bft` stands for `bft_no_token`, whose sample weights are the same.
    """
    losses = [LossConfig(method="bft", window=window, gamma=gamma) for window in settings.windows]
    losses += [LossConfig(method="bft_group", window=window, gamma=gamma) for window in settings.windows]
    for window, epsilon, cap in itertools.product(settings.windows, settings.epsilons, settings.caps):
        losses.append(LossConfig(method="bft_inverse", window=window, epsilon=epsilon, weight_cap=cap, gamma=gamma))
    return losses


def _drift(made: list[Setting], earlier: TokenLogps) -> dict[str, dict[str, float]]:
    before = weigh_settings(earlier, [setting.loss for setting in made])
    return {
        now.name: {
            "moved": distance(now.weight, then.weight),
            "rank_correlation": float(np.nan_to_num(rank_correlations([now, then])[0, 1], nan=1.0)),
        }
        for now, then in zip(made, before, strict=True)
    }


def _findings(
    tokens: TokenLogps,
    windows: list[dict[str, float]],
    rows: list[dict[str, Any]],
    equal: list[list[int]],
    near: list[tuple[int, int, float]],
    settings: ProfileConfig,
    drift: dict[str, dict[str, float]],
) -> list[str]:
    lengths = tokens.num_tokens
    median, p95 = np.percentile(lengths, [50, 95])
    longest = int(lengths.max())
    said = [
        f"{len(lengths):,} samples with {int(lengths.sum()):,} supervised tokens: "
        f"median {median:.0f}, 95 % below {p95:.0f}, longest {longest:,}.",
        f"The mean probability of a token is {np.exp(tokens.logp).mean():.3f}, its mean loss {-tokens.logp.mean():.3f} nats.",
    ]
    if same := [f"{row['window']:g}" for row in windows if row["window"] >= longest]:
        said.append(f"Windows of {longest:,} and more are one and the same here: {', '.join(same)}.")
    if mostly := [row for row in windows if row["whole_share"] >= 0.5 and row["window"] < longest]:
        text = ", ".join(f"{row['window']:g} ({row['whole_share']:.0%})" for row in mostly)
        said.append(f"These cover most samples whole, whose confidence is then a plain mean: {text}.")
    shares = [row["effective_share"] for row in rows]
    flat, steep = rows[int(np.argmax(shares))], rows[int(np.argmin(shares))]
    said.append(
        f"Weights are most uneven with {steep['name']} (as if {steep['effective_share']:.0%} of the samples counted) "
        f"and most even with {flat['name']} ({flat['effective_share']:.0%})."
    )
    said.append(f"Of {len(rows)} settings {len(equal)} are different runs; the others repeat one of them exactly.")
    if near:
        said.append(
            f"{len(near)} pairs of different runs start nearly alike (less than {settings.near:.1%} of the weight "
            "differs): expect little between them, though nothing is merged."
        )
    if drift:
        name, row = max(drift.items(), key=lambda item: item[1]["moved"])
        said.append(f"Since the earlier profile up to {row['moved']:.1%} of the weight has moved ({name}).")
    return said


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
        tracker.log_text(redact(to_yaml(config)), "config.yaml")
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
