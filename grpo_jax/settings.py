"""A config as typed sections.

Enters: the nested dictionary of a resolved config. Leaves: `Settings`, one frozen dataclass a section, most
of them owned by the room they configure. Below this line nobody sees a config. `settings_checks.py` has the
rules between fields.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from grpo_jax import mesh as mesh_lib
from grpo_jax import notices
from grpo_jax.alarms import AlarmParams
from grpo_jax.data import tasks
from grpo_jax.data.data_params import DataParams
from grpo_jax.distributed import DistributedParams
from grpo_jax.evaluation.evaluation import EvaluationParams
from grpo_jax.learning import objective
from grpo_jax.learning.advantages import AdvantageParams, RewardShaping
from grpo_jax.learning.objective import LossParams
from grpo_jax.learning.supervised import SFTParams
from grpo_jax.learning.train_state import OptimizerParams
from grpo_jax.metrics import TellingParams
from grpo_jax.models.lora import LoraParams
from grpo_jax.policy import ModelParams
from grpo_jax.sampling.token_choice import TokenFilters

FIELDS = (  # of config.data: what is true of one data set only
    *("question_field", "answer_field", "answer_pattern"),
    *("solution_field", "solution_pattern", "extra_fields"),
)


@dataclasses.dataclass(frozen=True)
class MeshParams:
    """Sizes of the mesh's axes; see `mesh.py`."""

    data: int  # -1: what fsdp and tensor leave
    fsdp: int
    tensor: int
    preset: str  # key of `mesh.PRESETS`; "": the sizes as given
    cpu_devices: int  # fake devices on a CPU; 0: by the model's size, see `building.cpu_devices`

    @property
    def over_data(self) -> bool:
        """Whether moments and gradients are cut over the data axis."""
        return mesh_lib.PRESETS[self.preset].over_data


@dataclasses.dataclass(frozen=True)
class RolloutParams:
    """What is sampled at a step."""

    num_prompts: int  # problems a step, over all processes
    num_generations: int  # completions a problem, at least 2
    max_completion_length: int  # tokens, the end token counted
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    min_completion_length: int  # tokens; no end token before so many
    banned_ids: tuple[int, ...]  # never sampled
    stop_strings: tuple[str, ...]  # the first of these texts ends a completion
    keep_stop_strings: bool  # in the text that is judged
    num_slots: int  # completions decoded at once, over all devices; 0: as many as fit and help
    window: int  # decode steps between two looks of the host; 0: by the length of completions
    attention: str  # key of `decode_attention.ATTENTIONS`, or "auto"
    sampling_weights: str  # one of `weights.FORMS`

    @property
    def filters(self) -> TokenFilters:
        return TokenFilters(
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            min_completion_length=self.min_completion_length,
            banned_ids=tuple(self.banned_ids),
        )


@dataclasses.dataclass(frozen=True)
class RewardParams:
    """What is rewarded, and by how many processes; see `rewards/`."""

    reward_funcs: (
        str  # names, file.py:function or module:function, with options, comma-separated; "": the task's
    )
    reward_weights: str  # as many numbers; "" weighs all 1
    reward_scale: float  # see `advantages.RewardShaping`
    reward_bias: float
    reward_clip: float  # 0: none
    num_workers: int  # judging processes; 0: one a core, at most 8
    timeout_s: float  # seconds an item may take
    memory_mb: int  # MiB a judging process may take
    shuffle_rewards: bool  # the negative control: rewards dealt to other rows, nothing can be learned


@dataclasses.dataclass(frozen=True)
class GRPOParams:
    """The objective and how the rows are cut; see `learning/`."""

    # names may be "auto": as the loss type has it, see `objective.LOSS_TYPES`
    loss_type: str
    aggregation: str  # key of `losses.AGGREGATIONS`
    importance_sampling_level: str  # key of `losses.LEVELS`
    advantage_estimator: str  # key of `advantages.ESTIMATORS`
    scale_rewards: str  # key of `advantages.SCALES`
    std_floor: float  # deviations of rewards below count as this
    multi_objective_aggregation: str  # key of `advantages.AGGREGATIONS`
    epsilon: float
    epsilon_high: float
    delta: float
    sapo_temperature_pos: float
    sapo_temperature_neg: float
    log_ratio_clamp: float
    beta: float
    kl_estimator: str  # key of `kl.KL_ESTIMATORS`
    kl_in: str  # "loss", "reward"
    ref_model_sync_steps: int  # steps between two moves of the reference; 0: it stays
    ref_model_mixup_alpha: float  # share of the policy in a move
    sampler_correction: str  # key of `corrections.SAMPLER_CORRECTIONS`
    sampler_correction_cap: float
    entropy_coef: float
    top_entropy_quantile: float
    dynamic_sampling_max_rounds: int  # see `dynamic_sampling.py`; 0: groups stay as they are
    num_iterations: int  # passes over a rollout
    num_minibatches: int  # updates a pass
    per_device_train_batch_size: int  # rows of one backward pass, on each device that rows are cut over
    max_tokens_per_microbatch: int  # tokens of one backward pass on a device instead; 0: as above
    packing: int  # longest completions that a packed line has room for; 0: a line each
    share_prompts: bool  # a group's prompt is read once a backward pass
    mask_truncated_completions: bool


@dataclasses.dataclass(frozen=True)
class CheckpointParams:
    """What is kept; see `checkpoints.py`."""

    save_steps: int  # every so many steps, and at the end; 0: only at the end
    save_seconds: float  # also when so many seconds have passed since the last one; 0: never
    save_total_limit: int  # newest checkpoints kept
    keep_every_steps: int  # also those of every so many steps; 0: none
    metric_for_best_model: (
        str  # also the best by this number of an evaluation, with or without "eval/"; "": none
    )
    greater_is_better: bool
    resume: str  # one of `settings_ranges.RESUMES`
    resume_step: int  # the step to go on after; -1: the newest
    accept_changes: str  # fields, comma-separated, and "data", that may differ when a run goes on
    export_dtype: str  # of final/: "auto" (as the model came), "float32", "bfloat16", "float16"
    export_shard_gb: float  # gigabytes of one weight file at most

    @property
    def best_metric(self) -> str:
        """`metric_for_best_model` as evaluations tell it; "" for none."""
        name = self.metric_for_best_model
        return f"eval/{name}" if name and not name.startswith("eval/") else name

    grace_seconds: float  # from a signal that stops the run to its end at the latest; see `stopping.py`
    preemption_notice: str  # key of `notices.NOTICES`
    export_dtype: str  # of final/: "auto" (as the model came), "float32", "bfloat16", "float16"
    export_shard_gb: float  # gigabytes of one weight file at most

    def __post_init__(self):
        if not self.grace_seconds > 0:
            raise ValueError(
                f"config.checkpoint.grace_seconds must be above 0 seconds; got {self.grace_seconds}."
            )
        if self.preemption_notice not in notices.NOTICES:
            raise ValueError(
                f"config.checkpoint.preemption_notice is {self.preemption_notice!r}; known are "
                f"{', '.join(notices.NOTICES)}."
            )


@dataclasses.dataclass(frozen=True)
class Settings:
    """A whole run."""

    seed: int
    output_dir: str
    max_steps: int
    compilation_cache: str  # folder of compiled programs, "" for none
    model: ModelParams
    lora: LoraParams
    mesh: MeshParams
    distributed: DistributedParams
    data: DataParams
    rollout: RolloutParams
    reward: RewardParams
    grpo: GRPOParams
    optimizer: OptimizerParams
    sft: SFTParams
    checkpoint: CheckpointParams
    evaluation: EvaluationParams
    alarms: AlarmParams
    telling: TellingParams

    @property
    def rows(self) -> int:
        """Completions of a step, over all processes."""
        return self.rollout.num_prompts * self.rollout.num_generations

    @property
    def scaled_optimizer(self) -> OptimizerParams:
        """The optimizer of this run: adapters learn at `lora.learning_rate_ratio` times the rate.

        Source of the ratio: Schulman et al. 2025 (LoRA Without Regret) find the best rate of LoRA about ten
        times that of full fine-tuning, for any rank, in supervised learning and in RL.
        """
        if not self.lora.r:
            return self.optimizer
        rate = self.optimizer.learning_rate * self.lora.learning_rate_ratio
        return dataclasses.replace(self.optimizer, learning_rate=rate)

    @property
    def num_updates(self) -> int:
        """Optimizer updates of the whole run."""
        return self.max_steps * self.grpo.num_iterations * self.grpo.num_minibatches

    @property
    def loss(self) -> LossParams:
        """The objective; the loss type's own choices are not yet put in for "auto"."""
        grpo = self.grpo
        return LossParams(
            loss_type=grpo.loss_type,
            epsilon=grpo.epsilon,
            epsilon_high=grpo.epsilon_high,
            beta=grpo.beta,
            temperature=self.rollout.temperature,
            max_completion_length=self.rollout.max_completion_length,
            aggregation=grpo.aggregation,
            importance_sampling_level=grpo.importance_sampling_level,
            delta=grpo.delta,
            sapo_temperature_pos=grpo.sapo_temperature_pos,
            sapo_temperature_neg=grpo.sapo_temperature_neg,
            log_ratio_clamp=grpo.log_ratio_clamp,
            kl_estimator=grpo.kl_estimator,
            kl_in=grpo.kl_in,
            sampler_correction=grpo.sampler_correction,
            sampler_correction_cap=grpo.sampler_correction_cap,
            entropy_coef=grpo.entropy_coef,
            top_entropy_quantile=grpo.top_entropy_quantile,
        )

    @property
    def advantages(self) -> AdvantageParams:
        """How rewards are compared, with the loss type's own choice for each "auto"."""
        grpo, kind = self.grpo, objective.LOSS_TYPES[self.grpo.loss_type]
        return AdvantageParams(
            advantage_estimator=objective.or_default(grpo.advantage_estimator, kind.advantage_estimator),
            scale_rewards=objective.or_default(grpo.scale_rewards, kind.scale_rewards),
            std_floor=grpo.std_floor,
            multi_objective_aggregation=grpo.multi_objective_aggregation,
            shaping=RewardShaping(self.reward.reward_scale, self.reward.reward_bias, self.reward.reward_clip),
        )

    @property
    def supervised_dir(self) -> str:
        """The folder of the supervised run."""
        return self.sft.output_dir or f"{self.output_dir.rstrip('/')}_sft"

    def supervised(self, num_updates: int) -> Settings:
        """The settings of the supervised run: one update a step, at its own rate, into its own folder."""
        optimizer = dataclasses.replace(
            self.optimizer,
            learning_rate=self.sft.learning_rate,
            lr_scheduler_type=self.sft.lr_scheduler_type,
            warmup_steps=self.sft.warmup_steps,
        )
        return dataclasses.replace(
            self,
            output_dir=self.supervised_dir,
            max_steps=num_updates,
            optimizer=optimizer,
            grpo=dataclasses.replace(self.grpo, num_iterations=1, num_minibatches=1),
        )

    @property
    def evaluation_data(self) -> DataParams:
        """The evaluation's problems, asked as the training problems are; load them with held_out=True.

        Fields are those of the evaluation's task where it names another one. Of a training mixture whose tasks are
        asked differently, each evaluation task is asked as it is by itself.
        """
        looked = self.evaluation
        fields = {} if looked.task in ("", self.data.task) else dict.fromkeys(FIELDS, "")
        return dataclasses.replace(
            self.data,
            task=looked.task or self.data.task,
            dataset=looked.dataset,
            name=looked.name,
            split=looked.split,
            template=self.data.template or tasks.template_of(self.data.task),
            max_problems=looked.max_problems,
            streaming_rows=0,
            **fields,
        )

    @property
    def rewards(self) -> tuple[str, str]:
        """`reward_funcs` and `reward_weights`, those of the task where the config names none."""
        funcs, weights = self.reward.reward_funcs, self.reward.reward_weights
        if funcs:
            return funcs, weights
        theirs, their_weights = tasks.rewards_of(self.data.task)
        return theirs, weights or their_weights


SECTIONS: dict[str, type] = {
    "model": ModelParams,
    "lora": LoraParams,
    "mesh": MeshParams,
    "distributed": DistributedParams,
    "data": DataParams,
    "rollout": RolloutParams,
    "reward": RewardParams,
    "grpo": GRPOParams,
    "optimizer": OptimizerParams,
    "sft": SFTParams,
    "checkpoint": CheckpointParams,
    "evaluation": EvaluationParams,
    "alarms": AlarmParams,
    "telling": TellingParams,
}


def read(config: dict[str, Any]) -> Settings:
    """Typed settings from a resolved config; sections must have exactly the fields of their class.

    Raises: ValueError for a field too many or too few, as a config file that unlocks its config may have.
    """
    _check_fields("config", config, Settings)
    for name, section in SECTIONS.items():
        _check_fields(f"config.{name}", config[name], section)
    values = {name: SECTIONS[name](**value) if name in SECTIONS else value for name, value in config.items()}
    return Settings(**values)


def _check_fields(name: str, values: Any, params: type) -> None:
    needed = {field.name for field in dataclasses.fields(params)}
    if not isinstance(values, dict):
        raise ValueError(f"{name} is {values!r}; it must be a section with the fields {sorted(needed)}.")
    if unknown := sorted(set(values) - needed):
        raise ValueError(f"{name} has no field {unknown[0]!r}; configs/base.py has every field.")
    if missing := sorted(needed - set(values)):
        raise ValueError(f"{name} lacks the field {missing[0]!r}; begin with configs/base.py.")
