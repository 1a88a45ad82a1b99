"""Makes `reference/*`: what models of transformers compute from the weights of `cases.weights`.

    python -m tests.interop.make_references

Needs torch and transformers (made with torch 2.13.0 on CPU and transformers 5.23.0). A file holds
the names and shapes of the state dict (`keys`, `shapes`), and outputs alone.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import (
    ChameleonConfig,
    ChameleonForConditionalGeneration,
    CLIPConfig,
    CLIPModel,
    CLIPTokenizer,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAEDecoder

from tests.interop import cases


def fill(model: torch.nn.Module, seed: int, broadcast: bool = False, rename=str) -> dict:
    """Give a model the weights of its names; returns names and shapes as arrays to store."""
    state = {}
    for key, value in model.state_dict().items():
        shape = tuple(value.shape)
        one = broadcast and key.endswith(("_norm.weight", "_norm.bias")) and len(shape) == 2
        shape = (1, *shape[1:]) if one else shape
        state[rename(key)] = (key, shape)
    made = {
        key: torch.from_numpy(cases.weights(name, shape, seed)).expand(
            model.state_dict()[key].shape
        )
        for name, (key, shape) in state.items()
    }
    model.load_state_dict(made)
    shapes = json.dumps({name: shape for name, (_, shape) in state.items()})
    return {"shapes": np.asarray(shapes)}


def nchw(pixels: np.ndarray) -> torch.Tensor:
    """Ours to torch's order."""
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)


def chameleon(name: str) -> dict:
    """Logits before transformers forbids image ids, and its own greedy continuation."""
    case = cases.CASES[name]
    config = ChameleonConfig(**case.config, attn_implementation="eager", eos_token_id=None)
    model = ChameleonForConditionalGeneration(config).eval()
    stored = fill(model, case.seed, case.broadcast)
    rows = {k: torch.from_numpy(v)[None] for k, v in cases.rows(case.seed).items()}
    pixels = nchw(cases.scenes(1, seed=case.seed))
    with torch.no_grad():
        for key in ("text", "first", "second"):
            hidden = model.model(input_ids=rows[key]).last_hidden_state
            stored[key] = model.lm_head(hidden)[0].numpy()
        stored["codes"] = model.model.vqmodel.encode(pixels).image_tokens.numpy().astype(np.uint8)
        hidden = model.model(input_ids=rows["image"], pixel_values=pixels).last_hidden_state
        stored["image"] = model.lm_head(hidden)[0].numpy()
        longer = model.generate(rows["text"], do_sample=False, max_new_tokens=64, pad_token_id=1)
    return stored | {"greedy": longer[0].numpy().astype(np.int32)}


def vq() -> dict:
    """Codes and what they stand for, by Chameleon's encoder; images, by Janus's decoder."""
    config = ChameleonConfig(**cases.CASES["plain"].config)
    model = ChameleonForConditionalGeneration(config).model.vqmodel.eval()
    stored = fill(model, 0)
    pixels = np.concatenate([cases.noise(64), cases.scenes(16)])
    with torch.no_grad():
        vectors = model.quant_conv(model.encoder(nchw(pixels)))
        codes = model.encode(nchw(pixels)).image_tokens.reshape(len(pixels), -1)
        decoder = JanusVQVAEDecoder(JanusVQVAEConfig(**cases.VQ | {"out_channels": 3})).eval()
        last = len(cases.VQ["channel_multiplier"]) - 1

        def level_from_below(key: str) -> str:
            """Janus counts levels from the lowest up, taming from the highest down."""
            parts = key.split(".")
            if parts[0] == "up":
                parts[1] = str(last - int(parts[1]))
            return ".".join(["decoder", *parts])

        more = fill(decoder, 0, rename=level_from_below)
        entries = model.quantize.embedding(codes[:2]).reshape(2, 8, 8, -1).permute(0, 3, 1, 2)
        drawn = decoder(model.post_quant_conv(entries)).permute(0, 2, 3, 1)
    shapes = json.loads(str(stored["shapes"])) | json.loads(str(more["shapes"]))
    return {
        "shapes": np.asarray(json.dumps(shapes)),
        "vectors": vectors[:2].permute(0, 2, 3, 1).numpy(),
        "codes": codes.numpy().astype(np.uint8),
        "drawn": drawn.numpy(),
    }


def clip(name: str, tokenizer: CLIPTokenizer) -> dict:
    """Unit vectors, token ids and pixels."""
    config = CLIPConfig(**cases.CLIPS[name])
    model = CLIPModel(config).eval()
    stored = fill(model, 0)
    inputs = tokenizer(cases.TEXTS, padding="max_length", truncation=True, max_length=16)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24)
    pixels = np.stack(processor(cases.photographs())["pixel_values"])
    with torch.no_grad():
        ids = torch.tensor(inputs["input_ids"])
        out = model(input_ids=ids, pixel_values=torch.from_numpy(pixels))
    return stored | {
        "ids": ids.numpy().astype(np.int32),
        "pixels": pixels.transpose(0, 2, 3, 1).astype(np.float32),
        "text": out.text_embeds.numpy(),
        "image": out.image_embeds.numpy(),
    }


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """CLIP's kind of BPE, with six merges; its `tokenizer.json` is stored too."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    merges = [("f", "o"), ("fo", "x</w>"), ("r", "e"), ("re", "d</w>"), ("Ã", "©</w>"), ("f", "l")]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(m) for m in merges)]
    vocab = {token: id_ for id_, token in enumerate(tokens)}
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges)
    tokenizer.backend_tokenizer.save(str(folder / "clip-tokenizer.json"), pretty=False)
    return tokenizer


def main() -> None:
    """Write all references."""
    torch.manual_seed(0)
    made = {f"chameleon-{name}": chameleon(name) for name in cases.CASES} | {"vq": vq()}
    tokenizer = clip_tokenizer(cases.REFERENCE)
    made |= {f"clip-{name}": clip(name, tokenizer) for name in cases.CLIPS}
    for name, arrays in made.items():
        path = cases.REFERENCE / f"{name}.npz"
        np.savez_compressed(path, **arrays)
        print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
