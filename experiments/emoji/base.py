"""What all members of the emoji chain share, and how each states what differs."""

from typing import Any

from cm3jax.config import (
    ClipConfig,
    CM3Config,
    DataConfig,
    DecodeConfig,
    DecoderConfig,
    Experiment,
    RetrievalConfig,
    TokenizersConfig,
    VocabConfig,
    VQGANConfig,
)
from experiments.delta import with_delta

_HOME = "emoji"
_PIECES = 1024


def base(name: str, **delta: Any) -> Experiment:
    """The experiment `name`; `delta` is as `experiments.delta.with_delta` takes it."""
    experiment = Experiment(
        name=name,
        vocab=VocabConfig(
            specials=32, image_codes=1024, text_pieces=_PIECES, sentinels=17, grid=16
        ),
        tokenizers=TokenizersConfig(
            text=f"runs/{_HOME}/text", image=f"runs/{_HOME}/vqgan", algorithm="bpe"
        ),
        # One code per 4x4 pixels and nothing shared between patches: the inside of a thing has the
        # same codes on every ground, so that a decoder can copy it from a document. Codes of larger
        # fields lose less, and change with what stands beside them.
        vqgan=VQGANConfig(
            image_size=64,
            patch=4,
            channels=128,
            multipliers=(1,),
            blocks=0,
            attention=False,
            kernel=1,
            codes=1024,
            code_width=32,
            commitment=1.0,
            ema_decay=0.99,
            restart_below=0.01,
        ),
        clip=ClipConfig(
            image_size=64,
            patch=16,
            vision_width=128,
            vision_layers=2,
            vision_heads=4,
            text_width=128,
            text_layers=2,
            text_heads=4,
            text_context=64,
            text_vocab=_PIECES + 2,  # the text pieces, begin and end
            width=128,
            # A name's own picture is learnt by heart, which says nothing of names to come.
            pair_loss=0.25,
        ),
        # A document is of use only to a model that reads its name: a third of the samples see one
        # of another record, and order says nothing. The last document gives way, in a pair that of
        # its second thing, hence not more. Documents weigh more than in the miniature: two of one
        # thing teach copying too.
        cm3=CM3Config(
            no_documents=0.15,
            mean_masks=1.0,
            whole_segment=0.5,
            picture_rows=0.7,
            retrieved_weight=0.3,
            wrong_documents=0.35,
            shuffle_documents=True,
        ),
        model=DecoderConfig(
            layers=4,
            width=128,
            heads=4,
            head_width=32,
            ffn=512,
            context=928,
            positions="rope",
            qk_norm=True,
            dtype="float32",
            unroll=4,
            init_std=0.02,
        ),
        retrieval=RetrievalConfig(
            encoder=f"runs/{_HOME}/clip",
            pool=48,
            relevance_cut=1.0,
            diversity_cut=1.0,
            modality_margin=0.5,
            clauses=True,
            views=1,
        ),
        decode=DecodeConfig(temperature=0.5),
        data=DataConfig(
            source="emoji",
            image_size=64,
            records=40_000,
            corpus=f"data/{_HOME}/corpus",
            bank=f"data/{_HOME}/bank",
        ),
    )
    return with_delta(experiment, delta)
