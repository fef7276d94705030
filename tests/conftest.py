"""Tiny real text (the manual that comes with CPython), tiny settings, scripts run as a user would."""
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import pytest

import config

hypothesis.settings.register_profile(
    'seeded', derandomize=True, database=None, deadline=None, max_examples=60,
    suppress_health_check=list(hypothesis.HealthCheck))
hypothesis.settings.load_profile('seeded')

ROOT = Path(__file__).resolve().parent.parent
TINY = {'dataset': 'tiny', 'corpora': {'en': 'text/*.txt'}, 'vocab_size': 400, 'block_size': 32,
        'test_frac': 0.1, 'n_layer': 2, 'n_embd': 32, 'n_head': 2, 'batch_size': 8, 'max_iters': 12,
        'learning_rate': 3e-3, 'warmup_iters': 2, 'eval_iters': 2, 'log_interval': 1,
        'num_workers': 2, 'device': 'cpu'}
CLONES = {'dataset': 'clones', 'languages': [('EN1', 'en'), ('EN2', 'en')],
          'schedule': [(0.0, (0.75, 0.25))]}


def settings(**overrides):
    """All settings, tiny ones unless overridden."""
    return SimpleNamespace(**vars(config.load([])) | TINY | overrides)


def arguments(**overrides):
    """The same settings as a command line."""
    return [f'--{k}={v}' for k, v in (TINY | overrides).items()]


def script(*command, **environment):
    """Run one of the scripts -> its status, out, err."""
    process = subprocess.run([sys.executable, ROOT / command[0], *map(str, command[1:])], text=True,
                             capture_output=True, env=os.environ | environment, timeout=240)
    return SimpleNamespace(status=process.returncode, out=process.stdout, err=process.stderr)


def two_processes(*command):
    """The command line that runs a script in two processes."""
    return [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2',
            *map(str, command)]


def plain(text):
    """A text as data_prep.py cleans it, in another way: line by line, word by word."""
    lines = [' '.join(line.split()) for line in text.split('\n')]
    return '\n'.join(line for i, line in enumerate(lines) if line or i and lines[i - 1]).strip()


def manual():
    """Forty pages of Python's manual, about 350 kB of English."""
    from pydoc_data.topics import topics
    return [plain(text) for text in sorted(topics.values(), key=len)[-40:]]


def write_text(folder):
    """The manual as folder/text/*.txt."""
    (folder / 'text').mkdir()
    for i, text in enumerate(manual()):
        (folder / 'text' / f'{i:02}.txt').write_text(text, 'utf-8')


@pytest.fixture(scope='session')
def documents():
    return manual()


@pytest.fixture(scope='session')
def workplace(tmp_path_factory):
    """A folder with text/*.txt, shared by tests that only add to it."""
    folder = tmp_path_factory.mktemp('workplace')
    write_text(folder)
    return folder


@pytest.fixture
def here(workplace, monkeypatch):
    """The shared folder as working directory."""
    monkeypatch.chdir(workplace)
    return workplace


@pytest.fixture
def alone(workplace, tmp_path, monkeypatch):
    """A fresh working directory with the same text, for tests that damage things."""
    (tmp_path / 'text').symlink_to(workplace / 'text')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope='session')
def runs(workplace):
    """Three monolingual runs and a cloned one, as a user makes them."""
    folder = workplace / 'four'
    folder.mkdir()
    (folder / 'text').symlink_to(workplace / 'text')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, steps in ('mono_20', 40), ('mono_50', 100), ('mono_100', 200), ('cloned', 200):
            run = CLONES if name == 'cloned' else {}
            run = arguments(**run, max_iters=steps, log_interval=100, out_dir=f'out/{name}')
            result = script('train.py', *run)
            assert result.status == 0, result.err
    return folder


@pytest.fixture
def in_runs(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return runs


def family(pid):
    """The ids of a process and of all its descendants."""
    parents = {}
    for stat in Path('/proc').glob('[0-9]*/stat'):
        with contextlib.suppress(OSError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(')')[2].split()[1])
    found = [pid]
    for parent in found:
        found += [child for child, of in parents.items() if of == parent]
    return found


def kill(process):
    """kill -9 a process and its descendants: torchrun's workers are in sessions of their own."""
    for pid in family(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
