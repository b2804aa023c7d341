"""The profile: weights of step 0, equal and near settings, the cache, the files, and what has moved."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from bft_ray.config import LossConfig, make_config
from bft_ray.config.profile import ProfileConfig
from bft_ray.data.dataset import prepare
from bft_ray.data.pack import collate
from bft_ray.errors import BadConfig, BadInput
from bft_ray.loss import loss_sums
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.profile.run import analyse, profile_data
from bft_ray.profile.tokens import read, token_logps, write
from bft_ray.profile.weights import (
    TokenLogps,
    distance,
    equal_groups,
    near_pairs,
    rank_correlations,
    weigh_settings,
    window_figures,
)


@pytest.fixture
def config(make_tree):
    tree = make_tree(profile={"windows": [2, 8, 16, 64, 128], "epsilons": [0.05, 0.2], "caps": [1.5, 4.0, None]})
    return make_config(tree)


def dataset_of(config):
    return prepare(config.data.train, load_tokenizer(config.model), config.data, "data.train")


def by_hand() -> TokenLogps:
    p = [[0.5], [0.2, 0.8, 0.4], [0.9, 0.9, 0.1, 0.1, 0.9]]
    logp = np.log(np.concatenate(p)).astype(np.float32)
    return TokenLogps(["a", "b", "c"], logp, np.array([1, 3, 5]))


def test_weights_are_those_of_the_loss_at_step_0(config):
    dataset = dataset_of(config)
    tokens, cached = token_logps(config, dataset)
    assert not cached and tokens.ids == dataset.ids and (tokens.num_tokens == dataset.num_supervised).all()
    model = load_model(config.model, seed=0).eval()
    micro = collate(dataset, range(len(dataset)), packing=False, pad_id=0)
    with torch.no_grad():
        logits = model(
            input_ids=micro.input_ids, attention_mask=(micro.sample_index >= 0).long(), use_cache=False
        ).logits
    losses = [
        LossConfig(method="bft", window=8),
        LossConfig(method="bft_inverse", window=4, epsilon=0.01, weight_cap=None),
        LossConfig(method="bft_inverse", window=16, epsilon=0.05, weight_cap=6.0, confidence="arithmetic"),
    ]
    for setting in weigh_settings(tokens, losses):
        sums = loss_sums(logits, micro.labels, micro.sample_index, micro.num_samples, setting.loss)
        expected = (sums.sample_weight / sums.sample_weight.mean()).numpy()
        assert np.abs(setting.weight - expected).max() <= 1e-6 * np.abs(expected).max()
        assert np.abs(setting.confidence - sums.confidence.numpy()).max() <= 1e-6


def test_two_workers_find_the_same(make_tree, tmp_path):
    """The forward pass on Ray, sample by sample, as in this process."""
    import ray

    alone = make_config(make_tree(data={"cache_dir": str(tmp_path / "alone")}))
    shared = make_config(make_tree(data={"cache_dir": str(tmp_path / "shared")}, cluster={"num_workers": 2}))
    shards: list[tuple[int, int]] = []
    own, _ = token_logps(alone, dataset_of(alone))
    spread, cached = token_logps(shared, dataset_of(shared), lambda done, total: shards.append((done, total)))
    assert not cached and len(shards) > 1 and not ray.is_initialized()
    assert spread.ids == own.ids and (spread.num_tokens == own.num_tokens).all()
    assert np.abs(spread.logp - own.logp).max() <= 1e-5


def test_windows_by_hand():
    rows = window_figures(by_hand(), [2, 3, 5])
    assert [row["whole_share"] for row in rows] == pytest.approx([1 / 3, 2 / 3, 1.0])
    least = [0.5, np.sqrt(0.2 * 0.8), 0.1]  # window 2: one token, the first pair, the pair of 0.1
    assert rows[0]["confidence_p50"] == pytest.approx(np.median(least), rel=1e-6)


def test_weights_by_hand():
    inverse = LossConfig(method="bft_inverse", window=2, epsilon=0.1, weight_cap=3.0)
    (setting,) = weigh_settings(by_hand(), [inverse])
    raw = np.minimum(1 / (np.array([0.5, 0.4, 0.1]) + 0.1), 3.0)
    assert setting.weight == pytest.approx(raw / raw.mean(), rel=1e-6)
    figures = setting.figures()
    assert figures["effective_share"] == pytest.approx(raw.sum() ** 2 / (3 * (raw**2).sum()))
    assert figures["largest_share"] == pytest.approx(raw.max() / raw.sum())
    assert figures["capped_share"] == pytest.approx(1 / 3)
    assert setting.name == "inverse w2 e0.1 c3"


def test_equal_and_near_settings():
    losses = [
        LossConfig(method="bft", window=5),
        LossConfig(method="bft", window=900),  # the longest has 5: the same
        LossConfig(method="bft_inverse", window=2, epsilon=0.1, weight_cap=None),
        LossConfig(method="bft_inverse", window=2, epsilon=0.1, weight_cap=10.0),  # never reached: the same
        LossConfig(method="bft_inverse", window=2, epsilon=0.1, weight_cap=9.99),
    ]
    settings = weigh_settings(by_hand(), losses)
    groups = equal_groups(settings, 5)
    assert groups == [[0, 1], [2, 3], [4]]
    assert [(a, b) for a, b, _ in near_pairs(settings, groups, 0.01)] == [(2, 4)]
    assert distance(np.array([1.0, 3.0]), np.array([2.0, 2.0])) == pytest.approx(0.25)
    from scipy.stats import spearmanr

    ranks = rank_correlations(settings)
    assert ranks[0, 2] == pytest.approx(spearmanr(settings[0].weight, settings[2].weight).statistic)


def test_a_profile_is_cached_by_content_and_a_damaged_one_made_again(config, tiny_model):
    dataset = dataset_of(config)
    first, cached = token_logps(config, dataset)
    assert not cached
    again, cached = token_logps(config, dataset)
    assert cached and (again.logp == first.logp).all() and again.ids == first.ids
    (path,) = (dataset.folder.parent / "profiles").iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert not token_logps(config, dataset)[1]
    other = config.model_copy(update={"model": config.model.model_copy(update={"dtype": "bf16"})})
    assert not token_logps(other, dataset)[1]


def test_batches_and_workers_change_nothing(config, tmp_path):
    alone, _ = token_logps(config, dataset_of(config))
    tree = config.model_dump()
    tree["evaluation"]["batch_tokens"] = 128
    tree["data"]["cache_dir"] = str(tmp_path / "other")
    other = make_config(tree)
    small, _ = token_logps(other, dataset_of(other))
    assert np.abs(alone.logp - small.logp).max() <= 1e-5 * np.abs(alone.logp).max()


def test_files_pictures_page_and_record(config, tmp_path, tiny_data):
    import mlflow
    from PIL import Image

    profile = profile_data(config, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert told["num_samples"] == 48 and told["num_supervised_tokens"] == profile.tokens.num_tokens.sum()
    assert len(told["settings"]) == 5 * (1 + 2 * 3)
    assert told["lengths"]["p100"] == profile.tokens.num_tokens.max()
    # completions have at most 60 words and an end: windows 64 and 128 are the same
    assert ["complement w64", "complement w128"] in told["equal"]
    for name in ("lengths", "tokens", "windows", "settings", "ranks"):
        assert min(Image.open(tmp_path / "out" / f"{name}.png").size) > 200
    page = (tmp_path / "out" / "profile.html").read_text()
    assert page.count("data:image/png;base64,") == 5 and "inverse w8 e0.05 c4" in page
    words = tiny_data.read_text().split('"prompt": "')[1].split('"')[0]
    assert words not in page and words not in json.dumps(told)
    client = mlflow.MlflowClient(config.tracking.uri)
    experiment = client.get_experiment_by_name(config.experiment)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags["bft.kind"] == "profile"
    assert {f.path for f in client.list_artifacts(run.info.run_id, "profile")} >= {"profile/profile.html"}


def test_the_proposed_space_is_one(config, tmp_path):
    from bft_ray.config.study import check_space, load_space

    profile_data(config, tmp_path / "out", track=False)
    space = load_space(tmp_path / "out" / "search_space.yaml")
    check_space(space, config)
    windows = space.parameters["loss.window"].finite()
    # completions have 1 to 61 tokens: 64 covers all of them whole, and 128 would be the same run
    assert windows[-1] == 64 and 2 in windows
    assert space.parameters["loss.epsilon"].when == {"loss.method": ["bft_inverse"]}
    assert space.objective.metric == "validation/token_accuracy"


def test_how_far_the_weights_have_moved(config, tmp_path):
    profile_data(config, tmp_path / "before", track=False)
    still = profile_data(config, tmp_path / "still", against=tmp_path / "before", track=False)
    assert all(row["moved"] == 0 and row["rank_correlation"] > 1 - 1e-9 for row in still.drift.values())
    before = read(tmp_path / "before" / "tokens.parquet")
    moved = replace(before, logp=before.logp * np.linspace(0.5, 1.5, len(before.logp)).astype(np.float32))
    after = analyse(moved, config.profile, "t", config, "starter", before)
    assert max(row["moved"] for row in after.drift.values()) > 0.01
    write(tmp_path / "other" / "tokens.parquet", replace(before, ids=[f"x{name}" for name in before.ids]))
    with pytest.raises(BadInput, match=r"`against` is .*a profile of the same data"):
        profile_data(config, tmp_path / "out", against=tmp_path / "other", track=False)
    with pytest.raises(BadInput, match=r"the folder of a profile, with a whole tokens.parquet"):
        profile_data(config, tmp_path / "out", against=tmp_path / "nowhere", track=False)


def test_what_a_profile_looks_at_is_checked():
    with pytest.raises((BadConfig, ValueError), match="windows"):
        ProfileConfig(windows=[0, 64])
    with pytest.raises((BadConfig, ValueError), match="different numbers"):
        ProfileConfig(caps=[2.0, 2.0])
