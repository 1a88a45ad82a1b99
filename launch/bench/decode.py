"""Our decoding compared with `generate` of transformers' Chameleon, greedy, with the same weights.

Prompts are random ids. Every id that is not an image code scores 0, and the likeliest code far
more, so that both sides choose among the same ids and choose the same ones. `tokens_per_second`
counts the tokens that all samples emit; the time includes the prompts. The rival runs with a static
and with a growing cache, with `--compile-torch` also compiled; several samples of a prompt also
with the prompt's cache computed once and repeated by hand. With `--weights` our side also runs
without. Sides take turns, so that whatever else runs on the machine slows them alike.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from cm3jax.config import DecodeConfig, Experiment, WeightType
from cm3jax.decode.grammar import Codes
from cm3jax.decode.loop import decode_each
from cm3jax.decode.params import as_read
from cm3jax.decode.request import Guide, Request
from cm3jax.decode.throughput import Meter
from cm3jax.learners.decoder import DecoderLearner
from cm3jax.model.decoder import Decoder
from cm3jax.sequence.vocab import Vocab
from cm3jax.training.hardware import copy_rate
from launch.bench.model import add_model, experiment, no_rival, positive, random_weights
from launch.rivals import chameleon

REPEATS = 5
"""Timed runs of each side, after one that compiles and warms up; the fastest counts."""

Side = Callable[[], np.ndarray]
"""Draws: ids [prompts, samples, new]."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add_model(parser)
    add = parser.add_argument
    add("--prompt", type=positive, default=64, help="ids of a prompt")
    add("--new", type=positive, default=64, help="ids after each prompt")
    add("--samples", type=positive, default=1, help="samples of each prompt")
    add("--guided", action="store_true", help="with guidance, as a second stream")
    add("--weights", choices=["int8", "int4", "fp8"], default="", help="type of our matrices")
    add("--compile-torch", action="store_true", help="measure torch.compile as well")


def bench_decode(options: argparse.Namespace) -> dict[str, Any]:
    """Time the sides in turns."""
    config = experiment(options, options.prompt + options.new + 1)
    vocab = Vocab(config.vocab)
    weights = random_weights(DecoderLearner(config, vocab, {}))
    if "head" in weights:
        weights["head"][: vocab.first_image] = 0
        weights["head"][vocab.first_text :] = 0
    prompts = np.random.default_rng(1).integers(
        vocab.first_text, vocab.size, (options.batch, options.prompt), dtype=np.int32
    )
    given = (config, weights, prompts, options)
    why = no_rival(options)
    ours, meter = _ours(*given, options.weights)
    sides = {"ours": ours, **({} if why else _torch(*given))}
    if options.weights:
        sides["ours_plain"], _ = _ours(*given, "")
    found = _timed(sides)
    ids, seconds = found.pop("ours")
    tokens = options.batch * options.samples * options.new
    answer = {
        "device": jax.devices()[0].device_kind,
        "dtype": config.model.dtype,
        "weights": options.weights,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(weights)),
        "prompts": options.batch,
        "samples": options.samples,
        "streams": 2 if options.guided else 1,
        "prompt_tokens": options.prompt,
        "new_tokens": options.new,
        "ours": {"tokens_per_second": tokens / seconds, "seconds": seconds}
        | meter().report(options.batch * options.samples, copy_rate()),
    }
    if options.weights:
        answer["error_of_logits"] = _error(config, weights, prompts, options.weights)
    for name, (theirs, seconds) in found.items():
        rate = tokens / seconds
        answer[name] = {"tokens_per_second": rate, "seconds": seconds}
        if not options.guided or name == "ours_plain":
            # The rival's second stream costs its time and guides nothing.
            answer[name]["same_ids"] = float(np.mean(theirs == ids))
        answer[f"ratio_to_{name}"] = answer["ours"]["tokens_per_second"] / rate
    return answer | ({"torch": None, "torch_left_out_because": why} if why else {})


def _timed(sides: dict[str, Side]) -> dict[str, tuple[np.ndarray, float]]:
    """Ids and seconds of each side."""
    found = {name: run() for name, run in sides.items()}
    seconds = dict.fromkeys(sides, np.inf)
    for _ in range(REPEATS):
        for name, run in sides.items():
            begin = time.perf_counter()
            found[name] = run()
            seconds[name] = min(seconds[name], time.perf_counter() - begin)
    return {name: (found[name], seconds[name]) for name in sides}


def _ours(
    config: Experiment,
    weights: Any,
    prompts: np.ndarray,
    options: argparse.Namespace,
    kind: WeightType,
) -> tuple[Side, Callable[[], Meter]]:
    """Our engine with matrices of this type, and what its last run counted."""
    vocab = Vocab(config.vocab)
    model = Decoder(config.model, vocab.size)
    variables = {"params": weights}
    variables = jax.device_put(as_read(variables, config.model.dtype, kind))
    blind = np.asarray([vocab.eos, vocab.sentinel(0), vocab.break_], np.int32)
    guides = (Guide(blind, 3.0),) if options.guided else ()
    program = (Codes((None,) * options.new),)
    requests = [Request(prompt, guides, program, i) for i, prompt in enumerate(prompts)]
    rows = options.batch * options.samples * (1 + len(guides))
    settings = DecodeConfig(temperature=0.0, batch=rows)
    meter = Meter()

    def run() -> np.ndarray:
        nonlocal meter
        meter = Meter()
        out = np.zeros((len(prompts), options.samples, options.new), np.int32)
        call = (model, variables, vocab, requests, settings, options.samples, 0, meter)
        for finished in decode_each(*call):
            for done in finished:
                out[done.request] = [sample.ids for sample in done.samples]
        return out

    return run, lambda: meter


def _error(config: Experiment, weights: Any, prompts: np.ndarray, kind: WeightType) -> float:
    """How far the logits of all prompts are off with matrices of this type, of their own norm."""
    model = Decoder(config.model, Vocab(config.vocab).size)

    @jax.jit
    def logits(variables: dict):
        lengths = np.full(len(prompts), prompts.shape[1], np.int32)
        hidden, _ = model.apply(variables, prompts, lengths, method="prefill")
        return model.apply(variables, hidden, method="logits")

    exact, near = (
        np.asarray(logits(as_read({"params": weights}, config.model.dtype, one)))
        for one in ("", kind)
    )
    return float(np.linalg.norm(near - exact) / np.linalg.norm(exact))


def _torch(
    config: Experiment, weights: Any, prompts: np.ndarray, options: argparse.Namespace
) -> dict[str, Side]:
    """The rival by kind of cache."""
    import torch
    from transformers import CompileConfig, DynamicCache

    dtype = getattr(torch, config.model.dtype)
    network = chameleon(config, weights).to(dtype).eval()
    ids = torch.from_numpy(prompts.astype(np.int64)).to(network.device)
    if options.guided:
        ids = torch.cat([ids, ids])
    fixed: dict[str, Any] = {
        "max_new_tokens": options.new,
        "min_new_tokens": options.new,
        "do_sample": False,
        "eos_token_id": None,
        "pad_token_id": 1,
    }

    def shaped(out: "torch.Tensor") -> np.ndarray:
        new = out[: options.batch * options.samples, options.prompt :]
        return new.reshape(options.batch, options.samples, options.new).cpu().numpy()

    @torch.inference_mode()
    def generate(**settings) -> np.ndarray:
        rows = ids.repeat_interleave(options.samples, 0)
        mask = torch.ones_like(rows)
        return shaped(network.generate(input_ids=rows, attention_mask=mask, **fixed, **settings))

    @torch.inference_mode()
    def repeated() -> np.ndarray:
        cache = DynamicCache(config=network.config)
        network.model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(options.samples)
        return generate(past_key_values=cache)

    sides: dict[str, Side] = {
        "torch_static": lambda: generate(cache_implementation="static"),
        "torch_growing": lambda: generate(),
    }
    if options.samples > 1:
        sides["torch_repeated"] = repeated
    if options.compile_torch:
        compiled: Any = CompileConfig(mode="default", fullgraph=False)
        compiled._compile_all_devices = True  # or `generate` leaves CPUs out
        sides["torch_compiled"] = lambda: generate(
            cache_implementation="static", compile_config=compiled
        )
    return sides
