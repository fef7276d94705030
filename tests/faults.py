"""
Kill, damage, and check that nothing is lost.

    python tests/faults.py --kills 100    # kill -9 at random moments, run the same command, compare
    python tests/faults.py --inputs 500   # as many damaged files of every kind

Kills hit preparation, training and analysis. What comes out in the end must equal what an
undisturbed run makes, byte by byte (checkpoints: tensor by tensor). Every damaged file must be
read, or refused with a UserError. Ends with status 1 if anything differs.
"""
import argparse
import base64
import contextlib
import gzip
import io
import json
import lzma
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == '__main__':  # pytest sets it
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from conftest import CLONES, ROOT, arguments, kill, settings, write_text

import analyze
import config
import data_prep
import train
from config import UserError

# -----------------------------------------------------------------------------
# Kills

RUN = dict(**CLONES, max_iters=150, checkpoint_interval=10, eval_interval=50, log_interval=7)
WRITES = {'ppl': 'out/a/results.json', 'alignment': 'out/a/alignment.json', 'report': 'out/report/*'}
COMMANDS = {
    'preparation': [['data_prep.py', *arguments(**RUN)]],
    'training': [['train.py', *arguments(**RUN, out_dir='out/a')]],
    'analysis': [['analyze.py', 'ppl', 'out/a', '--device=cpu'],
                 ['analyze.py', 'alignment', 'out/a', '--sequences=20', '--device=cpu'],
                 ['analyze.py', 'report', 'out/a', '--out=out/report']]}


def start(folder, command):
    return subprocess.Popen([sys.executable, str(ROOT / command[0]), *command[1:]], cwd=folder,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                            env=os.environ | {'OMP_NUM_THREADS': '1'})


def finish(folder, command):
    """Run a command to its end -> seconds it took."""
    begun, process = time.time(), start(folder, command)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    return time.time() - begun


def files(folder):
    """What commands leave, {path: content}; the content of a checkpoint is its tensors."""
    found = {}
    for path in sorted(Path(folder).rglob('*')):
        name = str(path.relative_to(folder))
        passing = path.suffix in ('.lock', '.partial') or path.name in ('.lock', 'speed.jsonl')
        if path.is_file() and not passing and not name.startswith(('text', 'data/.')):
            found[name] = path.read_bytes()
            if path.suffix == '.pt':
                with contextlib.suppress(Exception):  # half of one stays bytes
                    found[name] = torch.load(path, weights_only=True)
    return found


def same(a, b):
    """Equality of nested dictionaries, bit for bit in tensors."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def incomplete(folder, whole):
    """Files that are neither whole nor, in a run that continues, of an earlier step."""
    for name, content in files(folder).items():
        if name.startswith('out/a/') and name.endswith(('.pt', '.jsonl')):
            if name.endswith('.pt') and isinstance(content, bytes):
                yield name
        elif not same(content, whole[name]):
            yield name


def changes(folder):
    """Names and sizes of what is being written: files aside, checkpoints, logs."""
    seen = []
    for pattern in 'data/.partial/*', 'data/.partial/*/*', 'out/*/*':
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                seen.append((path.name, path.stat().st_size))
    return seen


def kill_at_random(folder, command, seconds, draw):
    """Start a command and kill it: at a random time, or up to 20 ms after a random one of the first
    30 changes that it makes to the disk -> whether it was still there to be killed."""
    process = start(folder, command)
    begun, left, before = time.time(), draw.randrange(1, 30), changes(folder)
    by_time, at = draw.random() < 0.3, draw.random() * seconds
    while process.poll() is None and (time.time() - begun < at if by_time else left):
        now = changes(folder)
        left, before = left - (now != before), now
        time.sleep(0.0005)
    time.sleep(0 if by_time else draw.random() * 0.02)
    with contextlib.suppress(AssertionError):  # it has ended
        kill(process)
    process.stdout.close()
    return process.returncode == -9


def one_kill(seed, folder, undisturbed, whole, seconds):
    """A kill and the same command again -> (stage, list of differences)."""
    draw = random.Random(seed)
    stage = draw.choices(list(COMMANDS), (3, 5, 3))[0]
    command = draw.choice(COMMANDS[stage])
    needs = {'preparation': ['text'], 'training': ['text', 'data'], 'analysis': ['text', 'data', 'out']}
    killed = False
    while not killed:  # the command may be quicker than its killer
        shutil.rmtree(folder, ignore_errors=True)
        for name in needs[stage]:
            shutil.copytree(undisturbed / name, folder / name)
        for path in folder.glob(WRITES.get(command[1], 'none')) if draw.random() < 0.5 else ():
            path.unlink()  # else the old one is replaced
        killed = kill_at_random(folder, command, seconds[tuple(command)], draw)
    differences = [f'{name} is incomplete' for name in incomplete(folder, whole)]
    try:
        finish(folder, command)
    except AssertionError as e:
        differences.append(f'does not continue: {e}')
    expected = {'preparation': 'data', 'training': ('out/a/ckpt', 'out/a/log'), 'analysis': 'out'}[stage]
    found = files(folder)
    differences += [f'{name} differs' for name, content in whole.items()
                    if name.startswith(expected) and not same(found.get(name), content)]
    shutil.rmtree(folder)
    return stage, [f'seed {seed}, {command[0]} {command[1]}: {line}' for line in differences]


def run_kills(n, seed, jobs, say=print):
    """n kills -> number of differences."""
    with tempfile.TemporaryDirectory() as place:
        undisturbed = Path(place) / 'undisturbed'
        undisturbed.mkdir()
        write_text(undisturbed)
        seconds = {tuple(command): finish(undisturbed, command)
                   for commands in COMMANDS.values() for command in commands}
        whole, stages, found = files(undisturbed), [], []
        with ThreadPoolExecutor(jobs) as pool:
            trials = [pool.submit(one_kill, i, Path(place) / str(i), undisturbed, whole, seconds)
                      for i in range(seed, seed + n)]
            for trial in trials:
                stage, differences = trial.result()
                stages.append(stage)
                found += differences
                for line in differences or [f'{len(stages)} of {n}'] * (len(stages) % 10 == 0):
                    say(line, flush=True)
    counts = ', '.join(f'{stage} {stages.count(stage)}' for stage in COMMANDS)
    say(f'seeds {seed} to {seed + n - 1}: {n} kills ({counts}), {len(found)} differences')
    return len(found)


# -----------------------------------------------------------------------------
# Damaged files


def damaged(content, draw):
    """A file's bytes with bits turned, cut off, a piece lost or doubled, or others altogether; in
    JSON also a value replaced."""
    how, at, n = draw.randrange(6), draw.randrange(len(content) + 1), draw.choice([1, 2, 16, 300])
    if how == 0:
        return bytes(draw.getrandbits(8) for _ in range(draw.choice([0, 1, 7, 300])))
    if how == 1:
        return content[:at]
    if how == 2:
        return content[:at] + content[at + n:]
    if how == 3:
        return content[:at] + content[max(0, at - n):]
    if how == 4:
        with contextlib.suppress(ValueError):
            document = json.loads(content)
            replace_a_value(document, draw)
            return json.dumps(document).encode()
    content = bytearray(content)
    for _ in range(draw.choice([1, 3, 30]) if content else 0):
        content[draw.randrange(len(content))] = draw.getrandbits(8)
    return bytes(content)


def replace_a_value(document, draw):
    nodes = [document]
    for node in nodes:
        values = node.values() if isinstance(node, dict) else node
        nodes += [value for value in values if isinstance(value, (dict, list)) and value]
    node = draw.choice(nodes)
    key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
    if draw.random() < 0.2:
        del node[key]
    else:
        node[key] = draw.choice([None, True, -1, 10 ** 400, 1e308, float('nan'), '', 'x', '../../x',
                                 [], [[]], {}, {'x': None}])


def tar(content, mode):
    """A tar of two text files."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name in 'a.txt', 'b.txt':
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def valid_files(text):
    """{path: content} of a file of every kind that a user may hand in."""
    lines = b''.join(json.dumps({'text': t}).encode() + b'\n' for t in text.decode().split('\n\n'))
    tei = '<TEI xmlns="http://www.tei-c.org/ns/1.0"><text><body><p>One <hi>two</hi>.</p></body></text></TEI>'
    ranks = [base64.b64encode(bytes([i])) + f' {i}\n'.encode() for i in range(256)]
    runs = [f'm{i},g,en,EN,{10 ** i},{100 - 9 * i},mono\n' for i in range(1, 6)]
    valid = {
        'text.txt': text, 'text.txt.gz': gzip.compress(text, mtime=0),
        'text.jsonl': lines, 'text.jsonl.xz': lzma.compress(lines), 'text.tar': tar(text, 'w'),
        'text.tgz': tar(text, 'w:gz'), 'tei.xml': tei.encode(), 'ranks.tiktoken': b''.join(ranks),
        'line.fr.gz': gzip.compress(text, mtime=0),
        'runs.csv': ''.join(['run,model,corpus,language,tokens,ppl,role\n', *runs]).encode(),
        'SST-2/train.tsv': b'sentence\tlabel\na "good film\t1\nbad\t0\n',
        'RTE/train.jsonl': b'{"premise": "a", "hypothesis": "b", "label": "entailment"}\n'}
    with contextlib.suppress(ImportError):
        from backports import zstd
        valid['text.txt.zst'] = zstd.compress(text)
    with contextlib.suppress(ImportError):
        from pyarrow import parquet, table
        parquet.write_table(table({'text': text.decode().split('\n\n')}), stream := io.BytesIO())
        valid['text.parquet'] = stream.getvalue()
    return valid


def lay_out(folder):
    """A prepared, trained and measured run, and a valid file of every kind in folder, which becomes
    the working directory -> {path: function that reads it}."""
    os.chdir(folder)
    write_text(Path('.'))
    run = settings(**CLONES, out_dir='out/a', checkpoint_interval=6, compile=False)
    runs = ['out/m1', 'out/m2', 'out/m3', 'out/a']
    with contextlib.redirect_stdout(io.StringIO()):
        for out_dir, steps in zip(runs, (4, 8, 12)):
            train.main(settings(out_dir=out_dir, max_iters=steps, warmup_iters=0))
        train.main(run)
    finish('.', ['analyze.py', 'ppl', *runs, '--device=cpu'])
    finish('.', ['analyze.py', 'alignment', 'out/a', '--sequences=3', '--device=cpu'])
    task = {'steps': 3, 'majority': 0.5, 'EN1': {'accuracy': 0.7}, 'EN2': {'accuracy': 0.5}}
    glue = {'languages': ['EN1', 'EN2'], 'tasks': {'sst2': task}, 'mean_accuracy': {'EN1': 0.7, 'EN2': 0.5}}
    pairs = {'languages': ['EN1', 'EN2'], 'line': 1, 'tokens': [['a', 'b']] * 2, 'pairs': [[0, 1], [1, 0]]}
    Path('out/a/glue.json').write_text(json.dumps(glue))
    Path('out/a/matching.json').write_text(json.dumps(pairs))
    valid = valid_files(Path('text/00.txt').read_bytes()[:3000])
    valid['tokenizer.model'] = Path('data/clones/en.model').read_bytes()
    for name, content in valid.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)

    def documents(path):
        return list(data_prep.documents_of(str(path)))

    def checkpoint(path):
        state = train.load_checkpoint(path.parent, run)
        model = train.new_model(run, 800)
        with config.reading(path, ''):
            model.load_state_dict(state['model'])

    def report(path):
        with contextlib.redirect_stdout(io.StringIO()):
            analyze.main(['report', *runs, '--out=report'])

    def table(path):
        with contextlib.redirect_stdout(io.StringIO()):
            analyze.main(['teff', f'--runs={path}'])

    def tokenizer(path):
        return data_prep.load_tokenizer(path).encode('some text')

    readers = {name: documents for name in valid if name.startswith('text.')}
    readers |= {'tei.xml': lambda path: data_prep.tei_text(path.read_bytes(), path),
                'ranks.tiktoken': tokenizer, 'tokenizer.model': tokenizer, 'runs.csv': table,
                'line.fr.gz': lambda path: analyze.read_lines(str(path)),
                'SST-2/train.tsv': lambda path: analyze.read_task(path.parent, 'sst2', 'train'),
                'RTE/train.jsonl': lambda path: analyze.read_task(path.parent, 'rte', 'train'),
                'out/a/ckpt.pt': checkpoint, 'out/a/config.json': lambda path: train.check_out_dir(run),
                'out/a/log.jsonl': lambda path: train.open_log(path, 6).close()}
    of_dataset = 'meta.json', 'train.bin', 'test.bin', 'train_lang.bin', 'vocab_map.npy'
    readers |= {f'data/clones/{name}': lambda path: data_prep.Dataset(run) for name in of_dataset}
    readers |= {f'out/a/{name}': report for name in ('speed.jsonl', *train.MEASURED)}
    return readers


def refused_or_read(name, read, content):
    """Put a damaged file in its place, read it -> 'read' or 'refused'; all else is raised."""
    path = Path(name)
    before, mode = path.read_bytes(), path.stat().st_mode
    path.unlink()  # the file itself may be a hard link into the cache
    path.write_bytes(content)
    try:
        read(path)
        return 'read'
    except (UserError, OSError):
        return 'refused'
    finally:
        path.unlink()
        path.write_bytes(before)
        path.chmod(mode)


def run_inputs(n, seed, say=print):
    """n damaged files of every kind -> number of those neither read nor refused."""
    total = 0
    with tempfile.TemporaryDirectory() as place:
        for name, read in lay_out(place).items():
            content, counts = Path(name).read_bytes(), {'read': 0, 'refused': 0, 'wrong': 0}
            assert refused_or_read(name, read, content) == 'read', name
            for i in range(n):
                draw = random.Random(f'{seed} {name} {i}')
                try:
                    counts[refused_or_read(name, read, damaged(content, draw))] += 1
                except BaseException as e:  # a traceback for the user
                    counts['wrong'] += 1
                    say(f'{name}, {i}: {type(e).__name__}: {e!s:.200}', flush=True)
            total += counts['wrong']
            say(f'{name:28}', counts, flush=True)
        os.chdir('/')
    say(f'seed {seed}: {total} damaged files were neither read nor refused')
    return total


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument('--kills', type=int, default=0, help='how many')
    parser.add_argument('--inputs', type=int, default=0, help='damaged files of every kind')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='kills at a time')
    args = parser.parse_args()
    wrong = run_kills(args.kills, args.seed, args.jobs) if args.kills else 0
    wrong += run_inputs(args.inputs, args.seed) if args.inputs else 0
    sys.exit(wrong > 0)


if __name__ == '__main__':
    config.run(main)
