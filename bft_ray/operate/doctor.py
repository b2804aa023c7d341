"""What is wrong with this machine, cluster, tracking server, model or data, before money is spent."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import tomllib
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from bft_ray.config import ChoiceTask, ClusterConfig, Config, SourceConfig
from bft_ray.errors import BadConfig, BadInput
from bft_ray.tracking.server import bounded, check_server, first_line, redact

Status = Literal["ok", "warn", "fail"]

GIB = 1 << 30
NUM_ROWS = 200  # read of each source
NODE_S = 60.0  # longest wait for a cluster's nodes
_MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


@dataclass(frozen=True)
class Finding:
    """One check's answer; a `fail` would stop a run, a `warn` may surprise, and both carry the remedy."""

    check: str
    status: Status
    detail: str
    remedy: str = ""


def diagnose(config: Config | None = None, *, ray_address: str | None = None, timeout_s: float = 90.0) -> list[Finding]:
    """Run all checks: of this machine, and, with a config, of everything that it names.

    A check that fails, crashes or takes longer than `timeout_s` is a finding, and the others go on.

    Args:
        ray_address: look at this cluster instead of `config.cluster.address`.
    """
    cluster = config.cluster if config else ClusterConfig()
    if ray_address is not None:
        cluster = cluster.model_copy(update={"address": ray_address})
    cluster_name = cluster.address or os.environ.get("RAY_ADDRESS")
    checks: list[tuple[str, Callable[[], Iterable[Finding]]]] = [
        ("versions", check_versions),
        ("compiler", check_compiler),
        ("gpu", lambda: check_gpus(config, is_local=cluster_name is None)),
        ("machine", lambda: check_machine(cluster if config and cluster_name is None else None)),
    ]
    if config is not None:
        checks += [
            ("disk", lambda: check_disk(config)),
            ("settings", lambda: check_settings(config)),
            ("model", lambda: check_model(config)),
            ("data", lambda: check_data(config)),
            ("tracking", lambda: check_tracking(config)),
        ]
    if cluster_name is not None:
        checks += [("ray", lambda: check_cluster(cluster, has_config=config is not None))]
    elif config is not None:
        checks += [("storage", lambda: check_storage(cluster))]
    return [finding for name, check in checks for finding in _guarded(name, check, timeout_s)]


def render(findings: Sequence[Finding]) -> str:
    """The findings as text: one line each, the remedy beneath, and a last line that counts."""
    lines = []
    for finding in findings:
        lines.append(f"{_MARKS[finding.status]}  {finding.check:<10}{finding.detail}")
        if finding.remedy and finding.status != "ok":
            lines.append(f"{'':<16}-> {finding.remedy}")
    num_fails = sum(finding.status == "fail" for finding in findings)
    num_warnings = sum(finding.status == "warn" for finding in findings)
    lines.append(f"{num_fails} to mend, {num_warnings} to know, {len(findings) - num_fails - num_warnings} fine")
    return "\n".join(lines)


def exit_code(findings: Sequence[Finding]) -> int:
    """1 where something would stop a run, else 0."""
    return int(any(finding.status == "fail" for finding in findings))


def _guarded(name: str, check: Callable[[], Iterable[Finding]], timeout_s: float) -> list[Finding]:
    try:
        return bounded(timeout_s, lambda: list(check()))
    except TimeoutError:
        remedy = "Something it reaches hangs: a network file system, a proxy, the hub (HF_HUB_OFFLINE=1 avoids it)."
        return [Finding(name, "fail", f"no answer within {timeout_s:g} s", remedy)]
    except BadInput as error:
        return [_from_error(name, error)]
    except Exception as error:
        text = redact(f"{type(error).__name__}: {first_line(error)}")
        return [Finding(name, "fail", text, "This check broke down: see the message, or report it.")]


def _from_error(name: str, error: Exception) -> Finding:
    text, remedy = redact(str(error)), getattr(error, "remedy", "")
    return Finding(name, "fail", text.removesuffix(f" {redact(remedy)}") if remedy else text, redact(remedy))


# --- this machine


def check_versions() -> Iterable[Finding]:
    """Python and the packages against the ranges that bft-ray states."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    python, texts = _stated_ranges()
    if not texts:
        yield Finding("versions", "warn", "the ranges are unknown", "Install bft-ray: pip install .")
        return
    here, found, num_wrong = platform.python_version(), [], 0
    if not SpecifierSet(python).contains(here, prereleases=True):
        num_wrong += 1
        yield Finding("versions", "fail", f"Python {here}, not {python}", "Make the environment with Python 3.11.")
    for requirement in map(Requirement, texts):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
            num_wrong += 1
            remedy = f'pip install "{requirement}" -c constraints.txt'
            yield Finding("versions", "fail", f"{requirement.name} is {version}, not {requirement.specifier}", remedy)
        found.append(f"{requirement.name} {version}")
    if not num_wrong:
        yield Finding("versions", "ok", f"Python {here}, {', '.join(found)}")


def _stated_ranges() -> tuple[str, list[str]]:
    try:
        about = metadata.metadata("bft-ray")
        return about["Requires-Python"] or "", metadata.requires("bft-ray") or []
    except metadata.PackageNotFoundError:  # run from a checkout
        path = Path(__file__).resolve().parents[2] / "pyproject.toml"
        project = tomllib.loads(path.read_text())["project"] if path.is_file() else {}
        return project.get("requires-python", ""), project.get("dependencies", [])


def check_compiler() -> Iterable[Finding]:
    """A C++ compiler and ninja: DeepSpeed builds its faster CPU operators with them."""
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    if compiler and (shutil.which("ninja") or find_spec("ninja")):
        yield Finding("compiler", "ok", "a C++ compiler and ninja")
    else:
        yield Finding("compiler", "ok", "no C++ compiler with ninja: only offload and fused optimizers need them")


def check_gpus(config: Config | None, is_local: bool) -> Iterable[Finding]:
    """GPUs that torch can use, against the driver and what the config asks of this machine."""
    import torch

    cluster = config.cluster if config and is_local else None
    if not torch.cuda.is_available():
        asks = bool(cluster and cluster.gpus_per_worker)
        if shutil.which("nvidia-smi"):
            built = torch.version.cuda or "CPU only"
            remedy = "Install a torch for this driver's CUDA version (nvidia-smi shows it), or update the driver."
            detail = f"there is an NVIDIA driver, but torch {torch.__version__} (CUDA: {built}) finds no GPU"
            yield Finding("gpu", "fail" if asks else "warn", detail, remedy)
        elif asks:
            remedy = "Set cluster.gpus_per_worker=0, or cluster.address to that of a cluster with GPUs."
            yield Finding("gpu", "fail", "no GPU, but cluster.gpus_per_worker asks for some", remedy)
        else:
            yield Finding("gpu", "ok", "none: training runs on the CPU")
        return
    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    names = ", ".join(f"{device.name} ({device.total_memory / GIB:.0f} GiB)" for device in devices)
    torch.zeros(1, device="cuda").item()  # a driver too old for the build shows only here
    yield Finding("gpu", "ok", names)
    if config and is_local and config.model.dtype == "bf16" and not torch.cuda.is_bf16_supported():
        yield Finding("gpu", "fail", "these GPUs have no bf16", "Set model.dtype=fp32.")


def check_machine(cluster: ClusterConfig | None) -> Iterable[Finding]:
    """Cores and memory; with a cluster config that starts a local Ray, whether its workers fit."""
    cores, memory = len(os.sched_getaffinity(0)), _memory_bytes()
    yield Finding(
        "memory",
        "ok" if memory >= 4 * GIB else "warn",
        f"{memory / GIB:.1f} GiB",
        "Models above a few million parameters need more: close other programs, or use a larger machine.",
    )
    need = cluster.num_workers * cluster.cpus_per_worker if cluster else 1
    if need <= cores:
        yield Finding("cpu", "ok", f"{cores} cores" + (f", {need:g} asked for" if cluster else ""))
    else:
        detail = f"{cores} cores, but num_workers x cpus_per_worker = {need:g}"
        yield Finding("cpu", "fail", detail, f"Lower cluster.num_workers or cpus_per_worker to {cores} in all.")


def _memory_bytes() -> int:
    """Memory of this machine, or of the container where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(limit)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            total = min(total, int(text))
    return total


# --- what a config names


def check_disk(config: Config) -> Iterable[Finding]:
    """Free space where checkpoints go, against a rough size of what the run keeps."""
    from bft_ray.train.storage import absolute, is_remote

    path = config.cluster.storage_path
    if is_remote(path):
        return
    folder = Path(absolute(path))
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    # kept checkpoints, the newest and the export; full fine-tuning keeps fp32 weights and moments (12 bytes a weight)
    each = _weights_bytes(config) * (1 if config.lora or config.model.adapter else 6)
    need = GIB + each * (config.checkpoint.keep + 2)
    remedy = "Choose another cluster.storage_path, free some space, or lower checkpoint.keep."
    detail = f"{free / GIB:.1f} GiB free for cluster.storage_path, about {need / GIB:.1f} GiB needed"
    yield Finding("disk", "ok" if free >= need else "warn", detail, remedy)


def _weights_bytes(config: Config) -> int:
    from bft_ray.model.causal_lm import adapter_of

    return sum(path.stat().st_size for path in Path(adapter_of(config.model)[0]).glob("*.safetensors"))


def check_settings(config: Config) -> Iterable[Finding]:
    """Settings that are allowed and may surprise."""
    if config.lora and config.lora.dropout > 0:
        detail = f"lora.dropout is {config.lora.dropout:g}: results then depend on how a batch is laid out on workers"
        yield Finding(
            "settings", "warn", detail, "Set lora.dropout=0 to have the same result on any number of workers."
        )
    if config.model.trust_remote_code:
        detail = "model.trust_remote_code runs the Python code that comes with the model"
        yield Finding("settings", "warn", detail, "Read that code, and pin it by model.revision.")
    if config.model.attention.startswith("flash") and not find_spec("flash_attn"):
        remedy = "pip install flash-attn on every node, or model.attention=sdpa."
        yield Finding(
            "settings", "warn", f"model.attention is {config.model.attention}; flash-attn is not here", remedy
        )
    unused = [name for name in config.loss.unused_fields() if name in config.loss.model_fields_set]
    if unused:
        names = ", ".join(f"loss.{name}" for name in unused)
        yield Finding("settings", "warn", f"without effect with these loss settings: {names}", "Take them out.")


def check_model(config: Config) -> Iterable[Finding]:
    """Config, tokenizer and the headers of the weights; LoRA targets against the architecture."""
    from safetensors import SafetensorError, safe_open
    from transformers import AutoConfig

    from bft_ray.model.causal_lm import adapter_of, load_tokenizer
    from bft_ray.train.launch import check_lora

    tokenizer = load_tokenizer(config.model)
    base, adapter = adapter_of(config.model)
    try:
        trust = config.model.trust_remote_code
        described = AutoConfig.from_pretrained(base, revision=config.model.revision, trust_remote_code=trust)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        remedy = "Check the path, or the hub id, its access rights (HF_TOKEN) and the network."
        raise BadInput("model.path", config.model.path, f"a model that transformers loads: {reason}", remedy) from None
    for folder in filter(os.path.isdir, filter(None, (base, adapter))):
        files = sorted(Path(folder).glob("*.safetensors"))
        if not files:
            remedy = "Convert it: save_pretrained of transformers writes safetensors."
            raise BadInput("model.path", config.model.path, "a folder with *.safetensors weights", remedy)
        for file in files:
            try:
                with safe_open(file, "numpy"):
                    pass
            except SafetensorError as error:
                remedy = "It is cut off or damaged: copy or download it again."
                raise BadInput(
                    "model.path", str(file), f"a whole safetensors file: {first_line(error)}", remedy
                ) from None
    check_lora(config)
    longest = getattr(described, "max_position_embeddings", None)
    detail = f"{config.model.path}: {described.model_type}, {len(tokenizer)} tokens"
    if not os.path.isdir(base):
        detail += "; the weights come from the hub when a run starts"
    yield Finding("model", "ok", detail)
    if longest is not None and config.data.max_length > longest:
        text = f"data.max_length is {config.data.max_length}, but the model was made for {longest} positions"
        yield Finding("model", "fail", text, f"Set data.max_length={longest}.")


def check_data(config: Config) -> Iterable[Finding]:
    """The first rows of every source and choice set."""
    for use in ("train", "validation"):
        for index, source in enumerate(getattr(config.data, use)):
            yield from _alone("data", partial(_read_source, source, f"data.{use}.{index}"))
    for index, task in enumerate(config.evaluation.choices):
        yield from _alone("data", partial(_read_choices, task, f"evaluation.choices.{index}"))


def _read_source(source: SourceConfig, field: str) -> str:
    from bft_ray.data.rows import BadRow, read_rows

    rows = list(itertools.islice(read_rows(source, field), NUM_ROWS))
    bad = [row for row in rows if isinstance(row, BadRow)]
    if len(bad) == len(rows):
        reason = bad[0].reason if bad else "it has no rows"
        raise BadInput(field, source.path, f"data with usable rows: {reason}", "Look at its first lines.")
    left_out = f", {len(bad)} of them left out ({bad[0].where}: {bad[0].reason})" if bad else ""
    return f"{field}: {len(rows)} first rows read from {source.path}{left_out}"


def _read_choices(task: ChoiceTask, field: str) -> str:
    from bft_ray.evaluate.choice import read_items

    items = read_items(task.model_copy(update={"limit": min(task.limit or NUM_ROWS, NUM_ROWS)}))
    return f"{field}: {len(items)} first items read from {task.path}"


def _alone(name: str, check: Callable[[], str]) -> Iterable[Finding]:
    """One source's error must not hide the next one's."""
    try:
        yield Finding(name, "ok", check())
    except (BadInput, BadConfig) as error:
        yield _from_error(name, error)


def check_tracking(config: Config) -> Iterable[Finding]:
    """The tracking server or database, as a run checks it."""
    check_server(config.tracking)
    yield Finding("tracking", "ok", redact(config.tracking.uri))


def check_storage(cluster: ClusterConfig) -> Iterable[Finding]:
    """The results folder, from here."""
    from bft_ray.train.storage import check_writable

    check_writable(cluster.storage_path)
    yield Finding("storage", "ok", f"{cluster.storage_path} can be written")


# --- a cluster


def check_cluster(cluster: ClusterConfig, has_config: bool) -> Iterable[Finding]:
    """Address and token; with a config also the resources, and every node: its versions and the storage path."""
    from bft_ray.spread import connect, require_resources

    yield from check_token()
    with connect(cluster):
        import ray

        nodes = [node for node in ray.nodes() if node["Alive"]]
        total = ray.cluster_resources()
        yield Finding(
            "ray",
            "ok",
            f"Ray {ray.__version__}, {len(nodes)} nodes, {total.get('CPU', 0):g} CPUs, {total.get('GPU', 0):g} GPUs",
        )
        if has_config:
            yield from _alone("ray", lambda: _fits(require_resources, cluster))
            yield from _check_nodes(nodes, cluster.storage_path)


def _fits(require_resources: Callable[[ClusterConfig], None], cluster: ClusterConfig) -> str:
    patience_s = min(cluster.start_timeout_s, 10.0)  # not the time in which a cluster may grow
    require_resources(cluster.model_copy(update={"start_timeout_s": patience_s}))
    return f"room for {cluster.num_workers} workers"


def check_token() -> Iterable[Finding]:
    """Ray's token authentication, as this side has it."""
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if os.environ.get("RAY_AUTH_MODE") != "token":
        remedy = "Make a token (ray get-auth-token --generate), set RAY_AUTH_MODE=token on both sides, restart Ray."
        detail = "RAY_AUTH_MODE is not token: who reaches the cluster's port can run anything on it"
        yield Finding("ray token", "warn", detail, remedy)
    elif os.environ.get("RAY_AUTH_TOKEN"):
        yield Finding("ray token", "ok", "from RAY_AUTH_TOKEN")
    elif not path.is_file():
        remedy = "Copy the cluster's token file there, or set RAY_AUTH_TOKEN."
        yield Finding("ray token", "fail", f"RAY_AUTH_MODE is token, but {path} does not exist", remedy)
    elif path.stat().st_mode & 0o077:
        yield Finding("ray token", "warn", f"{path} can be read by other users", f"chmod 600 {path}")
    else:
        yield Finding("ray token", "ok", f"from {path}")


def _check_nodes(nodes: Sequence[dict[str, Any]], storage_path: str) -> Iterable[Finding]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    from bft_ray.train.storage import absolute, is_remote, join, write_text

    word = uuid.uuid4().hex
    path = absolute(storage_path)
    sign = None
    if not is_remote(path) and len(nodes) > 1:  # an object store is shared by its nature
        sign = join(path, f".bft_ray_doctor_{word}")
        write_text(sign, word)
    try:
        look = ray.remote(num_cpus=0, max_retries=0)(_look_around)
        asked = {}
        for node in nodes:
            place = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked[look.options(scheduling_strategy=place).remote(path, sign)] = node["NodeManagerAddress"]
        done, late = ray.wait(list(asked), num_returns=len(asked), timeout=NODE_S)
        for ref in late:
            ray.cancel(ref, force=True)
            remedy = "Look at the node's logs: it is overloaded, or its file system hangs."
            yield Finding("node", "fail", f"{asked[ref]}: no answer within {NODE_S:g} s", remedy)
        for ref in done:
            yield _judge(asked[ref], ref, path)
    finally:
        if sign:
            Path(sign).unlink(missing_ok=True)


def _look_around(path: str, sign: str | None) -> dict[str, Any]:
    """On a node: its Python, and whether it can write the storage path and see what another node wrote there."""
    from bft_ray.train.storage import check_writable

    try:
        check_writable(path)
        error = ""
    except BadInput as refused:
        error = refused.rule
    return {"python": platform.python_version(), "error": error, "shared": sign is None or Path(sign).exists()}


def _judge(address: str, ref: Any, path: str) -> Finding:
    import ray

    try:
        node = ray.get(ref)
    except Exception as error:
        cause = first_line(getattr(error, "cause", None) or error)
        remedy = "Install the same bft-ray, Ray and Python there (one container image for all nodes)."
        return Finding("node", "fail", f"{address}: {redact(cause)}", remedy)
    if node["error"]:
        remedy = "Mount it there with rights to write, or choose a cluster.storage_path that all nodes share."
        return Finding("node", "fail", f"{address}: {path} must be {node['error']}", remedy)
    if not node["shared"]:
        remedy = "Use a folder that all nodes mount, or a URI (s3://, gs://)."
        return Finding("node", "fail", f"{address}: {path} is another folder there", remedy)
    return Finding("node", "ok", f"{address}: Python {node['python']}, {path} can be written")
