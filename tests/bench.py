"""
Benchmarks: one line each, a figure beside its goal. Nothing is asserted; what is compared is compared in one run.

    python tests/bench.py                  # all: under five minutes on 2 cores; the GPU rows say "no GPU" where there is none
    python tests/bench.py train_cpu ppl    # some
"""
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import networkx
import numpy as np
import torch
from torch.nn import functional as F

import analyze
import config
from data_prep import Dataset, Sampler, load_tokenizer, prepare, train_tokenizer
from model import GPT, GPTConfig

GPU = torch.cuda.is_available()


def seconds(*functions, rounds=5):
    """Median time of each function, called in turn, so that what disturbs the machine disturbs all of them alike."""
    times = [[] for _ in functions]
    for _ in range(rounds + 1):
        for function, of_function in zip(functions, times):
            if GPU:
                torch.cuda.synchronize()
            start = time.perf_counter()
            function()
            if GPU:
                torch.cuda.synchronize()
            of_function.append(time.perf_counter() - start)
    return [statistics.median(of_function[1:]) for of_function in times]  # the first call warms up


def settings(**overrides):
    return SimpleNamespace(**vars(config.load([])) | overrides)


def text_file(folder, megabytes):
    """English text: the manual that every CPython carries, again and again, as documents of about 100 kB."""
    from pydoc_data.topics import topics
    manual = '\n'.join(sorted(topics.values()))
    folder.mkdir()
    for i in range(round(10 * megabytes)):
        (folder / f'{i:05}.txt').write_text(manual[i * 997 % 400_000:][:100_000], 'utf-8')
    return f'{folder}/*.txt'


def script(*command):
    """Run a script -> seconds, peak memory of its largest process in MB, stdout."""
    start = time.perf_counter()
    code = ('import resource, subprocess, sys; p = subprocess.run(sys.argv[1:], capture_output=True, text=True); print(p.stdout, p.stderr);'
            'print("peak", resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(p.returncode)')
    done = subprocess.run([sys.executable, '-c', code, sys.executable, *map(str, command)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f'bench: {" ".join(map(str, command))}: {done.stdout[-500:]}')
    return time.perf_counter() - start, int(re.search(r'peak (\d+)', done.stdout)[1]) / 1024, done.stdout


# ---- training


def training_steps(shape, sequences, plain, device='cpu', autocast=nullcontext, compiled=False):
    """A model, and a function that makes a training step on random tokens: as train.py does it, or plainly."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**shape)).to(device)
    forward = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters()) if plain else torch.optim.Adam(model.parameters(), fused=True)
    x, y = torch.randint(shape['vocab_size'], (2, sequences, shape['block_size']), device=device)

    def step():
        with autocast():
            loss = F.cross_entropy(forward(x).flatten(0, 1), y.flatten()) if plain else forward(x, y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model, step


def products_of(model, n):
    """A function that does the matrix products of a training step on n tokens, and nothing else: the forward one of every
    linear layer and the two of its backward pass."""
    layers = [(layer.weight.detach(), torch.randn(n, layer.in_features), torch.randn(n, layer.out_features))
              for layer in model.modules() if isinstance(layer, torch.nn.Linear)]

    def products():
        for weight, x, dy in layers:
            x @ weight.T, dy @ weight, dy.T @ x
    return products


def train_cpu():
    shape = {'block_size': 128, 'vocab_size': 2 * 2048, 'n_layer': 4, 'n_embd': 128, 'n_head': 4}
    model, ours = training_steps(shape, 16, plain=False)
    _, plain = training_steps(shape, 16, plain=True)
    n, (a, b) = 2048, torch.randn(2, 1024, 1024)
    t_ours, t_plain, t_products, t_matmul = seconds(ours, plain, products_of(model, n), lambda: a @ b, rounds=15)
    rate = 2 * 1024 ** 3 / t_matmul
    bound = n * model.cost_per_token()[0] / rate
    print(f'train_cpu: 4x128, 16 x 128 tokens, 4,096 ids: {n / t_ours:,.0f} tokens/s, {t_plain / t_ours:.2f}x a plain loop (goal 1.3x); '
          f'{bound / t_ours:.0%} of what the matmul rate ({rate / 1e9:.0f} GFLOP/s at 1024^3) allows (goal 75%); '
          f'its matrix products alone take {t_products / t_ours:.0%} of the step')


def train_gpu():
    if not GPU:
        return print('train_gpu: no GPU')
    autocast = lambda: torch.autocast('cuda', torch.bfloat16)
    torch.set_float32_matmul_precision('high')
    small = {'block_size': 512, 'n_layer': 12, 'n_embd': 768, 'n_head': 12}
    rates = {}
    for clones in (2, 10):
        torch.cuda.reset_peak_memory_stats()
        model, step = training_steps({**small, 'vocab_size': 16384 * clones}, 32, False, 'cuda', autocast, compiled=True)
        t, = seconds(step, rounds=10)
        rates[clones] = 32 * 512 / t
        peak = torch.cuda.max_memory_allocated() / 2 ** 30
        mfu = rates[clones] * model.cost_per_token()[0] / 989e12  # of an H100's dense bfloat16
        print(f'train_gpu: {torch.cuda.get_device_name()}, 12x768, 32 x 512 tokens, {clones} x 16,384 ids, bfloat16, compiled: {rates[clones]:,.0f} tokens/s, '
              f'MFU {mfu:.0%} of 989 TFLOP/s (goal 50%), 1.2B tokens in {1.2e9 / rates[clones] / 60:.0f} min (goal 30), peak {peak:.1f} GiB (goal 24)')
        del model, step
    print(f'train_gpu: 10 clones at {rates[10] / rates[2]:.0%} of the speed of 2 (goal 60%)')


def batches():
    """What reading costs at 1M tokens/s, at the paper's batch."""
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        cfg = settings(corpora={'en': text_file(Path('text'), 20)}, languages=[('EN1', 'en'), ('EN2', 'en')], schedule=[(0.0, (0.9, 0.1))],
                       vocab_size=4000, batch_size=128, block_size=512)
        with open(os.devnull, 'w') as quiet:
            stdout, sys.stdout = sys.stdout, quiet
            prepare(cfg)
            sys.stdout = stdout
        dataset = Dataset(cfg)
        sampler = Sampler(dataset.pools, cfg.schedule, cfg.batch_size, 10 ** 6, 0)
        step = iter(range(10 ** 6))
        t, = seconds(lambda: dataset.batch(*sampler.next(next(step))), rounds=50)
        print(f'batches: 128 x 512 tokens read and mapped in {1000 * t:.2f} ms: {t / 65_536 * 1e6:.1%} of a step at 1M tokens/s (goal 2%), '
              'and on a GPU while the step before it is computed')
        os.chdir(ROOT)


def start_up():
    t, _, _ = script(ROOT / 'train.py', '--help')
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run = [f'--corpora={{"en": "{text_file(Path("text"), 2)}"}}', '--vocab_size=2000', '--block_size=128', '--n_layer=4', '--n_embd=128',
               '--n_head=4', '--batch_size=16', '--max_iters=1', '--warmup_iters=0', '--eval_iters=1', '--device=cpu']
        script(ROOT / 'data_prep.py', *run)
        first, _, _ = script(ROOT / 'train.py', *run)
        os.chdir(ROOT)
    print(f'start_up: train.py --help {t:.2f} s (goal 1); a run of one step, evaluation and checkpoint included, {first:.1f} s (goal 5)')


def ddp():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        run = [f'--corpora={{"en": "{text_file(Path("text"), 5)}"}}', '--vocab_size=2000', '--block_size=128', '--n_layer=4', '--n_embd=128', '--n_head=4',
               '--batch_size=16', '--max_iters=60', '--warmup_iters=0', '--eval_iters=1', '--device=cpu', '--log_interval=20']
        script(ROOT / 'data_prep.py', *run)
        rates = []
        for name, launch in (('one', []), ('two', ['-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2'])):
            script(*launch, ROOT / 'train.py', *run, f'--out_dir={name}')
            rates.append(int(re.findall(r'"tokens_per_second": (\d+)', Path(name, 'speed.jsonl').read_text())[-1]))
        os.chdir(ROOT)
    print(f'ddp: 4x128, 2,000 ids, 16 x 128 tokens: 2 processes (gloo) {rates[1]:,} tokens/s, 1 process {rates[0]:,}: {rates[1] / rates[0]:.2f}x '
          f'on {os.cpu_count()} cores')


# ---- analysis


def small_run(n_layer=12, n_embd=768, n_head=12, vocab_size=16384):
    """An untrained model as analyze.load_run gives it."""
    torch.manual_seed(0)
    device = 'cuda' if GPU else 'cpu'
    model = GPT(GPTConfig(512, vocab_size, n_layer, n_embd, n_head)).to(device).eval()
    return SimpleNamespace(model=model, cfg=SimpleNamespace(block_size=512, n_layer=n_layer), device=device, autocast=nullcontext)


def ppl():
    run, windows = small_run(), 400 if GPU else 6
    ids = np.random.default_rng(0).integers(16384, size=512 + 128 * (windows - 1) + 1)

    def one_by_one():
        with torch.no_grad():
            for start in range(0, 128 * windows, 128):
                x = torch.from_numpy(ids[None, start:start + 513]).to(run.device)
                F.cross_entropy(run.model(x[:, :-1])[0, 384:], x[0, 385:]).item()
    ours, plain = seconds(lambda: analyze.sliding_window(run, ids, 128, 32), one_by_one, rounds=2)
    n = 128 * windows
    print(f'ppl: 12x768, {run.device}: {n / ours:,.0f} scored tokens/s, {plain / ours:.2f}x one window at a time (goal 8x); '
          f'11M tokens in {11e6 * ours / n / 60:.0f} min')


def matching():
    hidden = torch.nn.functional.normalize(torch.randn(2, 12, 512, 768), dim=-1)
    cosine = (hidden[0] @ hidden[1].mT).mean(0).numpy()

    def graph():
        built = networkx.Graph()
        built.add_weighted_edges_from((i, 512 + j, -cosine[i, j]) for i in range(512) for j in range(512))
        return built
    whole = lambda: networkx.bipartite.minimum_weight_full_matching(graph(), range(512))
    ours, alone, t_graph, t_whole = seconds(lambda: analyze.match((hidden[0] @ hidden[1].mT).mean(0).numpy()), lambda: analyze.match(cosine),
                                            graph, whole, rounds=3)
    print(f'matching: 512 x 512 tokens, 12 layers: {1000 * ours:.0f} ms, of it the matching {1000 * alone:.1f} ms; building the networkx graph '
          f'takes {t_graph / alone:.0f}x the matching (goal 50x), building and matching {t_whole / alone:.0f}x')


def inside():
    """Hidden states and gradients of parallel sequences: time a pair, and memory by number of pairs."""
    run, rng = small_run(vocab_size=2 * 16384), np.random.default_rng(0)
    pairs = [(ids, ids + 16384) for ids in rng.integers(16384, size=(6, 512))]
    for name, measure in (('hidden states', lambda some: analyze.hidden_similarity(run, some, True)),
                          ('gradients', lambda some: analyze.gradient_similarity(run, some))):
        peaks, t = [], 0
        for n in (2, 4):
            start = time.perf_counter()
            measure(pairs[:n])
            t = (time.perf_counter() - start) / n
            peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        print(f'inside: {name}, 12x768, 512 tokens, {run.device}: {t:.2f} s a pair, 500 in {500 * t / 60:.0f} min; '
              f'peak memory {peaks[0]:,.0f} MB after 2 pairs, {peaks[1]:,.0f} MB after 4')


# ---- data


def data():
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        glob = text_file(Path('text'), 40)
        files = sorted(Path('text').iterdir())
        texts = [path.read_text('utf-8') for path in files]
        train_tokenizer(enumerate(texts[:50]), Path('t.model'), 4000)
        encode = load_tokenizer('t.model').encode
        t, = seconds(lambda: [encode(text) for text in texts[:100]], rounds=1)
        alone = 10 / t
        rates, peaks = {}, {}
        for workers in (1, os.cpu_count()):
            t = {}
            for megabytes, some in ((4, 'text/000[0-3]*.txt'), (40, glob)):
                t[megabytes], peaks[megabytes], _ = script(ROOT / 'data_prep.py', f'--corpora={{"en": "{some}"}}', '--tokenizer=t.model',
                                                           f'--dataset=d{megabytes}_{workers}', f'--num_workers={workers}', f'--data_seed={workers}')
            rates[workers] = 36 / (t[40] - t[4])  # without the start of Python
        os.chdir(ROOT)
    print(f'data: SentencePiece encode, one thread, {alone:.1f} MB/s; data_prep.py '
          + ', '.join(f'on {workers} cores {rate:.1f} MB/s ({rate / workers / alone:.0%} a core)' for workers, rate in rates.items())
          + f' (goal 90%); peak memory of a process {peaks[4]:.0f} MB for 4 MB of text, {peaks[40]:.0f} MB for 40 MB')


BENCHMARKS = [start_up, train_cpu, train_gpu, batches, ddp, ppl, matching, inside, data]


def main(names):
    by_name = {function.__name__: function for function in BENCHMARKS}
    for name in names:
        if name not in by_name:
            sys.exit(f'bench: no benchmark is called {name!r}; there are {", ".join(by_name)}')
    cpu = next((line.split(':')[1].strip() for line in open('/proc/cpuinfo') if 'model name' in line), platform.processor()) \
        if os.path.exists('/proc/cpuinfo') else platform.processor()
    print(f'{cpu}, {os.cpu_count()} cores, {torch.get_num_threads()} threads; torch {torch.__version__}; '
          f'{torch.cuda.get_device_name() if GPU else "no GPU"}; python tests/bench.py {" ".join(names)}'.rstrip())
    for name in names or by_name:
        by_name[name]()
        sys.stdout.flush()


if __name__ == '__main__':
    main(sys.argv[1:])
