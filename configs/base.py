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
    config.model.remat = "none"  # backward pass recomputes: "none", "matmuls" (all but those), "full"

    config.mesh = ConfigDict()
    config.mesh.data = -1  # devices that share rows only; -1: what fsdp and tensor leave
    config.mesh.fsdp = 1  # devices that share rows and cut parameters and optimizer among them
    config.mesh.tensor = 1  # devices that cut heads, MLP and vocabulary; divides the key/value heads
    config.mesh.preset = ""  # "ddp", "zero2", "zero3", "tp" choose data and fsdp (tp: tensor); "": as above
    config.mesh.cpu_devices = 0  # fake devices on a CPU; 0: one a core

    config.distributed = ConfigDict()
    config.distributed.mode = "none"  # "none": one process; "auto": TPU pod or SLURM; "manual": as below
    config.distributed.coordinator_address = ""  # host:port of process 0
    config.distributed.num_processes = 1
    config.distributed.process_id = 0

    config.data = ConfigDict()
    config.data.dataset = ""  # hub id, a .jsonl/.json/.parquet/.csv file, or "embedded:word_problems"
    config.data.name = ""  # configuration of a hub data set
    config.data.split = "train"  # slices as in "train[:1000]"; a file has any split
    config.data.question_field = "question"
    config.data.answer_field = "answer"
    config.data.answer_pattern = ""  # regular expression whose one group is the gold, "" for all of it
    config.data.system_prompt = ""  # "" leaves it to the chat template
    config.data.prompt_template = "{question}"  # the user's turn
    config.data.assistant_prefill = ""  # given beginning of every answer, no part of the completion
    config.data.max_prompt_length = 512  # tokens; longer prompts are left out and counted
    config.data.max_problems = 0  # rows taken, 0: all
    config.data.shuffle_seed = -1  # which rows max_problems takes; -1: the first ones

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
    config.reward.reward_funcs = "accuracy,format"  # or path/to/file.py:function, comma-separated
    config.reward.reward_weights = "1.0,0.2"  # one number each, "" for 1.0 each
    config.reward.num_workers = 0  # judging processes; 0: one a core, at most 8
    config.reward.timeout_s = 10.0  # seconds a completion may take to judge
    config.reward.memory_mb = 2048  # MiB a judging process may take, 512 or more
    config.reward.shuffle_rewards = False  # negative control: rewards dealt to other rows

    config.grpo = ConfigDict()
    config.grpo.loss_type = "dapo"  # "grpo", "dr_grpo", "dapo", "bnpo": how tokens are weighted
    config.grpo.scale_rewards = "group"  # advantages over the deviation of "group", "batch", "none"
    config.grpo.epsilon = 0.2  # ratios are clipped below 1 - epsilon
    config.grpo.epsilon_high = 0.2  # and above 1 + epsilon_high; DAPO: 0.28
    config.grpo.beta = 0.0  # weight of the KL to the starting model; 0: no reference is kept
    config.grpo.num_iterations = 1  # passes over a rollout
    config.grpo.num_minibatches = 1  # updates a pass
    config.grpo.per_device_train_batch_size = 8  # rows of one backward pass on a device
    config.grpo.mask_truncated_completions = False  # True: completions that were cut teach nothing

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 1e-6
    config.optimizer.lr_scheduler_type = "constant"  # "constant", "linear", "cosine": to 0 at the end
    config.optimizer.warmup_steps = 0  # updates
    config.optimizer.adam_beta1 = 0.9
    config.optimizer.adam_beta2 = 0.999
    config.optimizer.adam_epsilon = 1e-8
    config.optimizer.weight_decay = 0.0  # on matrices
    config.optimizer.max_grad_norm = 1.0  # 0: no clipping

    config.checkpoint = ConfigDict()
    config.checkpoint.save_steps = 50  # steps; 0: only at the end
    config.checkpoint.save_total_limit = 2  # newest ones kept
    config.checkpoint.export_dtype = "auto"  # of final/: as the model came; "float32", "bfloat16", "float16"
    config.checkpoint.export_shard_gb = 4.0  # gigabytes a weight file

    config.evaluation = ConfigDict()
    config.evaluation.dataset = ""  # as data.dataset, rendered alike; "" evaluates nothing
    config.evaluation.name = ""
    config.evaluation.split = "test"
    config.evaluation.max_problems = 0  # rows taken, 0: all
    config.evaluation.eval_steps = 0  # steps; at the start and the end too. 0: only those two
    config.evaluation.num_generations = 1  # samples a problem
    config.evaluation.temperature = 0.0  # 0: the likeliest token always

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
