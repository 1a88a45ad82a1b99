"""Every key of the reference's configs is read, known to change no number, or refused by name."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy
import yaml

from cm3jax.errors import UserError
from cm3jax.interop import chameleon_config, fields, hf_clip, taming_vqgan
from tests.interop import cases, foreign


def test_keys_are_read_harmless_or_refused():
    found = fields.select({"a": 1, "b": 2, "_c": 3, "d": None}, ["a"], {"b": "a reason"}, "it")
    assert found == {"a": 1}
    with pytest.raises(UserError, match="it has quantization_config="):
        fields.select({"quantization_config": {"bits": 4}}, ["a"], fields.TRANSFORMERS, "it")


def test_values_are_the_networks_or_refused():
    fields.require_values({"a": 1.0, "b": False}, {"a": (1,), "b": (False,), "c": (3,)}, "it")
    for wrong in (True, 2, "1", None, [1]):
        with pytest.raises(UserError, match="it has a="):
            fields.require_values({"a": wrong}, {"a": (1,)}, "it")


def test_what_transformers_writes_today_is_known():
    """All keys of its own defaults, as it saves them."""
    from transformers import ChameleonConfig, CLIPConfig, GenerationConfig

    case = cases.CASES["plain"].config
    written = ChameleonConfig(**case).to_dict() | {"model_type": "chameleon"}
    generation = dict.fromkeys(GenerationConfig._get_default_generation_params(), 1)
    model = chameleon_config.Foreign.read(written | generation, "it").decoder("it", "float32")
    assert model == chameleon_config.Foreign.read(case, "it").decoder("it", "float32")
    image = taming_vqgan.read_vqgan_config(written["vq_config"], "it")
    assert image == taming_vqgan.read_vqgan_config(cases.VQ, "it")
    written = CLIPConfig().to_dict()
    for name, kind in (
        ("text_config", hf_clip.TextTowerFields),
        ("vision_config", hf_clip.VisionTowerFields),
    ):
        read = {field.name for field in dataclasses.fields(kind)}
        usual = fields.select(written[name], read, hf_clip.TOWER, name)
        ours = dataclasses.asdict(kind())
        assert {key: ours[key] for key in usual} == usual


ROPE = {"rope_theta": 10000.0, "rope_type": "default"}


@pytest.mark.parametrize(
    "change",
    [
        {"rope_theta": 10000, "rope_scaling": None},
        {"rope_parameters": ROPE},
        {"rope_parameters": {"type": "default", "rope_theta": 10000}},
        {"rope_scaling": {"type": "default"}, "partial_rotary_factor": 1.0},
        {"hidden_act": "swish"},
        {"head_dim": 8, "attention_dropout": 0.1, "use_cache": False, "pad_token_id": 1},
        {"_name_or_path": "facebook/chameleon-7b", "surprise": None},
    ],
)
def test_spellings_of_one_chameleon(change):
    case = cases.CASES["plain"].config
    same = chameleon_config.Foreign.read(case | change, "it").decoder("it", "float32")
    assert same == chameleon_config.Foreign.read(case, "it").decoder("it", "float32")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        # The key that versions before 4.43 wrote.
        ({"rope_scaling": {"type": "linear", "factor": 8.0}}, "rope_scaling has factor=8.0"),
        ({"rope_scaling": {"type": "dynamic"}}, "rope_scaling has rope_type='dynamic'"),
        ({"rope_scaling": {"rope_type": "default", "type": "linear"}}, "has type='linear'"),
        ({"rope_parameters": ROPE | {"rope_theta": 5e5}}, "rope_parameters has rope_theta=500000"),
        ({"rope_parameters": ROPE | {"rope_type": "yarn"}}, "rope_type='yarn'"),
        ({"rope_parameters": {"full_attention": ROPE}}, "has full_attention="),
        ({"rope_theta": 5e5}, "rope_theta=500000.0"),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_type": "default"}}, "rope_theta=500000.0"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"rope_parameters": ROPE | {"partial_rotary_factor": 0.5}}, "partial_rotary_factor=0.5"),
        ({"head_dim": 16}, "head_dim=16"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"rms_norm_eps": 1e-6}, "rms_norm_eps=1e-06"),
        ({"mlp_bias": True}, "mlp_bias=True"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads="),
        ({"per_layer_config": {"0": {"hidden_act": "gelu"}}}, "has per_layer_config="),
        ({"quantization_config": {"bits": 4}}, "has quantization_config="),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000, which is not a size"),
        ({"num_attention_heads": 0}, "num_attention_heads=0, which is not a size"),
        ({"torch_dtype": "int8"}, "dtype='int8'"),
    ],
)
def test_other_chameleons_are_refused_by_the_key(change, match):
    with pytest.raises(UserError, match=match):
        chameleon_config.Foreign.read(cases.CASES["plain"].config | change, "it").decoder(
            "it", "float32"
        )


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"attn_type": "linear"}, "attn_type='linear'"),
        ({"double_latent": True}, "double_latent=True"),
        ({"out_channels": 1}, "out_channels=1"),
        ({"base_channels": 48}, "not a multiple of 32"),
        ({"num_res_blocks": 10**9}, "num_res_blocks"),
        ({"channel_multiplier": [1, 0]}, r"channel_multiplier=\(1, 0\)"),
        ({"hidden_act": "swish"}, "has hidden_act="),
    ],
)
def test_other_image_tokenizers_are_refused_by_the_key(change, match):
    with pytest.raises(UserError, match=match):
        taming_vqgan.read_vqgan_config(cases.VQ | change, "it")


def test_no_attention_is_written_as_transformers_reads_it():
    none = [
        taming_vqgan.read_vqgan_config(cases.VQ | {"attn_type": t}, "it") for t in ("none", None)
    ]
    assert none[0] == none[1] != taming_vqgan.read_vqgan_config(cases.VQ, "it")
    assert taming_vqgan.write_vqgan_config(none[0])["attn_type"] == "none"


def test_rope_and_towers_are_what_transformers_reads():
    """Its own config classes settle which of several keys wins."""
    from transformers import ChameleonConfig, CLIPConfig

    case = cases.CASES["plain"].config
    for same in ({"rope_parameters": ROPE}, {"rope_scaling": {"type": "default"}}, {}):
        rope = ChameleonConfig(**case | same).rope_parameters
        assert (rope["rope_type"], rope["rope_theta"]) == ("default", 10000)
    for other in ({"type": "linear", "factor": 8.0}, {"rope_type": "linear", "factor": 8.0}):
        rope = ChameleonConfig(**case, rope_scaling=other).rope_parameters
        assert (rope["rope_type"], rope["factor"]) == ("linear", 8.0)
    vision = {"hidden_size": 48}
    theirs = CLIPConfig(vision_config={"num_hidden_layers": 3}, vision_config_dict=vision)
    found = theirs.vision_config
    assert (found.hidden_size, found.num_hidden_layers) == (48, 12)


def _yaml(folder, params=(), ddconfig=(), **model):
    """taming's YAML with changes."""
    _, path = foreign.write_vqgan(folder / "in")
    values = yaml.safe_load(path.read_text())
    values["model"] |= model
    values["model"]["params"] |= dict(params)
    values["model"]["params"]["ddconfig"] |= dict(ddconfig)
    path.write_text(yaml.safe_dump(values))
    return path


def _read(path):
    return taming_vqgan.read_vqgan_config(taming_vqgan._settings(path), str(path))


def test_taming_s_own_keys_are_known(tmp_path):
    loss = {"target": "taming.modules.losses.vqperceptual.VQLPIPSWithDiscriminator", "params": {}}
    params = {"lossconfig": loss, "monitor": "val/rec_loss", "remap": None, "ckpt_path": "x.ckpt"}
    path = _yaml(
        tmp_path,
        params | {"sane_index_shape": True, "ignore_keys": [], "image_key": "image"},
        {"dropout": 0.1, "resamp_with_conv": True, "tanh_out": False},
        target="taming.models.vqgan.EMAVQ",
    )
    assert _read(path) == taming_vqgan.read_vqgan_config(cases.VQ, "it")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"params": {"remap": "data/used.npy"}}, "remap='data/used.npy'"),
        ({"params": {"use_ema": True}}, "use_ema=True"),
        ({"params": {"n_labels": 182}}, "has n_labels=182"),
        ({"ddconfig": {"tanh_out": True}}, "tanh_out=True"),
        ({"ddconfig": {"give_pre_end": True}}, "give_pre_end=True"),
        ({"ddconfig": {"resamp_with_conv": False}}, "resamp_with_conv=False"),
        ({"ddconfig": {"attn_type": "linear"}}, "attn_type='linear'"),
        ({"ddconfig": {"double_z": True}}, "double_latent=True"),
        ({"ddconfig": {"out_ch": 1}}, "out_channels=1"),
        ({"ddconfig": {"surprise": 1}}, "ddconfig has surprise=1"),
        ({"target": "taming.models.vqgan.GumbelVQ"}, "target='GumbelVQ'"),
        ({"target": 3}, "model.target: it is 3"),
    ],
)
def test_other_tamings_are_refused_by_the_key(tmp_path, changes, match):
    with pytest.raises(UserError, match=match):
        _read(_yaml(tmp_path, **changes))


def test_taming_s_defaults_are_its_own(tmp_path):
    path = _yaml(tmp_path)
    values = yaml.safe_load(path.read_text())
    del values["model"]["params"]["ddconfig"]["double_z"]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="double_latent=True"):  # there, doubled unless it says no
        _read(path)
    del values["model"]["params"]["ddconfig"]["ch"]
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match="ddconfig has no ch; give"):
        _read(path)


def test_codebooks_by_moving_averages_are_imported(tmp_path):
    """taming's EMAVQ stores two averages beside the entries that it looks up."""
    source, config = foreign.write_vqgan(tmp_path / "in")
    state = safetensors.numpy.load_file(source)
    entries = state["quantize.embedding.weight"]
    state["quantize.embedding.cluster_size"] = np.ones(len(entries), np.float32)
    state["quantize.embedding.embed_avg"] = entries * 2
    safetensors.numpy.save_file(state, source)
    report = taming_vqgan.convert(source, tmp_path / "out", config)
    left = [key.key for key in report if key.ours == "(a moving average of its training)"]
    assert left == ["quantize.embedding.cluster_size", "quantize.embedding.embed_avg"]


def _clip(folder, **change):
    source = foreign.write_clip(folder / "in", "patch-8")
    config = json.loads((source / "config.json").read_text())
    for name, value in change.items():
        both = isinstance(value, dict) and name in config
        config[name] = config[name] | value if both else value
    (source / "config.json").write_text(json.dumps(config))
    return source


def test_text_config_dict_goes_before_text_config(tmp_path):
    """As in transformers, with the defaults of what it leaves out."""
    text = cases.CLIPS["patch-8"]["text_config"]
    usual = hf_clip.read_clip_config(foreign.write_clip(tmp_path / "usual", "patch-8"))
    shadowed = _clip(tmp_path, text_config={"num_hidden_layers": 7}, text_config_dict=text)
    assert hf_clip.read_clip_config(shadowed) == usual
    vision = {"image_size": 24, "hidden_size": 48}
    (tmp_path / "bare").mkdir()
    found = hf_clip.read_clip_config(_clip(tmp_path / "bare", vision_config_dict=vision))
    assert (found.vision_width, found.vision_layers, found.vision_heads) == (48, 12, 12)
    (tmp_path / "other").mkdir()
    other = _clip(tmp_path / "other", vision_config_dict={"surprise": 1})
    with pytest.raises(UserError, match="vision_config_dict has surprise=1"):
        hf_clip.read_clip_config(other)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"text_config": {"eos_token_id": 3}}, "eos_token_id=3"),
        ({"text_config": {"layer_norm_eps": 1e-6}}, "text_config has layer_norm_eps=1e-06"),
        ({"vision_config": {"num_channels": 1}}, "vision_config has num_channels=1"),
        ({"vision_config": {"hidden_act": "gelu_new"}}, "hidden_act='gelu_new'"),
        ({"vision_config": {"num_attention_heads": 5}}, "does not divide"),
        ({"vision_config": {"patch_size": 0}}, "patch_size=0"),
        ({"text_config": {"quantization_config": 4}}, "has quantization_config=4"),
        ({"projection_dim": 0}, "projection_dim=0"),
        ({"surprise": 1}, "has surprise=1"),
    ],
)
def test_other_clips_are_refused_by_the_key(tmp_path, change, match):
    with pytest.raises(UserError, match=match):
        hf_clip.read_clip_config(_clip(tmp_path, **change))
