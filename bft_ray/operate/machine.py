"""The doctor's checks of this machine: versions, compiler, GPUs, cores and memory."""

from __future__ import annotations

import os
import platform
import shutil
import tomllib
from collections.abc import Iterable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from bft_ray.config import ClusterConfig, Config
from bft_ray.operate.finding import Finding
from bft_ray.places.cache import cache_folder
from bft_ray.workers.connect import session_option

GIB = 1 << 30


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
    cores, memory = len(os.sched_getaffinity(0)), memory_bytes()
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
    own = ("memory", "object_store_memory", "accelerator_type:", "node:")  # what a Ray that is started here can have
    if others := [name for name in (cluster.resources_per_worker if cluster else ()) if not name.startswith(own)]:
        detail = f"cluster.resources_per_worker asks for {', '.join(others)}, which no Ray that is started here has"
        yield Finding("room", "fail", detail, "Leave it out, or name a cluster that has it: cluster.address.")


def check_places() -> Iterable[Finding]:
    """A home, and room for the paths of Ray's sockets: what containers under any user id may lack."""
    folder = cache_folder()
    if Path("~").expanduser() in folder.parents and ".cache" in folder.parts:
        yield Finding("home", "ok", f"{folder} can be written")
    else:
        remedy = "Set HOME to a folder that this user can write and that stays, or data.cache_dir."
        detail = f"no home that can be written: tokenised data and what waits for MLflow go to {folder}"
        yield Finding("home", "warn", detail, remedy)
    option = session_option()
    if option:
        remedy = "Nothing to do; RAY_TMPDIR=FOLDER, with a short path, sends it elsewhere."
        detail = f"the temporary folder has too long a name for sockets: a local Ray goes to {option['_temp_dir']}"
        yield Finding("sockets", "warn", detail, remedy)


def memory_bytes() -> int:
    """Memory of this machine, or of the container where that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        path = Path(limit)
        if path.is_file() and (text := path.read_text().strip()).isdigit():
            total = min(total, int(text))
    return total
