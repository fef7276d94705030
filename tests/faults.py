"""
Kill, damage, and check that nothing is lost.

    python tests/faults.py --kills 100    # kill -9 at random moments, run the same command, compare
    python tests/faults.py --inputs 500   # as many damaged files of every kind, a tenth for reports

Kills hit preparation, training and analysis. What comes out in the end must equal what an
undisturbed run makes, byte by byte (checkpoints: tensor by tensor). Every damaged file must be
read, or refused with a UserError. Ends with status 1 if anything differs.
"""
import argparse
import base64
import contextlib
import glob
import gzip
import io
import json
import lzma
import os
import random
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == '__main__':  # pytest sets both
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    os.environ['OMP_NUM_THREADS'] = '1'

import torch
from conftest import CLONES, arguments, command, kill, load, manual, settings, trained, write_text
from conftest import run as finish

import analyze
import config
import data_prep
import train
from config import UserError

# ---- kills

RUN = dict(**CLONES, max_iters=150, checkpoint_interval=10, eval_interval=50, log_interval=7)
# stage: what it needs, what it makes, its commands
STAGES = {
    'preparation': (['text'], 'data', [command('data_prep.py', *arguments(**RUN))]),
    'training': (['text', 'data'], ('out/a/ckpt', 'out/a/log'),
                 [command('train.py', *arguments(**RUN, out_dir='out/a'))]),
    'analysis': (['text', 'data', 'out'], 'out', [
        command('analyze.py', 'ppl', 'out/a', '--device=cpu'),
        command('analyze.py', 'alignment', 'out/a', '--sequences=20', '--device=cpu'),
        command('analyze.py', 'report', 'out/a', '--out=out/report')])}

def files(folder):
    """What commands leave, {path: content}; the content of a checkpoint is its tensors."""
    found = {}
    for path in sorted(folder.rglob('*')):
        name = str(path.relative_to(folder))
        passing = r'^text|^data/\.|\.lock$|\.partial$|speed\.jsonl$'
        if path.is_file() and not re.search(passing, name):
            found[name] = path.read_bytes()
            if path.suffix == '.pt':
                with contextlib.suppress(Exception):  # half of one stays bytes
                    found[name] = load(path)
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
        earlier = name.startswith('out/a/') and (isinstance(content, dict) or '.jsonl' in name)
        if not earlier and not same(content, whole[name]):
            yield f'{name} is incomplete'

def changes(folder):
    """Names and sizes of what is being written: files aside, checkpoints, logs."""
    seen = []
    for pattern in 'data/.partial/*', 'data/.partial/*/*', 'out/*/*':
        for path in glob.glob(str(folder / pattern)):  # unlike pathlib's, at ease with what vanishes
            with contextlib.suppress(OSError):
                seen.append((os.path.basename(path), os.path.getsize(path)))
    return seen

def kill_at_random(folder, run, draw, null=subprocess.DEVNULL):
    """Start a command and kill it shortly after a random one of the first 30 changes that it makes
    to the disk -> whether it was still there to be killed."""
    process = subprocess.Popen(run, cwd=folder, stdout=null, stderr=null)
    left, before = draw.randrange(30), changes(folder)
    while process.poll() is None and left:
        now = changes(folder)
        left, before = left - (now != before), now
        time.sleep(0.0005)
    time.sleep(draw.random() * draw.choice([0.02, 0.02, 1]))
    with contextlib.suppress(AssertionError):  # it has ended
        kill(process)
    return process.returncode == -9

def one_kill(seed, folder, undisturbed, whole):
    """A kill and the same command again -> (stage, list of differences)."""
    draw = random.Random(seed)
    stage = draw.choices(list(STAGES), (3, 5, 3))[0]
    needs, makes, runs = STAGES[stage]
    which = draw.randrange(len(runs))
    killed = False
    while not killed:  # the command may be quicker than its killer
        shutil.rmtree(folder, ignore_errors=True)
        for name in needs:
            shutil.copytree(undisturbed / name, folder / name)
        if stage == 'analysis' and draw.random() < 0.5:  # else the old one is replaced
            written = 'out/a/results.json', 'out/a/alignment.json', 'out/report/*'
            for path in folder.glob(written[which]):
                path.unlink()
        killed = kill_at_random(folder, runs[which], draw)
    differences = [*incomplete(folder, whole)]
    if (result := finish(*runs[which], cwd=folder)).status:
        differences.append(f'does not continue: {result.err}')
    found = files(folder)
    differences += [f'{name} differs' for name, content in whole.items()
                    if name.startswith(makes) and not same(found.get(name), content)]
    shutil.rmtree(folder)
    return stage, [f'seed {seed}, {stage} {which}: {line}' for line in differences]

def run_kills(n, seed, jobs):
    """n kills -> number of differences."""
    with tempfile.TemporaryDirectory() as place:
        undisturbed = Path(place, 'undisturbed')
        write_text(undisturbed / 'text', manual())
        for _, _, runs in STAGES.values():
            for run in runs:
                assert finish(*run, cwd=undisturbed).status == 0
        whole, stages, found = files(undisturbed), [], []
        with ThreadPoolExecutor(jobs) as pool:
            for stage, differences in pool.map(
                    lambda i: one_kill(i, Path(place, str(i)), undisturbed, whole),
                    range(seed, seed + n)):
                stages.append(stage)
                found += differences
                print(f'{len(stages)} of {n}', *differences, sep='\n', flush=True)
    counts = ', '.join(f'{stage} {stages.count(stage)}' for stage in STAGES)
    print(f'seeds {seed} to {seed + n - 1}: {n} kills ({counts}), {len(found)} differences')
    return len(found)

# ---- damaged files

def damaged(content, draw):
    """A file's bytes with bits turned, cut off, a piece lost or doubled, or others altogether; in
    JSON also a value replaced."""
    how, at, n = draw.randrange(6), draw.randrange(len(content) + 1), draw.choice([1, 2, 16, 300])
    if how == 0:
        return bytes(draw.getrandbits(8) for _ in range(draw.choice([0, 1, 7, 300])))
    if how < 4:
        rest = b'', content[at + n:], content[max(0, at - n):]
        return content[:at] + rest[how - 1]
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
    places = [(document, key) for key in document]
    for node, key in places:
        if isinstance(value := node[key], (dict, list)):
            keys = value if isinstance(value, dict) else range(len(value))
            places += [(value, key) for key in keys]
    node, key = draw.choice(places)
    if draw.random() < 0.2:
        del node[key]
    else:
        node[key] = draw.choice([None, True, -1, 10 ** 400, 1e308, float('nan'), '', 'x', '../../x',
                                 [], [[]], {}, {'x': None}])

def tar(contents):
    """A tar of {name: content}."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w') as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()

def lay_out():
    """Makes a prepared, trained and measured run, and a valid file of every kind that a user may
    hand in -> {path: function that reads it}."""
    write_text(Path('text'), manual())
    run = dict(**CLONES, out_dir='out/a', checkpoint_interval=6)
    runs = ['out/m1', 'out/m2', 'out/m3', 'out/a']
    with contextlib.redirect_stdout(None):
        for out_dir, steps in zip(runs, (4, 8, 12)):
            trained(out_dir=out_dir, max_iters=steps, warmup_iters=0)
        trained(**run)
        analyze.main(['ppl', *runs, '--device=cpu'])
        analyze.main(['alignment', 'out/a', '--sequences=3', '--device=cpu'])
    cfg = settings(**run)

    def report(path):
        analyze.main(['report', *runs, '--out=report'])
    documents = lambda path: list(data_prep.documents_of(str(path)))
    tokenizer = lambda path: data_prep.load_tokenizer(path).encode('some text')
    task = lambda path: analyze.read_task(path, path.parent.name)

    text = Path('text/00.txt').read_bytes()[:3000]
    lines = b''.join(json.dumps({'text': t}).encode() + b'\n' for t in text.decode().split('\n\n'))
    two = {'a.txt': text, 'b.txt': text}
    tei = b'<TEI xmlns="http://www.tei-c.org/ns/1.0"><body><p>A <hi>b</hi></p></body></TEI>'
    ranks = [base64.b64encode(bytes([i])) + b' %d\n' % i for i in range(256)]
    table = [b'm%d,g,en,EN,%d,%d,mono\n' % (i, 10 ** i, 100 - 9 * i) for i in range(1, 6)]
    score, names = {'accuracy': 0.7}, ['EN1', 'EN2']
    glue = {'languages': names, 'mean_accuracy': {'EN1': 0.7, 'EN2': 0.5},
            'tasks': {'sst2': {'steps': 3, 'majority': 0.5, 'EN1': score, 'EN2': score}}}
    pairs = {'languages': names, 'line': 1, 'tokens': [['a', 'b']] * 2, 'pairs': [[0, 1], [1, 0]]}
    new = {  # path: content, reader
        'text.txt': (text, documents), 'text.txt.gz': (gzip.compress(text), documents),
        'text.jsonl': (lines, documents), 'text.jsonl.xz': (lzma.compress(lines), documents),
        'text.tar': (tar(two), documents), 'text.tgz': (gzip.compress(tar(two)), documents),
        'tei.xml': (tei, lambda path: data_prep.tei_text(path.read_bytes(), path)),
        'ranks.tiktoken': (b''.join(ranks), tokenizer),
        'tokenizer.model': (Path('data/clones/en.model').read_bytes(), tokenizer),
        'line.fr.gz': (gzip.compress(text), lambda path: analyze.read_lines(str(path))),
        'runs.csv': (b''.join([b'run,model,corpus,language,tokens,ppl,role\n', *table]),
                     lambda path: analyze.main(['teff', f'--runs={path}'])),
        'sst2/train.tsv': (b'sentence\tlabel\na "good film\t1\nbad\t0\n', task),
        'rte/dev.tsv': (b'sentence1\tsentence2\tlabel\na\tb\tentailment\n', task),
        'out/a/glue.json': (json.dumps(glue).encode(), report),
        'out/a/matching.json': (json.dumps(pairs).encode(), report)}
    for name, (content, _) in new.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    of_dataset = 'meta.json', 'train.bin', 'test.bin', 'train_lang.bin', 'vocab_map.npy'
    return {name: reader for name, (_, reader) in new.items()} | {
        **{f'data/clones/{name}': lambda path: data_prep.Dataset(cfg) for name in of_dataset},
        'out/a/ckpt.pt': lambda path: analyze.load_run(path.parent, 'cpu'),
        'out/a/config.json': lambda path: train.check_out_dir(cfg),
        'out/a/log.jsonl': lambda path: train.open_log(path, 6).close(),
        'out/a/results.json': report, 'out/a/alignment.json': report}

def run_inputs(n, seed):
    """n damaged files of every kind -> number of those neither read nor refused."""
    total = 0
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        for name, read in lay_out().items():
            path, counts, slow = Path(name), Counter(), read.__name__ == 'report'
            content = path.read_bytes()
            path.unlink()  # it may be a hard link into the cache
            for i in range(n // 10 if slow else n):
                path.write_bytes(damaged(content, random.Random(f'{seed} {name} {i}')))
                how = attempt(read, path)
                if how not in ('read', 'refused'):  # a traceback for the user
                    print(f'{name}, {i}: {how}', flush=True)
                    how, total = 'wrong', total + 1
                counts[how] += 1
            path.write_bytes(content)
            assert attempt(read, path) == 'read', name
            print(f'{name:28}', dict(counts), flush=True)
    print(f'seed {seed}: {total} damaged files were neither read nor refused')
    return total

def attempt(read, path):
    try:
        with contextlib.redirect_stdout(None):
            read(path)
        return 'read'
    except (UserError, OSError):
        return 'refused'
    except BaseException as e:
        return f'{type(e).__name__}: {e!s:.200}'

def main():
    kind = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind)
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
