"""The one list of records that are not compared, each with its reason."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Exclusion:
    """Records that are not compared.

    Attributes:
        files, records: regular expressions of the file and of the record in it, both matched whole.
        reason: why.
        given: the records are arguments of a run whose results are compared. Each must have been read by a test.
    """

    files: str
    records: str
    reason: str
    given: bool = False


_ARGUMENT = "argument of a run whose results are compared"
_INPUT = "random input of a module whose output is compared"
_NOMINAL = "not read by the reference, or without effect on what it computes"
_LOADER = "row sampling of the reference's data sets, which belongs to a trainer; the plans it gave are compared"
_ROUNDING = "zero in exact arithmetic: only rounding noise is recorded, which AdamW turns into whole steps"

_RUN_ARGUMENTS = (
    "seed|prompt|prompts/.+|image|images/.+|image_hw/.+|image_shapes/.+|inputs/.+|sizes/.+|ops/.+|noise_stored_under|"
    "num_timesteps|timestep_shift|cfg_text_scale|cfg_img_scale|cfg_interval/.+|cfg_renorm_type|cfg_renorm_min|"
    "max_length|max_think_token_n|do_sample|think|understanding_output|temperature|end_token_id"
)
_PLAN = "enable_cfg|frame_delta|loss|special_token_label|special_token_loss|split_end|split_start|text|type"
_LLM_NOMINAL = (
    "architectures/.+|bos_token_id|eos_token_id|initializer_range|layer_module|max_window_layers|model_type|"
    "sliding_window|torch_dtype|use_cache|use_sliding_window"
)

EXCLUSIONS = (
    Exclusion("tolerance.json", ".*", "errors of the reference against itself in float64"),
    Exclusion("infer.json", "/versions/.+", "libraries the fixtures were recorded with"),
    Exclusion("infer.json", ".*note", "prose"),
    Exclusion("train.json", "/forward/loss_formula", "prose"),
    Exclusion("(infer|train).json", "/seed", "the reference's starting point for the seeds of the runs"),
    Exclusion("ckpt/llm_config.json", f"/({_LLM_NOMINAL})", _NOMINAL),
    Exclusion("ckpt/vit_config.json", "/(image_size|model_type)", _NOMINAL),
    Exclusion("ckpt/ae_params.json", "/resolution", _NOMINAL),
    Exclusion("ckpt/config.json", f"/llm_config/({_LLM_NOMINAL})", _NOMINAL),
    Exclusion("ckpt/config.json", "/(vit_config/(image_size|model_type)|vae_config/resolution)", _NOMINAL),
    Exclusion("ckpt/config.json", "/(model_type|visual_und)", _NOMINAL),
    Exclusion("infer.json", "/config/(ae/resolution|vit/image_size)", _NOMINAL),
    Exclusion(
        "ckpt/(vit_)?config.json",
        "(/vit_config)?/num_hidden_layers",
        "one more than the weights have; the true number is compared in infer.json",
    ),
    Exclusion("train.json", "/[^/]+/(batch_data_indexes|dropout_text_vit_vae)/.+", _LOADER),
    Exclusion("train.json", "/concat_instruction/[0-9]+/python_random_and_numpy_seed", _LOADER),
    Exclusion("train.json", "/rows/vlm/[0-9]+/(id|conversations/.+)", _LOADER),
    Exclusion(
        "train.json",
        "/forward/flex_attention_max_abs_diff/.+",
        "the reference's two attention kernels against each other",
    ),
    Exclusion(
        "train.json",
        r"/(forward/grad_norms|grad_norms_\w+|optimizer/\w+_norm_after)/vit_model\..+\.self_attn\.k_proj\.bias",
        _ROUNDING,
    ),
    Exclusion("train.safetensors", r"(grad|opt\.\w+)\.vit_model\..+\.self_attn\.k_proj\.bias", _ROUNDING),
    Exclusion("components.safetensors", r"mlp\.x|vit\.x|rope\.position_ids|time_embedder\.t", _INPUT, given=True),
    Exclusion("vae.safetensors", r"rand\.latent", _INPUT, given=True),
    Exclusion("infer.json", "/prompts/.+", "ids of the prompts by name: arguments of whichever runs name them"),
    Exclusion("infer.json", "/(vae_transform|vit_transform)/.+", _ARGUMENT, given=True),
    Exclusion("infer.json", "/images/[0-9]+/file|/vae/seeds/.+|/system_prompts/.+/ids_key", _ARGUMENT, given=True),
    Exclusion("infer.json", f"/(t2i|edit|think|und)/[^/]+(/[^/]+)?/({_RUN_ARGUMENTS})", _ARGUMENT, given=True),
    Exclusion("sizes.json", "/columns/.+|/resize/[^/]+/(min_size|max_size|stride|max_pixels)", _ARGUMENT, given=True),
    Exclusion("sizes.json", "/resize/[^/]+/rows/[0-9]+/[0-9]+", _ARGUMENT, given=True),
    Exclusion("sizes.json", "/position_ids/[0-9]+/(h|w|patch|max_per_side)", _ARGUMENT, given=True),
    Exclusion("train.json", "/(vae_transform|vit_transform)/.+|/rows/.+", _ARGUMENT, given=True),
    Exclusion("train.json", f".*/sequence_plan/[0-9]+/({_PLAN})|.*/dataset", _ARGUMENT, given=True),
    Exclusion("train.json", "/[^/]+/(text_ids_list|vae_chw|vit_chw)/.+", _ARGUMENT, given=True),
    Exclusion("train.json", ".*/(seed|numpy_seed|python_random_and_numpy_seed|max_num_tokens)", _ARGUMENT, given=True),
    Exclusion("train.json", "/forward/timestep_shift", _ARGUMENT, given=True),
    Exclusion(
        "train.json", "/optimizer/(kind|lr|betas/.+|eps|weight_decay|clip_grad_norm|ema_decay)", _ARGUMENT, given=True
    ),
)
