"""How the demo's model was made: a Qwen3 of 0.18 million parameters whose tokens are bytes, and which knows two paragraphs by heart.

    python -m linkproof.demo.train FOLDER        writes model.safetensors (bfloat16) and config.json: the two files beside this one

In:      the two paragraphs of model.py, written for this demo.
Out:     exit code 0 if the weights, rounded to bfloat16, still write both paragraphs byte for byte; 1 if they do not.
Unknown: on another processor or another torch the last bits of the weights differ; the text does not.
Source:  one thread, fixed seed, AdamW, a learning rate that falls to zero. Two minutes on one core. Made with torch 2.13, transformers 5.23.
"""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from linkproof.demo.model import TEXTS, encoded

CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rope_theta": 10000.0,
    "use_sliding_window": False,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
STEPS, BATCH, WINDOW = 1200, 12, 160


def trained() -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(5)
    model = Qwen3ForCausalLM(Qwen3Config(**CONFIG)).train()
    texts = [torch.tensor(encoded(text)) for text in TEXTS.values()]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    falling = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, STEPS, pct_start=0.05)
    for step in range(STEPS):
        rows = []
        for i in range(BATCH):
            text = texts[i % len(texts)]
            begin = 0 if i < BATCH // 2 and step % 2 else int(torch.randint(0, len(text) - WINDOW, ()))
            rows.append(text[begin : begin + WINDOW])
        ids = (
            torch.stack(rows) if step % 4 else texts[step // 4 % len(texts)][None]
        )  # now and then a whole paragraph, as it will be written
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        falling.step()
        if step % 100 == 0:
            print(f"step {step} of {STEPS}, loss {loss.item():.4f}", file=sys.stderr)
    return model.eval()


@torch.no_grad()
def smallest_lead(model: Any) -> float:
    """By how much the right byte leads the next best one where it leads least, beyond the first 12 bytes; below 0 if a byte is wrong."""
    leads = []
    for text in TEXTS.values():
        ids = torch.tensor(encoded(text))
        logits = model(input_ids=ids[None]).logits[0, 11:-1]
        right = ids[12:, None]
        others = logits.scatter(1, right, float("-inf")).max(-1).values
        leads.append((logits.gather(1, right)[:, 0] - others).min().item())
    return float(min(leads))


def main(folder: str) -> int:
    model = trained()
    weights = {name: w.detach().to(torch.bfloat16).contiguous() for name, w in model.state_dict().items()}
    model.load_state_dict(weights)
    lead = smallest_lead(model)
    print(f"rounded to bfloat16, the right byte leads by {lead:.2f} at least", file=sys.stderr)
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    save_file(weights, out / "model.safetensors", metadata={"format": "pt"})
    (out / "config.json").write_text(json.dumps(CONFIG, indent=1) + "\n", encoding="utf-8")
    return 0 if lead > 0 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
