"""Makes `chameleon-*.npz`: tiny random Chameleons of transformers, and what they compute.

    python tests/model/reference/make_chameleon.py

Needs torch and transformers (made with torch 2.13.0 on CPU and transformers 5.23.0). Each file has
the text stack's state dict under the names of transformers, `tokens`, the last layer's `hidden`
states after the final norm, and `logits` before transformers forbids image ids.
"""

from pathlib import Path

import numpy as np
import torch
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

VARIANTS = {
    "chameleon-7b": {"num_key_value_heads": 4, "swin_norm": False},
    "chameleon-34b": {"num_key_value_heads": 2, "swin_norm": True},
}


def main() -> None:
    """Write one file per variant beside this script."""
    for name, differences in VARIANTS.items():
        torch.manual_seed(0)
        config = ChameleonConfig(
            vocab_size=40,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=64,
            attn_implementation="eager",
            vocabulary_map={"<image>": 3, "IMGIMGAZ": 4},
            vq_config={
                "base_channels": 32,
                "channel_multiplier": [1],
                "embed_dim": 4,
                "latent_channels": 4,
                "num_embeddings": 2,
                "num_res_blocks": 1,
                "resolution": 8,
            },
            **differences,
        )
        model = ChameleonForConditionalGeneration(config).eval()
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                # Gains of just 1 and biases of just 0 would hide mistakes.
                parameter.copy_(0.3 * torch.randn(parameter.shape) + key.endswith("norm.weight"))
            tokens = torch.randint(0, config.vocab_size, (2, 12))
            hidden = model.model(input_ids=tokens).last_hidden_state
            logits = model.lm_head(hidden)
        state = {k: v for k, v in model.state_dict().items() if "vqmodel" not in k}
        arrays = {key: value.numpy().astype(np.float32) for key, value in state.items()}
        arrays |= {"hidden": hidden.numpy(), "logits": logits.numpy()}
        path = Path(__file__).with_name(f"{name}.npz")
        np.savez_compressed(path, tokens=tokens.numpy().astype(np.int32), **arrays)
        print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
