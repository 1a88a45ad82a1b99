import dataclasses
import typing

import pytest

from cm3jax.config import DecodeConfig
from cm3jax.config.decoding import AUTO
from cm3jax.errors import UserError
from cm3jax.generation.options import Sampling, SamplingOptions


def test_every_setting_is_a_keyword():
    own = {field.name for field in dataclasses.fields(Sampling)}
    hints = typing.get_type_hints(SamplingOptions)
    settings = typing.get_type_hints(DecodeConfig)
    settings["speculate"] |= typing.Literal["auto"]  # -1 in a config
    assert hints.keys() == own | settings.keys()
    assert {name: hints[name] for name in settings} == settings


def test_keywords_go_before_the_config_and_this_before_the_run_s():
    usual, given = DecodeConfig(top_k=5, temperature=0.1), DecodeConfig(top_k=7)
    assert Sampling.of({}, usual) == Sampling(decode=usual)
    assert Sampling.of({"decode": None, "seed": 3}, usual) == Sampling(seed=3, decode=usual)
    found = Sampling.of({"temperature": 0.8, "samples": 2}, usual)
    assert found == Sampling(2, decode=DecodeConfig(top_k=5, temperature=0.8))
    ranged = DecodeConfig(temperature_range=(1.0, 2.0))
    assert Sampling.of({"temperature": 0.8}, ranged).decode == DecodeConfig(temperature=0.8)
    found = Sampling.of({"decode": given, "temperature": 0.8}, usual)
    assert found.decode == DecodeConfig(top_k=7, temperature=0.8)
    assert Sampling.of({"speculate": "auto"}, given).decode.speculate == AUTO


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"temprature": 1.0},
            r"no option 'temprature' \(did you mean temperature\?\); there are s",
        ),
        ({"xyz": 1.0}, r"no option 'xyz'; there are samples, seed, decode, prompt_ids, temp"),
        ({"top_p": 2.0}, r"decode\.top_p=2\.0 must be in \(0, 1\]"),
        ({"temperature": "hot"}, r"another type than its field of DecodeConfig: temperature='hot'"),
        ({"edit_scales": (1.0,)}, r"another type than its field of .*: edit_scales=\(1\.0,"),
        ({"temperature_range": (1.0,)}, r"another type than its field of .*: temperature_range="),
        ({"top_k": 2.5}, r"another type than its field of DecodeConfig: top_k=2\.5"),
        ({"contrast": "some"}, r"contrast='?some"),
        ({"speculate": 65}, r"decode\.speculate=65 must be from 0 to 64, or -1"),
        ({"speculate": "much"}, r"another type than its field of .*: speculate='much'"),
        ({"samples": 0}, r"samples=0 must be a whole number from 1 to 100000"),
        ({"samples": 1.5}, r"samples=1\.5 must be a whole number from 1"),
        ({"seed": -1}, r"seed=-1 must be a whole number from 0 to 4294967295"),
    ],
)
def test_a_wrong_option_raises_user_error(generator, options, said):
    with pytest.raises(UserError, match=said):
        generator.generate("a red fox", **options)


def test_keywords_reach_the_sampler(generator):
    sample = generator.generate("a red fox", temperature=0.8, seed=4)
    assert sample.temperature == pytest.approx(0.8)
    same = generator.generate("a red fox", decode=DecodeConfig(temperature=0.8), seed=4)
    assert sample.ids.tolist() == same.ids.tolist()
    other = generator.text_to_image(["a red fox"], top_k=1)[0][0]
    likeliest = generator.text_to_image(["a red fox"], temperature=0.0, seed=9)[0][0]
    assert other.ids.tolist() == likeliest.ids.tolist()
