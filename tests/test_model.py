"""model.py: the GPT of the paper's section 3, and its cross-entropy."""
import math

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from model import CHUNK, GPT, GPTConfig, fused_softmax_grad, linear_cross_entropy, softmax_grad

def tiny(**shape):
    torch.manual_seed(0)
    default = {'block_size': 16, 'vocab_size': 50, 'n_layer': 3, 'n_embd': 24, 'n_head': 3}
    return GPT(GPTConfig(**default | shape))

@pytest.mark.parametrize('shape, millions', [
    ({'n_layer': 4, 'n_embd': 512, 'n_head': 8, 'head_dim': 32}, 11),
    ({'n_layer': 12, 'n_embd': 768, 'n_head': 12}, 85),
    ({'n_layer': 24, 'n_embd': 1024, 'n_head': 16}, 303)])
def test_non_embedding_parameters_are_the_papers(shape, millions):
    with torch.device('meta'):
        assert round(GPT(GPTConfig(512, 16384, **shape)).num_params() / 1e6) == millions

@pytest.mark.parametrize('n', [3, CHUNK, 2 * CHUNK + 76])
@pytest.mark.parametrize('low_precision', [False, True])
@pytest.mark.parametrize('part', [softmax_grad, fused_softmax_grad])
def test_linear_cross_entropy_is_cross_entropy_within_rounding(n, low_precision, part):
    torch.manual_seed(0)
    x, w, t = torch.randn(n, 32), torch.randn(70, 32) * 0.1, torch.randint(70, (n,))
    x.requires_grad_(), w.requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=low_precision):
        loss = linear_cross_entropy(x, w, t, part)
        with torch.no_grad():
            assert linear_cross_entropy(x, w, t, part) == loss
    expected = F.cross_entropy(x @ w.T, t)
    rounding = 1e-2 if low_precision else 1e-5
    assert loss.item() == pytest.approx(expected.item(), rel=rounding / 5)
    gradients = [torch.autograd.grad(3 * value, (x, w)) for value in (loss, expected)]
    for ours, theirs in zip(*gradients):
        assert (ours - theirs).norm() < rounding * theirs.norm()

class Made(TorchDispatchMode):
    """Collects the shapes of all tensors that are made, views of their arguments excepted."""
    shapes = ()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        made = out if isinstance(out, (tuple, list)) else [out]
        if not function.is_view:
            self.shapes += tuple(x.shape for x in made if isinstance(x, torch.Tensor))
        return out

def test_all_logits_of_a_batch_never_exist_nor_gradients_of_the_head_when_scoring():
    model, ids = tiny(vocab_size=5000), torch.randint(5000, (5 * CHUNK // 16, 16))
    with Made() as training:
        model(ids, ids).backward()
    with Made() as scoring, torch.no_grad():
        model(ids, ids)
    for made, gradients in (training, True), (scoring, False):
        assert max(shape.numel() for shape in made.shapes) == 5000 * CHUNK
        assert (model.lm_head.weight.shape in made.shapes) == gradients

def test_a_compiled_model_has_the_loss_and_the_gradients_of_the_logits():
    model, ids, targets = tiny(), *torch.randint(50, (2, 4, 16))
    expected = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    plain = torch.autograd.grad(expected, [*model.parameters()])
    model.compile(backend='aot_eager')  # which needs no C compiler
    loss = model(ids, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, [*model.parameters()]), plain)

def test_flops_per_token_are_those_that_torch_counts():
    model = tiny(n_layer=8, n_embd=64, n_head=4, head_dim=32, block_size=128, vocab_size=2000)
    x, y = torch.randint(2000, (2, 2, 128))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(x, y).backward()
    masked = 6 * 8 * (4 * 32) * 128  # torch counts the half of attention that the mask leaves out
    expected = model.flops_per_token() + masked
    assert counter.get_total_flops() / x.numel() == pytest.approx(expected, rel=0.03)

def test_a_token_sees_only_its_past():
    model, ids = tiny(), torch.randint(50, (1, 16))
    before, ids[0, 9] = model(ids), (ids[0, 9] + 1) % 50
    after = model(ids)
    torch.testing.assert_close(before[:, :9], after[:, :9])
    assert (before[:, 9:] != after[:, 9:]).any(-1).all()

def test_hidden_states_are_the_blocks_outputs_before_the_final_norm():
    model, ids, hidden = tiny(), torch.randint(50, (2, 16)), []
    logits, x = model(ids, hidden=hidden), math.sqrt(24) * model.wte(ids) + model.wpe.weight
    for block, states in zip(model.h, hidden, strict=True):
        x = block(x)
        torch.testing.assert_close(states, x)
    torch.testing.assert_close(logits, model.lm_head(model.ln_f(x)))

def test_initialisation_is_the_papers():
    model = tiny(n_embd=192, n_layer=8, vocab_size=2000)
    for name, p in model.named_parameters():
        if name.endswith('bias'):
            assert not p.any()
        elif p.dim() == 2:
            std = 0.02 / math.sqrt(16) if 'mlp.c_proj' in name else 0.02
            assert p.std().item() == pytest.approx(std, rel=0.05), name
    assert model.wte.weight.data_ptr() != model.lm_head.weight.data_ptr()  # untied
