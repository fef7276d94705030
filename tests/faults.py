"""
Kill, damage, and see that nothing is lost.

    python tests/faults.py --kills 100      # kill -9 at random moments of preparation, training and analysis; go on; compare
    python tests/faults.py --inputs 500     # so many damaged files of every kind, each into what reads it

Every kill is followed by the command that goes on, and what comes out is compared with what an undisturbed run makes, byte by
byte (checkpoints: tensor by tensor). Every damaged file must be read, or refused in one line. Ends with status 1 for a difference.
"""
import argparse
import contextlib
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

if __name__ == '__main__':  # pytest has set it
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
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
COMMANDS = {'preparation': [['data_prep.py', *arguments(**RUN)]],
            'training': [['train.py', *arguments(**RUN, out_dir='out/a')]],
            'analysis': [['analyze.py', 'ppl', 'out/a', '--device=cpu'], ['analyze.py', 'alignment', 'out/a', '--sequences=20', '--device=cpu'],
                         ['analyze.py', 'report', 'out/a', '--out=out/report']]}


def start(folder, command, resume=()):
    return subprocess.Popen([sys.executable, str(ROOT / command[0]), *command[1:], *resume], cwd=folder, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, env=os.environ | {'OMP_NUM_THREADS': '1'})


def finish(folder, command, resume=()):
    """Run a command to its end -> seconds it took."""
    begun = time.time()
    process = start(folder, command, resume)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, f'{command[0]} in {folder}:\n{out}'
    return time.time() - begun


def files(folder):
    """The files that a command leaves, {path: content}; a checkpoint's are its tensors."""
    found = {}
    for path in sorted(Path(folder).rglob('*')):
        name = str(path.relative_to(folder))
        if path.is_file() and path.name not in ('speed.jsonl', '.lock') and not name.startswith(('text', 'data/.')) and path.suffix != '.partial':
            found[name] = path.read_bytes()
            if path.suffix == '.pt':
                with contextlib.suppress(Exception):  # half of one stays bytes
                    found[name] = torch.load(path, weights_only=True)
    return found


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return a == b


def halves(folder, whole):
    """The files that are neither whole nor old: every one has a whole form, but a run's log grows."""
    found = files(folder)
    grown = {name for name in found if name.startswith('out/a/') and name.endswith(('.pt', '.jsonl'))}
    bad = [name for name, content in found.items() if name not in grown and not same(content, whole[name])]
    return bad + [name for name in grown if name.endswith('.pt') and isinstance(found[name], bytes)]


def changes(folder):
    """What a poll sees of a folder being written: names and sizes of what is aside, checkpoints and logs."""
    seen = []
    for pattern in ('data/.partial/*', 'data/.partial/*/*', 'out/*/*'):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                seen.append((path.name, path.stat().st_size))
    return seen


def kill_at_random(folder, command, seconds, draw):
    """Start a command and kill it: at a random time, or within 20 ms behind a random one of its first 30 changes of the disk.
    Returns whether it was there to be killed."""
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
    """A kill and what follows -> (stage, list of differences)."""
    draw = random.Random(seed)
    stage = draw.choices(list(COMMANDS), (3, 5, 3))[0]
    command = draw.choice(COMMANDS[stage])
    killed = False
    while not killed:  # a command that was quicker than its killer is tried again
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / 'text').symlink_to(undisturbed / 'text')
        if stage != 'preparation':
            shutil.copytree(undisturbed / 'data', folder / 'data')
        if stage == 'analysis':
            shutil.copytree(undisturbed / 'out', folder / 'out')
            if draw.random() < 0.5:  # nothing there of what it writes, or the old files
                made = {'ppl': 'out/a/results.json', 'alignment': 'out/a/alignment.json', 'report': 'out/report/*'}[command[1]]
                for path in folder.glob(made):
                    path.unlink()
        killed = kill_at_random(folder, command, seconds[tuple(command)], draw)
    differences = [f'{name} is half' for name in halves(folder, whole)]
    there = list(folder.glob('out/a/ckpt*.pt'))
    try:
        finish(folder, command, ['--resume'] if stage == 'training' and there else [])
    except AssertionError as e:
        differences.append(f'does not go on: {e}')
    found = files(folder)
    expected = [name for name in whole if name.startswith('data' if stage == 'preparation' else 'out/a' if stage == 'training' else ('data', 'out'))]
    if stage == 'training':  # what analysis adds is not there yet
        expected = [name for name in expected if name.endswith(('.pt', 'log.jsonl', 'config.json'))]
    differences += [f'{name} differs' for name in expected if name not in found or not same(found[name], whole[name])]
    shutil.rmtree(folder)
    return stage, [f'seed {seed}, {command[0]} {command[1]}: {difference}' for difference in differences]


def run_kills(n, seed, jobs, say=print):
    """n kills -> number of differences."""
    with tempfile.TemporaryDirectory() as place:
        undisturbed = Path(place) / 'undisturbed'
        undisturbed.mkdir()
        write_text(undisturbed)
        seconds = {tuple(command): finish(undisturbed, command) for commands in COMMANDS.values() for command in commands}
        whole = files(undisturbed)
        counts, found = dict.fromkeys(COMMANDS, 0), []
        with ThreadPoolExecutor(jobs) as pool:
            trials = [pool.submit(one_kill, seed + i, Path(place) / str(i), undisturbed, whole, seconds) for i in range(n)]
            for i, trial in enumerate(trials):
                stage, differences = trial.result()
                counts[stage] += 1
                found += differences
                for difference in differences:
                    say(difference, flush=True)
                if (i + 1) % 10 == 0:
                    say(f'{i + 1} of {n}', flush=True)
    say(f'seeds {seed} to {seed + n - 1}: {sum(counts.values())} kills ('
        + ', '.join(f'{stage} {count}' for stage, count in counts.items()) + f'), {n} resumes, {len(found)} differences')
    return len(found)


# -----------------------------------------------------------------------------
# Damaged files


def damaged(content, draw):
    """A file's bytes, damaged: other bytes, cut off, bits turned, a piece doubled or lost; of JSON, a value replaced."""
    how = draw.randrange(6)
    if how == 0:
        return bytes(draw.getrandbits(8) for _ in range(draw.choice([0, 1, 7, 300])))
    at, n = draw.randrange(len(content) + 1), draw.choice([1, 2, 16, 300])
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
    for _ in range(draw.choice([1, 3, 30])):
        if content:
            content[draw.randrange(len(content))] = draw.getrandbits(8)
    return bytes(content)


def replace_a_value(document, draw):
    places = []

    def walk(node):
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], (dict, list)) and node[key]:
                walk(node[key])
    if isinstance(document, (dict, list)):
        walk(document)
    if places:
        node, key = draw.choice(places)
        if draw.random() < 0.2 and isinstance(node, dict):
            del node[key]
        else:
            node[key] = draw.choice([None, True, -1, 10 ** 400, 1e308, float('nan'), '', 'x', '../../x', [], [[]], {}, {'x': None}])


def packed(content, kind):
    """Text files as one of the kinds that hold several."""
    stream = io.BytesIO()
    if kind == 'zip':
        with zipfile.ZipFile(stream, 'w', zipfile.ZIP_DEFLATED) as archive:
            archive.writestr('ELTeC-eng/level1/a.xml', content)
    else:
        with tarfile.open(fileobj=stream, mode=kind) as archive:
            for name in ('a.txt', 'b.txt'):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def lay_out(folder):
    """A prepared, trained and measured run, and a valid file of every kind in folder, which becomes the working directory:
    {path: function that reads it}."""
    import gzip
    import lzma
    os.chdir(folder)
    write_text(Path('.'))
    run = settings(**CLONES, out_dir='out/a', checkpoint_interval=6, compile=False)
    with contextlib.redirect_stdout(io.StringIO()):
        train.main(run)
        for name, steps in (('m1', 4), ('m2', 8), ('m3', 12)):
            train.main(settings(out_dir=f'out/{name}', max_iters=steps, warmup_iters=0))
        for command in (['ppl', 'out/a', 'out/m1', 'out/m2', 'out/m3'], ['alignment', 'out/a', '--sequences=3']):
            finish('.', ['analyze.py', *command, '--device=cpu'])
    majority = {'steps': 3, 'majority': 0.5, 'EN1': {'accuracy': 0.7}, 'EN2': {'accuracy': 0.5}}
    glue = {'languages': ['EN1', 'EN2'], 'tasks': {'sst2': majority}, 'mean_accuracy': {'EN1': 0.7, 'EN2': 0.5}}
    Path('out/a/glue.json').write_text(json.dumps(glue))
    Path('out/a/matching.json').write_text(json.dumps({'languages': ['EN1', 'EN2'], 'line': 1, 'tokens': [['a', 'b']] * 2, 'pairs': [[0, 1], [1, 0]]}))
    text = Path('text/00.txt').read_bytes()[:3000]
    lines = b''.join(json.dumps({'text': line}).encode() + b'\n' for line in text.decode().split('\n\n'))
    tei = b'<TEI xmlns="http://www.tei-c.org/ns/1.0"><text><body><p>One &amp; <hi>two</hi>.</p><l>Three.</l></body></text></TEI>'
    ranks = b''.join(data_prep.base64.b64encode(bytes([i])) + f' {i}\n'.encode() for i in range(256))
    valid = {'text.txt': text, 'text.txt.gz': gzip.compress(text, mtime=0), 'text.txt.xz': lzma.compress(text), 'text.jsonl': lines,
             'text.jsonl.xz': lzma.compress(lines), 'text.tar': packed(text, 'w'), 'text.tgz': packed(text, 'w:gz'), 'tei.xml': tei,
             'ranks.tiktoken': ranks, 'line.fr.gz': gzip.compress(text, mtime=0),
             'runs.csv': b'run,model,corpus,language,tokens,ppl,role\n' + b''.join(b'm%d,g,en,EN,%d,%d,mono\n' % (i, 10 ** i, 100 - 9 * i) for i in range(1, 6)),
             'SST-2/train.tsv': b'sentence\tlabel\na "good film\t1\nbad\t0\n', 'data/ELTeC-eng.zip': packed(tei, 'zip'),
             'RTE/train.jsonl': b'{"premise": "a", "hypothesis": "b", "label": "entailment"}\n', 'tokenizer.model': Path('data/clones/en.model').read_bytes()}
    with contextlib.suppress(ImportError):
        import zstandard
        valid['text.txt.zst'] = zstandard.compress(text)
    with contextlib.suppress(ImportError):
        import pyarrow
        import pyarrow.parquet
        pyarrow.parquet.write_table(pyarrow.table({'text': text.decode().split('\n\n')}), 'text.parquet')
        valid['text.parquet'] = Path('text.parquet').read_bytes()
    for name, content in valid.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(content)

    def documents(path):
        return list(data_prep.documents_of(str(path), 1))

    def dataset(path):
        return data_prep.Dataset(run)

    def trusted(path):
        """A dataset whose meta.json vouches for the damaged file: not an accident but an attempt."""
        meta = Path('data/clones/meta.json')
        before = meta.read_bytes()
        content = json.loads(before)
        content['files'][path.name] = {'bytes': path.stat().st_size, 'sha256': data_prep.checksum(path)}
        meta.write_text(json.dumps(content))
        try:
            opened = data_prep.Dataset(run)
            return [opened.batch(pool[:2], np.full(len(pool[:2]), i)) for i, pool in enumerate(opened.pools)]
        finally:
            meta.write_bytes(before)

    def checkpoint(path):
        state = train.read_checkpoint(path, run)
        model = train.new_model(run, 800)
        try:
            train.load_state(model, torch.optim.Adam(model.parameters()), state, False)
        except train.OTHER_SHAPE:
            raise UserError('of another shape') from None

    def report(path):
        with contextlib.redirect_stdout(io.StringIO()):
            found = analyze.Report(['out/m1', 'out/m2', 'out/m3', 'out/a'], argparse.Namespace(tokens=0))
        for _, _, *tables in analyze.TABLES:
            for table in filter(None, tables):
                analyze.cells_of(table(found))
        for _, _, draw, _ in analyze.FIGURES:
            draw(found)
        analyze.pyplot().close('all')

    def table(path):
        rows = analyze.rows_of_csv(path)
        analyze.token_efficiency(rows)

    def tokenizer(path):
        return data_prep.load_tokenizer(path).encode('some text')

    with_documents = [name for name in valid if name.startswith('text.')]
    readers = {name: documents for name in with_documents}
    readers |= {'tei.xml': lambda path: data_prep.tei_text(path.read_bytes(), path), 'data/ELTeC-eng.zip': lambda path: documents('eltec:eng'),
                'ranks.tiktoken': tokenizer, 'tokenizer.model': tokenizer, 'line.fr.gz': lambda path: analyze.read_lines(str(path)), 'runs.csv': table,
                'SST-2/train.tsv': lambda path: analyze.read_task(Path('SST-2'), 'sst2', 'train'),
                'RTE/train.jsonl': lambda path: analyze.read_task(Path('RTE'), 'rte', 'train')}
    readers |= {f'data/clones/{name}': dataset for name in ('meta.json', 'train.bin')}
    readers |= {f'data/clones/{name}': trusted for name in ('vocab_map.npy', 'test.bin', 'train_lang.bin')}
    readers |= {'out/a/ckpt.pt': checkpoint, 'out/a/config.json': lambda path: train.check_out_dir(run),
                'out/a/log.jsonl': lambda path: train.read_log(path, 6)}
    readers |= {f'out/a/{name}.json': report for name in ('results', 'alignment', 'glue', 'matching')}
    return readers


def refused_or_read(name, read, content):
    """Put a damaged file in its place, read it -> 'read' or 'refused'; whatever else is raised comes out."""
    path = Path(name)
    before, mode = path.read_bytes(), path.stat().st_mode
    path.unlink()  # and not through it: tokens are links to the cache
    path.write_bytes(content)
    try:
        read(path)
        return 'read'
    except (UserError, OSError) as e:
        assert len(str(e).splitlines()) == 1, str(e)
        return 'refused'
    finally:
        path.unlink()
        path.write_bytes(before)
        path.chmod(mode)


def run_inputs(n, seed, say=print):
    """n damaged files of every kind -> number of those that were neither read nor refused in one line."""
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        readers = lay_out(place)
        for name, read in readers.items():
            assert refused_or_read(name, read, Path(name).read_bytes()) == 'read', name
            content, counts = Path(name).read_bytes(), {'read': 0, 'refused': 0, 'wrong': 0}
            for i in range(n):
                try:
                    counts[refused_or_read(name, read, damaged(content, random.Random(f'{seed} {name} {i}')))] += 1
                except BaseException as e:  # a traceback for the user
                    counts['wrong'] += 1
                    say(f'{name}, {i}: {type(e).__name__}: {e!s:.200}', flush=True)
            wrong += counts['wrong']
            say(f'{name:28} {n:6,} tried, {counts["refused"]:6,} refused, {counts["read"]:6,} read, {counts["wrong"]:3,} wrong', flush=True)
        os.chdir('/')
    say(f'seed {seed}: {len(readers)} kinds, {n * len(readers):,} damaged files, {wrong} that were neither read nor refused in one line')
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--kills', type=int, default=0, metavar='N', help='random kills')
    parser.add_argument('--inputs', type=int, default=0, metavar='N', help='damaged files of every kind')
    parser.add_argument('--seed', type=int, default=0, help='of the first kill; of all damage')
    parser.add_argument('--jobs', type=int, default=os.cpu_count(), help='kills at a time')
    args = parser.parse_args()
    if not args.kills + args.inputs:
        parser.error('--kills N or --inputs N')
    wrong = run_kills(args.kills, args.seed, args.jobs) if args.kills else 0
    wrong += run_inputs(args.inputs, args.seed) if args.inputs else 0
    sys.exit(wrong > 0)


if __name__ == '__main__':
    config.run(main)
