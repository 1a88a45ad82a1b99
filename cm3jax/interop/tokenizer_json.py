"""A SentencePiece model of ours as the `tokenizer.json` that transformers reads, with equal ids.

transformers' own converter needs its slow tokenizers; what ours are is little: byte-pair merges
over the whole text, a virtual space in front, bytes for what training did not see, and the escapes
of `cm3jax.tokenizers.text_tokenizer`. No name of a control token is known to it: in a text it is
text.
"""

from collections.abc import Mapping, Sequence

from cm3jax.tokenizers.text_tokenizer import ESCAPES

FILE = "tokenizer.json"
CONFIG = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
"""`tokenizer_config.json` beside it: without it transformers changes spaces in decoded texts."""


def of_sentencepiece(model: bytes, ids: Sequence[int], names: Mapping[str, int]) -> str | None:
    """The `tokenizer.json` of a serialized SentencePiece model whose piece i has the id `ids[i]`;
    None unless the model is BPE.

    `names` are the names of all ids; those of other tokens are in the table, and in no text.
    """
    import sentencepiece
    from tokenizers import Tokenizer, decoders, models, normalizers

    pieces = sentencepiece.SentencePieceProcessor()
    pieces.load_from_serialized_proto(model)
    every = range(pieces.get_piece_size())
    apart = (pieces.is_control, pieces.is_byte, pieces.is_unknown, pieces.is_unused)
    normal = [i for i in every if not any(kind(i) for kind in apart)]
    if any(pieces.get_score(i) != normal[0] - i for i in normal):
        return None  # log-probabilities of a unigram model, not the order of merges
    of_text, space = set(ids), "\u2581"
    others = {name: id_ for name, id_ in names.items() if id_ not in of_text}
    merging = models.BPE(
        vocab=others | {pieces.id_to_piece(i): ids[i] for i in every},
        merges=_merges({pieces.id_to_piece(i): i for i in normal}),
        unk_token=pieces.id_to_piece(pieces.unk_id()),
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(merging)
    escapes = [normalizers.Replace(plain, escaped) for plain, escaped in ESCAPES.items()]
    spaces = [normalizers.Prepend(space), normalizers.Replace(" ", space)]
    tokenizer.normalizer = normalizers.Sequence([*escapes, *spaces])
    back = [decoders.Replace(escaped, plain) for plain, escaped in reversed(ESCAPES.items())]
    bytes_ = (decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence([decoders.Replace(space, " "), *bytes_, *back])
    return tokenizer.to_str(pretty=True)


def _merges(ranks: Mapping[str, int]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a piece, in the order in which SentencePiece joins them."""
    pairs = [
        (rank, ranks[piece[:cut]], ranks[piece[cut:]], piece[:cut], piece[cut:])
        for piece, rank in ranks.items()
        for cut in range(1, len(piece))
        if piece[:cut] in ranks and piece[cut:] in ranks
    ]
    return [(left, right) for *_, left, right in sorted(pairs)]
