"""The speed of the same model in PyTorch, as a control for throughput.rs.

python3 model/examples/throughput.py [cpu|cuda] [steps] [small|large] [f32|tf32|bf16]

Prints parameters, tokens per second of forward and backward passes of the whole model, and the time of an AdamW step. Attention is
PyTorch's scaled_dot_product_attention; nothing is compiled.
"""

import sys
import time

import torch
from torch import nn
from torch.nn import functional as F

SEQUENCES = 8
VOCABULARY = 256
STAGES = 3
SIZES = {
    "small": dict(context=128, width=128, layers=6, heads=4, kv_heads=2, hidden=344, bottleneck=32),
    "large": dict(context=1024, width=1024, layers=12, heads=16, kv_heads=8, hidden=2736, bottleneck=256),
}


def linear(inputs, outputs):
    layer = nn.Linear(inputs, outputs, bias=False)
    nn.init.normal_(layer.weight, std=0.02)
    return layer


class Block(nn.Module):
    def __init__(self, size):
        super().__init__()
        width, self.heads, self.kv_heads = size["width"], size["heads"], size["kv_heads"]
        self.head = width // self.heads
        self.attention_norm, self.feed_forward_norm = nn.RMSNorm(width, 1e-5), nn.RMSNorm(width, 1e-5)
        self.query, self.output = linear(width, width), linear(width, width)
        self.key, self.value = (linear(width, self.kv_heads * self.head) for _ in range(2))
        self.gate, self.up = (linear(width, size["hidden"]) for _ in range(2))
        self.down = linear(size["hidden"], width)

    def forward(self, x, cosine, sine):  # x: [B, T, C]
        sequences, context, width = x.shape
        normed = self.attention_norm(x)

        def split(y, heads):
            return y.view(sequences, context, heads, self.head).transpose(1, 2)  # [B, heads, T, D]

        def rotate(y):
            left, right = y.chunk(2, dim=-1)
            return torch.cat((left * cosine - right * sine, right * cosine + left * sine), dim=-1).to(y.dtype)

        query = rotate(split(self.query(normed), self.heads))
        key = rotate(split(self.key(normed), self.kv_heads))
        value = split(self.value(normed), self.kv_heads)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        x = x + self.output(mixed.transpose(1, 2).reshape(sequences, context, width))
        normed = self.feed_forward_norm(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


class Cut(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.wire = size["bottleneck"]
        self.encoder, self.decoder = linear(size["width"], self.wire), linear(self.wire, size["width"])

    def forward(self, x):
        wire = x[..., : self.wire] + self.encoder(x)
        wide = F.relu(self.decoder(wire))
        return torch.cat((wide[..., : self.wire] + wire, wide[..., self.wire :]), dim=-1)


class Model(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, size["width"])
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(size) for _ in range(size["layers"]))
        self.cuts = nn.ModuleList(Cut(size) for _ in range(STAGES - 1))
        self.norm, self.output = nn.RMSNorm(size["width"], 1e-5), linear(size["width"], VOCABULARY)
        self.each = size["layers"] // STAGES
        half = size["width"] // size["heads"] // 2
        angles = torch.outer(torch.arange(size["context"], dtype=torch.float32), 10_000.0 ** (-torch.arange(half) / half))
        self.register_buffer("cosine", angles.cos())
        self.register_buffer("sine", angles.sin())

    def forward(self, tokens):
        x = self.embedding(tokens)
        for index, block in enumerate(self.blocks):
            x = block(x, self.cosine, self.sine)
            if (index + 1) % self.each == 0 and index + 1 < len(self.blocks):
                x = self.cuts[index // self.each](x)
        return self.output(self.norm(x))


def main():
    arguments = sys.argv[1:] + ["cpu", "20", "small", "f32"][len(sys.argv) - 1 :]
    device, steps, size, precision = arguments[0], int(arguments[1]), SIZES[arguments[2]], arguments[3]
    if precision not in ("f32", "tf32", "bf16"):
        sys.exit(f"precision is {precision!r}, expected f32, tf32 or bf16")
    torch.manual_seed(1)
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    model = Model(size).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    print(f"{sum(p.numel() for p in model.parameters())} parameters on {device}, {precision}")
    ids = torch.arange(SEQUENCES * size["context"] + 1) % 256

    def run(index):
        tokens = (ids * ids + 7 * index) % 256
        shape = (SEQUENCES, size["context"])
        inputs, targets = tokens[:-1].view(shape).to(device), tokens[1:].view(shape).to(device)
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(inputs)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
        loss.backward()
        return loss.item()

    run(0)
    start = time.perf_counter()
    for index in range(steps):
        loss = run(index)
    seconds = time.perf_counter() - start
    print(f"whole: {steps * SEQUENCES * size['context'] / seconds:.0f} tokens/s, last loss {loss:.3f}")
    for _ in range(2):
        start = time.perf_counter()
        optimizer.step()
        if device != "cpu":
            torch.cuda.synchronize()
        milliseconds = (time.perf_counter() - start) * 1e3
    print(f"optimizer step: {milliseconds:.1f} ms")


if __name__ == "__main__":
    main()
