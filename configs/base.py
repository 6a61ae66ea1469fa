"""Every field there is, once, with its unit or range. Other configs start from this and say what differs.

Names are TRL's where TRL has one. A field is overridden on the command line as
`--config.optimizer.learning_rate=5e-6`. What a field does is written where it is read: the section's
dataclass in `grpo_jax/settings.py` or in the room it names.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of data order and sampling; 0 .. 2**31 - 1
    config.output_dir = "runs/base"  # checkpoints, metrics, report and the final model; made if missing
    config.max_steps = 100  # steps: one rollout and its updates each
    config.compilation_cache = ""  # folder that keeps compiled programs between runs, "" for none

    config.model = ConfigDict()
    config.model.path = ""  # Hugging Face folder, or hub id where a hub can be reached
    config.model.compute_dtype = "auto"  # "float32", "bfloat16"; auto: bfloat16 on accelerators
    config.model.remat = (
        "none"  # backward pass recomputes: "none", "matmuls" (all but those), "full"; "offload"
    )
    config.model.attention = "auto"  # of training: "xla", "splash" (TPU), "cudnn" (GPU, bfloat16)

    config.lora = ConfigDict()
    config.lora.r = 0  # rank of adapters beside frozen weights; 0: none, every weight is trained
    config.lora.lora_alpha = 32.0  # above 0; adapters' outputs are multiplied by lora_alpha / r
    config.lora.lora_dropout = 0.0  # [0, 1), of updates only; shows as a gap to the sampler, which has none
    config.lora.target_modules = "all-linear"  # or "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    config.lora.base_dtype = (
        "auto"  # frozen matrices: "float32", "bfloat16", "int8", "nf4"; auto: as computed
    )
    config.lora.learning_rate_ratio = 10.0  # with r above 0: the optimizer's rate is multiplied by this

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that share rows only; -1: what fsdp and tensor leave
    config.mesh.fsdp = 1  # devices that share rows and cut parameters and optimizer among them
    config.mesh.tensor = 1  # devices that cut heads, MLP and vocabulary; divides the key/value heads
    config.mesh.preset = ""  # "ddp", "zero2", "zero3", "tp" choose data and fsdp (tp: tensor); "": as above
    config.mesh.cpu_devices = 0  # fake devices on a CPU; 0: one a core for small models, one for larger ones

    config.distributed = ConfigDict()
    config.distributed.mode = (
        "none"  # "none": one process; "auto": environment or cluster; "manual": as below
    )
    config.distributed.coordinator_address = ""  # host:port of process 0
    config.distributed.num_processes = 1
    config.distributed.process_id = 0
    config.distributed.join_timeout_s = 300.0  # seconds to wait until all are there

    config.data = ConfigDict()
    config.data.task = (
        ""  # key of TASKS in grpo_jax/data/tasks.py, file.py:NAME, or a mixture such as "gsm8k=2,math=1"
    )
    # Of what follows, "" is what the task has; data of your own needs `dataset`, and fields if they differ.
    config.data.dataset = ""  # hub id, or a .jsonl/.json/.parquet/.csv file
    config.data.name = ""  # configuration of a hub data set
    config.data.split = ""  # slices as in "train[:1000]", "train[:30%]"; a file has any split
    config.data.question_field = ""
    config.data.answer_field = ""
    config.data.answer_pattern = ""  # regular expression whose one group is the gold
    config.data.solution_field = ""  # worked answers, for supervised training
    config.data.solution_pattern = ""  # regular expression whose one group is the worked answer
    config.data.extra_fields = ""  # comma-separated: fields that rewards of your own are given
    config.data.template = ""  # key of TEMPLATES in grpo_jax/data/templates.py
    config.data.system_prompt = ""  # and words of your own; "" is what the template has
    config.data.prompt_template = ""  # the user's turn, with {question} in it
    config.data.assistant_prefill = ""  # given beginning of every answer, no part of the completion
    config.data.enable_thinking = "auto"  # "on", "off": told to a chat template that knows it (Qwen3's)
    config.data.max_prompt_length = 512  # tokens; longer prompts are left out and counted
    config.data.max_problems = 0  # rows taken of each task, 0: all
    config.data.shuffle_seed = -1  # which rows max_problems takes; -1: the first ones
    config.data.streaming_rows = 0  # rows read and shuffled at once, for data larger than memory; 0: all

    config.rollout = ConfigDict()
    config.rollout.num_prompts = 8  # problems a step, over all processes
    config.rollout.num_generations = 8  # completions a problem, 2 or more
    config.rollout.max_completion_length = 512  # tokens, the end token counted
    config.rollout.temperature = 1.0  # above 0
    config.rollout.top_k = 0  # 0: all
    config.rollout.top_p = 1.0  # (0, 1]
    config.rollout.min_p = 0.0  # [0, 1]
    config.rollout.min_completion_length = 0  # tokens; no end token before so many
    config.rollout.banned_ids = ()  # token ids that are never sampled
    config.rollout.stop_strings = ()  # a completion ends at the first of these texts
    config.rollout.keep_stop_strings = True  # False: the judge does not see the stop string and what follows
    config.rollout.num_slots = 0  # completions decoded at once, over all devices; 0: as many as fit and help
    config.rollout.window = 0  # decode steps between two looks of the host; 0: by max_completion_length
    config.rollout.attention = "auto"  # over the cache: "xla", "pallas_tpu", "pallas_gpu"
    config.rollout.sampling_weights = "compute"  # "int8": smaller, faster to read, not what is trained

    config.reward = ConfigDict()
    # Keys of REWARDS in grpo_jax/rewards/registry.py, path/to/file.py:function or module:function, comma-separated;
    # options behind a name: name(option=1.0). What a function may be: the head of grpo_jax/rewards/grade.py
    config.reward.reward_funcs = ""  # "": the task's
    config.reward.reward_weights = ""  # one number each; "": the task's, and 1.0 each for what is named here
    config.reward.reward_scale = 1.0  # above 0; a reward is (weighted sum + reward_bias) * reward_scale
    config.reward.reward_bias = 0.0
    config.reward.reward_clip = 0.0  # the result is cut at +- this; 0: it is not
    config.reward.num_workers = 0  # judging processes; 0: one a core, at most 8
    config.reward.timeout_s = 10.0  # seconds that judging a completion, or a group, may take
    config.reward.memory_mb = 2048  # MiB a judging process may take, 512 or more
    config.reward.shuffle_rewards = False  # negative control: rewards dealt to other rows

    config.grpo = ConfigDict()
    config.grpo.loss_type = "dapo"  # key of LOSS_TYPES in grpo_jax/learning/objective.py
    config.grpo.aggregation = "auto"  # or a key of AGGREGATIONS in learning/losses.py; auto: by loss_type, as
    config.grpo.importance_sampling_level = "auto"  # "token", "sequence", "sequence_token"
    config.grpo.advantage_estimator = "auto"  # "group_mean", "leave_one_out", "batch_mean", "none"
    config.grpo.scale_rewards = "auto"  # advantages over the deviation of "group", "batch", or "none"
    config.grpo.std_floor = 0.0  # deviations of rewards below this count as this
    config.grpo.multi_objective_aggregation = "sum_then_normalize"  # "normalize_then_sum": GDPO
    config.grpo.epsilon = 0.2  # ratios are limited below 1 - epsilon; gspo: 3e-4
    config.grpo.epsilon_high = 0.2  # and above 1 + epsilon_high; DAPO: 0.28, gspo: 4e-4, cispo: 4.0
    config.grpo.delta = (
        0.0  # limit of the ratio where the advantage is negative, above 1 + epsilon_high; 0: none
    )
    config.grpo.sapo_temperature_pos = 1.0  # of sapo's gate, above 0, where the advantage is positive
    config.grpo.sapo_temperature_neg = 1.05  # and where it is not
    config.grpo.log_ratio_clamp = 20.0  # log-ratios above count as this before exp; at most 80, 0: none do
    config.grpo.beta = 0.0  # weight of the KL to the starting model; 0: no reference is kept
    config.grpo.kl_estimator = "k3"  # "k1" (in the reward), "k2", "k3", "k3_unbiased" (in the loss)
    config.grpo.kl_in = "auto"  # "loss", "reward"; auto: by loss_type
    config.grpo.ref_model_sync_steps = (
        0  # steps between two moves of the reference to the policy; 0: it stays
    )
    config.grpo.ref_model_mixup_alpha = 0.6  # (0, 1]: the policy's share in such a move
    config.grpo.sampler_correction = (
        "none"  # "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"
    )
    config.grpo.sampler_correction_cap = 3.0  # of the weight exp(old - sampler), above 0
    config.grpo.entropy_coef = 0.0  # weight of the entropy bonus, 0 or more
    config.grpo.top_entropy_quantile = 1.0  # (0, 1]: share of the tokens, of highest entropy, that is trained
    config.grpo.dynamic_sampling_max_rounds = (
        0  # more rounds of sampling, in place of groups of equal rewards
    )
    config.grpo.num_iterations = 1  # passes over a rollout
    config.grpo.num_minibatches = 1  # updates a pass
    config.grpo.per_device_train_batch_size = 8  # longest completions of one backward pass on a device
    config.grpo.max_tokens_per_microbatch = 0  # tokens of one backward pass on a device; 0: by the rows above
    config.grpo.packing = 1  # longest completions that a line of packed ones has room for; 0: a line each
    config.grpo.share_prompts = True  # a group's prompt is read once a backward pass, not with every row
    config.grpo.mask_truncated_completions = False  # True: completions that were cut teach nothing

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-6  # of full fine-tuning; see lora.learning_rate_ratio
    config.optimizer.lr_scheduler_type = "constant"  # "constant", "linear", "cosine": to 0 at the end
    config.optimizer.warmup_steps = 0  # updates
    config.optimizer.adam_beta1 = 0.9
    config.optimizer.adam_beta2 = 0.999
    config.optimizer.adam_epsilon = 1e-8
    config.optimizer.weight_decay = 0.0  # on matrices
    config.optimizer.max_grad_norm = 1.0  # 0: no clipping
    config.optimizer.mu_dtype = "float32"  # of first moments; "bfloat16" saves two bytes a parameter

    config.sft = ConfigDict()  # of tools/sft.py; model, data, mesh, LoRA and the rest are the sections above
    config.sft.num_train_epochs = 1.0  # above 0: passes over the worked answers, where max_steps is 0
    config.sft.max_steps = 0  # updates; 0: by num_train_epochs
    config.sft.num_rows = 64  # worked answers an update, over all processes
    config.sft.learning_rate = 1e-5  # of full fine-tuning; see lora.learning_rate_ratio
    config.sft.lr_scheduler_type = "cosine"  # "constant", "linear", "cosine": to 0 at the end
    config.sft.warmup_steps = 0  # updates
    config.sft.packing = (
        1  # longest rows, prompt and response, that a packed line has room for; 0: a line each
    )
    config.sft.per_device_train_batch_size = 8  # longest rows of one backward pass on a device
    config.sft.max_response_length = (
        1024  # tokens, the end token counted; longer ones are left out and counted
    )
    config.sft.validation_problems = 0  # at the end of the training source, for the validation loss; 0: none
    config.sft.eval_steps = 0  # updates between validation losses; at the start and the end too
    config.sft.save_steps = 0  # updates between checkpoints; 0: only at the end
    config.sft.output_dir = ""  # "": config.output_dir with "_sft" behind it

    config.checkpoint = ConfigDict()
    config.checkpoint.save_steps = 50  # steps; 0: only at the end
    config.checkpoint.save_seconds = 0.0  # also when so many seconds have passed since the last; 0: never
    config.checkpoint.save_total_limit = 2  # newest ones kept
    config.checkpoint.keep_every_steps = 0  # also those of every so many steps; 0: none
    config.checkpoint.metric_for_best_model = (
        ""  # also the best by a number of the evaluation: "eval/accuracy"
    )
    config.checkpoint.greater_is_better = True  # False: the smallest is the best
    config.checkpoint.resume = "auto"  # go on if there is a checkpoint; "must": or end; "never": a new folder
    config.checkpoint.resume_step = -1  # step to go on after; newer ones are moved aside. -1: the newest
    config.checkpoint.accept_changes = (
        ""  # what may differ when a run goes on: "optimizer.learning_rate,rollout.top_k", "data"
    )
    config.checkpoint.grace_seconds = (
        25.0  # above 0: from a signal that stops the run to its end at the latest
    )
    config.checkpoint.preemption_notice = "none"  # "gce", "aws": asked of the machine's metadata server
    config.checkpoint.export_dtype = "auto"  # of final/: as the model came; "float32", "bfloat16", "float16"
    config.checkpoint.export_shard_gb = 4.0  # gigabytes a weight file

    config.evaluation = ConfigDict()
    config.evaluation.task = ""  # as data.task, without weights; "": data.task, with a dataset of its own
    config.evaluation.dataset = ""  # as data.dataset, asked alike; "" with task "" evaluates nothing
    config.evaluation.name = ""
    config.evaluation.split = ""  # "": what the task keeps for evaluation
    config.evaluation.overlap = "auto"  # training problems among them: "refuse", "warn", "drop" those
    config.evaluation.max_problems = 0  # rows taken, 0: all
    config.evaluation.eval_steps = 0  # steps; at the start and the end too. 0: only those two
    config.evaluation.num_generations = 1  # samples a problem
    config.evaluation.temperature = 0.0  # 0: the likeliest token always

    config.alarms = ConfigDict()  # what a run watches; each "warn", "stop" (exit status 4) or "roll_back"
    config.alarms.non_finite = "stop"  # or "roll_back": loss or gradient norm not finite
    config.alarms.zero_reward = "warn"  # no completion was right or earned anything
    config.alarms.zero_reward_steps = 50  # steps in a row; 0: off
    config.alarms.no_signal = "warn"  # no group had rewards that differ
    config.alarms.no_signal_steps = 20  # steps in a row; 0: off
    config.alarms.kl = "warn"  # mean KL to the reference, where it is a term of the loss, above
    config.alarms.kl_limit = 2.0  # nats a token; 0: off
    config.alarms.entropy = "warn"  # mean entropy below
    config.alarms.entropy_limit = 0.0  # nats a token, 0 or more; 0: off
    config.alarms.entropy_share = 0.05  # [0, 1): or this share of its first steps' mean; 0: off
    config.alarms.length = "warn"  # mean completion length above
    config.alarms.length_factor = 4.0  # times its first steps' mean, above 1; 0: off
    config.alarms.clipped = "warn"  # share of completions that were cut
    config.alarms.clipped_limit = 0.9  # [0, 1): above this
    config.alarms.clipped_steps = 20  # steps in a row; 0: off
    config.alarms.gap = "warn"  # a token's log-probability, sampled and trained, differs by more than
    config.alarms.gap_limit = -1.0  # nats; -1: 1e-3 in float32 on a CPU, 5 with coarser numbers; 0: off
    config.alarms.first_steps = 10  # how many "first steps" are, 1 or more
    config.alarms.max_roll_backs = 3  # of a whole run; the next alarm stops it

    config.telling = ConfigDict()
    config.telling.completions_every_steps = 5  # steps between two tables of samples; 0: none
    config.telling.num_completions_to_print = 3  # samples a table, 1 or more
    config.telling.max_characters = 600  # longer questions and completions are cut in the tables
    config.telling.tensorboard = True  # scalars in OUTPUT_DIR/tensorboard
    config.telling.wandb = "disabled"  # "online" (key from WANDB_API_KEY), "offline"
    config.telling.trackio = False
    config.telling.project = "grpo_jax"  # the project's name in wandb and trackio
    config.telling.run_name = ""  # the run's name there, "" for the folder's
    return config.lock()  # a field that is not here cannot be set: see a misspelt one at once
