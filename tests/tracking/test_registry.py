"""The champion in a real MLflow registry: one version a choice, whatever is repeated; found, shown and trained."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from bft_ray.cli import main
from bft_ray.config import Config, TrackingConfig, config_from_yaml, load_config, make_config, to_yaml
from bft_ray.errors import BadConfig, BadInput
from bft_ray.study.conclude import champion_tags
from bft_ray.study.confirm.choice import Choice, Plan, Record
from bft_ray.study.confirm.choose import choose
from bft_ray.study.report.best import champion_config, describe_champion
from bft_ray.tracking import registry
from bft_ray.tracking.registry import Champion, find_champion, register_champion
from bft_ray.tracking.run import Tracker
from bft_ray.tracking.server import connect

TAGS = {
    "metric": "choices/probability",
    "value": "0.43214",
    "gain": "0.01234",
    "interval": "[0.002, 0.021]",
    "verdict": "candidate",
    "study": "space/medical_qa",
    "bft.study_id": "77",
    "data_fingerprint": "0f3a",
}


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db", timeout_s=20.0)


@pytest.fixture(scope="module")
def study(store, tmp_path_factory) -> tuple[str, str]:
    """Ids of a study's run and of its logged model."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "model.safetensors").write_bytes(b"123")
    with Tracker.start(store, "bft/test", "study", {}, {}, keeper=False, spool=folder / "spool") as tracker:
        model_id = tracker.log_model(folder, "bft-test")
    assert model_id is not None
    return tracker.run_id, model_id


@pytest.fixture
def register(store, study, request):
    """A function that registers for a domain of the test's own."""
    domain = request.node.name.lower()[5:60]

    def make(**more) -> Champion:
        given = {"run_id": study[0], "model_id": study[1], "source": "/weights", "tags": TAGS, "description": "why"}
        return register_champion(store, **{"domain": domain, "config_yaml": "a: 1\n"} | given | more)

    return make


def alias(store, champion: Champion) -> str:
    return str(connect(store.uri).get_registered_model(champion.name).aliases["champion"])


def num_versions(store, champion: Champion) -> int:
    return len(connect(store.uri).search_model_versions(f"name = '{champion.name}'"))


def test_a_config_with_a_password_at_the_end_of_an_address_stays_yaml(store, register):
    text = "tracking:\n  uri: 'https://h/db?token=secret'\nother: \"https://h?password=secret\"\n"
    champion = register(config_yaml=text)
    found = find_champion(store, champion.domain).config_yaml
    assert yaml.safe_load(found) == {"tracking": {"uri": "https://h/db?token=***"}, "other": "https://h?password=***"}


def test_a_champion_is_found_as_it_was_registered(store, study, register):
    begun = time.time()
    made = register(config_yaml="uri: postgresql://ann:s3cr3t@db/x\n")
    found = find_champion(store, made.domain)
    assert found.name == made.name == f"bft-{made.domain}" and found.version == made.version == "1"
    assert found.config_yaml == made.config_yaml == "uri: postgresql://ann:***@db/x\n"
    assert found.run_id == study[0] and found.source == "/weights" and TAGS.items() <= found.tags.items()
    assert begun - 1 < found.created_s < time.time() + 1
    version = connect(store.uri).get_model_version(made.name, "1")
    assert version.description == "why" and study[1] in version.source and Path(version.source).is_dir()


def test_a_repetition_makes_no_second_version(store, study, register):
    made = register()
    assert register() == find_champion(store, made.domain) and num_versions(store, made) == 1
    second = register(config_yaml="a: 2\n")  # the study went on, and chose again
    third = register(tags=TAGS | {"bft.study_id": "78"}, model_id=None)  # another study
    assert [champion.version for champion in (second, third)] == ["2", "3"] and alias(store, made) == "3"
    assert register().version == "1" and register(config_yaml="a: 2\n").version == "2"
    assert num_versions(store, made) == 3 and alias(store, made) == "3"
    texts = [find_champion(store, made.domain, number).config_yaml for number in ("1", "2", "3")]
    assert texts == ["a: 1\n", "a: 2\n", "a: 1\n"]
    connect(store.uri).set_registered_model_alias(made.name, "champion", "2")  # a person goes back
    register(tags=TAGS | {"bft.study_id": "78"})
    assert find_champion(store, made.domain).version == "2"


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_driver_that_dies_at_any_call_registers_once(store, register, monkeypatch, after):
    """It dies at its n-th call to the server, for all n; the next one does the same again."""
    for at in range(100):
        domain = f"dies_{'after' if after else 'before'}_{at}"
        dying = Dying(connect(store.uri), at, after)
        with monkeypatch.context() as patch:
            patch.setattr(registry, "connect", lambda uri, dying=dying: dying)
            with contextlib.suppress(KeyboardInterrupt):
                register(domain=domain)
        made = register(domain=domain)
        assert num_versions(store, made) == 1 and alias(store, made) == "1"
        assert find_champion(store, domain).config_yaml == "a: 1\n"
        if dying.left >= 0:
            assert at >= 7
            break


class Dying:
    """The client, in whose n-th call the process is killed, before or after it did its work."""

    def __init__(self, client, at: int, after: bool):
        self._client, self.left, self._after = client, at, after
        self.tracking_uri = client.tracking_uri

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.left -= 1
            if self.left == -1 and not self._after:
                raise KeyboardInterrupt
            answer = getattr(self._client, name)(*args, **kwargs)
            if self.left == -1:
                raise KeyboardInterrupt
            return answer

        return call


def test_the_registry_does_not_decide_whose_code_runs(store, register, caplog):
    """Whoever can write to it could name a model with code of its own; the user of the champion says it again, or not."""
    text = "domain: d\nmodel:\n  path: lab/model\n  trust_remote_code: true\nseed: 7\n"
    made = register(config_yaml=text)
    found = find_champion(store, made.domain).config_yaml
    assert yaml.safe_load(found) == {
        "domain": "d",
        "model": {"path": "lab/model", "trust_remote_code": False},
        "seed": 7,
    }
    assert "which the registry cannot decide for you" in caplog.text and "lab/model" in caplog.text
    assert find_champion(store, made.domain, trust_code=True).config_yaml == text


def test_what_is_not_there_is_told_with_what_there_is(store, register, tmp_path):
    made = register()
    with pytest.raises(BadInput, match=f"a domain with a champion at sqlite:.*: .*{made.domain}.*--uri"):
        find_champion(store, "nothing")
    with pytest.raises(BadInput, match=r"`version` is '9', but must be a version of bft-.*: 1\."):
        find_champion(store, made.domain, "9")
    path = tmp_path / "none.db"
    with pytest.raises(BadInput, match="a database that exists"):
        find_champion(TrackingConfig(uri=f"sqlite:///{path}"), made.domain)
    assert not path.exists()


def test_a_study_that_registered_nothing_is_named_with_the_reason(store, register, tmp_path):
    register()
    for name, tags in (
        ("first", {"bft.study": "s/alone", "bft.no_champion": "its space has no `confirmation`"}),
        ("other", {"bft.study": "s/other"}),
    ):
        own = {"bft.kind": "study", "bft.domain": tags["bft.study"][2:]} | tags
        with Tracker.start(store, "bft/test", name, {}, own, keeper=False, spool=tmp_path / name) as tracker:
            tracker.finish("FINISHED" if name == "first" else "KILLED")
    with pytest.raises(BadInput) as caught:
        find_champion(store, "alone")
    assert "The study s/alone of 20" in str(caught.value) and "(MLflow run " in str(caught.value)
    assert str(caught.value).endswith(") has registered none: its space has no `confirmation`.")
    with pytest.raises(
        BadInput, match=r"it has not come to its end \(killed\): the same `bft-ray search` goes on with it"
    ):
        find_champion(store, "other")


# ---- the commands


@pytest.fixture
def config() -> Config:
    """What a study chose."""
    chosen = ["loss.method=bft_inverse", "loss.window=64", "loss.weight_cap=4", "optimizer.learning_rate=3e-4"]
    return load_config("starter", [*chosen, "schedule.steps=6", "data.global_batch_size=8"])


@pytest.fixture
def champion(register, config) -> Champion:
    return register(config_yaml=to_yaml(config))


def test_best_says_what_won_and_how_to_use_it(store, champion, config, capsys):
    assert main(["best", champion.domain, "--uri", store.uri]) == 0
    text = capsys.readouterr().out
    for line in (
        "settings  bft_inverse, window 64, gamma 1.0, epsilon 0.05, weight_cap 4.0, learning_rate 0.0003, 6 steps of 8",
        "metric    choices/probability 0.432\n",
        "gain      +0.01234 [0.002, 0.021] over the default\n",
        "study     space/medical_qa\n",
        "data      0f3a\n",
        f"run       {champion.run_id}",
        f"model     /weights, models:/{champion.name}/1\n",
        f"bft-ray train --champion {champion.domain} --uri {store.uri}\n",
    ):
        assert line in text
    assert main(["best", champion.domain, "--uri", store.uri, "--version", "1", "--yaml"]) == 0
    assert make_config(yaml.safe_load(capsys.readouterr().out)) == config
    assert main(["best", "nothing", "--uri", store.uri]) == 2
    assert champion.domain in capsys.readouterr().err


def test_a_champion_without_evidence_is_described_all_the_same(config):
    bare = Champion("math", "1", "bft-math", {"value": "None", "gain": "?"}, to_yaml(config), "r", "/weights", 0.0)
    text = describe_champion(bare, TrackingConfig().uri)
    assert "weights   not on this machine; copy them there, or train them again" in text
    assert "metric    None" in text and "bft-ray train --champion math\n" in text and "--uri" not in text


PLAN = Plan("choices/probability", ("w64",), ("sft", "bft"), "bft", (1, 2))


def choice_of(shift: float) -> Choice:
    """`w64` is better than the default by so much, on all but a little noise."""
    noise = np.random.default_rng(0).normal(size=(3, 2, 30)) * 0.02
    arms = {"w64": shift, "sft": -0.3, "bft": 0.0}
    return choose(
        [
            Record(name, seed, {str(i): 0.5 + own + float(noise[arm, seed - 1, i]) for i in range(30)})
            for arm, (name, own) in enumerate(arms.items())
            for seed in PLAN.seeds
        ],
        PLAN,
        draws=200,
    )


def test_the_evidence_of_a_candidate_and_of_a_default(config):
    won, stays = choice_of(0.3), choice_of(0.0)
    assert (won.champion, stays.champion) == ("w64", "bft")
    tags = champion_tags(won, config)
    gain = won.arm("w64").gain
    assert gain is not None and float(tags["gain"]) == gain.gain and float(tags["detectable"]) == gain.detectable
    assert tags["interval"] == f"[{gain.low:.6g}, {gain.high:.6g}]" and "best_candidate" not in tags
    published = load_config("starter", ["loss.method=bft"])
    tags, best = champion_tags(stays, published), stays.arm("w64").gain
    assert best is not None and not {"gain", "interval", "detectable"} & set(tags)
    assert (tags["best_candidate"], float(tags["best_candidate_gain"])) == ("w64", best.gain)
    assert tags["best_candidate_interval"] == f"[{best.low:.6g}, {best.high:.6g}]"
    text = describe_champion(Champion("d", "1", "bft-d", tags, to_yaml(published), "r", "/w", 0.0), "sqlite:///x.db")
    line = next(line for line in text.splitlines() if line.startswith("gain"))
    assert line == (
        f"gain      none, it is the default; the best candidate, w64, has {best.gain:+.4g} "
        f"{tags['best_candidate_interval']} over it; a true gain of {best.detectable:.4g} shows in {best.shows_in} such studies"
    )


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["loss.method=sft"], {}),
        (["loss.method=bft"], {"window": "256"}),
        (["loss.method=bft", "loss.weight_cap=0.5"], {"window": "256", "weight_cap": "0.5"}),
        (["loss.method=bft_inverse"], {"window": "256", "epsilon": "0.05", "weight_cap": "8.0"}),
    ],
)
def test_tags_tell_settings_that_act(settings, expected):
    tags = champion_tags(choice_of(0.0), load_config("starter", settings))
    assert {name: tags[name] for name in ("window", "epsilon", "weight_cap") if name in tags} == expected


def test_commands_of_a_server_with_a_password(config):
    own = Champion("d", "1", "bft-d", {}, to_yaml(config), "r", "/w", 0.0)
    text = describe_champion(own, "postgresql://ann:s3cr3t@db/x")
    assert 'bft-ray best d --uri "$MLFLOW_TRACKING_URI" --yaml > d.yaml' in text and "s3cr3t" not in text


def test_train_takes_the_config_of_a_champion(store, champion, config):
    made = champion_config(champion, store.uri, ["loss.window=32", "seed=5", "name=mine"])
    assert made.tracking.tags == {"bft.champion": f"{champion.name}/1"} and made.tracking.uri == store.uri
    assert (made.loss.window, made.loss.weight_cap, made.seed, made.name) == (32, 4.0, 5, "mine")
    assert made.data == config.data and champion_config(champion, store.uri, []).name is None
    with pytest.raises(BadConfig, match=f"the config of {champion.name}/1 has 1 problem"):
        champion_config(champion, store.uri, ["loss.windw=3"])


@pytest.mark.parametrize("words", [["loss.windw=3", "seed=1"], ["--profile", "seed=1", "loss.windw=3"]])
def test_train_reads_overrides_wherever_they_stand(store, champion, capsys, words):
    assert main(["train", "--champion", champion.domain, "--uri", store.uri, *words]) == 2
    assert main(["train", *words, "--champion", champion.domain, "--uri", store.uri]) == 2
    assert capsys.readouterr().err.count("`loss.windw` is not a known key. Did you mean `loss.window`?") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "`CONFIG` is None, but must be given, or --champion."),
        (["starter", "--champion", "math"], "`CONFIG` is 'starter', but must be left out with --champion."),
        (["starter", "--uri", "http://x"], "`--uri` is 'http://x', but must be left out without --champion."),
        (["--profile", "starter", "loss.windw=3"], "`loss.windw` is not a known key."),
    ],
)
def test_train_wants_a_config_or_a_champion(words, message, capsys):
    assert main(["train", *words]) == 2
    assert message in capsys.readouterr().err


def test_errors_of_a_yaml_text_name_its_source():
    with pytest.raises(BadInput, match="`the text:2` is"):
        config_from_yaml("a: 1\nb: [", "the text")
    with pytest.raises(BadInput, match="a YAML mapping"):
        config_from_yaml("", "the text")


def test_weights_that_cannot_be_used_are_told(config, tmp_path, tiny_model):
    """The version says where they are, and someone may have moved or cut them since."""

    def told() -> list[str]:
        champion = Champion("d", "1", "bft-d", {}, to_yaml(config), "r", str(tmp_path / "export"), 0.0)
        return [
            line for line in describe_champion(champion, "sqlite:///x.db").splitlines() if line.startswith("weights")
        ]

    shutil.copytree(tiny_model, tmp_path / "export")
    assert told() == []
    weights = tmp_path / "export" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    [line] = told()
    assert f"unusable: {weights} must be a whole safetensors file" in line
