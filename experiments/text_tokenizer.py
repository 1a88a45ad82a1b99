"""CM3Leon's text tokenizer: 56,320 SentencePiece BPE pieces of the training captions (section 2.1).

    python -m launch.train text_tokenizer --data.source PICTURES

`--tokenizers.algorithm unigram` learns the other kind. A decoder finds it by `--tokenizers.text
runs/text_tokenizer`. Not run on captions yet; 56,320 pieces of 81,931 lines of Python's standard
library take 3 s of an Intel Xeon core, unigram ones 9 s.
"""

from cm3jax.config import DataConfig, Experiment


def get_config() -> Experiment:
    """Captions of a folder of images; every caption of the source is read."""
    return Experiment(
        name="text_tokenizer",
        learner="text_tokenizer",
        data=DataConfig(source="pictures", records=10_000_000, image_size=256),
    )
