"""What can go wrong with a run of days; a test is named after the point of it that it proves.

1 kill at any time, 2 preemption, 3 keep what matters, 4 other hardware, 5 hostile or damaged files, 6 two at once, 7 slow leaks,
8 numbers that lie. `python tests/faults.py` does more of 1 and 5."""
import gzip
import io
import json
import lzma
import math
import os
import re
import resource
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import faults
import numpy as np
import pytest
import torch
from conftest import CLONES, ROOT, arguments, family, kill, script, settings, two_processes
from hypothesis import given
from hypothesis import strategies as st

import analyze
import data_prep
import train
from config import UserError

LONG = dict(**CLONES, max_iters=300, log_interval=7, eval_interval=100, checkpoint_interval=40)


def begin(*command, in_two=False):
    """Start train.py, in two processes if asked, and wait for its first lines of figures."""
    command_line = two_processes(ROOT / 'train.py', *command) if in_two else [sys.executable, ROOT / 'train.py', *command]
    process = subprocess.Popen(command_line, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    log = Path(next(a for a in command if a.startswith('--out_dir=')).partition('=')[2]) / 'log.jsonl'
    while not (log.exists() and log.stat().st_size) and process.poll() is None:
        time.sleep(0.002)
    return process


def end_of(out_dir):
    """What must be the same bit for bit: the log, and the tensors of the checkpoint."""
    return (Path(out_dir) / 'log.jsonl').read_bytes(), torch.load(Path(out_dir) / 'ckpt.pt', weights_only=True)


def assert_same(a, b):
    assert a[0] == b[0]
    torch.testing.assert_close(a[1], b[1], rtol=0, atol=0)


@pytest.fixture(scope='module')
def undisturbed(workplace):
    """The end of a run that nothing has befallen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        assert script('train.py', *arguments(**LONG, out_dir='out/undisturbed')).status == 0
        return end_of('out/undisturbed')


@pytest.fixture
def prepared(alone, undisturbed, workplace):
    """A fresh folder with the dataset of that run."""
    shutil.copytree(workplace / 'data' / 'clones', 'data/clones')
    return alone


# ---- 1


def test_1_kills_at_random_moments_change_nothing():
    assert faults.run_kills(4, seed=100, jobs=2) == 0


def test_1_killed_between_two_renames_the_file_before_is_taken(prepared, undisturbed):
    run = arguments(**LONG, out_dir='out/a')
    process = begin(*run)
    while not Path('out/a/ckpt_previous.pt').exists():
        time.sleep(0.001)
    kill(process)
    Path('out/a/ckpt.pt').unlink(missing_ok=True)  # moved to ckpt_previous.pt, its successor still aside
    assert script('train.py', *run, '--resume').status == 0
    assert_same(end_of('out/a'), undisturbed)
    # the same of a dataset that is made anew
    before = {path.name: path.read_bytes() for path in Path('data/clones').iterdir()}
    (data_prep.PARTIAL / 'clones').mkdir(parents=True, exist_ok=True)
    Path('data/clones').rename(data_prep.PARTIAL / 'clones.old')
    result = script('data_prep.py', *arguments(**LONG))
    assert result.status == 0 and 'is there already' in result.out
    assert before == {path.name: path.read_bytes() for path in Path('data/clones').iterdir()}


def test_1_worker_processes_end_with_the_preparation_that_was_killed(alone):
    process = subprocess.Popen([sys.executable, str(ROOT / 'data_prep.py'), *arguments(corpora={'en': 'docstrings'}, vocab_size=4000)], stdout=subprocess.DEVNULL)
    while len(workers := family(process.pid)[1:]) < 2:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()

    def running(pid):
        try:
            return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
        except OSError:
            return False
    for _ in range(100):
        if not any(map(running, workers)):
            return
        time.sleep(0.1)
    assert not any(map(running, workers))


# ---- 2


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_2_a_signal_ends_the_run_behind_its_step_with_a_checkpoint_and_status_75(number, prepared, undisturbed):
    run = arguments(**LONG, out_dir='out/a')
    process = begin(*run)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    step = int(re.search(r'stopped behind step (\d+), which is saved in out/a; the same command with --resume goes on', out).group(1))
    assert process.returncode == 75 and number.name in out and err == ''
    assert torch.load('out/a/ckpt.pt', weights_only=True)['step'] == step < 300
    assert script('train.py', *run, '--resume').status == 0
    assert_same(end_of('out/a'), undisturbed)


def test_2_all_processes_stop_at_the_step_at_which_one_got_the_signal(prepared):
    run = arguments(**LONG, out_dir='out/a')
    process = begin(*run, in_two=True)
    second, = (pid for pid in family(process.pid) if b'\0RANK=1\0' in Path(f'/proc/{pid}/environ').read_bytes())
    os.kill(second, signal.SIGUSR1)
    out, err = process.communicate(timeout=120)
    step = int(re.search(r'a signal: stopped behind step (\d+)', out).group(1))
    assert process.returncode and step < 300 and 'exitcode  : 75' in err
    assert torch.load('out/a/ckpt.pt', weights_only=True)['step'] == step


# ---- 3


def test_3_the_last_two_checkpoints_stay_and_the_one_before_a_damaged_one_is_offered(prepared, undisturbed):
    run = arguments(**LONG, out_dir='out/a')
    process = begin(*run)
    while not Path('out/a/ckpt_previous.pt').exists():
        time.sleep(0.001)
    kill(process)
    last, previous = (torch.load(f'out/a/{name}.pt', weights_only=True)['step'] for name in ('ckpt', 'ckpt_previous'))
    assert previous == last - 40
    content = bytearray(Path('out/a/ckpt.pt').read_bytes())
    content[len(content) // 2] ^= 1  # one bit of a weight
    Path('out/a/ckpt.pt').write_bytes(content)
    result = script('train.py', *run, '--resume')
    assert result.status == 1 and len(result.err.splitlines()) == 1
    offer = f'out/a/ckpt.pt is not a whole checkpoint of this run (its checksum differs); out/a/ckpt_previous.pt, of step {previous}, is: '
    assert offer + 'mv out/a/ckpt_previous.pt out/a/ckpt.pt, then --resume' in result.err
    assert 'checksum' in script('analyze.py', 'ppl', 'out/a').err
    os.replace('out/a/ckpt_previous.pt', 'out/a/ckpt.pt')
    assert script('train.py', *run, '--resume').status == 0
    assert_same(end_of('out/a'), undisturbed)


def small_file_system(command, kilobytes):
    """A shell line that runs a command with out/ on a real file system of so many kilobytes, and copies out/ to kept/."""
    return ['unshare', '-rm', 'sh', '-c', f'mount -t tmpfs -o size={kilobytes}k small out && {command}; status=$?; cp -r out kept; exit $status']


@pytest.mark.skipif(subprocess.run(['unshare', '-rm', 'mount', '-t', 'tmpfs', 'x', '/mnt'], capture_output=True).returncode != 0 if shutil.which('unshare')
                    else True, reason='this machine lets no one mount')
def test_3_a_full_disk_while_saving_keeps_the_old_checkpoint(prepared, undisturbed):
    os.mkdir('out')
    size = 4 * 3 * sum(p.numel() for p in train.new_model(settings(**LONG), 800).parameters())  # weights and Adam's two moments
    run = arguments(**LONG, out_dir='out/a')
    command = shlex.join([sys.executable, str(ROOT / 'train.py'), *run])
    full = subprocess.run(small_file_system(command, int(1.5 * size / 1024)), capture_output=True, text=True, timeout=120)
    assert full.returncode == 1 and len(full.stderr.splitlines()) == 1, full.stderr
    assert 'no checkpoint of step 80 in out/a' in full.stderr and 'what was there stays: make room, then --resume' in full.stderr
    assert torch.load('kept/a/ckpt.pt', weights_only=True)['step'] == 40 and not list(Path('kept/a').glob('*.partial'))
    shutil.copytree('kept/a', 'out/a')
    assert script('train.py', *run, '--resume').status == 0
    assert_same(end_of('out/a'), undisturbed)


def test_3_a_file_too_large_while_saving_keeps_the_old_checkpoint(prepared):
    run = arguments(**LONG, out_dir='out/a')
    process = begin(*run)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    before = Path('out/a/ckpt.pt').read_bytes()

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # bytes: less than a checkpoint
    full = subprocess.run([sys.executable, str(ROOT / 'train.py'), *run, '--resume'], preexec_fn=limited, capture_output=True, text=True)
    assert full.returncode == 1 and 'what was there stays' in full.stderr and len(full.stderr.splitlines()) == 1, full.stderr
    assert Path('out/a/ckpt.pt').read_bytes() == before and sorted(p.suffix for p in Path('out/a').iterdir()) == ['.json', '.jsonl', '.jsonl', '.pt']


def test_3_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(prepared):
    result = script('train.py', *arguments(**LONG | {'learning_rate': 1e18, 'checkpoint_interval': 1, 'log_interval': 50}, out_dir='out/a'))
    assert result.status == 1 and len(result.err.splitlines()) == 1
    assert re.search(r'(the loss is (nan|inf)|a weight is not finite) at step \d+ \(EN1/EN2 75/25, learning rate \d\.\d\de\+\d\d\): stopped', result.err)
    for path in Path('out/a').glob('*.pt'):
        assert all(weight.isfinite().all() for weight in torch.load(path, weights_only=True)['model'].values())


# ---- 4


def test_4_a_run_goes_on_in_other_processes_and_micro_batches_with_the_same_sequences(prepared, undisturbed):
    run = arguments(**LONG, out_dir='out/a')
    process = begin(*run)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    two = begin(*run, '--resume', '--micro_batch_size=2', in_two=True)
    _, err = two.communicate(timeout=240)
    assert two.returncode == 0, err
    ours, theirs = ([json.loads(line) for line in log.splitlines()] for log in (end_of('out/a')[0], undisturbed[0]))
    assert [line['step'] for line in ours] == [line['step'] for line in theirs]
    for a, b in zip(ours, theirs):
        assert a.get('tokens_seen') == b.get('tokens_seen')
        if 'loss' in a:  # other sequences would differ in the first digit
            assert a['loss'] == pytest.approx(b['loss'], rel=1e-3)


@pytest.mark.parametrize('alone, says', [(True, ''), (False, 'why it ends')])
def test_4_what_torchrun_ends_says_why_first(alone, says):
    code = f'import os, signal, train\nwith train.signals_noted({alone}): pass\nos.kill(os.getpid(), signal.SIGTERM)\nprint("why it ends")'
    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert process.stdout.strip() == says and process.returncode == (-signal.SIGTERM if alone else 0)


def test_4_the_threads_of_a_process_group_end_with_the_run(prepared):
    """One that still runs while the interpreter ends aborts the process, about once in a hundred runs."""
    Path('threads.py').write_text('import sys, config, train\nfrom pathlib import Path\ntrain.main(config.load(sys.argv[1:]))\n'
                                  'print(*[path.read_text() for path in Path("/proc/self/task").glob("*/comm")], file=sys.stderr)\n')
    run = two_processes('threads.py', *arguments(**LONG | {'max_iters': 2}, out_dir='out/a'))
    process = subprocess.run(run, capture_output=True, text=True, timeout=240, env=os.environ | {'PYTHONPATH': str(ROOT)})
    assert process.returncode == 0 and process.stderr.count('python') >= 2 and 'gloo' not in process.stderr, process.stderr


def test_4_a_process_that_dies_ends_the_others_and_the_run_goes_on_from_its_checkpoint(prepared, undisturbed):
    run = arguments(**LONG, out_dir='out/a')
    process = begin(*run, in_two=True)
    while not Path('out/a/ckpt.pt').exists():
        time.sleep(0.002)
    second, = (pid for pid in family(process.pid) if b'\0RANK=1\0' in Path(f'/proc/{pid}/environ').read_bytes())
    os.kill(second, signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert 'another process of this run has ended: --resume goes on' in err and 'train.py", line' not in err, err
    assert process.returncode and train.read_checkpoint(Path('out/a/ckpt.pt'), settings(**LONG))['step'] < 300
    assert script('train.py', *run, '--resume').status == 0
    assert [json.loads(line)['step'] for line in end_of('out/a')[0].splitlines()] == [json.loads(line)['step'] for line in undisturbed[0].splitlines()]


# ---- 5


@pytest.fixture(scope='module')
def readers(tmp_path_factory):
    before = os.getcwd()
    yield faults.lay_out(tmp_path_factory.mktemp('readers'))
    os.chdir(before)


KINDS = ['text.txt', 'text.txt.gz', 'text.txt.xz', 'text.txt.zst', 'text.jsonl', 'text.jsonl.xz', 'text.tar', 'text.tgz', 'text.parquet', 'tei.xml',
         'data/ELTeC-eng.zip', 'ranks.tiktoken', 'tokenizer.model', 'line.fr.gz', 'runs.csv', 'SST-2/train.tsv', 'RTE/train.jsonl',
         'data/clones/meta.json', 'data/clones/train.bin', 'data/clones/vocab_map.npy', 'data/clones/test.bin', 'data/clones/train_lang.bin',
         'out/a/ckpt.pt', 'out/a/config.json', 'out/a/log.jsonl', 'out/a/results.json', 'out/a/alignment.json', 'out/a/glue.json', 'out/a/matching.json']


@pytest.mark.parametrize('name', KINDS)
def test_5_damaged_or_random_bytes_are_read_or_refused_in_one_line(name, readers):
    if name not in readers:
        pytest.skip('its package is not installed')
    content = Path(name).read_bytes()

    @given(st.one_of(st.binary(max_size=200), st.randoms(use_true_random=False).map(lambda draw: faults.damaged(content, draw))))
    def read(damaged):
        faults.refused_or_read(name, readers[name], damaged)
    read()


def test_5_what_is_fuzzed_is_all_there_is(readers):
    assert set(readers) <= set(KINDS)


@given(st.lists(st.text(max_size=30), max_size=4))
def test_5_random_arguments_are_settings_or_refused(argv):
    try:
        cfg = data_prep.config.load(['--' + argument for argument in argv if argument not in ('help', 'h')])
        data_prep.check_languages(cfg)
    except UserError as e:
        assert len(str(e).splitlines()) == 1


def test_5_archives_that_unpack_to_far_more_than_they_promise_are_refused_early(tmp_path):
    zeros = bytes(160 << 20)
    member = tarfile.TarInfo('a.txt')
    member.size = len(zeros)
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode='w') as tar:
        tar.addfile(member, io.BytesIO(zeros))
    for name, content in (('a.txt.gz', gzip.compress(zeros, 1)), ('a.jsonl.gz', gzip.compress(b'{"text": "' + zeros, 1)), ('a.txt.xz', lzma.compress(zeros, preset=0)),
                          ('a.tgz', gzip.compress(plain.getvalue(), 1))):
        (tmp_path / name).write_bytes(content)
        assert len(content) < len(zeros) / 100
        with pytest.raises(UserError, match='unpacks to more than 100 times its size'):
            for _ in data_prep.file_documents([str(tmp_path / name)]):
                pass
    with pytest.raises(UserError, match='unpacks to more than 100 times its size'):
        analyze.read_lines(str(tmp_path / 'a.txt.gz'))


def test_5_an_archive_of_novels_or_a_checkpoint_that_is_a_bomb_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir('data')
    with zipfile.ZipFile('data/ELTeC-eng.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('ELTeC-eng/level1/a.xml', bytes(160 << 20))
    with pytest.raises(UserError, match='unpacks to more than 100 times its size'):
        list(data_prep.eltec_documents('eltec:eng'))
    entities = ''.join(f'<!ENTITY e{i} "{f"&e{i - 1};" * 10}">' for i in range(1, 12))
    with pytest.raises(UserError, match='not XML'):
        data_prep.tei_text(f'<!DOCTYPE x [<!ENTITY e0 "ha">{entities}]><TEI>&e11;</TEI>'.encode(), 'laughs.xml')
    with zipfile.ZipFile('ckpt.pt', 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', bytes(1 << 20))
    with pytest.raises(UserError, match='it is packed'):
        train.read_checkpoint(Path('ckpt.pt'), settings())


def test_5_members_that_point_outside_write_nothing(tmp_path, monkeypatch):
    (tmp_path / 'inside').mkdir()
    monkeypatch.chdir(tmp_path / 'inside')
    with tarfile.open('a.tar', 'w') as tar:
        for name in ('../outside.txt', str(tmp_path / 'absolute.txt'), 'fine.txt'):
            member = tarfile.TarInfo(name)
            member.size = 5
            tar.addfile(member, io.BytesIO(b'text\n'))
        link = tarfile.TarInfo('link.txt')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        tar.addfile(link)
    assert [text for _, text in data_prep.documents_of('a.tar', 1)] == ['text'] * 3  # the link is none
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['a.tar', 'inside']
    for name in ('../outside', '/tmp/outside', '.cache', 'a/b', ''):
        with pytest.raises(UserError, match='dataset must be a plain name'):
            data_prep.check_languages(settings(dataset=name))


def test_5_nothing_in_a_file_is_executed(prepared):
    class Touch:
        def __reduce__(self):
            return os.system, ('touch executed',)
    cfg = settings(**LONG, out_dir='out/a')
    os.makedirs('out/a')
    torch.save({'step': Touch()}, 'out/a/ckpt.pt')
    with pytest.raises(UserError, match='not a whole checkpoint'):
        train.load_checkpoint('out/a', cfg)
    meta = json.loads(Path('data/clones/meta.json').read_text())
    np.save('data/clones/vocab_map.npy', np.array([Touch()]), allow_pickle=True)
    file = Path('data/clones/vocab_map.npy')
    meta['files']['vocab_map.npy'] = {'bytes': file.stat().st_size, 'sha256': data_prep.checksum(file)}
    Path('data/clones/meta.json').write_text(json.dumps(meta))
    with pytest.raises(UserError, match='is damaged'):
        data_prep.Dataset(cfg)
    assert not Path('executed').exists()


@pytest.mark.parametrize('name, value, says', [('test.bin', 400, 'test.bin has a token id beyond the 400 of en'), ('train_lang.bin', 2, 'train_lang.bin has other languages')])
def test_5_an_id_outside_the_vocabulary_is_refused_though_its_checksum_is_right(name, value, says, prepared):
    path, meta = Path('data/clones') / name, json.loads(Path('data/clones/meta.json').read_text())
    values = np.fromfile(path, np.uint16 if name == 'test.bin' else np.uint8)
    values[7] = value
    path.unlink()
    values.tofile(path)
    meta['files'][name]['sha256'] = data_prep.checksum(path)
    Path('data/clones/meta.json').write_text(json.dumps(meta))
    result = script('train.py', *arguments(**LONG, out_dir='out/a'))
    assert result.status == 1 and says in result.err and len(result.err.splitlines()) == 1, result.err


def test_5_broken_quotes_in_a_table_swallow_no_lines(tmp_path):
    (tmp_path / 'train.tsv').write_text('sentence\tlabel\n"open\t1\nit\'s "half"\t0\nclose"\t1\n""\t0\n')
    assert analyze.read_task(tmp_path, 'sst2', 'train') == [(['"open'], 1), (['it\'s "half"'], 0), (['close"'], 1), (['""'], 0)]


# ---- 6


def test_6_a_run_that_begins_anew_drops_all_that_analysis_has_measured():
    assert set(train.MEASURED) == {f'{name}.json' for name in analyze.MEASURED}


def test_6_a_second_run_into_a_folder_is_told_and_the_first_is_not_harmed(prepared, undisturbed):
    run = arguments(**LONG, out_dir='out/a')
    first = begin(*run)
    for more in ([], ['--resume'], ['--overwrite']):
        first.send_signal(signal.SIGSTOP)
        second = script('train.py', *run, *more)
        first.send_signal(signal.SIGCONT)
        assert second.status == 1 and f'out/a is being trained by process {first.pid} on ' in second.err and len(second.err.splitlines()) == 1, second.err
    first.communicate(timeout=120)
    assert first.returncode == 0
    assert_same(end_of('out/a'), undisturbed)


def test_6_of_two_preparations_of_a_dataset_the_second_waits(alone, workplace):
    command = [sys.executable, str(ROOT / 'data_prep.py'), *arguments(**CLONES)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    (a, a_err), (b, b_err) = (process.communicate(timeout=120) for process in both)
    assert [process.returncode for process in both] == [0, 0] and not a_err + b_err
    waited, made = sorted([a, b], key=len)
    assert 'data/clones is being made by process' in waited and 'data/clones is there already' in waited and 'tokenising' not in waited
    assert 'model ids' in made and not list(Path('data/.partial').iterdir())
    data_prep.Dataset(settings(**CLONES))


def test_6_two_that_write_a_file_at_once_lose_nothing(tmp_path):
    code = '''
import sys, json, pathlib, analyze
path, me = pathlib.Path('all.json'), sys.argv[1]
for i in range(60):
    analyze.write_json(path, lambda: (json.loads(path.read_text()) if path.exists() else {}) | {f'{me} {i}': i})
'''
    writers = [subprocess.Popen([sys.executable, '-c', code, name], cwd=tmp_path, env=os.environ | {'PYTHONPATH': str(ROOT)}, stdout=subprocess.DEVNULL)
               for name in 'ab']
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    assert json.loads((tmp_path / 'all.json').read_text()) == {f'{name} {i}': i for name in 'ab' for i in range(60)}
    assert [path.name for path in tmp_path.iterdir()] == ['all.json']


# ---- 7


def test_7_twenty_thousand_steps_hold_memory_handles_and_speed_steady(prepared):
    shape = {'n_layer': 1, 'n_embd': 8, 'n_head': 1, 'batch_size': 1, 'max_iters': 20_000, 'eval_interval': 1000, 'checkpoint_interval': 1000, 'log_interval': 10}
    process = begin(*arguments(**CLONES, **shape, out_dir='out/a'))
    log, samples = Path('out/a/speed.jsonl'), []
    while process.poll() is None:
        process.stdout.readline()  # drain
        if len(samples) < 4 and log.read_text().count('\n') >= 490 * (len(samples) + 1):  # at 4,900, 9,800, 14,700, 19,600
            status = Path(f'/proc/{process.pid}/status').read_text()
            samples.append((int(re.search(r'VmRSS:\s+(\d+) kB', status).group(1)), len(os.listdir(f'/proc/{process.pid}/fd'))))
    assert process.wait() == 0 and len(samples) == 4
    memory, handles = zip(*samples)
    assert memory[3] < memory[0] + 4096 and len(set(handles)) == 1, samples  # 4 MB: under 300 bytes a step
    speeds = [json.loads(line)['tokens_per_second'] for line in log.read_text().splitlines()]
    assert statistics.median(speeds[-500:]) > 0.5 * statistics.median(speeds[500:1000])


# ---- 8


def test_8_uncertainty_of_ppl_is_that_of_a_mean():
    rng, inside = np.random.default_rng(0), 0
    scored = np.full(200, 50)
    for _ in range(1000):
        nats = 50 * rng.normal(4, 0.3, 200)  # mean 4 nats a token, 0.3 between stretches
        ppl, uncertainty = math.exp(nats.sum() / scored.sum()), analyze.ppl_uncertainty(nats, scored)
        inside += abs(ppl / math.exp(4) - 1) < uncertainty
    assert uncertainty == pytest.approx(1.96 * 0.3 / math.sqrt(200), rel=0.2)
    assert 930 <= inside <= 970
    assert analyze.ppl_uncertainty(nats[:1], scored[:1]) is None


def test_8_weak_figures_are_said_to_be(in_runs):
    result = script('analyze.py', 'ppl', 'out/cloned', '--device=cpu')
    note, = re.findall(r'note: out/cloned EN2: 28,020 scored tokens leave PPL uncertain by ([\d.]+)% \(95%\): 1% needs about', result.out)
    assert 1 < float(note) < 10
    for name in ('mono_20', 'mono_50', 'mono_100'):
        if not Path(f'out/{name}/results.json').exists():
            assert script('analyze.py', 'ppl', f'out/{name}', '--device=cpu').status == 0
    shutil.copytree('out', 'weak')
    results = json.loads(Path('weak/cloned/results.json').read_text())
    results['languages']['EN2'] |= {'epochs': 1.5, 'ppl': 300}
    Path('weak/cloned/results.json').write_text(json.dumps(results))
    result = script('analyze.py', 'teff', *(f'weak/{name}' for name in ('mono_20', 'mono_50', 'mono_100', 'cloned')))
    assert result.status == 0, result.err
    assert 'the law of three runs meets each of them exactly' in result.out and '* extrapolated: MLTE lies outside' in result.out
    assert 'note: cloned has read EN2 1.50 times' in result.out and 'scored tokens leave PPL uncertain by up to' in result.out
    report = script('analyze.py', 'report', *(f'weak/{name}' for name in ('mono_20', 'mono_50', 'mono_100', 'cloned')), '--out=weak/report')
    text = Path('weak/report/report.md').read_text()
    assert report.status == 0 and 'TEff by extrapolation' in text and 'cloned has read EN2 1.50 times' in text


def test_8_parallel_sequences_fewer_than_asked_for_are_said(in_runs, documents):
    Path('few.txt').write_text('\n'.join(documents[0].split('\n')[:20]))
    result = script('analyze.py', 'alignment', 'out/cloned', '--parallel', 'few.txt', '--device=cpu')
    assert re.search(r'note: the parallel text gives \d+ sequences, fewer than the 500 asked for', result.out)
