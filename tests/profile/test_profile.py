"""The profile: weights of step 0, equal and near settings, the cache, the files, and what has moved."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from bft_ray.config import METHODS, LossConfig, load_config, make_config
from bft_ray.config.load import validate
from bft_ray.config.profile import ProfileConfig
from bft_ray.data.dataset import prepare
from bft_ray.data.pack import collate
from bft_ray.errors import BadConfig, BadInput
from bft_ray.loss import loss_sums, window_confidence
from bft_ray.model.causal_lm import load_model, load_tokenizer
from bft_ray.page.html import to_html
from bft_ray.page.model import Table
from bft_ray.profile.analyse import analyse
from bft_ray.profile.page import page_of, parts_of
from bft_ray.profile.run import SHOWN_FILES, profile_data
from bft_ray.profile.stretches import stretches
from bft_ray.profile.token_weights import token_settings, weigh_tokens
from bft_ray.profile.tokens import read, token_logps, write
from bft_ray.profile.varied import config_and_fixed
from bft_ray.profile.weights import (
    TokenLogps,
    distance,
    equal_groups,
    near_pairs,
    rank_correlations,
    weigh_settings,
    window_figures,
)
from bft_ray.space.assign import config_of
from bft_ray.space.definition import SearchSpace
from bft_ray.space.grid import representatives
from bft_ray.space.load import check_space, load_study
from jobs.bench import profile as bench_profile
from tests.support.laid import laid_out


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
        mask = torch.arange(micro.input_ids.shape[1]) < torch.from_numpy(dataset.lengths)[:, None]
        logits = model(input_ids=micro.input_ids, attention_mask=mask.long(), use_cache=False).logits
    losses = [
        LossConfig(method="bft", window=8),
        LossConfig(method="bft_inverse", window=4, epsilon=0.01, weight_cap=None),
        LossConfig(method="bft_inverse", window=16, epsilon=0.05, weight_cap=6.0, confidence="arithmetic"),
    ]
    for setting in weigh_settings(tokens, losses):
        sums = loss_sums(logits, *laid_out(micro), micro.num_samples, setting.loss)
        expected = (sums.sample_weight / sums.sample_weight.mean()).numpy()
        assert np.abs(setting.weight - expected).max() <= 1e-6 * np.abs(expected).max()
        assert np.abs(setting.confidence - sums.confidence.numpy()).max() <= 1e-6


@pytest.mark.slow
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


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("lengths", [[1], [7], [1, 1, 1], [3, 1, 9, 9, 2, 30, 4], [40, 1, 40]])
def test_every_window_is_that_of_the_loss(lengths, mean):
    draw = np.random.default_rng(0)
    tokens = TokenLogps(
        [str(i) for i in range(len(lengths))], -draw.gamma(0.5, 2, sum(lengths)).astype(np.float32), np.array(lengths)
    )
    sample = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    for window in (1, 2, 3, 9, 29, 30, 31, 100):
        expected = window_confidence(torch.from_numpy(tokens.logp), sample, len(lengths), window, mean).numpy()
        assert np.abs(tokens.confidence(window, mean) - expected).max() <= 1e-12


def test_all_windows_of_12000_samples_take_less_than_2_seconds():
    """Processor time: other tests may have the cores. Beside it `jobs.bench.profile` measures every part."""
    tokens = bench_profile.draw_tokens(12_000)
    began = time.process_time()
    for mean in ("geometric", "arithmetic"):
        for window in bench_profile.WINDOWS:
            tokens.confidence(window, mean)
    assert time.process_time() - began < bench_profile.TARGET_S


def test_the_benchmark_tells_every_part(tmp_path, capsys):
    assert bench_profile.main(["--samples", "100", "--repeat", "1", "--out", str(tmp_path / "out")]) == 0
    told = json.loads((tmp_path / "out.json").read_text())
    parts = ["all windows, geometric", "all windows, arithmetic", "whole analysis", "page"]
    assert list(told["seconds"]) == parts and told["samples"] == 100 and told["machine"]["num_cores"] >= 1
    said = capsys.readouterr().out
    assert said.startswith("100 samples, ") and all(f"  {part} " in said for part in parts)


def test_every_form_of_a_named_method_is_profiled(config):
    """Which methods weigh samples by what: a new form must have its place in the profile."""
    profile = analyse(by_hand(), ProfileConfig(windows=[2], epsilons=[0.1], caps=[None]), "t", config, "starter")
    seen = {(row["confidence"], row["sample_weight"]) for row in profile.settings}
    methods = [LossConfig(method=method) for method in METHODS]
    assert seen == {(loss.confidence, loss.sample_weight) for loss in methods if loss.sample_weight != "none"}
    (group,) = [row for row in profile.settings if row["confidence"] == "arithmetic"]
    weight = 1 - np.array([0.5, 0.5, 0.1])  # the least means of two probabilities
    assert group["name"] == "complement w2 arithmetic"
    assert group["effective_share"] == pytest.approx(weight.sum() ** 2 / (3 * (weight**2).sum()), rel=1e-6)


def test_gamma_is_that_of_the_config(make_tree):
    config = make_config(make_tree(loss={"gamma": 2.0}))
    profile = analyse(by_hand(), ProfileConfig(windows=[2], epsilons=[0.1], caps=[None]), "t", config, "starter")
    (row,) = [row for row in profile.settings if row["name"] == "complement w2 gamma2"]
    weight = 1 - np.array([0.25, 0.16, 0.01])
    assert row["largest_share"] == pytest.approx(weight.max() / weight.sum(), rel=1e-6)


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


def test_token_weights_by_hand():
    entropy = np.array([0.5, 0.1, 0.2, 0.9, 1.0, 0.0, 0.3, 0.4, 0.6], dtype=np.float32)
    tokens = replace(by_hand(), entropy=entropy)
    settings = ProfileConfig(powers=[0.5, 2.0], thresholds=[0.3], low_confidence=0.3)
    rows = {row["name"]: row for row in weigh_tokens(tokens, token_settings(settings, 2, True), 0.3)}
    p = np.array([0.5, 0.2, 0.8, 0.4, 0.9, 0.9, 0.1, 0.1, 0.9])
    group = np.minimum(p / (np.array([0.5, 0.2, 0.5, 0.6, 0.9, 0.9, 0.5, 0.1, 0.5]) + 1e-6), 1)
    weights = {
        "power a0.5": p**0.5,
        "power a2": p**2,
        "threshold t0.3": p >= 0.3,
        "entropy of 20": entropy,
        "group w2": group,
    }
    assert list(rows) == list(weights)
    for name, weight in weights.items():
        row = rows[name]
        assert row["mean"] == pytest.approx(weight.mean(), rel=1e-6)
        assert row["effective_share"] == pytest.approx(
            weight.sum() ** 2 / (9 * (weight.astype(float) ** 2).sum()), rel=1e-6
        )
        assert row["low_share"] == pytest.approx(weight[p < 0.3].sum() / weight.sum(), abs=1e-6)
        assert row["zero_share"] == pytest.approx((weight < 1e-6).mean())
    without = token_settings(settings, 2, has_entropy=False)
    assert [loss.token_weight for loss in without] == ["power", "power", "threshold", "group"]


def test_stretches_by_hand():
    found = stretches(by_hand(), 0.45)
    assert found.share.tolist() == pytest.approx([0, 2 / 3, 2 / 5]) and found.longest.tolist() == [0, 1, 2]
    logp = np.log(np.array([0.1] * 3 + [0.1] * 2 + [0.9, 0.1]))  # a run ends with its sample
    told = stretches(TokenLogps(["a", "b"], logp.astype(np.float32), np.array([3, 4])), 0.5)
    assert told.longest.tolist() == [3, 2] and told.figures()["longest_run"] == 3 and told.figures()["without"] == 0
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 30, 50)
    tokens = TokenLogps([str(i) for i in range(50)], -draw.gamma(0.5, 2, lengths.sum()).astype(np.float32), lengths)
    for index, longest in enumerate(stretches(tokens, 0.4).longest):
        text = "".join("x" if p < 0.4 else " " for p in np.exp(tokens.of(index)))
        assert longest == max(map(len, text.split()), default=0)


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

    # the same sample weights with other token weights are another run, not a near one
    two = weigh_settings(by_hand(), [LossConfig(method="bft"), LossConfig(method="bft_group", confidence="geometric")])
    assert (two[0].weight == two[1].weight).all() and near_pairs(two, equal_groups(two, 5), 0.01) == []
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


@pytest.mark.slow
def test_files_page_and_record(config, tmp_path, tiny_data):
    import mlflow

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data.json").write_text('[{"text": "of the user"}]')  # as with --out .
    profile = profile_data(config, tmp_path / "out")
    told = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert told["num_samples"] == 48 and told["num_supervised_tokens"] == profile.tokens.num_tokens.sum()
    assert len(told["settings"]) == 5 * (2 + 2 * 3)
    assert told["lengths"]["p100"] == profile.tokens.num_tokens.max()
    # completions have at most 60 words and an end: windows 64 and 128 are the same
    assert ["complement w64", "complement w128"] in told["equal"]
    assert [row["name"] for row in told["token_weights"]][-2:] == ["entropy of 20", "group w256"]
    assert told["low_confidence"]["below"] == 0.1
    assert sum(told["histograms"]["lengths"]["counts"]) == 48
    assert sum(told["histograms"]["tokens"]["counts"]) == told["num_supervised_tokens"]
    page = (tmp_path / "out" / "profile.html").read_text()
    assert (
        page.count("<figure") == page.count("<svg viewBox") == 5
        and "threshold t0.03" in page
        and "inverse w8 e0.05 c4" in page
    )
    assert sum(told["histograms"]["runs"]["counts"]) == 48
    words = tiny_data.read_text().split('"prompt": "')[1].split('"')[0]
    assert words not in page and words not in json.dumps(told)
    client = mlflow.MlflowClient(config.tracking.uri)
    experiment = client.get_experiment_by_name(config.experiment)
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.data.tags["bft.kind"] == "profile"
    there = {Path(f.path).name for f in client.list_artifacts(run.info.run_id, "profile")}
    assert there == set(SHOWN_FILES)
    assert {f.name for f in (tmp_path / "out").iterdir()} == there | {"tokens.parquet", "data.json"}


def test_the_page_shows_the_nearest_pairs(config):
    """Bounded, nearest first, each with how near it is; the JSON has all."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 60, 48)
    tokens = TokenLogps([str(i) for i in range(48)], -draw.gamma(0.5, 2, lengths.sum()).astype(np.float32), lengths)
    looked = ProfileConfig(windows=[8, 16, 32], epsilons=[0.05, 0.06, 0.07], caps=[3.0, 3.1, 3.2, 3.3], near=0.05)
    profile = analyse(tokens, looked, "t", config, "starter")
    told = profile.to_dict()
    assert len(told["near"]) == len(profile.near) > 20
    assert [row["moved"] for row in told["near"]] == sorted(row["moved"] for row in told["near"])
    names, matrix = told["rank_correlations"]["settings"], told["rank_correlations"]["matrix"]
    for row in told["near"]:
        assert row["rank_correlation"] == matrix[names.index(row["a"])][names.index(row["b"])]
    (table,) = [part for part in parts_of(told) if isinstance(part, Table) and "nearest first" in part.title]
    assert len(table.rows) == 20 and f"20 of {len(profile.near)} pairs" in to_html(page_of(told, profile.proposal))
    for row, pair in zip(table.texts()[1:], told["near"], strict=False):
        cells = [pair["a"], pair["b"], f"{pair['moved']:.2%}", f"{pair['rank_correlation']:.4f}"]
        assert row == cells


@pytest.mark.slow
def test_the_proposed_space_is_one(config, tmp_path):
    profile_data(config, tmp_path / "out", track=False)
    space, base = load_study(tmp_path / "out" / "search_space.yaml")
    assert space.parameters["loss.method"].finite() == ["bft", "bft_inverse", "bft_group"]
    windows = space.parameters["loss.window"].finite()
    # completions have 1 to 61 tokens: 64 covers all of them whole, and 128 would be the same run
    assert windows[-1] == 64 and 2 in windows
    assert space.parameters["loss.epsilon"].when == {"loss.method": ["bft_inverse"]}
    assert space.objective.metric == "validation/token_accuracy"
    assert "&id" not in (tmp_path / "out" / "search_space.yaml").read_text()  # a user edits it
    # nothing else is another run than the one that was profiled, though this config came from no file
    trial = config_of(base, space, representatives(space, 1)[0], seed=config.seed)
    same = {"name": None, "loss": trial.loss, "optimizer": trial.optimizer}
    assert trial == config.model_copy(update=same)


def test_weights_that_start_equal_are_proposed_once(config):
    """All windows are equally sure, so `inverse` starts alike under every epsilon and cap; it need not stay so."""
    flat = TokenLogps(["a", "b"], np.full(20, -0.5, dtype=np.float32), np.array([4, 16]))
    tree = yaml.safe_load(analyse(flat, ProfileConfig(windows=[2, 4]), "t", config, "starter").proposal)
    parameters = tree["parameters"]
    assert parameters["loss.method"]["values"] == ["bft", "bft_inverse", "bft_group"]
    assert parameters["loss.epsilon"]["values"] == [0.05] and parameters["loss.weight_cap"]["values"] == [8.0]
    check_space(validate(SearchSpace, tree, "the proposal"), load_config("starter"))


def test_what_the_proposal_leaves_out_is_told(config):
    """Different runs whose weights start nearly even: their epsilons and caps are not in the space, and a line says so."""
    nearly = np.full(40, -0.5, dtype=np.float32)
    nearly[:4] = -0.9
    tokens = TokenLogps(["a", "b", "c"], nearly, np.array([4, 16, 20]))
    looked = ProfileConfig(windows=[2, 4], epsilons=[0.01, 0.2], caps=[None])
    profile = analyse(tokens, looked, "t", config, "starter")
    shares = {row["epsilon"]: row["effective_share"] for row in profile.settings if row["sample_weight"] == "inverse"}
    told = [line for line in profile.findings if "hardly any weights" in line]
    heads = [profile.settings[group[0]] for group in profile.equal]
    inverse = [row for row in heads if row["sample_weight"] == "inverse"]
    even = [row for row in inverse if row["effective_share"] > 0.98]
    assert 0 < len(even) < len(inverse), shares
    assert [line.partition(" start ")[0] for line in told] == [
        f"{len(even)} of the {len(inverse)} different runs of `inverse`"
    ]
    assert told[0].endswith("the proposed search space has the epsilons and caps of the others.")
    assert profile.parameters["loss.epsilon"]["values"] == sorted(
        {r["epsilon"] for r in inverse} - {r["epsilon"] for r in even}
    )


def test_a_proposal_fixes_what_was_given_beside_the_source(make_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = make_tree()
    Path("c.yaml").write_text(yaml.safe_dump(tree))
    given = [
        "loss.gamma=2",
        "loss.window=8",
        "optimizer.weight_decay=0.1",
        "lora.rank=4",
        "seed=3",
        "data.max_length=64",
    ]
    given += ["tracking.uri=postgresql://me:secret@host/db", "tracking.tags={a.b: c}"]
    config = load_config("c.yaml", given)
    named, fixed = config_and_fixed(config, "c.yaml", ["loss.window"])
    assert named == str(tmp_path / "c.yaml")
    assert fixed == {
        "loss.gamma": 2,
        "optimizer.weight_decay": 0.1,
        "lora": {"rank": 4, "alpha": 32.0, "dropout": 0.0, "targets": "all-linear"},
        "data.max_length": 64,
        "tracking.tags": {"a.b": "c"},
    }  # the seed has its own place, and a password is not written to any file
    assert config_and_fixed(load_config("starter"), "starter", []) == ("starter", {})
    # a source that is whole only with its overrides cannot be named
    del tree["domain"]
    Path("c.yaml").write_text(yaml.safe_dump(tree))
    config = load_config("c.yaml", ["domain=test"])
    named, fixed = config_and_fixed(config, "c.yaml", [])
    assert named == "starter" and fixed["data.train.0.path"] == config.data.train[0].path


@pytest.mark.slow
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
    kept = (tmp_path / "before" / "tokens.parquet").read_bytes()
    with pytest.raises(BadInput, match=r"`out` is .*another folder than that of `against`.*Give --out"):
        profile_data(config, tmp_path / "still" / ".." / "before", against=tmp_path / "before", track=False)
    assert (tmp_path / "before" / "tokens.parquet").read_bytes() == kept
    with pytest.raises(BadInput, match=r"the folder of a profile, with a whole tokens.parquet\. Give what"):
        profile_data(config, tmp_path / "out", against=tmp_path / "nowhere", track=False)


def test_what_a_profile_looks_at_is_checked():
    with pytest.raises((BadConfig, ValueError), match="windows"):
        ProfileConfig(windows=[0, 64])
    with pytest.raises((BadConfig, ValueError), match="different numbers"):
        ProfileConfig(caps=[2.0, 2.0])
    with pytest.raises((BadConfig, ValueError), match="powers"):
        ProfileConfig(powers=[5.0])
    with pytest.raises((BadConfig, ValueError), match="thresholds"):
        ProfileConfig(thresholds=[1.0])
