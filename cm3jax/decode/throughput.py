"""What decoding took: tokens, seconds and bytes read from memory, without compilation."""

import dataclasses
from typing import Any


@dataclasses.dataclass
class Meter:
    """Sums over the calls that it is handed to.

    A program's first run compiles it; its time is `compile_seconds`, and its tokens count nowhere.
    """

    compile_seconds: float = 0.0
    prefill_seconds: float = 0.0
    prefill_tokens: int = 0
    """Ids of prompts that were read, of all streams, without padding."""
    joined_tokens: int = 0
    """Ids of the prompts that joined in that time, those that were known among them."""
    prefix_tokens: int = 0
    """Ids of prompts that a cache of prefixes was asked for, and those that it had."""
    prefix_found: int = 0
    rows: int = 0
    """Rows of samples, chunk by chunk, first runs included; and those that had something to do."""
    busy_rows: int = 0
    decode_seconds: float = 0.0
    decode_tokens: int = 0
    """Ids that samples emitted."""
    decode_bytes: int = 0
    """What the steps must read: the weights, each prompt's keys and values once, and each row's."""
    passes: int = 0
    """Passes of samples that emitted something, and what they emitted, first runs included."""
    emitted: int = 0

    def prefilled(self, seconds: float, tokens: int, known: int = 0) -> None:
        """Count prompts: ids that were read, and those that were known."""
        self.prefill_seconds += seconds
        self.prefill_tokens += tokens
        self.joined_tokens += tokens + known

    def occupied(self, busy: int, rows: int) -> None:
        """Count rows of samples in a chunk, and those of them that emitted something."""
        self.rows += rows
        self.busy_rows += busy

    def sought(self, tokens: int, found: int) -> None:
        """Count ids of a prompt, and those whose keys and values were there."""
        self.prefix_tokens += tokens
        self.prefix_found += found

    def stepped(self, seconds: float, tokens: int, read: int) -> None:
        """Count steps."""
        self.decode_seconds += seconds
        self.decode_tokens += tokens
        self.decode_bytes += read

    def emitted_by(self, passes: int, tokens: int) -> None:
        """Count what samples emitted in a number of passes, one sample's passes after another's."""
        self.passes += passes
        self.emitted += tokens

    def report(self, pictures: int, copy_rate: float | None = None) -> dict[str, Any]:
        """Rates; None where nothing was measured. `copy_rate` is the memory's, in bytes/s."""
        rate = _ratio(self.decode_bytes, self.decode_seconds)
        seconds = self.prefill_seconds + self.decode_seconds
        return {
            "compile_seconds": self.compile_seconds,
            "prefill_tokens_per_second": _ratio(self.prefill_tokens, self.prefill_seconds),
            "busy_rows": self.busy_rows / self.rows if self.rows else None,
            "prefix_hit_rate": self.prefix_found / self.prefix_tokens
            if self.prefix_tokens
            else None,
            "decode_tokens_per_second": _ratio(self.decode_tokens, self.decode_seconds),
            "decode_gigabytes_per_second": None if rate is None else rate / 1e9,
            "copy_gigabytes_per_second": None if copy_rate is None else copy_rate / 1e9,
            "share_of_copy_rate": None if rate is None or not copy_rate else rate / copy_rate,
            "seconds_per_picture": _ratio(seconds, pictures),
            "passes_per_picture": _ratio(self.passes, pictures),
            "tokens_per_pass": _ratio(self.emitted, self.passes),
        }


def _ratio(above: int | float, below: int | float) -> float | None:
    return above / below if above and below else None
