"""The retrieval encoder, the memory bank's index and the selection of documents."""

import dataclasses
from typing import Literal

from cm3jax.config.checks import COUNTED, require, require_not_negative, require_range

_TOWERS = ("vision", "text")


@dataclasses.dataclass(frozen=True)
class ClipConfig:
    """The retrieval encoder, in the shape of HF `CLIPModel` (ViT-B/32 by default)."""

    image_size: int = 224
    """Pixels along one side."""
    patch: int = 32
    """Pixels along one side of a patch."""
    vision_width: int = 768
    """Width of the image tower."""
    vision_layers: int = 12
    """Layers of the image tower."""
    vision_heads: int = 12
    """Heads of the image tower."""
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
    """Width of the image tower's feed-forward layers; 0 is four times its own."""
    text_ffn: int = 0
    """Width of the text tower's feed-forward layers; 0 is four times its own."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """Activation of the feed-forward layers."""
    resize: Literal["lanczos", "bicubic"] = "lanczos"
    """Filter that brings images to the encoder's size (CLIP's public weights: bicubic)."""
    pair_loss: float = 1.0
    """Weight of the pair loss: a text against its own image (CLIP)."""
    document_loss: float = 1.0
    """Weight of the document loss: the text or image of one document against the document vector
    of another document of the same subject; 0 trains on pairs only."""
    partners: Literal["subjects", "captions", "nearest", "pictures"] = "subjects"
    """Which documents have the same subject: those that share a name in `subjects`. For a document
    without names: none (`subjects`), those with an equal caption, ignoring case and spaces
    (`captions`), those whose captions are nearest by their rare words (`nearest`), or those with
    the same image under other captions (`pictures`)."""

    def __post_init__(self):
        sizes = {"image_size", "patch", "text_context", "text_vocab", "width"}
        towers = {f"{tower}_{size}" for tower in _TOWERS for size in ("width", "layers", "heads")}
        require_range(self, "clip", sorted(sizes | towers))
        require_range(self, "clip", ("vision_ffn", "text_ffn"), least=0)
        require_not_negative(self, "clip", ("pair_loss", "document_loss"))
        for tower in _TOWERS:
            width, heads = getattr(self, f"{tower}_width"), getattr(self, f"{tower}_heads")
            require(
                width % heads == 0,
                f"clip.{tower}_width={width} is not a multiple of clip.{tower}_heads={heads}; "
                "change one of them.",
            )


@dataclasses.dataclass(frozen=True)
class RetrievalConfig:
    """Which documents are shown to which record (CM3Leon's section 2.1)."""

    encoder: str = ""
    """Run directory of the CLIP encoder."""
    documents: int = 2
    """Documents in front of a sample in training (K); fewer when fewer pass the rules."""
    candidates: int = 2
    """Documents kept per query modality (two by text, two by image)."""
    pool: int = 32
    """Neighbours looked at per query before the rules choose."""
    relevance_cut: float = 0.9
    """Candidates that score above this are skipped as near-duplicates of the query; calibrate it
    per encoder."""
    relevance_floor: float = -1.0
    """Candidates that score below this are unrelated to the query and not shown, neither in
    training nor at generation; -1 shows the best there are."""
    diversity_cut: float = 0.9
    """Candidates closer than this to a chosen document are skipped; calibrate it per encoder."""
    duplicate_cut: float = 0.98
    """Documents closer than this are marked as near-duplicates, and evaluation records this close
    to a document of the bank as leaked; calibrate it per encoder."""
    modality_margin: float = 0.05
    """Margin by which a document with only a text or only an image must outscore one with both."""
    queries: Literal["both", "text", "image"] = "both"
    """Which query's candidates training shows: those found by the record's `text` (as when an
    image is asked for), by its `image`, or by one of the two at random (`both`, the paper's
    way)."""
    views: int = 4
    """Query views stored per record: one clean, the others with query dropout."""
    query_dropout: float = 0.2
    """Share of text tokens dropped from a query view."""
    clauses: bool = False
    """Search with each clause of a text in turn, so that a text that names two things finds both,
    in their order; otherwise with the whole text (the paper's way)."""
    clause_margin: float = 0.2
    """Margin by which a clause that already has a document must outscore the others to get
    another."""
    index: Literal["auto", "exact", "scann", "milvus"] = "auto"
    """Index kind; auto is exact up to 100,000 documents and ScaNN above. Milvus is a server for
    generation; the neighbours of training are then found as by auto."""
    recall: float = 0.95
    """Recall@10 that a ScaNN index must reach for queries by text, by image and by both; how much
    of it each search reads is chosen when it is built."""
    milvus: str = ""
    """Address of the Milvus server, e.g. http://localhost:19530, or the path of a .db file for
    Milvus Lite."""

    def __post_init__(self):
        for name, least in (("documents", 0), ("candidates", 0), ("pool", 1), ("views", 1)):
            require_range(self, "retrieval", [name], least, COUNTED)
        require(
            0 <= self.query_dropout < 1,
            f"retrieval.query_dropout={self.query_dropout} must be at least 0, below 1.",
        )
        require(0 < self.recall <= 1, f"retrieval.recall={self.recall} must be above 0, at most 1.")
