"""The champion of a domain: a version of the registered model `bft-<domain>` that carries the alias `champion`."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from bft_ray.config import TrackingConfig, to_yaml
from bft_ray.errors import BadInput
from bft_ray.page.model import shown_time
from bft_ray.places.addresses import absolute_uri, redact, redact_tree, sqlite_path
from bft_ray.places.scratch import scratch
from bft_ray.tracking.retry import patiently
from bft_ray.tracking.server import FIELD, check_server, connect, latest_runs, pages

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

ALIAS = "champion"
NO_CHAMPION = "bft.no_champion"  # tag of a study's run: why it has registered nothing
STUDY_ID, SOURCE = "bft.study_id", "bft.source"
DEFAULT_SOURCE = "bft.default_source"  # where the weights of the default lie that the champion was compared with
_CONFIG, _DIGEST = "bft.config", "bft.config_digest"  # artifact of the run that holds the config; what is in it
_CROWNED = "bft.crowned"  # tag: the version has been given the alias once; who moves it away later means it


@dataclass(frozen=True)
class Champion:
    """What a study chose for a domain.

    Args:
        version: number of the version, as text.
        name: of the registered model.
        tags: of the version: the evidence.
        config_yaml: the whole config, without passwords.
        run_id: of the study.
        source: where the trained model lies.
        created_s: seconds since 1970.
    """

    domain: str
    version: str
    name: str
    tags: Mapping[str, str]
    config_yaml: str
    run_id: str
    source: str
    created_s: float


def register_champion(
    tracking: TrackingConfig,
    domain: str,
    *,
    run_id: str,
    model_id: str | None,
    source: str,
    tags: Mapping[str, str],
    config_yaml: str,
    description: str,
) -> Champion:
    """Make a version of `bft-<domain>` and move the alias `champion` to it; waits out `tracking.timeout_s`.

    The same run, study (tag `bft.study_id`) and config make one version, however often this is repeated. The alias
    stays where a later version has it, or where someone has moved it since.

    Args:
        run_id: of the study; the config becomes an artifact of it.
        model_id: of the logged model, see `Tracker.log_model`; None: there is none.
        source: where the trained model lies, such as a folder.
        tags: the evidence: metric, value, interval, study, data ...
        description: of the version, Markdown.
    """
    client = connect(absolute_uri(tracking.uri))
    name, text = name_of(domain), to_yaml(redact_tree(yaml.safe_load(config_yaml)))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    asked = {key: redact(str(value)) for key, value in tags.items()} | {_DIGEST: digest, SOURCE: redact(source)}

    def register() -> Champion:
        _create_model(client, name, domain)
        versions = _versions(client, name)
        own = [version for version in versions if version.run_id == run_id]
        same = [v for v in own if all(v.tags.get(key) == asked.get(key) for key in (STUDY_ID, _DIGEST))]
        if same:
            version = same[0]
        else:
            file = f"champion-{len(own) + 1}.yaml" if own else "champion.yaml"  # a study that went on chose again
            client.log_text(run_id, text, file)
            where = _where(client, model_id) if model_id else f"runs:/{run_id}/{file}"
            version = client.create_model_version(
                name, where, run_id, asked | {_CONFIG: file}, description=redact(description), model_id=model_id
            )
        _crown(client, name, version)
        return _champion(domain, version, text)

    return patiently(tracking.timeout_s, register)


def find_champion(
    tracking: TrackingConfig, domain: str, version: str | None = None, trust_code: bool = False
) -> Champion:
    """The champion of a domain, or one of its versions.

    Args:
        trust_code: leave `model.trust_remote_code` as the registry has it. Else it is false, with a warning: who can write to
            the registry could name any model there, and would run its code with the rights of whoever reads the champion.

    Raises:
        BadInput: there is none, which says what there is; or the server does not answer.
    """
    uri = absolute_uri(tracking.uri)
    path = sqlite_path(uri)
    if path is not None and not path.exists():
        raise BadInput(FIELD, redact(uri), "a database that exists", "Name the one that the study wrote to: --uri URI.")
    check_server(tracking, writes=False)
    client = connect(uri)
    champions = _champions(client)
    if version is None:
        if domain not in champions:
            rule = f"a domain with a champion at {redact(uri)}: {', '.join(sorted(champions)) or 'there are none yet'}"
            remedy = "A study (`bft-ray search`) registers one; --uri names another server."
            raise BadInput("domain", domain, rule, _without_champion(client, domain) or remedy)
        version = champions[domain]
    versions = _versions(client, name_of(domain))
    found = next((one for one in versions if str(one.version) == version), None)
    if found is None:
        known = ", ".join(str(one.version) for one in versions) or "there are none yet"
        raise BadInput("version", version, f"a version of {name_of(domain)} at {redact(uri)}: {known}")
    text = _read(client, found)
    return _champion(domain, found, text if trust_code else _without_code(text))


def _without_code(config_yaml: str) -> str:
    """The config with `model.trust_remote_code: false`; as it is where it does not ask for more."""
    try:
        tree = yaml.safe_load(config_yaml)
    except (yaml.YAMLError, RecursionError):
        return config_yaml  # its reader says what is wrong with it
    model = tree.get("model") if isinstance(tree, dict) else None
    if not isinstance(model, dict) or not model.get("trust_remote_code"):
        return config_yaml
    log.warning(
        "the champion's config has model.trust_remote_code: true, which the registry cannot decide for you: it is false now. "
        "Read the code that comes with %s; then give model.trust_remote_code=true (train) or --trust-remote-code (export)",
        model.get("path"),
    )
    return yaml.safe_dump(tree | {"model": model | {"trust_remote_code": False}}, sort_keys=False, allow_unicode=True)


def _without_champion(client: MlflowClient, domain: str) -> str:
    """The last study of a domain, and why it has registered nothing; "" where none has run."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    asked = f"tags.`bft.kind` = 'study' AND tags.`bft.domain` = '{domain}'"
    if "'" in domain:
        return ""
    runs = latest_runs(client, experiments, asked)
    if not runs:
        return ""
    run = runs[0]
    tags, status = run.data.tags, run.info.status
    when = shown_time(run.info.start_time / 1000)
    unfinished = f"it has not come to its end ({status.lower()}): the same `bft-ray search` goes on with it"
    why = tags.get(NO_CHAMPION) or ("it chose nothing" if status == "FINISHED" else unfinished)
    return f"The study {tags.get('bft.study', '')} of {when} (MLflow run {run.info.run_id}) has registered none: {why}."


def name_of(domain: str) -> str:
    """Name of a domain's registered model."""
    return f"bft-{domain}"


def _create_model(client: MlflowClient, name: str, domain: str) -> None:
    from mlflow.exceptions import MlflowException

    text = f"What studies of bft-ray chose for {domain}; the alias `{ALIAS}` marks the version in force."
    try:
        client.create_registered_model(name, {"bft.domain": domain}, text)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _crown(client: MlflowClient, name: str, version: ModelVersion) -> None:
    """Move the alias to the version, once, and never from a later one."""
    if _CROWNED in version.tags:
        return
    holder = client.get_registered_model(name).aliases.get(ALIAS)
    if holder is None or int(holder) < int(version.version):
        client.set_registered_model_alias(name, ALIAS, str(version.version))
    client.set_model_version_tag(name, str(version.version), _CROWNED, "yes")


def _where(client: MlflowClient, model_id: str) -> str:
    """The logged model as the source of a version; without a server MLflow would look for the id in another database."""
    if str(client.tracking_uri).startswith("http"):
        return f"models:/{model_id}"
    return client.get_logged_model(model_id).artifact_location


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    """All versions, the latest first."""
    versions = pages(client.search_model_versions, f"name = '{name}'")
    return sorted(versions, key=lambda version: -int(version.version))


def _champions(client: MlflowClient) -> dict[str, str]:
    """Domain -> version of its champion."""
    models = pages(client.search_registered_models, f"name LIKE '{name_of('%')}'")
    return {model.name[len(name_of("")) :]: str(model.aliases[ALIAS]) for model in models if ALIAS in model.aliases}


def _champion(domain: str, version: ModelVersion, config_yaml: str) -> Champion:
    return Champion(
        domain=domain,
        version=str(version.version),
        name=version.name,
        tags=dict(version.tags),
        config_yaml=config_yaml,
        run_id=version.run_id or "",
        source=version.tags.get(SOURCE, version.source or ""),
        created_s=version.creation_timestamp / 1000,
    )


def _read(client: MlflowClient, version: ModelVersion) -> str:
    """The config of a version, from the artifacts of its study's run."""
    import mlflow.environment_variables as settings
    from mlflow.exceptions import MlflowException

    settings.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR.default = False  # for one small file
    file = version.tags.get(_CONFIG, "champion.yaml")
    with scratch("champion") as folder:
        try:
            return Path(client.download_artifacts(version.run_id or "", file, str(folder))).read_text()
        except (MlflowException, OSError) as error:
            remedy = "The registry names it, but it is not there: was the run deleted, or are its artifacts elsewhere?"
            rule = f"an artifact of run {version.run_id}"
            raise BadInput(f"{version.name}/{version.version}", file, rule, remedy) from error
