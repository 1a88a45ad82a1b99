"""The tokenizers and the encoder that an experiment names, from their run directories."""

from cm3jax.config import Experiment
from cm3jax.data.tokenize import Tools
from cm3jax.learners import clip, vqgan
from cm3jax.tokenizers.text_tokenizer import TextTokenizer
from launch.parts import require_made, require_parts_named


def make_tools(experiment: Experiment) -> Tools:
    """The tokenizers and the encoder that an experiment names; `UserError` without them."""
    require_parts_named(experiment)
    require_made(experiment)
    return Tools(
        text=TextTokenizer.load(experiment.tokenizers.text),
        image=vqgan.load(experiment.tokenizers.image),
        encoder=clip.load(experiment.retrieval.encoder),
    )
