"""
Benchmarks: a figure beside its goal. Nothing is asserted; what is compared is timed in turn.

    python tests/bench.py                    # all, under five minutes on 2 idle cores
    python tests/bench.py train_cpu ppl      # some
    python tests/bench.py train_cpu --nanogpt DIR    # beside a clone of github.com/karpathy/nanoGPT
"""
import argparse
import contextlib
import importlib.util
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
import torch
from torch.nn import functional as F

import analyze
from conftest import manual, settings
from data_prep import Dataset, Sampler, load_tokenizer, prepare, train_tokenizer
from model import GPT, GPTConfig

GPU = torch.cuda.is_available()
SMALL = {'block_size': 128, 'vocab_size': 4096, 'n_layer': 4, 'n_embd': 128, 'n_head': 4}
RUN = ['--vocab_size=2000', '--block_size=128', '--n_layer=4', '--n_embd=128', '--n_head=4',
       '--batch_size=16', '--warmup_iters=0', '--eval_iters=1', '--device=cpu']


def seconds(*functions, rounds=5):
    """Median time of each function, called in turn, so that a busy machine slows all of them alike."""
    times = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, of_function in zip(functions, times):
            start = time.perf_counter()
            function()
            if GPU:
                torch.cuda.synchronize()
            of_function.append(time.perf_counter() - start)
    return [statistics.median(of_function[1:]) for of_function in times]  # the first call warms up


@contextlib.contextmanager
def folder_with_text(megabytes):
    """A temporary working directory with text/*.txt: Python's manual again and again, 100 kB each."""
    text = '\n'.join(manual())
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path('text').mkdir()
        for i in range(10 * megabytes):
            start = i * 997 % (len(text) - 100_000)
            Path(f'text/{i:05}.txt').write_text(text[start:start + 100_000], 'utf-8')
        yield


def script(*command):
    """Run a script -> seconds."""
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'bench: {" ".join(map(str, command))}: {done.stderr[-500:]}')
    return time.perf_counter() - start


# ---- training


def step_of(model, optimizer, loss_of, shape, sequences, device='cpu', clip=0.0):
    """A function that makes a training step on random tokens."""
    x, y = torch.randint(shape['vocab_size'], (2, sequences, shape['block_size']), device=device)

    def step():
        loss_of(model, x, y).backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step


def nanogpt_step(folder):
    """A training step of nanoGPT, its model.py in folder, with the settings of its train.py."""
    spec = importlib.util.spec_from_file_location('nanogpt_model', Path(folder, 'model.py'))
    module = sys.modules['nanogpt_model'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with contextlib.redirect_stdout(None):
        model = module.GPT(module.GPTConfig(**SMALL, dropout=0.0, bias=True))
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), 'cpu')
    return step_of(model, optimizer, lambda model, x, y: model(x, y)[1], SMALL, 16, clip=1.0)


def train_cpu(args):
    model = GPT(GPTConfig(**SMALL))
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    ours = step_of(model, optimizer, lambda model, x, y: model(x, y), SMALL, 16)
    (a, b), n, threads = torch.randn(2, 1024, 1024), 16 * 128, torch.get_num_threads()
    others = [nanogpt_step(args.nanogpt)] if args.nanogpt else []
    for number in sorted({1, threads}):
        torch.set_num_threads(number)
        t, matmul, *theirs = seconds(ours, lambda: a @ b, *others, rounds=25)
        rate = 2 * 1024 ** 3 / matmul
        print(f'train_cpu: 4x128, 16 x 128 tokens, 4,096 ids, {number} threads: {n / t:,.0f} tokens/s, '
              f'{n * model.flops_per_token() / rate / t:.0%} of what {rate / 1e9:.0f} GFLOP/s of matrix '
              'products allow (goal 75%)', *(f'; {their / t:.2f}x nanoGPT (goal 1.3x)' for their in theirs))


def train_gpu(args):
    if not GPU:
        return print('train_gpu: no GPU')
    torch.set_float32_matmul_precision('high')
    for clones in 2, 10:
        torch.cuda.reset_peak_memory_stats()
        shape = {'block_size': 512, 'vocab_size': 16384 * clones, 'n_layer': 12, 'n_embd': 768, 'n_head': 12}
        model = GPT(GPTConfig(**shape)).cuda()

        @torch.autocast('cuda', torch.bfloat16)
        def loss_of(model, x, y):
            return model(x, y)
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        t, = seconds(step_of(torch.compile(model), optimizer, loss_of, shape, 32, 'cuda'), rounds=10)
        rate, peak = 32 * 512 / t, torch.cuda.max_memory_allocated() / 2 ** 30
        print(f'train_gpu: {torch.cuda.get_device_name()}, 12x768, 32 x 512 tokens, {clones} x 16,384 ids, '
              f'compiled: {rate:,.0f} tokens/s, {rate * model.flops_per_token() / 989e12:.0%} of 989 TFLOP/s '
              f'(goal 50%), 1.2B tokens in {1.2e9 / rate / 60:.0f} min (goal 30), {peak:.1f} GiB (goal 24)')


def batches(args):
    with folder_with_text(20):
        cfg = settings(corpora={'en': 'text/*.txt'}, vocab_size=4000, batch_size=128, block_size=512,
                       languages=[('EN1', 'en'), ('EN2', 'en')], schedule=[(0.0, (0.9, 0.1))])
        with contextlib.redirect_stdout(None):
            prepare(cfg)
        dataset, steps = Dataset(cfg), iter(range(1000))
        sampler = Sampler(dataset.pools, cfg.schedule, cfg.batch_size, 10 ** 6, 0)
        t, = seconds(lambda: dataset.batch(*sampler.next(next(steps))), rounds=50)
    print(f'batches: 128 x 512 tokens read and mapped in {1000 * t:.2f} ms: '
          f'{t / 65_536 * 1e6:.1%} of a step at 1M tokens/s (goal 2%)')


def start_up(args):
    t = script(ROOT / 'train.py', '--help')
    with folder_with_text(2):
        run = ["--corpora={'en': 'text/*.txt'}", *RUN, '--max_iters=1']
        script(ROOT / 'data_prep.py', *run)
        first = script(ROOT / 'train.py', *run)
    print(f'start_up: train.py --help {t:.2f} s (goal 1); a run of one step {first:.1f} s (goal 5)')


def ddp(args):
    with folder_with_text(5):
        run, rates = ["--corpora={'en': 'text/*.txt'}", *RUN, '--max_iters=60'], []
        torchrun = ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
        for name, launch in ('one', []), ('two', torchrun):
            script(*launch, ROOT / 'train.py', *run, f'--out_dir={name}')
            speeds = re.findall(r'"tokens_per_second": (\d+)', Path(name, 'speed.jsonl').read_text())
            rates.append(int(speeds[-1]))
    print(f'ddp: 4x128, 16 x 128 tokens: 2 processes {rates[1]:,} tokens/s, {rates[1] / rates[0]:.2f}x one, '
          f'on {os.cpu_count()} cores')


# ---- analysis


def small_run(vocab_size=16384):
    """An untrained GPT small as analyze.load_run returns it."""
    device = 'cuda' if GPU else 'cpu'
    model = GPT(GPTConfig(512, vocab_size, 12, 768, 12)).to(device).eval()
    return SimpleNamespace(model=model, cfg=SimpleNamespace(block_size=512, n_layer=12), device=device,
                           autocast=contextlib.nullcontext)


def ppl(args):
    run, windows = small_run(), 400 if GPU else 6
    ids = np.random.default_rng(0).integers(16384, size=512 + 128 * (windows - 1) + 1)

    def one_by_one():
        with torch.no_grad():
            for start in range(0, 128 * windows, 128):
                x = torch.from_numpy(ids[None, start:start + 513]).to(run.device)
                F.cross_entropy(run.model(x[:, :-1])[0, 384:], x[0, 385:]).item()
    ours, plain = seconds(lambda: analyze.sliding_window(run, ids, 128, 32), one_by_one, rounds=2)
    rate = 128 * windows / ours
    print(f'ppl: 12x768, {run.device}: {rate:,.0f} scored tokens/s, {plain / ours:.2f}x one window at a time; '
          f'11M tokens in {11e6 / rate / 60:.0f} min')


def inside(args):
    run, ids = small_run(2 * 16384), np.random.default_rng(0).integers(16384, size=512)
    pair = ids, ids + 16384
    hidden, gradients = seconds(lambda: [analyze.hidden_states(run, side) for side in pair],
                                lambda: analyze.gradient_similarity(run, [pair]), rounds=2)
    print(f'inside: 12x768, a pair of 512 tokens, {run.device}: hidden states {hidden:.2f} s, gradients '
          f'{gradients:.2f} s; 500 pairs in {500 * (hidden + gradients) / 60:.0f} min')


# ---- data


def data(args):
    with folder_with_text(40):
        texts = [path.read_text('utf-8') for path in sorted(Path('text').iterdir())[:100]]
        train_tokenizer(texts[:50], Path('t.model'), 4000)
        encode = load_tokenizer(Path('t.model')).encode
        t, = seconds(lambda: [encode(text) for text in texts], rounds=1)
        rates = {}
        for workers in 1, os.cpu_count():
            times = [script(ROOT / 'data_prep.py', f"--corpora={{'en': '{glob}'}}", '--tokenizer=t.model',
                            f'--dataset={i}_{workers}', f'--num_workers={workers}', f'--data_seed={workers}')
                     for i, glob in enumerate(('text/000[0-3]*.txt', 'text/*.txt'))]  # 4 MB, 40 MB
            rates[workers] = 36 / (times[1] - times[0])  # without the start of Python
    shown = ', '.join(f'on {workers} cores {rate:.1f} MB/s' for workers, rate in rates.items())
    print(f'data: SentencePiece encodes {len(texts) / 10 / t:.1f} MB/s on one thread, data_prep.py {shown}')


BENCHMARKS = [start_up, train_cpu, train_gpu, batches, ddp, ppl, inside, data]


def main():
    by_name = {function.__name__: function for function in BENCHMARKS}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help=', '.join(by_name))
    parser.add_argument('--nanogpt', metavar='DIR', help='a clone of nanoGPT')
    args = parser.parse_args()
    if unknown := set(args.names) - set(by_name):
        parser.error(f'no benchmark is called {unknown.pop()!r}; there are {", ".join(by_name)}')
    gpu = torch.cuda.get_device_name() if GPU else 'no GPU'
    print(f'{torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; '
          f'torch {torch.__version__}; {gpu}', flush=True)
    for name in args.names or by_name:
        torch.manual_seed(0)
        by_name[name](args)
        sys.stdout.flush()


if __name__ == '__main__':
    main()
