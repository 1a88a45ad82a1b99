"""The experiment: everything that decides a run."""

import dataclasses
from typing import Literal

from cm3jax.config.checks import require
from cm3jax.config.curriculum import CurriculumConfig
from cm3jax.config.data import DataConfig
from cm3jax.config.decoding import DecodeConfig
from cm3jax.config.model import DecoderConfig, PartiConfig
from cm3jax.config.objective import CM3Config, LossConfig
from cm3jax.config.retrieval import ClipConfig, RetrievalConfig
from cm3jax.config.tokenizers import TokenizersConfig, VQGANConfig, VQGANLossConfig
from cm3jax.config.training import CheckpointConfig, MeshConfig, OptimConfig, TrainConfig
from cm3jax.config.vocab import VocabConfig
from cm3jax.io.paths import require_supported


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Everything that decides a run; saved as `config.json` in its work directory."""

    name: str
    """The experiment's name, as given to `launch.train`."""
    learner: Literal["decoder", "parti", "vqgan", "clip", "text_tokenizer"] = "decoder"
    """What is trained."""
    seed: int = 0
    """Seed of every random choice."""
    workdir: str = ""
    """Run directory; empty means runs/NAME."""
    init_from: str = ""
    """Run directory whose parameters (and nothing else) this run starts from."""
    vocab: VocabConfig = VocabConfig()
    tokenizers: TokenizersConfig = TokenizersConfig()
    vqgan: VQGANConfig = VQGANConfig()
    vqgan_loss: VQGANLossConfig = VQGANLossConfig()
    clip: ClipConfig = ClipConfig()
    model: DecoderConfig = DecoderConfig()
    parti: PartiConfig = PartiConfig()
    loss: LossConfig = LossConfig()
    cm3: CM3Config = CM3Config()
    retrieval: RetrievalConfig = RetrievalConfig()
    data: DataConfig = DataConfig()
    curriculum: CurriculumConfig = CurriculumConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    decode: DecodeConfig = DecodeConfig()

    def __post_init__(self):
        require(0 <= self.seed < 2**32, f"seed={self.seed} must be from 0 to {2**32 - 1}.")
        if self.learner in ("vqgan", "decoder", "parti"):
            require(
                (self.vqgan.grid, self.vqgan.codes) == (self.vocab.grid, self.vocab.image_codes),
                f"{self.name}: vqgan gives {self.vqgan.grid}x{self.vqgan.grid} of "
                f"{self.vqgan.codes} codes, vocab expects {self.vocab.grid}x{self.vocab.grid} of "
                f"{self.vocab.image_codes}; make them equal.",
            )
        require(
            self.optim.method == "adamw" or self.decodes,
            f"optim.method={self.optim.method} is for the matrices of decoders; a {self.learner} "
            "trains with adamw.",
        )
        require(
            not self.model.lora_rank or self.learner == "decoder",
            f"model.lora_rank={self.model.lora_rank} is for a decoder, not for a {self.learner}; "
            "leave it out.",
        )
        require(
            not self.model.token_shift or self.learner == "decoder",
            f"model.token_shift is for a decoder, not for a {self.learner}; leave it out.",
        )
        require(
            not self.model.quantised or self.learner == "decoder",
            f"model.quantised={self.model.quantised} is for a decoder, not for a {self.learner}; "
            "leave it out.",
        )
        require(
            self.optim.trained_ids == "all" or self.learner == "decoder",
            f"optim.trained_ids={self.optim.trained_ids} is for a decoder, not for a "
            f"{self.learner}; leave it out.",
        )
        require(
            not self.optim.trained or self.learner != "text_tokenizer",
            f"optim.trained={self.optim.trained} is for what learns in steps, not for a "
            f"{self.learner}; leave it out.",
        )
        require(
            self.optim.accumulate == 1 or self.learner == "decoder",
            f"optim.accumulate={self.optim.accumulate} is for the decoder's rows; the loss of a "
            f"{self.learner} is not a mean over rows, so give it 1.",
        )
        self._require_rows_for_attention()
        self._require_pairs_for_online()
        self._require_stages()
        self._require_paths()

    def _require_paths(self):
        """Paths must be of a kind that is understood."""
        paths = {f"data.mixture {path}": path for path, _ in self.data.mixture} | {
            "workdir": self.workdir,
            "init_from": self.init_from,
            "tokenizers.text": self.tokenizers.text,
            "tokenizers.image": self.tokenizers.image,
            "retrieval.encoder": self.retrieval.encoder,
            "vqgan_loss.lpips": self.vqgan_loss.lpips,
            **{f"data.{n}": getattr(self.data, n) for n in ("source", "raw", "corpus", "bank")},
        }
        for name, path in paths.items():
            if not path.startswith("tfds:"):
                require_supported(path, name)

    def _require_stages(self):
        """Stages must suit the learner, and the values of each its fields."""
        stages = self.curriculum
        require(
            not stages.changes_rows or (self.learner == "decoder" and not self.data.online),
            "curriculum changes the rows of a decoder's prepared corpora between stages; other "
            "trainings take only curriculum.starts and curriculum.rate.",
        )
        stages.require_mixture(len(self.data.mixture), self.data.resample is not None)
        for stage in range(len(stages.starts)):
            dataclasses.replace(self.retrieval, **stages.retrieval_of(stage))
            dataclasses.replace(self.cm3, **stages.cm3_of(stage))

    def _require_pairs_for_online(self):
        """What makes its rows in the step is one decoder's, of one source and whole samples."""
        if self.data.online:
            require(
                (self.learner, self.data.rows, self.data.mixture, self.optim.accumulate)
                == ("decoder", "whole", (), 1),
                "data.online makes the rows of a decoder from one source, whole samples and whole "
                "batches; leave data.mixture and optim.accumulate out and use data.rows=whole, or "
                "prepare a corpus.",
            )
            require(
                not any(
                    (self.cm3.wrong_documents, self.cm3.own_documents, self.cm3.shuffle_documents)
                ),
                "data.online shows the documents that it finds, best first; leave "
                "cm3.wrong_documents, cm3.own_documents and cm3.shuffle_documents out, or prepare "
                "a corpus.",
            )

    def _require_rows_for_attention(self):
        """Rows must be of the kind and length that the kernel of `model.attention` is for."""
        attention = self.model.attention
        require(
            (attention, self.learner, self.data.rows) != ("cudnn", "decoder", "whole"),
            "model.attention=cudnn cannot keep the samples of data.rows=whole apart; use "
            "data.rows=stream, or model.attention=xla.",
        )
        length = self.row_length
        require(
            attention not in ("splash", "triton") or length % 128 == 0,
            f"model.attention={attention} works on blocks of 128 tokens, which rows of {length} "
            f"do not fill; change {'model.context' if self.learner == 'decoder' else 'vocab.grid'},"
            " or use model.attention=xla.",
        )

    @property
    def decodes(self) -> bool:
        """Whether what is trained decodes ids: a decoder or an encoder-decoder."""
        return self.learner in ("decoder", "parti")

    @property
    def row_length(self) -> int:
        """Tokens of a training row; 0 where there are no rows of tokens."""
        return {"decoder": self.model.context, "parti": self.vocab.grid**2}.get(self.learner, 0)

    @property
    def one_segment(self) -> bool:
        """Whether no training row holds several samples."""
        return self.learner == "parti" or self.data.rows == "stream"

    @property
    def trained(self) -> str:
        """`optim.trained`, or what an empty one stands for."""
        return self.optim.trained or ("lora_" if self.model.lora_rank else "")

    @property
    def run_dir(self) -> str:
        """The work directory."""
        return self.workdir or f"runs/{self.name}"
