"""
The paper's GPT (section 3), which knows nothing of languages: a clone is other rows of both tables.

- GPT-2's pre-LN blocks, learned positions, no dropout, tanh-GELU, an MLP 4 times as wide
- biases everywhere but in the head
- untied input and output embeddings; input embeddings scaled by sqrt(n_embd)
- N(0, 0.02) initialisation, the MLP's output projection N(0, 0.02 / sqrt(2 n_layer)), zero biases
- heads may be narrower than n_embd / n_head: the paper's mini model has 8 heads of 32 in 512
- the logits of a whole batch are never held at once: see linear_cross_entropy
"""
import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

@dataclass
class GPTConfig:
    """Shape of a GPT. vocab_size counts the model's ids, over all languages."""
    block_size: int = 512
    vocab_size: int = 16384
    n_layer: int = 12
    n_embd: int = 768
    n_head: int = 12
    head_dim: int = 0  # 0: n_embd / n_head

CHUNK = 512  # rows of logits held at a time on a CPU: tuned to its cache
GPU_LOGITS = 1 << 29  # logits held at a time on a GPU, 1 GiB in bfloat16: fewer, larger products

def softmax_grad(logits, targets, n):
    """Logits (rows, V), overwritten if float32, and targets (rows, 1) -> summed cross-entropy, and
    its gradient / n; None for n = 0."""
    x = logits.float()
    x.sub_(x.amax(-1, keepdim=True))
    target = x.gather(1, targets)
    exp = x.exp_()  # in place, and only once: next to the products it costs most
    total = exp.sum(-1, keepdim=True)
    loss = (total.log() - target).sum()
    if not n:
        return loss, None
    grad = exp.mul_(1 / (n * total)).scatter_add_(1, targets, torch.full_like(target, -1 / n))
    return loss, grad.to(logits.dtype)  # (softmax - one_hot) / n

def fused_softmax_grad(logits, targets, n):
    """The same for torch.compile: two kernels, and no copy of the logits in float32."""
    x = logits.float()
    total = x.logsumexp(-1, keepdim=True)
    loss = (total - x.gather(1, targets)).sum()
    if not n:
        return loss, None
    one_hot = (torch.arange(x.size(1), device=x.device) == targets).float()
    return loss, (((x - total).exp() - one_hot) / n).to(logits.dtype)

class LinearCrossEntropy(torch.autograd.Function):
    """Chunk by chunk, the gradients computed in the forward pass: no logits are kept, and none are
    computed twice. On 2 CPU cores it takes 0.6 to 0.85 of the time of F.linear_cross_entropy."""

    @staticmethod
    def forward(ctx, x, weight, targets, dtype, softmax_grad):
        w = weight.to(dtype)
        n = len(x) if any(ctx.needs_input_grad) else 0  # 0: no gradients are wanted
        loss = torch.zeros((), device=x.device)
        dx, dw = (torch.empty_like(x), torch.zeros_like(weight)) if n else (None, None)
        rows = max(CHUNK, GPU_LOGITS // len(w)) if x.is_cuda else CHUNK
        rows = 256 * math.ceil(len(x) / math.ceil(len(x) / rows) / 256)  # of about equal size
        for i in range(0, len(x), rows):
            xi = x[i:i + rows].to(dtype)
            part, dlogits = softmax_grad(xi @ w.T, targets[i:i + rows, None], n)
            loss += part
            if n:
                dx[i:i + rows] = dlogits @ w
                dw += dlogits.T @ xi  # the sum in float32
        ctx.save_for_backward(dx, dw)
        return loss / len(x)

    @staticmethod
    def backward(ctx, grad):
        dx, dw = ctx.saved_tensors
        return dx * grad, dw * grad, None, None, None

def linear_cross_entropy(x, weight, targets, softmax_grad=softmax_grad):
    """Mean cross-entropy in nats of targets (N,) under the logits x (N, C) @ weight (V, C).T."""
    if not torch.is_grad_enabled():  # needs_input_grad would be true all the same
        x, weight = x.detach(), weight.detach()
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
    return LinearCrossEntropy.apply(x, weight, targets, dtype, softmax_grad)

class CausalSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        inner = config.n_head * (config.head_dim or config.n_embd // config.n_head)
        self.c_attn = nn.Linear(config.n_embd, 3 * inner)  # query, key and value in one product
        self.c_proj = nn.Linear(inner, config.n_embd)

    def forward(self, x):
        B, T, _ = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, n_head, T, head_dim) each
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, -1))

class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate='tanh'))

class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config, self.softmax_grad = config, softmax_grad
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.block_size, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        for name, p in self.named_parameters():
            if name.endswith('bias'):
                nn.init.zeros_(p)
            elif p.dim() == 2:  # not the norms' gains, which start at one
                scaled = name.endswith('mlp.c_proj.weight')  # not attn.c_proj, unlike GPT-2
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer) if scaled else 0.02)

    def compile(self, **options):
        """torch.compile each block and the elementwise part of the head: of the whole model it
        would unroll the loop over chunks, and take minutes."""
        for block in self.h:
            block.compile(**options)
        self.softmax_grad = torch.compile(fused_softmax_grad, dynamic=False, **options)

    def num_params(self):
        """Non-embedding parameters, the paper's 11M, 85M and 303M: all but the token tables,
        positions included."""
        tables = self.wte.weight.numel() + self.lm_head.weight.numel()
        return sum(p.numel() for p in self.parameters()) - tables

    def flops_per_token(self):
        """FLOPs of a forward and backward pass, per token: 6 per weight, the head's included, and
        attention over its causal half."""
        attention = sum(block.attn.c_proj.in_features for block in self.h) * self.config.block_size
        return 6 * (self.num_params() + self.lm_head.weight.numel() + attention)

    def features(self, idx, hidden=None):
        """Token ids (B, T) -> what the head reads (B, T, C). Each block's output (B, T, C), before
        the final norm, is appended to hidden: the hidden states of section 4.2."""
        x = self.wte(idx) * math.sqrt(self.config.n_embd) + self.wpe.weight[:idx.size(1)]
        for block in self.h:
            x = block(x)
            if hidden is not None:
                hidden.append(x)
        return self.ln_f(x)

    def forward(self, idx, targets=None, hidden=None):
        """Token ids (B, T) -> logits (B, T, vocab_size); with targets (B, T), their mean
        cross-entropy in nats instead. hidden: see features."""
        x = self.features(idx, hidden)
        if targets is None:
            return self.lm_head(x)
        return linear_cross_entropy(x.flatten(0, 1), self.lm_head.weight, targets.flatten(),
                                    self.softmax_grad)
