"""Reading `config.json`: both spellings, what is refused, and rotary frequencies worked by hand."""

from __future__ import annotations

import dataclasses
import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from grpo_jax.models import hf_table, layers, qwen, registry, shapes, spec
from grpo_jax.models.spec import ModelSpec
from tests.models.small_models import CONFIGS

PLAIN = ModelSpec(
    family="qwen2",
    vocab_size=10,
    hidden_size=8,
    intermediate_size=8,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=8,
    max_position_embeddings=4096,
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
)
YARN = dataclasses.replace(
    PLAIN, rope_type="yarn", rope_settings=(("factor", 4.0), ("original_max_position_embeddings", 1024.0))
)


def write_config(folder, config) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def test_plain_frequencies_fall_by_equal_factors():
    # theta^(-2i/H) for H = 8: 10000^0, 10000^-0.25, 10000^-0.5, 10000^-0.75
    np.testing.assert_allclose(spec.rope_inverse_frequencies(PLAIN), [1.0, 0.1, 0.01, 0.001], rtol=1e-6)
    assert spec.rope_attention_factor(PLAIN) == 1.0


def test_linear_scaling_divides_every_frequency():
    linear = dataclasses.replace(PLAIN, rope_type="linear", rope_settings=(("factor", 4.0),))
    np.testing.assert_allclose(
        spec.rope_inverse_frequencies(linear), [0.25, 0.025, 0.0025, 0.00025], rtol=1e-6
    )
    assert spec.rope_attention_factor(linear) == 1.0


def test_yarn_keeps_fast_pairs_and_stretches_slow_ones():
    # The pair that turns n times over 1024 positions: 8 ln(1024 / (2 pi n)) / (2 ln 10000).
    # n = 32: 0.707, down to 0.   n = 1: 2.21, up to 3.   So pairs 0..3 keep 1, 2/3, 1/3 and 0 of themselves;
    # the rest of each is its quarter: 0.1 (2/3 + 1/12) = 0.075, 0.01 (1/3 + 1/6) = 0.005, 0.001 / 4.
    np.testing.assert_allclose(spec.rope_inverse_frequencies(YARN), [1.0, 0.075, 0.005, 0.00025], rtol=1e-6)
    assert spec.rope_attention_factor(YARN) == pytest.approx(0.1 * math.log(4) + 1)  # 1.13863


def test_yarn_settings_are_used():
    settings = (*YARN.rope_settings, ("attention_factor", 1.5), ("beta_fast", 4.0), ("beta_slow", 2.0))
    yarn = dataclasses.replace(YARN, rope_settings=settings)
    # n = 4: 8 ln(1024 / 25.13) / 18.42 = 1.61, down to 1.   n = 2: 1.91, up to 2.   Pairs 0, 1 stay; 2, 3 are quarters.
    np.testing.assert_allclose(spec.rope_inverse_frequencies(yarn), [1.0, 0.1, 0.0025, 0.00025], rtol=1e-6)
    assert spec.rope_attention_factor(yarn) == 1.5


def test_rotation_turns_the_pair_of_i_and_half_plus_i():
    four = dataclasses.replace(PLAIN, head_dim=4, rope_theta=100.0)  # frequencies 1 and 0.1
    cos_BTH, sin_BTH = layers.rope_tables(jnp.array([[0, 3]]), four)
    x_BTH = jnp.array([[[1.0, 2.0, 0.0, 0.0], [1.0, 2.0, 0.0, 0.0]]])
    turned_BTH = layers.rotate(x_BTH, cos_BTH, sin_BTH)
    np.testing.assert_array_equal(turned_BTH[0, 0], x_BTH[0, 0])  # position 0 does not turn
    expected = [math.cos(3), 2 * math.cos(0.3), math.sin(3), 2 * math.sin(0.3)]
    np.testing.assert_allclose(turned_BTH[0, 1], expected, rtol=1e-6)


def test_yarn_scales_cosines_and_sines():
    cos_BTH, sin_BTH = layers.rope_tables(jnp.array([[0]]), YARN)
    np.testing.assert_allclose(cos_BTH, np.full((1, 1, 4), 1.138629), rtol=1e-6)
    np.testing.assert_array_equal(sin_BTH, np.zeros((1, 1, 4)))


def test_both_spellings_of_a_config_read_alike():
    old = {**CONFIGS["qwen2.5-yarn"]}
    new = {name: value for name, value in old.items() if name not in ("rope_scaling", "rope_theta")}
    new["rope_parameters"] = {
        "rope_type": "yarn",
        "rope_theta": 1000000.0,
        "factor": 4.0,
        "original_max_position_embeddings": 1024,
        "attention_factor": None,  # as some writers leave what has its default
    }
    new["layer_types"] = ["full_attention"] * 2
    new["sliding_window"] = None
    assert qwen.read_qwen2(old) == qwen.read_qwen2(new)
    assert qwen.read_qwen2(old).rope_type == "yarn"
    assert qwen.read_qwen2(old).rope_theta == 1e6


def test_a_spec_has_the_sizes_of_its_config(tmp_path):
    write_config(tmp_path, CONFIGS["qwen3"])
    read = registry.read_spec(tmp_path)
    assert read == ModelSpec(
        family="qwen3",
        vocab_size=300,
        hidden_size=32,
        intermediate_size=48,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        rms_norm_eps=1e-6,
        rope_theta=1e6,
        tie_word_embeddings=True,
        qk_norm=True,
    )
    assert read.queries_per_kv == 2


def test_what_a_config_leaves_out_is_what_transformers_takes():
    small = {**CONFIGS["qwen2"]}
    for name in (
        "rms_norm_eps",
        "max_position_embeddings",
        "tie_word_embeddings",
        "rope_theta",
        "num_key_value_heads",
    ):
        del small[name]
    read = qwen.read_qwen2(small)
    assert (read.rms_norm_eps, read.max_position_embeddings, read.rope_theta) == (1e-6, 32768, 10000.0)
    assert (read.num_kv_heads, read.head_dim, read.tie_word_embeddings) == (4, 8, False)
    without_head_dim = {name: value for name, value in CONFIGS["qwen3"].items() if name != "head_dim"}
    assert qwen.read_qwen3(without_head_dim).head_dim == 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_sliding_window": True}, r"not computed here: \{'use_sliding_window': True\}"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "not computed here.*sliding_attention"),
        ({"hidden_act": "gelu"}, r"not computed here: \{'hidden_act': 'gelu'\}"),
        ({"attention_dropout": 0.1}, "not computed here.*attention_dropout"),
        ({"attention_bias": True}, "not computed here.*attention_bias"),
        ({"use_mrope": True}, "not computed here.*use_mrope"),
        (
            {"quantization_config": {"quant_method": "awq"}},
            r"quantization_config \(awq\): only weights that are not",
        ),
        ({"wings": 2, "num_experts": 8}, r"does not know: \['num_experts', 'wings'\]"),
        (
            {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
            "rope scaling 'dynamic'.*known are.*yarn",
        ),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [1, 2]}}, "rope scaling 'mrope'"),
        (
            {"rope_scaling": {"rope_type": "yarn", "factor": 2.0, "truncate": False}},
            r"unknown settings \['truncate'\]",
        ),
        ({"rope_scaling": {"rope_type": "linear"}}, "without its 'factor'"),
        ({"num_key_value_heads": 3}, "4 attention heads, no multiple of its 3"),
    ],
)
def test_a_setting_that_is_not_computed_is_refused(tmp_path, change, message):
    write_config(tmp_path, {**CONFIGS["qwen2"], **change})
    with pytest.raises(ValueError, match=message) as caught:
        registry.read_spec(tmp_path)
    assert str(tmp_path) in str(caught.value)  # which folder
    assert "\n" not in str(caught.value)


def test_missing_sizes_are_named(tmp_path):
    config = {**CONFIGS["qwen2"]}
    del config["hidden_size"], config["vocab_size"]
    write_config(tmp_path, config)
    with pytest.raises(ValueError, match=r"lacks \['hidden_size', 'vocab_size'\]"):
        registry.read_spec(tmp_path)


def test_an_unknown_family_is_refused_with_the_known_ones(tmp_path):
    write_config(tmp_path, {**CONFIGS["qwen2"], "model_type": "llama"})
    with pytest.raises(ValueError, match=r"model_type 'llama'; known are \['qwen2', 'qwen3'\]"):
        registry.read_spec(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is no JSON"), ("[1]", "holds a list, not a JSON object")]
)
def test_a_config_that_is_no_json_object_is_told(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        registry.read_spec(tmp_path)


def test_a_folder_without_config_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config.json is missing"):
        registry.read_spec(tmp_path)


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [  # as the published model folders count them
        ("qwen2.5-0.5b", 494_032_768),
        ("qwen2.5-1.5b", 1_543_714_304),
        ("qwen2.5-3b", 3_085_938_688),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen3-0.6b", 596_049_920),
        ("qwen3-1.7b", 1_720_574_976),
        ("qwen3-4b", 4_022_468_096),
        ("qwen3-8b", 8_190_735_360),
    ],
)
def test_real_shapes_have_the_published_number_of_parameters(name, num_parameters):
    read = registry.FAMILIES[shapes.SHAPES[name]["model_type"]](shapes.SHAPES[name])
    assert sum(math.prod(shape) for shape in hf_table.tensor_shapes(read).values()) == num_parameters
