"""
Benchmarks: a figure beside its goal. Nothing is asserted; what is compared is timed in turn.

    python tests/bench.py                    # all, under five minutes on 2 idle cores
    python tests/bench.py train_cpu ppl      # some
    python tests/bench.py gpu                # on a machine with a GPU, some four minutes
    python tests/bench.py train_cpu --nanogpt DIR    # beside a clone of github.com/karpathy/nanoGPT
"""
import argparse
import contextlib
import os
import runpy
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from conftest import ROOT, manual, run, write_text
from torch.nn import functional as F

import analyze
import config
import data_prep
import train
from model import GPT, GPTConfig

GPU = torch.cuda.is_available()
DEVICE = 'cuda' if GPU else 'cpu'
SMALL = {'block_size': 128, 'vocab_size': 4096, 'n_layer': 4, 'n_embd': 128, 'n_head': 4}

def seconds(*functions, rounds=5):
    """Median time of each function, called in turn: a busy machine slows all of them alike."""
    times = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, of_function in zip(functions, times):
            start = time.perf_counter()
            function()
            if GPU:
                torch.cuda.synchronize()
            of_function.append(time.perf_counter() - start)
    return [statistics.median(of_function[1:]) for of_function in times]  # the first warms up

def step_of(model, loss_of, shape, sequences, optimizer=None, clip=0.0):
    """A function that makes a training step on random tokens."""
    size, device = (2, sequences, shape['block_size']), next(model.parameters()).device
    x, y = torch.randint(shape['vocab_size'], size, device=device)
    optimizer = optimizer or torch.optim.Adam(model.parameters(), fused=True)

    def step():
        loss_of(x, y).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step

def nanogpt_step(folder):
    """A training step of nanoGPT, its model.py in folder, with the settings of its train.py."""
    module = runpy.run_path(str(Path(folder, 'model.py')))
    with contextlib.redirect_stdout(None):
        model = module['GPT'](module['GPTConfig'](**SMALL, dropout=0.0, bias=True))
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), 'cpu')
    return step_of(model, lambda x, y: model(x, y)[1], SMALL, 16, optimizer, clip=1.0)

def train_cpu(args):
    model, threads = GPT(GPTConfig(**SMALL)), torch.get_num_threads()
    a, b = torch.randn(2, 1024, 1024)
    steps = [step_of(model, model, SMALL, 16)]
    if args.nanogpt:
        steps.append(nanogpt_step(args.nanogpt))
    for number in sorted({1, threads}):
        torch.set_num_threads(number)
        matmul, t, *theirs = seconds(lambda: a @ b, *steps, rounds=25)
        speed, possible = 16 * 128 / t, 2 * 1024 ** 3 / matmul / model.flops_per_token()
        print(f'train_cpu: 4x128, 16 x 128 tokens, {number} threads: {speed:,.0f} tokens/s, '
              f'{speed / possible:.0%} of what matrix products allow (goal 75%)',
              *(f'; {their / t:.2f}x nanoGPT (goal 1.3x)' for their in theirs))

def gpu(args):
    torch.set_float32_matmul_precision('high')
    for size, clones, sequences in ('mini', 2, 128), ('small', 2, 64), ('small', 10, 32), (
            'medium', 2, 32):
        cfg = config.load([str(ROOT / 'config' / f'{size}.py')] if size != 'small' else [])
        shape = {key: getattr(cfg, key) for key in train.SHAPE} | {'vocab_size': 16384 * clones}
        for mode in 'eager', 'compiled':
            torch.cuda.reset_peak_memory_stats()
            model = GPT(GPTConfig(**shape)).to(DEVICE)
            if mode == 'compiled':
                model.compile()
            step = step_of(model, torch.autocast(DEVICE, torch.bfloat16)(model), shape, sequences)
            start = time.perf_counter()
            step()
            torch.cuda.synchronize()
            first, (t,) = time.perf_counter() - start, seconds(step, rounds=10)
            speed, peak = sequences * 512 / t, torch.cuda.max_memory_allocated() / 2 ** 30
            print(f'gpu: {size}, {clones} clones, {sequences} x 512 tokens, {mode}: {speed:,.0f} '
                  f'tokens/s, {speed * model.flops_per_token() / 989e12:.0%} of 989 TFLOP/s, '
                  f'{peak:.1f} GiB, first step {first:.0f} s', flush=True)
    settings = ('--dataset=bench --vocab_size=16384 --corpora={"en":"corpora/eltec-eng.tar.xz"} '
                '--max_iters=60 --eval_iters=2 --out_dir=out/bench').split()
    with tempfile.TemporaryDirectory() as folder:
        for script, *options in ('train.py', ROOT / 'config/cloned_90_10.py', *settings), (
                'analyze.py', 'ppl', 'out/bench'), ('analyze.py', 'alignment', 'out/bench'):
            start = time.perf_counter()
            end = run(sys.executable, ROOT / script, *options, cwd=folder)
            lines = (end.out if end.status == 0 else end.err).splitlines()
            print(f'gpu: {script} {options[0]}: status {end.status}, '
                  f'{time.perf_counter() - start:.0f} s:', *lines[-4:], sep='\n    ', flush=True)

def ppl(args):
    device, windows = DEVICE, 400 if GPU else 6
    torch.set_float32_matmul_precision('highest')  # as analyze.py scores
    model = GPT(GPTConfig()).to(device).eval()
    run = SimpleNamespace(model=model, cfg=model.config, device=device,
                          autocast=contextlib.nullcontext)
    ids = np.random.default_rng(0).integers(16384, size=512 + 128 * (windows - 1) + 1)

    @torch.no_grad()
    def one_by_one():
        for start in range(0, 128 * windows, 128):
            x = torch.from_numpy(ids[None, start:start + 513]).to(device)
            F.cross_entropy(model(x[:, :-1])[0, 384:], x[0, 385:]).item()
    ours, plain = seconds(lambda: analyze.sliding_window(run, ids, 128, 32), one_by_one, rounds=2)
    speed = 128 * windows / ours
    print(f'ppl: 12x768, {device}: {speed:,.0f} scored tokens/s, {plain / ours:.2f}x one '
          f'window at a time; 11M tokens in {11e6 / speed / 60:.0f} min')

def data(args):
    text = '\n'.join(manual())
    starts = [i * 997 % (len(text) - 100_000) for i in range(400)]
    texts = [text[start:start + 100_000] for start in starts]  # 40 MB

    def prepare(name, files, *settings):
        """Prepare a data set of these files -> seconds."""
        settings = [f'--dataset={name}', f"--corpora={{'en': 'text/{files}.txt'}}", *settings]
        start = time.perf_counter()
        with contextlib.redirect_stdout(None):
            data_prep.prepare(config.load(settings))
        return time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        write_text(Path('text'), texts)
        prepare('first', '0?', '--vocab_size=4000')
        model, = Path('data').glob('tokenizer-*/bpe.model')
        encode = data_prep.load_tokenizer(model.rename('t.model')).encode
        t, = seconds(lambda: [encode(text) for text in texts[:100]], rounds=1)
        small = prepare('small', '[0-3]?', '--tokenizer=t.model')
        large = prepare('large', '*', '--tokenizer=t.model')
    speed = 36 / (large - small)  # of 40 MB and 4 MB: without what both need
    print(f'data: SentencePiece encodes {10 / t:.1f} MB/s on one thread, data_prep.py {speed:.1f} '
          f'on {os.cpu_count()} cores')

if __name__ == '__main__':
    rows = {row.__name__: row for row in (train_cpu, *[gpu] * GPU, ppl, data)}
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('names', nargs='*', choices=[[], *rows])
    parser.add_argument('--nanogpt', metavar='DIR', help='a checkout of nanoGPT')
    args = parser.parse_args()
    device = torch.cuda.get_device_name() if GPU else 'no GPU'
    print(f'{torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, '
          f'{torch.get_num_threads()} threads; torch {torch.__version__}; {device}', flush=True)
    for name in args.names or rows:
        torch.manual_seed(0)
        rows[name](args)
