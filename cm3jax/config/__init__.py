"""The experiment: frozen dataclasses, one per owner, nested in `Experiment`.

A field exists only if some experiment or user sets it. Values are checked here, on construction;
what they mean is said here and nowhere else. The command line (`launch.cli`) shows every field.
"""

from cm3jax.config.curriculum import ONE_STAGE, CurriculumConfig
from cm3jax.config.data import DataConfig
from cm3jax.config.decoding import DecodeConfig
from cm3jax.config.experiment import Experiment
from cm3jax.config.model import CacheType, DecoderConfig, PartiConfig, WeightType
from cm3jax.config.objective import CM3Config, LossConfig
from cm3jax.config.retrieval import ClipConfig, RetrievalConfig
from cm3jax.config.tokenizers import TokenizersConfig, VQGANConfig, VQGANLossConfig, identity
from cm3jax.config.training import (
    ONE_DEVICE,
    CheckpointConfig,
    MeshConfig,
    OptimConfig,
    TrainConfig,
)
from cm3jax.config.vocab import VocabConfig

__all__ = [
    "ONE_DEVICE",
    "ONE_STAGE",
    "CM3Config",
    "CacheType",
    "CheckpointConfig",
    "ClipConfig",
    "CurriculumConfig",
    "DataConfig",
    "DecodeConfig",
    "DecoderConfig",
    "Experiment",
    "LossConfig",
    "MeshConfig",
    "OptimConfig",
    "PartiConfig",
    "RetrievalConfig",
    "TokenizersConfig",
    "TrainConfig",
    "VQGANConfig",
    "VQGANLossConfig",
    "VocabConfig",
    "WeightType",
    "identity",
]
