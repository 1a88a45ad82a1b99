"""The experiment: frozen dataclasses, one per owner, nested in `Experiment`.

A field exists only if some experiment or user sets it. Values are checked here, on construction;
what they mean is said here and nowhere else. The command line (`launch.cli`) shows every field.
"""

import dataclasses
import re
from typing import Literal

from cm3jax.errors import UserError
from cm3jax.io.paths import require_supported


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UserError(message)


@dataclasses.dataclass(frozen=True)
class VocabConfig:
    """Sizes of the id space: specials | image codes | text pieces (section 2.1)."""

    specials: int = 1024
    """Control ids: pad, eos, break, eoss and the sentinels; the rest is spare."""
    image_codes: int = 8192
    """Codes of the image tokenizer."""
    text_pieces: int = 56320
    """Pieces of the text tokenizer."""
    sentinels: int = 512
    """Mask ids; at least as many as masks in one row."""
    grid: int = 32
    """Codes along one side of a picture; a picture is grid x grid codes."""

    def __post_init__(self):
        _require(
            min(self.image_codes, self.text_pieces, self.sentinels, self.grid) >= 1,
            "vocab: image_codes, text_pieces, sentinels and grid must be at least 1.",
        )


@dataclasses.dataclass(frozen=True)
class TokenizersConfig:
    """Where the tokenizers are, and how the text tokenizer is trained."""

    text: str = ""
    """Run directory of a text tokenizer (it holds `text.model`)."""
    image: str = ""
    """Run directory of an image tokenizer."""
    algorithm: Literal["bpe", "unigram"] = "bpe"
    """SentencePiece algorithm (`text_tokenizer` experiments)."""


_ADDED = {
    *("attention_sides", "latent_width", "codebook", "vision_ffn", "text_ffn", "resize"),
    *("partners", "splits", "hold_back"),
}


def identity(config: "VQGANConfig | ClipConfig | DataConfig") -> str:
    """What fingerprints say of a config: its `repr`, but for defaults of fields that came later,
    so that what was made before them still fits."""
    kept = (
        f"{field.name}={getattr(config, field.name)!r}"
        for field in dataclasses.fields(config)
        if field.name not in _ADDED or getattr(config, field.name) != field.default
    )
    return f"{type(config).__name__}({', '.join(kept)})"


@dataclasses.dataclass(frozen=True)
class VQGANConfig:
    """The image tokenizer: the taming / Make-A-Scene family, or a patch-local one for CPUs."""

    image_size: int = 256
    """Pixels along one side."""
    patch: int = 1
    """Pixels along one side of the stem's patch; 1 is a plain convolution, 8 makes one code of 8x8
    pixels before any further level (as in ViT-VQGAN)."""
    channels: int = 128
    """Base channels."""
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    """Channel multiplier of each level; each level but the last halves the side."""
    blocks: int = 2
    """Residual blocks per level."""
    attention: bool = True
    """Self-attention in the middle (taming's `mid.attn_1`)."""
    attention_sides: tuple[int, ...] = ()
    """Self-attention after every residual block of the levels with so many positions along a side
    (taming's `attn_resolutions`)."""
    kernel: Literal[1, 3] = 3
    """Convolution kernel of residual blocks; with 1 and patch > 1 a code depends on its patch
    alone."""
    codes: int = 8192
    """Codebook entries; must equal vocab.image_codes."""
    code_width: int = 256
    """Width of a codebook entry."""
    latent_width: int = 0
    """Channels at the encoder's end and the decoder's beginning (taming's `z_channels`); 0 takes
    code_width."""
    commitment: float = 0.25
    """Weight of the commitment loss (beta)."""
    codebook: Literal["ema", "gradient"] = "ema"
    """How entries follow their inputs: as moving averages, or as parameters, by the gradient of
    their squared distance (taming's way, which has no restarts)."""
    ema_decay: float = 0.99
    """Decay of the codebook's moving averages."""
    restart_below: float = 0.01
    """An entry whose moving average of uses per batch is below this is moved to a random input."""

    @property
    def downsample(self) -> int:
        """Pixels per code along one side (f)."""
        return self.patch * 2 ** (len(self.multipliers) - 1)

    @property
    def grid(self) -> int:
        """Codes along one side."""
        return self.image_size // self.downsample

    @property
    def latents(self) -> int:
        """Channels at the encoder's end and the decoder's beginning."""
        return self.latent_width or self.code_width

    def attends_at(self, level: int) -> bool:
        """Whether a level's residual blocks are followed by self-attention."""
        return self.image_size // (self.patch * 2**level) in self.attention_sides

    def __post_init__(self):
        _require(
            self.image_size % self.downsample == 0,
            f"vqgan.image_size={self.image_size} is not a multiple of {self.downsample} "
            "(vqgan.patch times 2 per further level); change one of them.",
        )
        _require(
            self.kernel == 3
            or (len(self.multipliers) == 1 and not self.attention and not self.attention_sides),
            "vqgan.kernel=1 keeps patches apart, which several vqgan.multipliers or "
            "vqgan.attention would mix; use one multiplier and no attention, or vqgan.kernel=3.",
        )
        sides = {self.image_size // self.patch // 2**n for n in range(len(self.multipliers))}
        _require(
            set(self.attention_sides) <= sides,
            f"vqgan.attention_sides={self.attention_sides} names a side that no level has; the "
            f"levels' sides are {sorted(sides)}.",
        )


@dataclasses.dataclass(frozen=True)
class VQGANLossConfig:
    """What trains the image tokenizer beside `vqgan.commitment` (arXiv 2012.09841, section 3.1).

    The defaults are for flat colours; photographs want all of it.
    """

    pixels: Literal["l2", "l1"] = "l2"
    """Error of a pixel: squared or absolute."""
    perceptual: float = 0.0
    """Weight of the perceptual loss (LPIPS, arXiv 1801.03924), which needs vqgan_loss.lpips."""
    lpips: str = ""
    """A .safetensors or .npz file of LPIPS weights (VGG16), or `random`: the distance between
    features that nobody trained, which is logged as `random_features` and is not LPIPS."""
    adversarial: float = 0.0
    """Share of the adversarial loss in the gradient at the decoder's last layer: 1 gives it as much
    as pixels and perception together have. 0 trains no discriminator."""
    adversarial_start: int = 250_000
    """Updates before the adversarial loss begins and the discriminator learns."""
    discriminator_channels: int = 64
    """Channels of the discriminator's first level; each further one has twice as many, up to 8
    times."""
    discriminator_layers: int = 3
    """Levels of the discriminator that halve the side."""
    region: float = 0.0
    """How much more the pixels of the source's masks count (Make-A-Scene's faces and objects): a
    pixel weighs 1 + region * mask, in the pixel and in the perceptual loss. 0 reads no masks."""

    def __post_init__(self):
        for name in ("perceptual", "adversarial", "region"):
            value = getattr(self, name)
            _require(value >= 0, f"vqgan_loss.{name}={value} is a weight; give 0 or more.")
        _require(
            self.adversarial_start >= 0
            and min(self.discriminator_channels, self.discriminator_layers) >= 1,
            "vqgan_loss: adversarial_start must not be negative, and discriminator_channels and "
            "discriminator_layers must be at least 1.",
        )


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """The retrieval encoder, in the shape of HF `CLIPModel` (ViT-B/32 by default)."""

    image_size: int = 224
    """Pixels along one side."""
    patch: int = 32
    """Pixels along one side of a patch."""
    vision_width: int = 768
    """Width of the picture tower."""
    vision_layers: int = 12
    """Layers of the picture tower."""
    vision_heads: int = 12
    """Heads of the picture tower."""
    text_width: int = 512
    """Width of the text tower."""
    text_layers: int = 12
    """Layers of the text tower."""
    text_heads: int = 8
    """Heads of the text tower."""
    text_context: int = 77
    """Longest text in tokens, with begin and end; longer ones are cut."""
    text_vocab: int = 49408
    """Entries of the text tower's embedding."""
    width: int = 512
    """Width of the shared space (E)."""
    vision_ffn: int = 0
    """Width of the picture tower's feed-forward layers; 0 is four times its own."""
    text_ffn: int = 0
    """Width of the text tower's feed-forward layers; 0 is four times its own."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """Activation of the feed-forward layers."""
    resize: Literal["lanczos", "bicubic"] = "lanczos"
    """Filter that brings pictures to the encoder's size (CLIP's public weights: bicubic)."""
    pair_loss: float = 1.0
    """Weight of the pair loss: a text against its own picture (CLIP)."""
    document_loss: float = 1.0
    """Weight of the document loss: the text or picture of one document against the document vector
    of another document of the same subject; 0 trains on pairs alone."""
    partners: Literal["subjects", "captions", "nearest", "pictures"] = "subjects"
    """Which documents are of the same subject: those that share a name in their `subjects`. One
    that names none has no partner or, by choice, those of an equal caption (but for case and
    spaces), those whose captions are nearest by their rare words, or those with the same picture
    under other captions."""


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """The autoregressive decoder (section 2.3: pre-LN, no biases, no dropout, non-affine norms).

    The fields that say "Chameleon" make the decoder of arXiv 2405.09818 out of it.
    """

    layers: int = 24
    """Number of layers (N)."""
    width: int = 1024
    """Model width (D)."""
    heads: int = 16
    """Attention heads (H)."""
    head_width: int = 64
    """Width of one head (A)."""
    ffn: int = 4096
    """Width of the feed-forward layer (F)."""
    kv_heads: int = 0
    """Heads of keys and values (K), each shared by H / K query heads (Chameleon-34B: 8); 0 gives
    every query head its own."""
    activation: Literal["relu", "swiglu"] = "relu"
    """Of the feed-forward layer: ReLU, or SiLU of one matrix product times another (Chameleon)."""
    norm: Literal["layer", "rms"] = "layer"
    """Layer norm without gain or bias (CM3Leon), or RMS norm with a learned gain (Chameleon)."""
    swin_norm: bool = False
    """Norm what attention and feed-forward layer give instead of what they get (Chameleon-34B)."""
    tied: bool = True
    """Score ids with the embedding, instead of with a table of its own (Chameleon)."""
    dropout: float = 0.0
    """Share of what attention and feed-forward layer give that training drops (Chameleon-7B: 0.1);
    validation and generation drop nothing."""
    context: int = 4096
    """Longest row in tokens, and rows of the learned position table."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of activations; parameters, norms, softmax and logits are float32."""
    init_std: float = 0.006
    """Standard deviation of the truncated normal initialiser (cut at 3)."""
    positions: Literal["learned", "rope"] = "learned"
    """A learned table of positions (OPT, CM3Leon) or rotary ones (Chameleon)."""
    position_std: float = 0.0002
    """`init_std` for the table of learned positions."""
    qk_norm: bool = False
    """Norm queries and keys over each head, with learned gain and bias (Chameleon)."""
    lora_rank: int = 0
    """Rank of the corrections that are added to every matrix of the layers and, unless
    optim.trained names more, trained alone (LoRA, arXiv 2106.09685); 0 adds none."""
    lora_alpha: float = 16.0
    """Corrections are multiplied by lora_alpha / lora_rank."""
    unroll: int = 1
    """Layers per turn of the scan over layers: more compile longer and, on CPUs, run faster."""
    remat: Literal["none", "full", "dots"] = "none"
    """What the backward pass recomputes: norms, gates and the weights of attention alone (`none`),
    everything, or all but matrix products."""
    attention: Literal["xla", "cudnn", "splash"] = "xla"
    """How training rows attend: plain operations for any hardware, which hold the scores of an
    eighth of a row's tokens at once, or a kernel that holds fewer: cuDNN's for GPUs, where a row is
    one segment (`data.rows=stream`), or splash attention for TPUs. Generation always uses the
    first."""

    def __post_init__(self):
        _require(
            self.kv_heads >= 0 and self.heads % self.groups == 0,
            f"model.heads={self.heads} cannot share model.kv_heads={self.kv_heads} equally; make "
            "the first a multiple of the second.",
        )
        _require(
            0 <= self.dropout < 1,
            f"model.dropout={self.dropout} is a share of what is dropped; give 0 or more, below 1.",
        )
        _require(self.lora_rank >= 0, f"model.lora_rank={self.lora_rank} must not be negative.")
        if self.attention == "cudnn":
            _require(
                self.dtype == "bfloat16",
                f"model.attention=cudnn cannot compute in model.dtype={self.dtype}; use bfloat16, "
                "or model.attention=xla.",
            )
            _require(
                self.head_width % 8 == 0 and self.head_width <= 128,
                f"model.attention=cudnn cannot have model.head_width={self.head_width}; make it a "
                "multiple of 8 up to 128, or use model.attention=xla.",
            )

    @property
    def groups(self) -> int:
        """Heads of keys and values (K)."""
        return self.kv_heads or self.heads

    @property
    def lora(self) -> tuple[int, float]:
        """Rank of the corrections (0: none), and what multiplies them."""
        return self.lora_rank, self.lora_alpha / max(self.lora_rank, 1)

    @property
    def layer_weights(self) -> int:
        """Weights of the matrices of one layer."""
        attention = 2 * (self.heads + self.groups) * self.head_width
        return (attention + (3 if self.activation == "swiglu" else 2) * self.ffn) * self.width

    def parameters(self, vocab_size: int) -> int:
        """Parameters of a `Decoder` over so many ids."""
        qk_norms = 2 * (self.heads + self.groups) * self.head_width if self.qk_norm else 0
        gain = self.width if self.norm == "rms" else 0
        query_out = 2 * (self.width + self.heads * self.head_width)
        key_value = 2 * (self.width + self.groups * self.head_width)
        feed = (3 if self.activation == "swiglu" else 2) * (self.width + self.ffn)
        lora = self.lora_rank * (query_out + key_value + feed)
        layer = self.layer_weights + qk_norms + 2 * gain + lora
        tables = (1 if self.tied else 2) * vocab_size
        tables += self.context if self.positions == "learned" else 0
        return self.layers * layer + gain + tables * self.width


@dataclasses.dataclass(frozen=True)
class PartiConfig:
    """What the encoder-decoder (arXiv 2206.10789) has beside `model`, its decoder.

    Its encoder's layers have the decoder's widths; `model.context` plays no part in it.
    """

    encoder_layers: int = 16
    """Layers of the encoder."""
    text_tokens: int = 128
    """Longest caption in tokens, its end included; longer ones are cut."""
    drop_captions: float = 0.1
    """Share of training pairs without their caption, for classifier-free guidance."""

    def __post_init__(self):
        _require(
            0 <= self.drop_captions <= 1,
            f"parti.drop_captions={self.drop_captions} is a probability; give 0 to 1.",
        )
        _require(self.text_tokens >= 2, f"parti.text_tokens={self.text_tokens} must be at least 2.")


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """What is added to the mean negative log-likelihood."""

    z_loss: float = 0.0
    """Weight of the squared log of the softmax's denominator, which keeps logits from drifting
    (Chameleon: 1e-5)."""

    def __post_init__(self):
        _require(self.z_loss >= 0, f"loss.z_loss={self.z_loss} must not be negative.")


@dataclasses.dataclass(frozen=True)
class CM3Config:
    """The CM3 objective: how a sample's spans move to its end (section 2.2)."""

    mean_masks: float = 1.0
    """Mean of the Poisson number of masks; 0 trains a plain causal model."""
    max_masks: int = 16
    """Largest number of masks in one sample."""
    whole_segment: float = 0.5
    """Probability that a mask is one whole segment instead of a random span."""
    picture_rows: float = 0.0
    """Probability that a random span of a picture is widened to whole rows of its codes."""
    mask_retrieved: bool = False
    """Mask in retrieved documents too (metaseq's way); with `data.rows=stream` always so."""
    no_documents: float = 0.2
    """Probability that a sample is shown without its documents."""
    vary_documents: bool = False
    """Show the others a number of documents drawn from 0 to retrieval.documents with equal odds
    (RA-CM3) instead of all."""
    wrong_documents: float = 0.0
    """Probability that the last of a sample's documents gives way to one of another record, drawn
    at random, or that one joins them where there are fewer than retrieval.documents: a model that
    takes whatever it is shown is then wrong, and must read whose document it is."""
    shuffle_documents: bool = False
    """Show a sample's documents in random order instead of the best one (or, with
    retrieval.clauses, the first clause's) first."""
    retrieved_weight: float = 1.0
    """Loss weight of retrieved documents (1 in CM3Leon, 0.1 in RA-CM3)."""
    loss_on: Literal["all", "answer"] = "all"
    """What the loss counts of a sample that has an answer (instruction tuning): everything, as in
    the paper, or the answer alone, with the id that ends it."""

    def __post_init__(self):
        for name in ("whole_segment", "picture_rows", "no_documents", "wrong_documents"):
            value = getattr(self, name)
            _require(0 <= value <= 1, f"cm3.{name}={value} is a probability; give 0 to 1.")
        _require(
            self.mean_masks >= 0 and self.max_masks >= 0 and self.retrieved_weight >= 0,
            "cm3: mean_masks, max_masks and retrieved_weight must not be negative.",
        )


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """Who is retrieved for whom (section 2.1)."""

    encoder: str = ""
    """Run directory of the CLIP encoder."""
    documents: int = 2
    """Documents in front of a sample in training (K); fewer when fewer pass the rules."""
    candidates: int = 2
    """Documents kept per query modality (two by text, two by picture)."""
    pool: int = 32
    """Neighbours looked at per query before the rules choose."""
    relevance_cut: float = 0.9
    """Candidates scoring above this are too close to the query (near-duplicates) and skipped;
    calibrate it per encoder."""
    relevance_floor: float = -1.0
    """Candidates scoring below this have nothing to do with the query and are not shown, neither in
    training nor at generation; -1 shows the best there are."""
    diversity_cut: float = 0.9
    """Candidates closer than this to a chosen document are skipped; calibrate it per encoder."""
    duplicate_cut: float = 0.98
    """Documents closer than this are marked as near-duplicates, and evaluation records that are so
    close to a document of the bank as leaked; calibrate it per encoder."""
    modality_margin: float = 0.05
    """Score by which a document of one modality must beat one with text and picture."""
    queries: Literal["both", "text", "image"] = "both"
    """Whose candidates training shows: of a record's text, as when a picture is asked for, of its
    picture, or of one of them by chance (the paper)."""
    views: int = 4
    """Query views stored per record: one clean, the others with query dropout."""
    query_dropout: float = 0.2
    """Share of text tokens dropped from a query view."""
    clauses: bool = False
    """Ask with each clause of a text in turn, so that a text that names two things finds both, in
    their order, instead of with the whole text (the paper's way)."""
    clause_margin: float = 0.2
    """Score by which a clause that was given a document must beat the others to be given more."""
    index: Literal["auto", "exact", "scann", "milvus"] = "auto"
    """Index kind; auto is exact up to 100,000 documents and ScaNN above. Milvus is a server for
    generation; the neighbours of training are then found as by auto."""
    recall: float = 0.95
    """Recall@10 that a ScaNN index is to reach, by text, by picture and by both: how much of it a
    search looks at is chosen for it when it is built."""
    milvus: str = ""
    """Address of the Milvus server, e.g. http://localhost:19530, or the path of a .db file for
    Milvus Lite."""

    def __post_init__(self):
        _require(
            0 < self.recall <= 1, f"retrieval.recall={self.recall} must be above 0, at most 1."
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where training rows come from."""

    source: str = "emblems"
    """Raw data: `emblems`; `emoji`; a folder of pictures with a `captions.jsonl`, whose lines are
    `{"file": "a.png", "caption": "a cat"}` and may have `subjects` (a list of names), `licence`,
    `source` and `mask`, or with a `metadata.jsonl` (`file_name`, `text`), or with `a.txt` beside
    `a.png`, in folders named by what is shown; a folder with a `documents.jsonl` of interleaved
    documents, or such a file; a folder of tar shards (webdataset, img2dataset) or of parquet files;
    `tfds:NAME` for a dataset of tensorflow-datasets."""
    records: int = 50_000
    """Records to generate or to take from the source for training, at most; of more, a sample by
    the seed is taken."""
    splits: tuple[tuple[str, Literal["train", "validation", "bank"]], ...] = ()
    """Splits of parts of a source that has none: a folder in it, or a pattern of its files' names,
    with `train`, `validation` or `bank` (only in the bank: found at generation, never seen in
    training), e.g. `flags/new bank "shard-9*" validation`, or `. bank` for all of it. A record's
    own `split` goes before. Where nothing is for validation, data.hold_back chooses."""
    hold_back: Literal["pictures", "subjects"] = "pictures"
    """What is held back for validation where no split says it: every 50th picture with all of its
    captions, or every 50th of the records' `subjects` with all records that name it."""
    emblems: int = 3000
    """Emblems to train on, where the source is `emblems`: the more there are, the less their looks
    can be learnt by heart instead of being copied from documents."""
    raw: str = "data/raw"
    """Where generated raw data (`emblems`) and datasets of tensorflow-datasets are kept."""
    licences: tuple[str, ...] = ()
    """Licences that a record may have, e.g. `CC0-1.0 CC-BY-4.0`: one with another or none is
    refused, and listed; empty allows all."""
    min_side: int = 0
    """Pixels of a picture's shorter side, in its file; a record below is refused."""
    max_aspect: float = 0.0
    """Longer side of a picture over its shorter one, at most; 0 allows all."""
    min_words: int = 1
    """Words of a record's text; a record with fewer is refused (one without any text is not)."""
    max_words: int = 0
    """Words of a record's text, at most; 0 allows all."""
    max_watermark: float = 1.0
    """Refuse records whose `watermark` or `pwatermark`, where there is one, is above this."""
    max_unsafe: float = 1.0
    """Refuse records whose `unsafe`, `punsafe` or `NSFW`, where there is one, is above this."""
    shard: int = 2048
    """Records that are prepared and saved at a time; what an interruption costs at most."""
    image_size: int = 32
    """Pixels along one side of raw pictures as they are read; the image tokenizer's."""
    corpus: str = ""
    """The prepared corpus, as `launch.prepare` wrote it under `data/`."""
    bank: str = ""
    """The memory bank that the corpus's neighbours point into, and that generation searches."""
    mixture: tuple[tuple[str, float], ...] = ()
    """Train on several prepared directories, each with a `corpus` and a `bank` in it, instead of
    data.corpus: every directory with its weight, which decides its share of the rows, e.g.
    `data/emblems 3 data/words 1`, or `data/emblems:pair 1` for its records of one kind alone."""
    online: bool = False
    """Make rows in the training step from the pairs of data.source and the bank data.bank: encode
    pictures, search, rotate, one sample to a row, instead of reading data.corpus. A pair is shown
    the best documents by its vector; the rules of `retrieval` beside its number have no part."""
    resample: tuple[float, float] | None = None
    """Least and greatest number of times that a corpus of data.mixture may be seen while all of
    them are seen once on average, whatever its weight asks for: 0.3 and 3 in instruction tuning."""
    tasks: tuple[tuple[str, str], ...] = ()
    """Instruction tuning: the data sets that `launch.prepare` turns into the corpora of
    data.mixture, one for one. Each is a name in `cm3jax.tasks.READERS` and the folder where its
    files lie, or the name of a task and `emblems`, e.g. `vqa2 data/raw/vqa2 words emblems`. COCO's
    also take `tfds:coco_captions/2014:1.1.0` or another version, in data.raw, for a folder."""
    image_first: bool = False
    """Put the picture before the text where a task's answer is a text."""
    rows: Literal["whole", "stream"] = "whole"
    """How samples become rows: whole ones, packed, each masked by itself and blind to the others;
    or one stream of samples cut at the rows' ends, each row masked and attended to as one (the
    paper's way)."""
    batch: int = 16
    """Rows (decoder) or records (tokenizer, CLIP) of a global batch."""
    threads: int = 2
    """Reading threads of each process."""

    def __post_init__(self):
        for name in ("shard", "batch", "threads"):
            value = getattr(self, name)
            _require(value >= 1, f"data.{name}={value} must be at least 1.")
        for directory, weight in self.mixture:
            _require(
                weight > 0,
                f"data.mixture gives {directory} the weight {weight}; give a positive one, or "
                "leave it out.",
            )
        low, high = self.resample or (1.0, 1.0)
        _require(
            0 < low <= 1 <= high,
            f"data.resample={low} {high} must be two positive numbers around 1, lower one first.",
        )
        _require(
            not self.tasks or len(self.tasks) == len(self.mixture),
            f"data.tasks names {len(self.tasks)} data sets and data.mixture {len(self.mixture)} "
            "directories; give one for each.",
        )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """A linear warm-up and a linear decay (FACTS 1.5 of the design: assumptions)."""

    method: Literal["adamw", "muon"] = "adamw"
    """AdamW throughout (the papers), or Muon for the decoder's matrix products and AdamW for the
    rest (arXiv 2502.16982, whose scaling lets both share a learning rate). With Muon, beta1, beta2
    and eps are of the rest alone, and weight decay of the matrix products alone: embedding and
    position tables have none."""
    peak_lr: float = 6e-4
    """Learning rate after the warm-up."""
    warmup_steps: int = 1500
    """Steps of linear warm-up from 0."""
    end_lr_ratio: float = 0.1
    """Learning rate at the last step, as a share of the peak."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.98
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; vectors and norms have none."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient."""
    accumulate: int = 1
    """Parts of a global batch that are worked off one after another before an update: the same
    update from less memory, for the decoder."""

    trained: str = ""
    """Regular expression that is searched in the names of parameters (`layers/query/kernel`):
    those without a match are frozen, keep no moments, and are told apart in a table at start, e.g.
    `lora|^head`, `feed_forward`, or `decoder` of an image tokenizer. Empty trains everything, or of
    a model with lora_rank the corrections alone."""
    trained_ids: Literal["all", "image", "text"] = "all"
    """Whose rows of embedding and head change, where these are trained: Anole taught Chameleon to
    draw by those of picture codes in the head alone (`--optim.trained ^head --optim.trained-ids
    image`)."""

    def __post_init__(self):
        try:
            re.compile(self.trained)
        except re.error as error:
            raise UserError(
                f"optim.trained={self.trained!r} is no regular expression ({error}); mend it."
            ) from None
        _require(self.peak_lr > 0, f"optim.peak_lr={self.peak_lr} must be positive.")
        _require(self.accumulate >= 1, f"optim.accumulate={self.accumulate} must be at least 1.")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    steps: int = 175_000
    """Optimiser steps in all. A run may be given more (or fewer) when it is resumed: from there on
    the learning rate follows the schedule that ends with them, unless optim.end_lr_ratio is 1."""
    log_every: int = 50
    """Steps between two lines of metrics."""
    validate_every: int = 1000
    """Steps between two measurements of the validation loss; 0 never."""
    validation_batches: int = 8
    """Batches of one validation."""
    samples: int = 8
    """Pictures that the report shows at each validation: drawn for captions (decoder), or encoded
    and decoded (image tokenizer); 0 none. They are one small batch, drawn from the parameters in
    memory; a run of several processes draws none."""
    watchdog_seconds: int = 600
    """Print the stacks of all threads whenever so many seconds pass without the end of a step, and
    go on; 0 never. The first step's time includes its compilation."""

    def __post_init__(self):
        _require(self.steps >= 1, f"train.steps={self.steps} must be at least 1.")
        _require(self.log_every >= 1, f"train.log_every={self.log_every} must be at least 1.")
        _require(self.samples >= 0, f"train.samples={self.samples} must not be negative.")
        _require(
            self.watchdog_seconds >= 0,
            f"train.watchdog_seconds={self.watchdog_seconds} must not be negative.",
        )


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Saving."""

    every: int = 1000
    """Steps between two saves; the last step is always saved."""
    keep: int = 2
    """Newest checkpoints kept."""

    def __post_init__(self):
        _require(
            self.every >= 1 and self.keep >= 1, "checkpoint: every and keep must be at least 1"
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh; one may be -1 and takes the rest of the devices."""

    data: int = -1
    """Copies of the parameters; each sees its share of the batch."""
    fsdp: int = 1
    """Shards of the parameters along the batch (fully sharded data parallelism)."""
    tensor: int = 1
    """Shards of heads, feed-forward width and vocabulary."""
    platform: Literal["", "cpu", "gpu", "tpu"] = ""
    """Hardware that must be there; empty takes what jax finds, be it a CPU."""

    def __post_init__(self):
        sizes = (self.data, self.fsdp, self.tensor)
        _require(
            sizes.count(-1) <= 1 and all(size == -1 or size >= 1 for size in sizes),
            f"mesh sizes {sizes} must be positive, and at most one may be -1.",
        )


ONE_DEVICE = MeshConfig(data=1)
"""The mesh that generation runs on unless asked for another."""


_COLDEST, _HOTTEST, _STRONGEST = 1e-4, 1e4, 1e4
"""Between them float32 logits stay finite when they are divided and guided."""


def _is_heat(temperature: float) -> bool:
    return _COLDEST <= temperature <= _HOTTEST


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How pictures and texts are sampled (section 3.1)."""

    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token."""
    temperature_range: tuple[float, float] | None = None
    """Draw each sample's temperature uniformly from this range instead."""
    top_p: float = 1.0
    """Nucleus: sample from the smallest set of tokens with this probability."""
    top_k: int = 0
    """Sample from so many likeliest tokens; 0 keeps all. Goes before `top_p`."""
    guidance_scale: float = 1.0
    """Classifier-free guidance; 1 runs no unconditional stream."""
    edit_scales: tuple[float, float] = (7.5, 1.5)
    """Guidance of edited pictures: by the instruction, and by the picture that is edited."""
    contrast: Literal["none", "half", "all"] = "none"
    """CD-K, contrastive decoding, in place of guidance, top-k and top-p: for no sample, for every
    second one, or for all. It applies to the pictures that guidance applies to."""
    contrast_k: int = 8
    """CD-K keeps tokens at least `contrast_alpha` times as likely as the k-th likeliest; 1 is
    contrastive decoding. The paper gives neither value."""
    contrast_alpha: float = 0.5
    """See `contrast_k`."""
    contrast_temperature: float = 0.5
    """CD-K: divides the unconditional logits."""
    grammar: bool = True
    """Permit only codes inside a picture and only text inside a text, each of its right length.
    Without it the model may end a picture early or late, which is then reported, not decoded."""
    max_text_tokens: int = 64
    """Longest text to generate, with the id that ends it."""
    max_document_tokens: int = 0
    """Longest interleaved document to generate; 0 goes as far as the context reaches."""
    batch: int = 64
    """Rows decoded at once, those of guidance included."""

    def __post_init__(self):
        _require(0 < self.top_p <= 1, f"decode.top_p={self.top_p} must be in (0, 1].")
        _require(
            self.temperature == 0 or _is_heat(self.temperature),
            f"decode.temperature={self.temperature} must be >= 0: 0, or from {_COLDEST} to "
            f"{_HOTTEST:g}.",
        )
        low, high = self.temperature_range or (1.0, 1.0)
        _require(
            _is_heat(low) and _is_heat(high) and low <= high,
            f"decode.temperature_range={low} {high} must be two positive numbers, lower one first, "
            f"from {_COLDEST} to {_HOTTEST:g}.",
        )
        _require(
            0 <= self.top_k < 2**31,
            f"decode.top_k={self.top_k} must be >= 0 and below 2^31; 0 keeps all.",
        )
        for name, scale in (
            ("guidance_scale", self.guidance_scale),
            ("edit_scales", self.edit_scales[0]),
            ("edit_scales", self.edit_scales[1]),
        ):
            _require(
                0 <= scale <= _STRONGEST,
                f"decode.{name}={scale} must be from 0 to {_STRONGEST:g}; 1 does not guide.",
            )
        _require(
            1 <= self.contrast_k < 2**31
            and 0 < self.contrast_alpha <= 1
            and _is_heat(self.contrast_temperature),
            f"decode: contrast_k={self.contrast_k} must be at least 1, contrast_alpha="
            f"{self.contrast_alpha} in (0, 1] and contrast_temperature="
            f"{self.contrast_temperature} from {_COLDEST} to {_HOTTEST:g}.",
        )
        _require(
            self.max_text_tokens >= 2
            and self.batch >= 1
            and (self.max_document_tokens == 0 or self.max_document_tokens >= 2),
            "decode: max_text_tokens must be at least 2, batch at least 1, and "
            "max_document_tokens 0 or at least 2.",
        )


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
    """Run directory whose parameters alone start this run."""
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
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    mesh: MeshConfig = MeshConfig()
    decode: DecodeConfig = DecodeConfig()

    def __post_init__(self):
        if self.learner in ("vqgan", "decoder", "parti"):
            _require(
                (self.vqgan.grid, self.vqgan.codes) == (self.vocab.grid, self.vocab.image_codes),
                f"{self.name}: vqgan gives {self.vqgan.grid}x{self.vqgan.grid} of "
                f"{self.vqgan.codes} codes, vocab expects {self.vocab.grid}x{self.vocab.grid} of "
                f"{self.vocab.image_codes}; make them equal.",
            )
        _require(
            self.optim.method == "adamw" or self.learner in ("decoder", "parti"),
            f"optim.method={self.optim.method} is for the matrices of decoders; a {self.learner} "
            "trains with adamw.",
        )
        _require(
            not self.model.lora_rank or self.learner == "decoder",
            f"model.lora_rank={self.model.lora_rank} is for a decoder, not for a {self.learner}; "
            "leave it out.",
        )
        _require(
            self.optim.trained_ids == "all" or self.learner == "decoder",
            f"optim.trained_ids={self.optim.trained_ids} is for a decoder, not for a "
            f"{self.learner}; leave it out.",
        )
        _require(
            self.optim.accumulate == 1 or self.learner == "decoder",
            f"optim.accumulate={self.optim.accumulate} is for the decoder's rows; the loss of a "
            f"{self.learner} is not a mean over rows, so give it 1.",
        )
        self._require_rows_for_attention()
        self._require_pairs_for_online()
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

    def _require_pairs_for_online(self):
        """What makes its rows in the step is one decoder's, of one source and whole samples."""
        if self.data.online:
            _require(
                (self.learner, self.data.rows, self.data.mixture, self.optim.accumulate)
                == ("decoder", "whole", (), 1),
                "data.online makes the rows of a decoder from one source, whole samples and whole "
                "batches; leave data.mixture and optim.accumulate out and use data.rows=whole, or "
                "prepare a corpus.",
            )
            _require(
                not (self.cm3.wrong_documents or self.cm3.shuffle_documents),
                "data.online shows the documents that it finds, best first; leave "
                "cm3.wrong_documents and cm3.shuffle_documents out, or prepare a corpus.",
            )

    def _require_rows_for_attention(self):
        """Rows must be of the kind and length that the kernel of `model.attention` is for."""
        attention = self.model.attention
        _require(
            (attention, self.learner, self.data.rows) != ("cudnn", "decoder", "whole"),
            "model.attention=cudnn cannot keep the samples of data.rows=whole apart; use "
            "data.rows=stream, or model.attention=xla.",
        )
        lengths = {"decoder": self.model.context, "parti": self.vocab.grid**2}
        length = lengths.get(self.learner, 0)
        _require(
            attention != "splash" or length % 128 == 0,
            f"model.attention=splash works on blocks of 128 tokens, which rows of {length} do not "
            f"fill; change {'model.context' if self.learner == 'decoder' else 'vocab.grid'}, or "
            "use model.attention=xla.",
        )

    @property
    def trained(self) -> str:
        """`optim.trained`, or what an empty one stands for."""
        return self.optim.trained or ("lora_" if self.model.lora_rank else "")

    @property
    def run_dir(self) -> str:
        """The work directory."""
        return self.workdir or f"runs/{self.name}"
