"""Keys of foreign configs: each is read, known to change no number, or refused by its name."""

from collections.abc import Iterable, Mapping
from typing import Any

from cm3jax.errors import UserError

_GROUPS = {
    "names and versions": """
        architectures auto_map finetuning_task model_type name_or_path prefix task_specific_params
        tokenizer_class transformers_version""",
    "how transformers answers and computes, not what": """
        attn_implementation chunk_size_feed_forward output_attentions output_hidden_states
        return_dict torchscript use_bfloat16 use_cache""",
    "of training: how weights began and what was dropped": """
        attention_dropout initializer_factor initializer_range""",
    "of models with a classifier, a decoder behind an encoder, or TensorFlow": """
        add_cross_attention cross_attention_hidden_size decoder_start_token_id id2label
        is_decoder is_encoder_decoder label2id num_labels problem_type sep_token_id tf_legacy_loss
        tie_encoder_decoder""",
    "for generation by transformers": """
        assistant_confidence_threshold assistant_lookbehind bad_words_ids begin_suppress_tokens
        diversity_penalty do_sample early_stopping encoder_no_repeat_ngram_size
        encoder_repetition_penalty epsilon_cutoff eta_cutoff exponential_decay_length_penalty
        forced_bos_token_id forced_eos_token_id length_penalty max_length min_length
        no_repeat_ngram_size num_assistant_tokens num_assistant_tokens_schedule num_beam_groups
        num_beams num_return_sequences output_scores remove_invalid_values repetition_penalty
        return_dict_in_generate suppress_tokens target_lookbehind temperature top_k top_p
        typical_p""",
}
TRANSFORMERS = {key: why for why, keys in _GROUPS.items() for key in keys.split()}
"""Keys of any config of transformers, with the reason why they change no number of the networks
that are imported here."""

_LARGEST, _DEEPEST = 1 << 24, 1000
"""No side, width or number of ids is above the first, no number of layers above the second."""


def select(
    values: Any, read: Iterable[str], harmless: Mapping[str, str], what: str
) -> dict[str, Any]:
    """The keys `read` of a config's `values`.

    Keys that begin with an underscore are a library's own notes, and null under a key that nobody
    knows says nothing. Raises `UserError`, which calls the config `what`, for a config that is no
    object and for the first key that is neither read nor among the `harmless`.
    """
    if not isinstance(values, dict):
        raise UserError(f"{what} is {values!r:.80}, not a JSON object; get the config again.")
    wanted = frozenset(read)
    for key, value in values.items():
        known = key in wanted or key in harmless or key.startswith("_") or value is None
        if not known:
            raise UserError(
                f"{what} has {key}={value!r:.80}, which this project does not know; give weights "
                "without it, or remove the key if it changes no number."
            )
    return {key: value for key, value in values.items() if key in wanted}


def require_values(found: Mapping[str, Any], accepted: Mapping[str, tuple], what: str) -> None:
    """Refuse values that this project's networks do not have.

    `accepted` lists the values of some keys; a key that `found` lacks is not looked at. Raises
    `UserError` naming the first key with another value.
    """
    for key, usual in accepted.items():
        if key in found and not any(_same(found[key], value) for value in usual):
            wanted = " or ".join(map(repr, usual))
            raise UserError(
                f"{what} has {key}={found[key]!r:.80}, and this project's network has {wanted}; "
                "give weights with that."
            )


def require_sizes(found: Mapping[str, Any], what: str) -> None:
    """Refuse whole numbers that cannot be the size of a network, before anything is built."""
    for key, value in found.items():
        sizes = value if isinstance(value, tuple) else (value,)
        most = _DEEPEST if key.endswith(("layers", "blocks")) else _LARGEST
        if any(type(size) is int and not 1 <= size <= most for size in sizes):
            raise UserError(f"{what} has {key}={value!r:.80}, which is not a size; get it again.")


def _same(one: Any, other: Any) -> bool:
    """Equality for which true is not 1."""
    return isinstance(one, bool) == isinstance(other, bool) and one == other
