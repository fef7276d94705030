"""
Kill, damage, and check that nothing is lost.

    python tests/faults.py --kills 100    # kill -9 at random moments, run the same command, compare
    python tests/faults.py --inputs 500   # as many damaged files of every kind

Kills hit preparation, training and analysis; in the end all files must be those of an undisturbed
run, of a checkpoint its tensors. Every damaged file must be read, or refused in one line. Ends with
status 1 if anything differs.
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
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections import Counter
from pathlib import Path

if __name__ == '__main__':  # pytest sets both
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    os.environ['OMP_NUM_THREADS'] = '1'

import conftest
from conftest import CLONES, arguments, command, kill, load, same, settings, trained, write_text

import analyze
import config
import data_prep
import train
from extras import eltec, glue

# ---- kills

RUN = dict(**CLONES, max_iters=150, checkpoint_interval=10, eval_interval=50, log_interval=7,
           out_dir='out/a')
MEASURES = 'ppl out/a --device=cpu', 'alignment out/a --sequences=20 --device=cpu'
# stage: what it lacks, what it makes, the seconds in which it writes that, its commands
STAGES = {
    'preparation': (['data', 'out'], 'data', 0.4, [command('data_prep.py', *arguments(**RUN))]),
    'training': (['out'], ('out/a/ckpt', 'out/a/log'), 3, [command('train.py', *arguments(**RUN))]),
    'analysis': ([], 'out', 0.01, [command('analyze.py', *args.split()) for args in MEASURES])}

def files(folder):
    """What commands leave, {path: content}, of a checkpoint its tensors."""
    contents = {}
    for path in folder.rglob('*'):
        name = str(path.relative_to(folder))
        if path.is_file() and not re.search(r'^text|^data/\.|\.lock$|\.partial$', name):
            contents[name] = path.read_bytes()
            if path.suffix == '.pt':
                with contextlib.suppress(Exception):  # half of one stays bytes
                    contents[name] = load(path)
    return contents

def kill_at_random(folder, run, seconds, draw):
    """Start a command and kill it up to `seconds` after it first changes the folder -> whether it
    was still running."""
    listing = lambda: [names for _, *names in os.walk(folder)]
    before = listing()
    process = subprocess.Popen(run, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
    while process.poll() is None and listing() == before:
        time.sleep(0.0005)
    time.sleep(seconds * draw.random() ** 2)
    with contextlib.suppress(AssertionError):  # it has ended
        kill(process)
    return process.returncode == -9

def one_kill(seed, folder, undisturbed, whole):
    """A kill and the same command again -> (stage, list of differences)."""
    draw = random.Random(seed)
    stage = draw.choices(list(STAGES), (3, 5, 3))[0]
    lacks, makes, seconds, runs = STAGES[stage]
    which, killed = draw.randrange(len(runs)), False
    while not killed:  # the command may be quicker than its killer
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(undisturbed, folder, ignore=lambda *_: lacks)
        if stage == 'analysis' and draw.random() < 0.5:  # else the old one is replaced
            (folder / 'out/a' / ('results.json', 'alignment.json')[which]).unlink()
        killed = kill_at_random(folder, runs[which], seconds, draw)
    differences = []
    for name, content in files(folder).items():  # of an earlier step, in a run that continues?
        earlier = name.startswith('out/a/') and (isinstance(content, dict) or '.jsonl' in name)
        if not earlier and not same(content, whole[name]):
            differences.append(f'{name} is incomplete')
    if (result := conftest.run(*runs[which], cwd=folder)).status:
        differences.append(f'does not continue: {result.err}')
    contents = files(folder)
    differences += [f'{name} differs' for name, content in whole.items()
                    if name.startswith(makes) and not same(contents.get(name), content)]
    differences += [f'{path.name} is left' for path in folder.glob('data/.*')]
    return stage, [f'seed {seed}, {stage} {which}: {line}' for line in differences]

def run_kills(n, seed):
    """n kills -> number of differences."""
    stages, differences = Counter(), []
    with tempfile.TemporaryDirectory() as place:
        undisturbed = Path(place, 'undisturbed')
        write_text(undisturbed / 'text', conftest.manual())
        with contextlib.chdir(undisturbed), contextlib.redirect_stdout(None):
            trained(**RUN)
            for args in MEASURES:
                analyze.main(args.split())
        whole = files(undisturbed)
        for i in range(seed, seed + n):
            stage, lines = one_kill(i, Path(place, 'disturbed'), undisturbed, whole)
            stages[stage] += 1
            differences += lines
            print(f'{stages.total()} of {n}', *lines, sep='\n', flush=True)
    print(f'seeds {seed} to {seed + n - 1}: kills {dict(stages)}, {len(differences)} differences')
    return len(differences)

# ---- damaged files

def damaged(content, draw):
    """Bytes cut off, lost, doubled, turned, or others altogether; in JSON also another value."""
    how, at, n = draw.randrange(6), draw.randrange(len(content) + 1), draw.choice([1, 2, 16, 300])
    if how == 0:
        return draw.randbytes(draw.choice([0, 1, 7, 300]))
    if how < 4:
        return content[:at] + (b'', content[at + n:], content[max(0, at - n):])[how - 1]
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
    key = draw.choice([*document] if isinstance(document, dict) else range(len(document)))
    if document[key] and isinstance(document[key], (dict, list)) and draw.random() < 0.8:
        replace_a_value(document[key], draw)
    elif draw.random() < 0.2:
        del document[key]
    else:
        document[key] = draw.choice([None, True, -1, 10 ** 400, 1e308, float('nan'), '', 'x',
                                     '../../x', [], [[]], {}, {'x': None}])

def tar(contents):
    """A tar of {name: content}; None is a symbolic link."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode='w') as archive:
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content or b'')
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, '/etc/passwd'
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()

def lay_out():
    """Makes a prepared, trained and measured run, and a valid file of every kind that a user may
    hand in -> {path: function that reads it}."""
    clones, runs = dict(**CLONES, out_dir='out/a', checkpoint_interval=6), ['out/a']
    write_text(Path('text'), conftest.manual())
    with contextlib.redirect_stdout(None):
        trained(**clones)
        for steps in (4, 8, 12):
            runs.append(f'out/mono_{steps}')
            trained(out_dir=runs[-1], max_iters=steps, warmup_iters=0)
        analyze.main(['ppl', *runs, '--device=cpu'])
        analyze.main(['alignment', 'out/a', '--sequences=3', '--device=cpu'])
    shutil.copyfile('out/a/ckpt_previous.pt', 'ckpt_6.pt')
    cfg, run, (corpus,) = settings(**clones), analyze.load_run('out/a'), Path('data').glob('en-*')
    documents = lambda path: list(data_prep.split_documents(str(path), cfg))
    tokenizer = lambda path: data_prep.load_tokenizer(path).encode('some text')
    datasets = lambda path: [data_prep.Dataset(cfg, verify) for verify in (False, True)]
    task = lambda path: glue.read_task(path, path.parent.name)
    teff = lambda path: analyze.main(['teff', *runs])
    table = lambda path: analyze.main(['teff', f'--runs={path}'])
    aligned = lambda path: analyze.parallel_lines(run, [0, 1], True, [str(path)])

    def log(path):
        shutil.copyfile('ckpt_6.pt', 'out/a/ckpt.pt')
        trained(**clones)
    text = Path('text/00.txt').read_bytes()[:3000]
    lines = b'\n'.join(json.dumps({'text': part}).encode() for part in text.decode().split('\n\n'))
    two = tar({'a.txt': text, 'b.txt.gz': gzip.compress(text)})
    ranks = [base64.b64encode(bytes([i])) + b' %d\n' % i for i in range(256)]
    rows = [b'm%d,g,en,EN,%d,%d,mono\n' % (i, 10 ** i, 100 - 9 * i) for i in range(1, 6)]
    tei = b'<TEI xmlns="http://www.tei-c.org/ns/1.0"><body><p>A <hi>b</hi></p></body></TEI>'
    readers = {path: datasets for path in [*corpus.iterdir(), *Path('data/clones').iterdir()]} | {
        'out/a/ckpt.pt': lambda path: analyze.load_run('out/a', 'cpu'),
        'out/a/config.json': lambda path: train.check(cfg, 1),
        'out/a/results.json': teff, 'out/a/alignment.json': teff, 'out/a/log.jsonl': log}
    for name, reader, content in (
            ('text.txt', documents, text), ('text.txt.gz', documents, gzip.compress(text)),
            ('text.jsonl', documents, lines), ('text.jsonl.xz', documents, lzma.compress(lines)),
            ('text.tar', documents, two), ('text.tgz', documents, gzip.compress(two)),
            ('ranks.tiktoken', tokenizer, b''.join(ranks)),
            ('one.model', tokenizer, (corpus / 'tokenizer.model').read_bytes()),
            ('tei.xml', lambda path: eltec.tei_text(path.read_bytes(), path), tei),
            ('lines.en', aligned, text),
            ('runs.csv', table, b''.join([b'run,model,corpus,language,tokens,ppl,role\n', *rows])),
            ('sst2/train.tsv', task, b'sentence\tlabel\na "good film\t1\nbad\t0\n'),
            ('rte/dev.tsv', task, b'sentence1\tsentence2\tlabel\na\tb\tentailment\n')):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)
        readers[name] = reader
    return {str(path): reader for path, reader in readers.items()}

def attempt(read, path):
    try:
        with contextlib.redirect_stdout(None):
            read(path)
        return 'read'
    except (OSError, SystemExit) as e:
        one_line = isinstance(e, OSError) or isinstance(e.code, str) and '\n' not in e.code
        return 'refused' if one_line else f'exit {e.code!r}'
    except BaseException as e:
        return f'{type(e).__name__}: {e!s:.200}'

def run_inputs(n, seed):
    """n damaged files of every kind (a fifth, if it trains) -> number neither read nor refused."""
    total = 0
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        for name, read in lay_out().items():
            path, counts = Path(name), Counter()
            content = path.read_bytes()
            for i in range(n // 5 if path.name == 'log.jsonl' else n):
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

def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    for option in '--kills', '--inputs', '--seed':
        parser.add_argument(option, type=int, default=0)
    args = parser.parse_args()
    wrong = run_kills(args.kills, args.seed) if args.kills else 0
    wrong += run_inputs(args.inputs, args.seed) if args.inputs else 0
    sys.exit(wrong > 0)

if __name__ == '__main__':
    config.run(main)
