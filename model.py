"""The language model: a small decoder-only transformer with the architecture of Qwen2.5.

RMSNorm before each sub-layer, rotary positions, grouped-query attention with biases on q, k and v only, a SwiGLU MLP,
and one matrix for the embedding and the output head. Every parameter has the name that it has in Hugging Face's
`Qwen2ForCausalLM` (transformers, `modeling_qwen2.py`), so that weights map one to one.

`python model.py` prints the presets and how many parameters each one has.

Shapes: B sequences, T positions, C channels (n_embd), nh query heads, nkv key/value heads, hs head size, V vocabulary.
"""

import argparse
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    """The sizes of a model. Raises ValueError, naming the flag, for sizes that do not fit together."""

    n_layer: int  # transformer blocks
    n_embd: int  # width C of the residual stream
    n_head: int  # query heads
    n_kv_head: int  # key/value heads, each shared by n_head / n_kv_head query heads
    n_mlp: int  # hidden width of the SwiGLU MLP
    vocab_size: int  # including the end-of-text token
    rope_theta: float = 1e6  # base of the rotary frequencies
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        for name, size in list(vars(self).items())[:6]:  # a file may say anything
            if type(size) is not int or not 1 <= size <= 100_000:
                raise ValueError(f"--{name.replace('_', '-')}={size}: must be a whole number from 1 to 100000")
        if self.n_embd % self.n_head or (self.n_embd // self.n_head) % 2:
            raise ValueError(f"--n-embd={self.n_embd}: must be an even multiple of --n-head={self.n_head}")
        if self.n_head % self.n_kv_head:
            raise ValueError(f"--n-kv-head={self.n_kv_head}: must divide --n-head={self.n_head}")


# The vocabulary is only proposed here: the tokenizer decides it.
PRESETS = {
    "372m": Config(n_layer=24, n_embd=896, n_head=14, n_kv_head=2, n_mlp=4864, vocab_size=16000),  # the paper's two
    "115m": Config(n_layer=12, n_embd=768, n_head=8, n_kv_head=8, n_mlp=2688, vocab_size=16000),
    "117m": Config(n_layer=12, n_embd=768, n_head=12, n_kv_head=3, n_mlp=3136, vocab_size=16384),
    "small": Config(n_layer=6, n_embd=320, n_head=5, n_kv_head=1, n_mlp=1024, vocab_size=8192),
    "tiny": Config(n_layer=4, n_embd=128, n_head=4, n_kv_head=2, n_mlp=384, vocab_size=2048),
    "nano": Config(n_layer=1, n_embd=16, n_head=2, n_kv_head=1, n_mlp=24, vocab_size=400),  # for smoke tests
}


def rotary(positions: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin of the angles of positions (..., T), each (..., T, hs) in float32 (Su et al., arXiv 2104.09864)."""
    pairs = torch.arange(0, head_size, 2, device=positions.device, dtype=torch.float32)  # (hs/2)
    angles = positions[..., None].float() * theta ** (-pairs / head_size)  # (..., T, hs/2)
    angles = torch.cat((angles, angles), dim=-1)  # (..., T, hs)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_{i + hs/2}) by its position's angle. x (B, heads, T, hs), cos and sin ([B, 1,] T, hs)."""
    x1, x2 = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-x2, x1), dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention; several query heads share a key/value head (Ainslie et al. 2023, arXiv 2305.13245)."""

    def __init__(self, config: Config):
        super().__init__()
        self.head_size = config.n_embd // config.n_head
        self.q_proj = nn.Linear(config.n_embd, config.n_head * self.head_size, bias=True)
        self.k_proj = nn.Linear(config.n_embd, config.n_kv_head * self.head_size, bias=True)
        self.v_proj = nn.Linear(config.n_embd, config.n_kv_head * self.head_size, bias=True)
        self.o_proj = nn.Linear(config.n_head * self.head_size, config.n_embd, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, nh, T, hs)
        k = self.k_proj(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, nkv, T, hs)
        v = self.v_proj(x).view(B, T, -1, self.head_size).transpose(1, 2)  # (B, nkv, T, hs)
        q, k = rotate(q, cos, sin).to(v.dtype), rotate(k, cos, sin).to(v.dtype)
        grouped = k.size(1) < q.size(1)
        if grouped and q.device.type != "cpu" and (mask is not None or q.dtype == torch.float32):
            k, v = (x.repeat_interleave(q.size(1) // x.size(1), dim=1) for x in (k, v))  # a GPU is slow otherwise
            grouped = False
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=grouped)  # (B, nh, T, hs)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.n_embd, config.n_mlp, bias=False)
        self.up_proj = nn.Linear(config.n_embd, config.n_mlp, bias=False)
        self.down_proj = nn.Linear(config.n_mlp, config.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """A transformer block; x is (B, T, C), cos and sin are those of `rotary`, mask as in `Transformer.hidden`."""

    def __init__(self, config: Config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.n_embd)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.RMSNorm(config.n_embd, eps=config.norm_eps)


class Transformer(nn.Module):
    """Token ids (B, T) in, logits (B, T, V) or a loss out. Weights from N(0, 0.02), biases 0, norms 1."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def hidden(self, tokens: Tensor, positions: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """What the head reads, (B, T, C). Without the other two: positions 0 .. T-1, each attending to those before it.

        positions (B, T): the place of each token in its text; mask (B, T, T): true where a token (T) may see one (T).
        """
        if positions is None:
            positions = torch.arange(tokens.size(1), device=tokens.device)  # (T)
        else:
            positions, mask = positions[:, None], mask[:, None]  # (B, 1, T), (B, 1, T, T): the same for all heads
        cos, sin = rotary(positions, self.config.n_embd // self.config.n_head, self.config.rope_theta)
        x = self.model.embed_tokens(tokens)  # (B, T, C)
        for block in self.model.layers:
            x = block(x, cos, sin, mask)
        return self.model.norm(x)

    def head(self, x: Tensor) -> Tensor:
        """Logits (..., V) from (..., C): the head is the embedding."""
        return F.linear(x, self.model.embed_tokens.weight)

    def forward(self, tokens: Tensor, targets: Tensor | None = None, reduction: str = "mean") -> Tensor:
        """Logits (B, T, V); with targets (B, T), the cross-entropy in nats per token, float32, instead.

        A target of -100 does not count. reduction: "mean" (a scalar) or "none" (B, T), as in F.cross_entropy.
        """
        logits = self.head(self.hidden(tokens))  # (B, T, V)
        if targets is None:
            return logits
        loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(), reduction=reduction)
        return loss if reduction == "mean" else loss.view_as(targets)


def count_parameters(model: nn.Module) -> int:
    """How many numbers are learnt; the tied head counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def main() -> None:
    argparse.ArgumentParser(usage=argparse.SUPPRESS, description="Print the presets and their sizes.").parse_args()
    print("preset    layers  width  heads  kv heads   mlp  vocabulary   parameters")
    for name, c in PRESETS.items():
        with torch.device("meta"):
            n = count_parameters(Transformer(c))
        sizes = f"{c.n_layer:6} {c.n_embd:6} {c.n_head:6} {c.n_kv_head:9} {c.n_mlp:5} {c.vocab_size:11}"
        print(f"{name:9} {sizes} {n:12,}")


if __name__ == "__main__":
    main()
