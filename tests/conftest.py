"""Tiny real text (the manual that comes with CPython), tiny settings, runs as a user makes them.

faults.py and bench.py import this file too, and run without pytest and hypothesis."""
import base64
import contextlib
import glob
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

import config
import train

ROOT = Path(__file__).resolve().parent.parent
TINY = {'dataset': 'tiny', 'corpora': {'en': 'text/*.txt'}, 'vocab_size': 400, 'block_size': 32,
        'test_frac': 0.1, 'n_layer': 2, 'n_embd': 32, 'n_head': 2, 'batch_size': 8, 'max_iters': 12,
        'learning_rate': 3e-3, 'warmup_iters': 2, 'eval_iters': 2, 'log_interval': 1,
        'num_workers': 2, 'device': 'cpu'}
CLONES = {'dataset': 'clones', 'languages': [('EN1', 'en'), ('EN2', 'en')],
          'schedule': [(0.0, (0.75, 0.25))], 'codeswitch': 0.1}

def pytest_configure():
    """One thread for every process, as the tests start many; modules of ours for python -c."""
    os.environ |= {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    torch.set_num_threads(1)

def settings(**overrides):
    """All settings, tiny ones unless overridden."""
    return SimpleNamespace(**vars(config.load([])) | TINY | overrides)

def arguments(**overrides):
    """The same settings as a command line."""
    return [f'--{key}={value}' for key, value in (TINY | overrides).items()]

def run(*command, **options):
    """Run a command line -> its status, out, err."""
    command = [*map(str, command)]
    end = subprocess.run(command, text=True, capture_output=True, timeout=240, **options)
    return SimpleNamespace(status=end.returncode, out=end.stdout, err=end.stderr)

def command(name, *args, processes=1):
    """The command line that runs a script in one or more processes."""
    torchrun = ['-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={processes}',
                '--signals-to-handle=SIGTERM,SIGINT,SIGUSR1']
    return [sys.executable, *(torchrun if processes > 1 else []), ROOT / name, *args]

def script(name, *args, processes=1, **options):
    """Run one of the scripts."""
    return run(*command(name, *args, processes=processes), **options)

def begin(*args, name='train.py', processes=1, until='out/a/log.jsonl'):
    """Start a script and wait until a file of this pattern is not empty, or for its end."""
    process = subprocess.Popen(command(name, *args, processes=processes), text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while process.poll() is None:
        with contextlib.suppress(FileNotFoundError):
            if any(os.path.getsize(path) for path in glob.glob(str(until))):
                break
        time.sleep(0.002)
    return process

def trained(*configs, **overrides):
    """Train in this process, and give its signals back."""
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        train.main(config.load([*configs, *arguments(**overrides)]))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)

def load(path):
    return torch.load(path, weights_only=True)

def torchrun_variables(rank, world):
    """The environment of a process of torchrun, on a free port."""
    with socket.create_server(('localhost', 0)) as server:
        port = server.getsockname()[1]
    return {'RANK': f'{rank}', 'LOCAL_RANK': '0', 'WORLD_SIZE': f'{world}',
            'MASTER_ADDR': 'localhost', 'MASTER_PORT': f'{port}'}

def same(a, b):
    """Equality of nested dictionaries, bit for bit in tensors."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b

def plain(text):
    """A text as data_prep.py cleans it, in another way: line by line, word by word."""
    text = text.replace('\r\n', '\n').replace('\r', '\n')
    lines = [' '.join(line.split()) for line in text.split('\n')]
    return '\n'.join(line for i, line in enumerate(lines) if line or i and lines[i - 1]).strip()

def manual():
    """Forty pages of Python's manual, about 350 kB of English."""
    from pydoc_data.topics import topics
    return [plain(text) for text in sorted(topics.values(), key=len)[-40:]]

def write_text(folder, texts):
    """Texts as folder/00.txt, 01.txt, ..."""
    folder.mkdir(parents=True)
    for i, text in enumerate(texts):
        (folder / f'{i:02}.txt').write_text(text, 'utf-8')

def write_bpe(path, tokens):
    """A tiktoken file of ranks."""
    lines = (f'{base64.b64encode(token).decode()} {i}\n' for i, token in enumerate(tokens))
    path.write_text(''.join(lines))

def family(pid):
    """The ids of a process and of all its descendants."""
    pids = [pid]
    for parent in pids:
        with contextlib.suppress(OSError):  # it has just ended
            for path in Path(f'/proc/{parent}/task').glob('*/children'):
                pids += map(int, path.read_text().split())
    return pids

def kill(process):
    """kill -9 a process and its descendants: torchrun's workers are in sessions of their own."""
    for pid in family(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL

if 'pytest' in sys.modules:
    import hypothesis
    import pytest

    hypothesis.settings.register_profile(
        'seeded', derandomize=True, database=None, deadline=None, max_examples=60,
        suppress_health_check=list(hypothesis.HealthCheck))
    hypothesis.settings.load_profile('seeded')

    def refused(says, function, *args, **settings):
        """Check that a call ends with one line, which says so."""
        with pytest.raises(SystemExit, match=says) as error:
            function(*args, **settings)
        assert '\n' not in str(error.value)

    @pytest.fixture(scope='session')
    def documents():
        return manual()

    @pytest.fixture(scope='session')
    def workplace(tmp_path_factory, documents):
        """A folder with text/*.txt, shared by tests that only add to it."""
        folder = tmp_path_factory.mktemp('workplace')
        write_text(folder / 'text', documents)
        return folder

    @pytest.fixture
    def here(workplace, monkeypatch):
        """The shared folder as working directory."""
        monkeypatch.chdir(workplace)

    @pytest.fixture
    def alone(workplace, tmp_path, monkeypatch):
        """A fresh working directory with the same text, for tests that damage things."""
        (tmp_path / 'text').symlink_to(workplace / 'text')
        monkeypatch.chdir(tmp_path)
        return tmp_path

    @pytest.fixture(scope='session')
    def runs(workplace, documents):
        """Three monolingual runs and a cloned one."""
        folder = workplace / 'four'
        write_text(folder / 'text', documents)
        with contextlib.chdir(folder):
            trained(**CLONES, max_iters=200, log_interval=100, out_dir='out/cloned')
            for name, steps in ('mono_20', 40), ('mono_50', 100), ('mono_100', 200):
                trained(max_iters=steps, log_interval=100, out_dir=f'out/{name}')
        return folder

    @pytest.fixture
    def in_runs(runs, monkeypatch):
        monkeypatch.chdir(runs)
