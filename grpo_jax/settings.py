"""A config as typed sections, and every rule that crosses them, before anything heavy starts.

Enters: the nested dictionary of a resolved config. Leaves: `Settings`, one frozen dataclass a section, most
of them owned by the room they configure. Below this line nobody sees a config. Rules that a single value
can break are checked by the room that owns it; here are those that need several, and the error says which
numbers would do.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from grpo_jax import mesh as mesh_lib
from grpo_jax.data import DataParams
from grpo_jax.distributed import DistributedParams
from grpo_jax.evaluation import EvaluationParams
from grpo_jax.learning import advantages, objective, objective_checks
from grpo_jax.learning.advantages import AdvantageParams
from grpo_jax.learning.objective import LossParams
from grpo_jax.learning.train_state import MU_DTYPES, SCHEDULES, OptimizerParams
from grpo_jax.metrics import TellingParams
from grpo_jax.models.hf_weights import EXPORT_DTYPES
from grpo_jax.models.lora import BASE_FORMS, LoraParams
from grpo_jax.models.spec import ModelSpec
from grpo_jax.policy import ModelParams
from grpo_jax.sampling import token_choice
from grpo_jax.sampling.token_choice import TokenFilters


@dataclasses.dataclass(frozen=True)
class MeshParams:
    """Sizes of the mesh's axes; see `mesh.py`."""

    data: int  # -1: what fsdp and tensor leave
    fsdp: int
    tensor: int
    preset: str  # key of `mesh.PRESETS`; "": the sizes as given
    cpu_devices: int  # fake devices on a CPU; 0: by the model's size, see `run.cpu_devices`

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

    reward_funcs: str  # names or path/to/file.py:function, comma-separated
    reward_weights: str  # as many numbers; "" weighs all 1
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
    soft_punish_cache: int  # tokens; see `advantages.overlong_penalty`; 0: no penalty
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
    save_total_limit: int  # newest checkpoints kept
    export_dtype: str  # of final/: "auto" (as the model came), "float32", "bfloat16", "float16"
    export_shard_gb: float  # gigabytes of one weight file at most


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
    checkpoint: CheckpointParams
    evaluation: EvaluationParams
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
        )

    @property
    def evaluation_data(self) -> DataParams:
        """The evaluation's problems, rendered as the training problems are."""
        return dataclasses.replace(
            self.data,
            dataset=self.evaluation.dataset,
            name=self.evaluation.name,
            split=self.evaluation.split,
            max_problems=self.evaluation.max_problems,
        )


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
    "checkpoint": CheckpointParams,
    "evaluation": EvaluationParams,
    "telling": TellingParams,
}


def read(config: dict[str, Any]) -> Settings:
    """Typed settings from a resolved config; sections must have exactly the fields of their class."""
    values = {name: SECTIONS[name](**value) if name in SECTIONS else value for name, value in config.items()}
    return Settings(**values)


def check(settings: Settings, *, num_processes: int) -> None:
    """Raises ValueError for the first rule that is broken, with the numbers that would do."""
    _check_ranges(settings)
    _check_names(settings)
    objective_checks.check(settings.loss)
    _check_reference(settings)
    _check_rewards(settings)
    _check_lora(settings.lora)
    _check_rows(settings, num_processes=num_processes)


def check_model(settings: Settings, spec: ModelSpec, *, tensor: int) -> None:
    """Raises ValueError where lengths or the mesh do not fit the model.

    Args:
        tensor: size of the mesh's tensor axis.
    """
    prompt, completion = settings.data.max_prompt_length, settings.rollout.max_completion_length
    room = spec.max_position_embeddings
    if prompt + completion > room:
        raise ValueError(
            f"config.data.max_prompt_length {prompt} + config.rollout.max_completion_length {completion} = "
            f"{prompt + completion} tokens; the model has {room} positions. "
            f"Set {_shorter(prompt, completion, room)}."
        )
    for what, size in (("key/value heads", spec.num_kv_heads), ("MLP columns", spec.intermediate_size)):
        if size % tensor:
            raise ValueError(
                f"config.mesh.tensor is {tensor}, which does not divide the model's {size} {what}; "
                f"{_divisors(math.gcd(spec.num_kv_heads, spec.intermediate_size))} would do."
            )


def _check_ranges(settings: Settings) -> None:
    at_least = {
        "seed": (settings.seed, 0),
        "max_steps": (settings.max_steps, 1),
        "lora.r": (settings.lora.r, 0),
        "lora.lora_dropout": (settings.lora.lora_dropout, 0),
        "lora.learning_rate_ratio": (settings.lora.learning_rate_ratio, 0),
        "mesh.fsdp": (settings.mesh.fsdp, 1),
        "mesh.tensor": (settings.mesh.tensor, 1),
        "mesh.cpu_devices": (settings.mesh.cpu_devices, 0),
        "rollout.num_prompts": (settings.rollout.num_prompts, 1),
        "rollout.num_generations": (settings.rollout.num_generations, 2),
        "rollout.max_completion_length": (settings.rollout.max_completion_length, 1),
        "rollout.num_slots": (settings.rollout.num_slots, 0),
        "rollout.window": (settings.rollout.window, 0),
        "grpo.std_floor": (settings.grpo.std_floor, 0),
        "grpo.ref_model_sync_steps": (settings.grpo.ref_model_sync_steps, 0),
        "grpo.soft_punish_cache": (settings.grpo.soft_punish_cache, 0),
        "grpo.dynamic_sampling_max_rounds": (settings.grpo.dynamic_sampling_max_rounds, 0),
        "grpo.num_iterations": (settings.grpo.num_iterations, 1),
        "grpo.num_minibatches": (settings.grpo.num_minibatches, 1),
        "grpo.per_device_train_batch_size": (settings.grpo.per_device_train_batch_size, 1),
        "grpo.max_tokens_per_microbatch": (settings.grpo.max_tokens_per_microbatch, 0),
        "grpo.packing": (settings.grpo.packing, 0),
        "optimizer.learning_rate": (settings.optimizer.learning_rate, 0),
        "optimizer.warmup_steps": (settings.optimizer.warmup_steps, 0),
        "optimizer.weight_decay": (settings.optimizer.weight_decay, 0),
        "optimizer.max_grad_norm": (settings.optimizer.max_grad_norm, 0),
        "checkpoint.save_steps": (settings.checkpoint.save_steps, 0),
        "checkpoint.save_total_limit": (settings.checkpoint.save_total_limit, 1),
        "evaluation.eval_steps": (settings.evaluation.eval_steps, 0),
        "evaluation.num_generations": (settings.evaluation.num_generations, 1),
        "evaluation.temperature": (settings.evaluation.temperature, 0),
    }
    for name, (value, least) in at_least.items():
        if not value >= least:
            raise ValueError(f"config.{name} must be at least {least}; got {value}.")
    token_choice.check_temperature(settings.rollout.temperature)
    settings.rollout.filters  # noqa: B018 - building it checks what it consists of
    if settings.rollout.temperature == 0:
        raise ValueError(
            "config.rollout.temperature is 0: all completions of a group would be equal and teach nothing. Set 1.0."
        )
    if not settings.checkpoint.export_shard_gb > 0:
        raise ValueError(
            f"config.checkpoint.export_shard_gb must be above 0; got {settings.checkpoint.export_shard_gb}."
        )
    for name in ("adam_beta1", "adam_beta2"):
        if not 0 <= getattr(settings.optimizer, name) < 1:
            raise ValueError(
                f"config.optimizer.{name} must lie in [0, 1); got {getattr(settings.optimizer, name)}."
            )


def _check_names(settings: Settings) -> None:
    known = {
        "grpo.advantage_estimator": (settings.grpo.advantage_estimator, ("auto", *advantages.ESTIMATORS)),
        "grpo.scale_rewards": (settings.grpo.scale_rewards, ("auto", *advantages.SCALES)),
        "grpo.multi_objective_aggregation": (
            settings.grpo.multi_objective_aggregation,
            advantages.AGGREGATIONS,
        ),
        "optimizer.lr_scheduler_type": (settings.optimizer.lr_scheduler_type, SCHEDULES),
        "optimizer.mu_dtype": (settings.optimizer.mu_dtype, MU_DTYPES),
        "checkpoint.export_dtype": (settings.checkpoint.export_dtype, ("auto", *EXPORT_DTYPES)),
    }
    for name, (value, names) in known.items():
        if value not in names:
            raise ValueError(f"config.{name} is {value!r}; known are {sorted(names)}.")


def _check_reference(settings: Settings) -> None:
    if settings.grpo.ref_model_sync_steps and not settings.grpo.beta:
        raise ValueError(
            f"config.grpo.ref_model_sync_steps is {settings.grpo.ref_model_sync_steps}, but with config.grpo.beta 0 "
            "there is no reference to move; set 0."
        )
    if settings.grpo.ref_model_sync_steps and settings.lora.r:
        raise ValueError(
            "config.grpo.ref_model_sync_steps moves a reference that has weights of its own; with config.lora.r above "
            "0 it is the frozen base. Set config.grpo.ref_model_sync_steps=0."
        )
    if not 0 < settings.grpo.ref_model_mixup_alpha <= 1:
        raise ValueError(
            "config.grpo.ref_model_mixup_alpha must lie in (0, 1], where 1 takes the policy as it is; "
            f"got {settings.grpo.ref_model_mixup_alpha}."
        )


def _check_rewards(settings: Settings) -> None:
    """What is compared must not undo a field that shapes it."""
    cache, longest = settings.grpo.soft_punish_cache, settings.rollout.max_completion_length
    if cache > longest:
        raise ValueError(
            f"config.grpo.soft_punish_cache is {cache} tokens, more than config.rollout.max_completion_length "
            f"{longest}; set {longest} or fewer."
        )
    params = settings.advantages
    if params.scale_rewards == "none" and params.std_floor:
        raise ValueError(
            f"config.grpo.std_floor is {params.std_floor}, which does nothing where rewards are not scaled "
            "(config.grpo.scale_rewards 'none'); set 0."
        )
    if settings.grpo.dynamic_sampling_max_rounds and params.advantage_estimator in ("batch_mean", "none"):
        raise ValueError(
            "config.grpo.dynamic_sampling_max_rounds replaces groups of equal rewards, which do teach something "
            f"with config.grpo.advantage_estimator {params.advantage_estimator!r}; set 0."
        )
    if params.multi_objective_aggregation != "normalize_then_sum":
        return
    if (params.advantage_estimator, params.scale_rewards) != ("group_mean", "group"):
        raise ValueError(
            "config.grpo.multi_objective_aggregation 'normalize_then_sum' compares each reward in its group; "
            f"got config.grpo.advantage_estimator {params.advantage_estimator!r} and scale_rewards "
            f"{params.scale_rewards!r}. Set 'group_mean' and 'group'."
        )
    if settings.loss.penalises_reward:
        raise ValueError(
            "config.grpo.multi_objective_aggregation 'normalize_then_sum' would scale config.grpo.beta away "
            "from a KL in the reward; set config.grpo.kl_in 'loss'."
        )


def _check_lora(lora: LoraParams) -> None:
    lora.targets  # noqa: B018 - reading it checks the names
    if not lora.lora_alpha > 0:
        raise ValueError(f"config.lora.lora_alpha must be above 0; got {lora.lora_alpha}.")
    if not lora.lora_dropout < 1:
        raise ValueError(f"config.lora.lora_dropout must lie in [0, 1); got {lora.lora_dropout}.")
    if lora.base_dtype not in ("auto", *BASE_FORMS):
        raise ValueError(f"config.lora.base_dtype is {lora.base_dtype!r}; known are {['auto', *BASE_FORMS]}.")
    if lora.base_dtype != "auto" and not lora.r:
        raise ValueError(
            f"config.lora.base_dtype is {lora.base_dtype!r}, but with config.lora.r=0 nothing is frozen: "
            'every weight is trained, in float32. Set config.lora.r=16, or config.lora.base_dtype="auto".'
        )


def _check_rows(settings: Settings, *, num_processes: int) -> None:
    rollout, grpo = settings.rollout, settings.grpo
    if rollout.num_prompts % num_processes:
        raise ValueError(
            f"config.rollout.num_prompts is {rollout.num_prompts}, which {num_processes} processes cannot share; "
            f"set a multiple of {num_processes}."
        )
    if settings.rows // num_processes % grpo.num_minibatches:
        divisor = grpo.num_minibatches * num_processes
        raise ValueError(
            f"{rollout.num_prompts} prompts x {rollout.num_generations} generations = {settings.rows} rows do not "
            f"divide into config.grpo.num_minibatches {grpo.num_minibatches} of {num_processes} processes; "
            f"set config.rollout.num_prompts to a multiple of "
            f"{_smallest_prompts(rollout.num_generations, divisor, num_processes)}."
        )


def _shorter(prompt: int, completion: int, room: int) -> str:
    if prompt < room:
        return f"max_completion_length to at most {room - prompt}"
    if completion < room:
        return f"max_prompt_length to at most {room - completion}"
    return f"both to lengths that add up to at most {room}"


def _smallest_prompts(num_generations: int, divisor: int, num_processes: int) -> int:
    return next(
        prompts
        for prompts in range(num_processes, divisor * num_processes + 1, num_processes)
        if prompts * num_generations % divisor == 0
    )


def _divisors(number: int) -> list[int]:
    return [i for i in range(1, number + 1) if number % i == 0]
