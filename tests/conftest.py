"""What tests share: a tiny model with its tokenizer, a small data file, and the rule on skips."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here may reach for a network
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# else each `mlflow server` starts nine processes that import MLflow, for background jobs that no test has
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
# Ray's workers have nice 15: beside another test process they would get 3 % of a core, and run into bounds
os.environ.setdefault("RAY_worker_niceness", "0")
# tiny matrices: threads that wait for each other cost more than they do, many times more beside another test process
os.environ.setdefault("OMP_NUM_THREADS", "1")

# a shell starts background jobs with SIGINT ignored, and children inherit that: tests send it to theirs
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# how long an example takes depends on what else the machine does
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")

_MAY_SKIP = {"gpu", "privileged"}


def pytest_addoption(parser):
    parser.addoption(
        "--shard", metavar="K/N", help="of the files with long tests every N-th alone, from the K-th (0 to N-1) on"
    )


def pytest_collection_modifyitems(config, items):
    """Files with most slow tests first, so that processes that share the files end at about the same time."""
    import torch

    if shard := config.getoption("--shard"):
        _keep_shard(config, items, *map(int, shard.split("/")))
    slow = Counter(item.path for item in items if any(item.get_closest_marker(name) for name in ("slow", "long")))
    items.sort(key=lambda item: -slow[item.path])
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no GPU"))


def _keep_shard(config, items, number, of):
    assert 0 <= number < of, f"--shard {number}/{of}: the first number must be from 0 to {of - 1}"
    files = sorted({item.path for item in items if item.get_closest_marker("long")})
    others = set(files) - set(files[number::of])
    config.hook.pytest_deselected(items=[item for item in items if item.path in others])
    items[:] = [item for item in items if item.path not in others]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    """With BFT_RAY_NO_SKIPS set, a skipped test fails the run, but for what no installation brings: a GPU, or rights."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if not os.environ.get("BFT_RAY_NO_SKIPS") or reporter is None:
        return
    skipped = [report for report in reporter.stats.get("skipped", []) if not _MAY_SKIP & set(report.keywords)]
    if skipped:
        reporter.write_line(f"skipped, and none but {', '.join(sorted(_MAY_SKIP))} tests may be:", red=True)
        for report in skipped:
            reporter.write_line(f"  {report.nodeid}", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="module", autouse=True)
def leaves_no_ray():
    """Fails where a file leaves its process connected to Ray, which the next file would use without knowing."""
    yield
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        ray.shutdown()
        pytest.fail("a test of this file leaves Ray connected")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """A Llama of two layers with random fp32 weights, and a word tokenizer without a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_model")
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "\n", *[f"w{i}" for i in range(91)]]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    backend.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """48 rows whose completions hold 1 to 60 words."""
    path = tmp_path_factory.mktemp("tiny_data") / "rows.jsonl"
    draw = random.Random(0)

    def text(n: int) -> str:
        return " ".join(f"w{draw.randrange(91)}" for _ in range(n))

    rows = [
        {"id": f"row-{i}", "prompt": text(draw.randint(1, 12)), "completion": text(draw.choice([1, 3, 9, 20, 40, 60]))}
        for i in range(48)
    ]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture(scope="session")
def tree_in(tiny_model, tiny_data) -> Callable[..., dict]:
    """A function that makes the plain tree of a config that trains the tiny model on the tiny data, within a folder."""

    def make(folder: Path, **sections) -> dict:
        tree = {
            "domain": "test",
            "name": "run",
            "model": {"path": str(tiny_model), "dtype": "fp32"},
            "data": {
                "train": [{"path": str(tiny_data)}],
                "validation": [{"path": str(tiny_data), "limit": 12}],
                "max_length": 128,
                "micro_batch_tokens": 256,
                "global_batch_size": 8,
                "cache_dir": str(folder / "cache"),
            },
            "schedule": {"steps": 6},
            "evaluation": {"every_steps": 2},
            "deepspeed": {"preset": "zero2"},
            "cluster": {"storage_path": str(folder / "results")},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
        }
        for name, values in sections.items():
            tree[name] = {**tree[name], **values} if isinstance(tree.get(name), dict) else values
        return tree

    return make


@pytest.fixture
def make_tree(tree_in, tmp_path) -> Callable[..., dict]:
    """`tree_in` the folder of the test."""
    return partial(tree_in, tmp_path)
