"""Every option of a training run, one module per group of sections. Labels and helps are English; locale/zh_CN translates them."""

from __future__ import annotations

from lora_trainer.config.param import param, part, section
from lora_trainer.config.schema.data import DataConfig, SubsetConfig
from lora_trainer.config.schema.learning import OptimizerConfig, ScheduleConfig, Steps, StepsConfig
from lora_trainer.config.schema.loss import LossConfig
from lora_trainer.config.schema.memory import MemoryConfig
from lora_trainer.config.schema.model import ModelConfig
from lora_trainer.config.schema.network import NetworkConfig
from lora_trainer.config.schema.output import LogConfig, SampleConfig, SaveConfig, ValidateConfig

__all__ = [
    "DataConfig",
    "LogConfig",
    "LossConfig",
    "MemoryConfig",
    "ModelConfig",
    "NetworkConfig",
    "OptimizerConfig",
    "SampleConfig",
    "SaveConfig",
    "ScheduleConfig",
    "Steps",
    "StepsConfig",
    "SubsetConfig",
    "TrainConfig",
    "ValidateConfig",
]


@section
class TrainConfig:
    seed: int = param(1, "Seed", "The same seed, settings and pictures give the same result.", low=0, high=2**32 - 1)
    method: str = param("lora", "Train", "What comes out: a LoRA file.", choices={"lora": "LoRA"}, basic=True)
    model: ModelConfig = part(ModelConfig)
    data: DataConfig = part(DataConfig)
    network: NetworkConfig = part(NetworkConfig)
    optimizer: OptimizerConfig = part(OptimizerConfig)
    schedule: ScheduleConfig = part(ScheduleConfig)
    steps: StepsConfig = part(StepsConfig)
    loss: LossConfig = part(LossConfig)
    memory: MemoryConfig = part(MemoryConfig)
    sample: SampleConfig = part(SampleConfig)
    validate: ValidateConfig = part(ValidateConfig)
    save: SaveConfig = part(SaveConfig)
    log: LogConfig = part(LogConfig)
