"""
Kill, damage, and check that nothing is lost.

    python tests/faults.py --kills 100    # kill -9 at random moments, run the same command, compare
    python tests/faults.py --inputs 500   # as many damaged files of every kind

Kills hit preparation, training and analysis. What comes out in the end must equal what an
undisturbed run makes, byte by byte (checkpoints: tensor by tensor). Every damaged file must be
read, or refused in one line. Ends with status 1 if anything differs.
"""
import argparse
import base64
import contextlib
import glob
import gzip
import json
import lzma
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == '__main__':  # pytest sets both
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    os.environ['OMP_NUM_THREADS'] = '1'

from conftest import (
    CLONES,
    arguments,
    command,
    kill,
    load,
    manual,
    same,
    settings,
    tar,
    trained,
    write_text,
)
from conftest import run as finish

import analyze
import config
import data_prep
import train
from extras import eltec, glue

# ---- kills

RUN = dict(**CLONES, max_iters=150, checkpoint_interval=10, eval_interval=50, log_interval=7)
MEASURES = [['ppl', 'out/a', '--device=cpu'], ['alignment', 'out/a', '--sequences=20', '--device=cpu']]
# stage: what it needs, what it makes, how often that changes on disk, its commands
STAGES = {
    'preparation': (['text'], 'data', 15, [command('data_prep.py', *arguments(**RUN))]),
    'training': (['text', 'data'], ('out/a/ckpt', 'out/a/log'), 100,
                 [command('train.py', *arguments(**RUN, out_dir='out/a'))]),
    'analysis': (['text', 'data', 'out'], 'out', 2,
                 [command('analyze.py', *args) for args in MEASURES])}

def files(folder):
    """What commands leave, {path: content}; the content of a checkpoint is its tensors."""
    contents = {}
    for path in sorted(folder.rglob('*')):
        name = str(path.relative_to(folder))
        passing = r'^text|^data/\.|\.lock$|\.partial$'
        if path.is_file() and not re.search(passing, name):
            contents[name] = path.read_bytes()
            if path.suffix == '.pt':
                with contextlib.suppress(Exception):  # half of one stays bytes
                    contents[name] = load(path)
    return contents

def incomplete(folder, whole):
    """Files that are neither whole nor, in a run that continues, of an earlier step."""
    for name, content in files(folder).items():
        earlier = name.startswith('out/a/') and (isinstance(content, dict) or '.jsonl' in name)
        if not earlier and not same(content, whole[name]):
            yield f'{name} is incomplete'

def changes(folder):
    """Names and sizes of what is being written: temporary files, checkpoints, logs."""
    seen = []
    for pattern in 'data/.*', 'data/.*/*', 'data/*', 'out/*/*':
        for path in glob.glob(str(folder / pattern)):  # unlike pathlib's, at ease with what vanishes
            with contextlib.suppress(OSError):
                seen.append((os.path.basename(path), os.path.getsize(path)))
    return seen

def kill_at_random(folder, run, n_changes, draw, null=subprocess.DEVNULL):
    """Start a command and kill it shortly after a random one of the changes that it makes to the
    disk -> whether it was still running."""
    process = subprocess.Popen(run, cwd=folder, stdout=null, stderr=null)
    left, before = draw.randrange(n_changes), changes(folder)
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
    needs, makes, n_changes, runs = STAGES[stage]
    which = draw.randrange(len(runs))
    killed = False
    while not killed:  # the command may be quicker than its killer
        shutil.rmtree(folder, ignore_errors=True)
        for name in needs:
            shutil.copytree(undisturbed / name, folder / name)
        if stage == 'analysis' and draw.random() < 0.5:  # else the old one is replaced
            (folder / 'out/a' / ('results.json', 'alignment.json')[which]).unlink()
        killed = kill_at_random(folder, runs[which], n_changes, draw)
    differences = [*incomplete(folder, whole)]
    if (result := finish(*runs[which], cwd=folder)).status:
        differences.append(f'does not continue: {result.err}')
    contents = files(folder)
    differences += [f'{name} differs' for name, content in whole.items()
                    if name.startswith(makes) and not same(contents.get(name), content)]
    differences += [f'{path.name} is left' for path in folder.glob('data/.*')]
    shutil.rmtree(folder)
    return stage, [f'seed {seed}, {stage} {which}: {line}' for line in differences]

def run_kills(n, seed, jobs):
    """n kills -> number of differences."""
    with tempfile.TemporaryDirectory() as place:
        undisturbed = Path(place, 'undisturbed')
        write_text(undisturbed / 'text', manual())
        with contextlib.chdir(undisturbed), contextlib.redirect_stdout(None):
            trained(**RUN, out_dir='out/a')
            for args in MEASURES:
                analyze.main(args)
        whole, stages, differences = files(undisturbed), [], []
        with ThreadPoolExecutor(jobs) as pool:
            for stage, lines in pool.map(
                    lambda i: one_kill(i, Path(place, str(i)), undisturbed, whole),
                    range(seed, seed + n)):
                stages.append(stage)
                differences += lines
                print(f'{len(stages)} of {n}', *lines, sep='\n', flush=True)
    counts = ', '.join(f'{stage} {stages.count(stage)}' for stage in STAGES)
    print(f'seeds {seed} to {seed + n - 1}: {n} kills ({counts}), {len(differences)} differences')
    return len(differences)

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

def lay_out():
    """Makes a prepared, trained and measured run, and a valid file of every kind that a user may
    hand in -> {path: function that reads it}."""
    write_text(Path('text'), manual())
    runs = ['out/m1', 'out/m2', 'out/m3', 'out/a']
    clones = dict(**CLONES, out_dir='out/a', checkpoint_interval=6)
    with contextlib.redirect_stdout(None):
        for out_dir, steps in zip(runs, (4, 8, 12)):
            trained(out_dir=out_dir, max_iters=steps, warmup_iters=0)
        trained(**clones)
        analyze.main(['ppl', *runs, '--device=cpu'])
        analyze.main(['alignment', 'out/a', '--sequences=3', '--device=cpu'])
    cfg, run = settings(**clones), analyze.load_run('out/a', 'cpu')

    def documents(path):
        list(data_prep.split_documents(str(path), cfg))

    def tokenizer(path):
        data_prep.load_tokenizer(path).encode('some text')

    def dataset(path):
        data_prep.Dataset(cfg)

    def log(path):
        shutil.copyfile('out/a/ckpt_previous.pt', 'out/a/ckpt.pt')
        shutil.copyfile('ckpt_6.pt', 'out/a/ckpt_previous.pt')
        trained(**clones)

    def teff(path):
        analyze.main(['teff', *runs])

    def task(path):
        glue.read_task(path, path.parent.name)
    shutil.copyfile('out/a/ckpt_previous.pt', 'ckpt_6.pt')
    text = Path('text/00.txt').read_bytes()[:3000]
    lines = b''.join(json.dumps({'text': t}).encode() + b'\n' for t in text.decode().split('\n\n'))
    two = {'a.txt': text, 'b.txt.gz': gzip.compress(text)}
    tei = b'<TEI xmlns="http://www.tei-c.org/ns/1.0"><body><p>A <hi>b</hi></p></body></TEI>'
    ranks = [base64.b64encode(bytes([i])) + b' %d\n' % i for i in range(256)]
    table = [b'm%d,g,en,EN,%d,%d,mono\n' % (i, 10 ** i, 100 - 9 * i) for i in range(1, 6)]
    corpus, = Path('data').glob('en-*')
    new = {  # path: content, reader
        'text.txt': (text, documents), 'text.txt.gz': (gzip.compress(text), documents),
        'text.jsonl': (lines, documents), 'text.jsonl.xz': (lzma.compress(lines), documents),
        'text.tar': (tar(two), documents), 'text.tgz': (gzip.compress(tar(two)), documents),
        'tei.xml': (tei, lambda path: eltec.tei_text(path.read_bytes(), path)),
        'ranks.tiktoken': (b''.join(ranks), tokenizer),
        'one.model': ((corpus / 'tokenizer.model').read_bytes(), tokenizer),
        'lines.en': (text, lambda path: analyze.parallel_lines(run, [0, 1], True, [str(path)])),
        'runs.csv': (b''.join([b'run,model,corpus,language,tokens,ppl,role\n', *table]),
                     lambda path: analyze.main(['teff', f'--runs={path}'])),
        'sst2/train.tsv': (b'sentence\tlabel\na "good film\t1\nbad\t0\n', task),
        'rte/dev.tsv': (b'sentence1\tsentence2\tlabel\na\tb\tentailment\n', task)}
    for name, (content, _) in new.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
    return {name: reader for name, (_, reader) in new.items()} | {
        **{str(path): dataset for path in [*corpus.iterdir(), *Path('data/clones').iterdir()]},
        'out/a/ckpt.pt': lambda path: analyze.load_run('out/a', 'cpu'),
        'out/a/config.json': lambda path: train.check(cfg, 1),
        'out/a/results.json': teff, 'out/a/alignment.json': teff, 'out/a/log.jsonl': log}

def run_inputs(n, seed):
    """n damaged files of every kind, a fifth where one trains -> number of those neither read nor
    refused."""
    total = 0
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        for name, read in lay_out().items():
            path, counts = Path(name), Counter()
            content = path.read_bytes()
            for i in range(n // 5 if name.endswith('.jsonl') else n):
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
    except OSError:
        return 'refused'
    except SystemExit as e:
        return 'refused' if isinstance(e.code, str) and '\n' not in e.code else f'exit {e.code!r}'
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
