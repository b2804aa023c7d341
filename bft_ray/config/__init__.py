"""The typed, frozen config tree and its strict YAML; needs neither torch nor ray."""

from bft_ray.config.cluster import ClusterConfig, DeepSpeedConfig
from bft_ray.config.data import DataConfig, SourceConfig
from bft_ray.config.load import config_from_yaml, flatten, load_config, make_config, schema, to_yaml
from bft_ray.config.loss import METHODS, LossConfig
from bft_ray.config.tree import (
    CheckpointConfig,
    Config,
    EvaluationConfig,
    LoraConfig,
    ModelConfig,
    OptimizerConfig,
    ScheduleConfig,
    TrackingConfig,
)

__all__ = [
    "METHODS",
    "CheckpointConfig",
    "ClusterConfig",
    "Config",
    "DataConfig",
    "DeepSpeedConfig",
    "EvaluationConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "ScheduleConfig",
    "SourceConfig",
    "TrackingConfig",
    "config_from_yaml",
    "flatten",
    "load_config",
    "make_config",
    "schema",
    "to_yaml",
]
