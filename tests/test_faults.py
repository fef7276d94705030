"""What can go wrong with a run of days; each test is named after the point that it proves.

1 kill at any time, 2 preemption, 3 keep what matters, 4 other hardware, 5 hostile or damaged files,
6 two at once, 7 slow leaks, 8 numbers that lie. `python tests/faults.py` does more of 1 and 5."""
import io
import json
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
from pathlib import Path

import faults
import numpy as np
import pytest
import torch
from conftest import CLONES, ROOT, arguments, family, kill, script, settings, two_processes
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

import analyze
import config
import data_prep
import train
from config import UserError

LONG = dict(**CLONES, max_iters=300, log_interval=7, eval_interval=100, checkpoint_interval=40)


RUN = arguments(**LONG, out_dir='out/a')


def begin(command=RUN, in_two=False, until='log.jsonl'):
    """Start train.py, in two processes if asked, and wait for the first content of a file of out/a."""
    command = [ROOT / 'train.py', *command]
    command = two_processes(*command) if in_two else [sys.executable, *command]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    file = Path('out/a', until)
    while not (file.exists() and file.stat().st_size) and process.poll() is None:
        time.sleep(0.001)
    return process


def load(path):
    return torch.load(path, weights_only=True)


def end_of(out_dir):
    """What must be the same bit for bit: the log, and the tensors of the checkpoint."""
    return {'log': Path(out_dir, 'log.jsonl').read_bytes(), 'checkpoint': load(f'{out_dir}/ckpt.pt')}


def steps_of(end):
    return [json.loads(line)['step'] for line in end['log'].splitlines()]


def assert_refused(result, *says):
    assert result.status == 1 and len(result.err.splitlines()) == 1, result.err
    assert all(part in result.err for part in says), result.err


def assert_continues_to(undisturbed):
    result = script('train.py', *RUN)
    assert result.status == 0, result.err
    assert faults.same(end_of('out/a'), undisturbed)


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


def test_1_killed_between_two_renames_the_checkpoint_before_is_taken(prepared, undisturbed):
    kill(begin(until='ckpt_previous.pt'))
    Path('out/a/ckpt.pt').unlink(missing_ok=True)  # moved to ckpt_previous.pt, its successor still aside
    assert_continues_to(undisturbed)


# ---- 2


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_2_a_signal_stops_the_run_after_its_step_with_a_checkpoint_and_status_75(number, prepared, undisturbed):
    process = begin()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    stopped = re.search(r'stopped by a signal after step (\d+), saved in out/a; the same command continues', out)
    assert process.returncode == 75 and err == ''
    assert load('out/a/ckpt.pt')['step'] == int(stopped[1]) < 300
    assert_continues_to(undisturbed)


def second_of(process):
    """The id of the process of rank 1."""
    rank = b'\0RANK=1\0'
    pid, = (pid for pid in family(process.pid) if rank in Path(f'/proc/{pid}/environ').read_bytes())
    return pid


def test_2_all_processes_stop_at_the_step_at_which_one_got_the_signal(prepared):
    process = begin(in_two=True)
    os.kill(second_of(process), signal.SIGUSR1)
    out, err = process.communicate(timeout=120)
    step = int(re.search(r'stopped by a signal after step (\d+)', out)[1])
    assert process.returncode and step < 300 and 'exitcode  : 75' in err
    assert load('out/a/ckpt.pt')['step'] == step


# ---- 3


def test_3_the_last_two_checkpoints_stay_and_the_one_before_a_damaged_one_is_offered(prepared, undisturbed):
    kill(begin(until='ckpt_previous.pt'))
    last, previous = Path('out/a/ckpt.pt'), Path('out/a/ckpt_previous.pt')
    assert load(previous)['step'] == load(last)['step'] - 40
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # one bit of a weight
    last.write_bytes(content)
    offer = f'`mv {previous} {last}` goes back to the checkpoint before, --overwrite to the start'
    assert_refused(script('train.py', *RUN), f'{last} cannot be read (ValueError: its checksum differs)', offer)
    assert_refused(script('analyze.py', 'ppl', 'out/a'), 'checksum')
    previous.replace(last)
    assert_continues_to(undisturbed)


def small_file_system(command, kilobytes):
    """A command line that runs another with out/ on a file system of so many kilobytes, and copies
    out/ to kept/."""
    mount = f'mount -t tmpfs -o size={kilobytes}k small out'
    return ['unshare', '-rm', 'sh', '-c', f'{mount} && {command}; status=$?; cp -r out kept; exit $status']


def may_mount():
    mount = ['unshare', '-rm', 'mount', '-t', 'tmpfs', 'x', '/mnt']
    return shutil.which('unshare') and subprocess.run(mount, capture_output=True).returncode == 0


@pytest.mark.skipif(not may_mount(), reason='nobody may mount here')
def test_3_a_full_disk_while_saving_keeps_the_old_checkpoint(prepared, undisturbed):
    os.mkdir('out')
    weights = sum(p.numel() for p in train.new_model(settings(**LONG), 800).parameters())
    kilobytes = 4 * 3 * weights / 1024  # Adam has two moments
    command = shlex.join([sys.executable, str(ROOT / 'train.py'), *RUN])
    full = subprocess.run(small_file_system(command, int(1.5 * kilobytes)), capture_output=True, text=True)
    assert full.returncode == 1 and len(full.stderr.splitlines()) == 1, full.stderr
    assert 'step 80 is not saved in out/a' in full.stderr and 'the last checkpoint is: make room' in full.stderr
    assert load('kept/a/ckpt.pt')['step'] == 40 and not list(Path('kept/a').glob('*.partial'))
    shutil.copytree('kept/a', 'out/a')
    assert_continues_to(undisturbed)


def test_3_a_file_too_large_while_saving_keeps_the_old_checkpoint(prepared):
    process = begin()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    before = Path('out/a/ckpt.pt').read_bytes()

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # bytes: less than a checkpoint
    full = subprocess.run([sys.executable, ROOT / 'train.py', *RUN], preexec_fn=limited, stderr=subprocess.PIPE)
    assert full.returncode == 1 and b'make room' in full.stderr and full.stderr.count(b'\n') == 1, full.stderr
    assert Path('out/a/ckpt.pt').read_bytes() == before
    assert sorted(p.suffix for p in Path('out/a').iterdir()) == ['.json', '.jsonl', '.jsonl', '.pt']


def test_3_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(prepared):
    diverging = LONG | {'learning_rate': 1e18, 'checkpoint_interval': 1, 'log_interval': 50}
    result = script('train.py', *arguments(**diverging, out_dir='out/a'))
    assert_refused(result, 'at step ', ': try a lower learning_rate')
    assert re.search('the loss is (nan|inf)|a weight is not finite', result.err)
    for path in Path('out/a').glob('*.pt'):
        assert all(weight.isfinite().all() for weight in load(path)['model'].values())


# ---- 4


@pytest.mark.parametrize('alone', [True, False])
def test_4_a_second_ctrl_c_ends_a_process_at_once_but_not_one_of_torchruns(alone):
    code = f"""import os, signal, train
caught = train.catch_signals({alone})
for number in signal.SIGTERM, signal.SIGINT:
    os.kill(os.getpid(), number)
print('says why it stops', len(caught))"""
    process = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
    assert process.stdout.strip() == ('' if alone else 'says why it stops 2')


def test_4_the_threads_of_a_process_group_end_with_the_run(prepared):
    """One that still runs while the interpreter ends aborts the process, about once in a hundred runs."""
    Path('threads.py').write_text("""import sys, config, train
from pathlib import Path
train.main(config.load(sys.argv[1:]))
print(*[path.read_text() for path in Path('/proc/self/task').glob('*/comm')], file=sys.stderr)
""")
    run = two_processes('threads.py', *arguments(**LONG | {'max_iters': 2}, out_dir='out/a'))
    environment = os.environ | {'PYTHONPATH': str(ROOT)}
    process = subprocess.run(run, capture_output=True, text=True, timeout=240, env=environment)
    assert process.returncode == 0 and process.stderr.count('python') >= 2, process.stderr
    assert 'gloo' not in process.stderr


def test_4_a_process_that_dies_ends_the_others_and_the_run_continues_from_its_checkpoint(prepared, undisturbed):
    process = begin(in_two=True, until='ckpt.pt')
    os.kill(second_of(process), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert 'another process of this run has died; the same command continues' in err, err
    assert 'train.py", line' not in err and process.returncode
    assert load('out/a/ckpt.pt')['step'] < 300
    assert script('train.py', *RUN).status == 0
    assert steps_of(end_of('out/a')) == steps_of(undisturbed)


# ---- 5


@pytest.fixture(scope='module')
def readers(tmp_path_factory):
    before = os.getcwd()
    yield faults.lay_out(tmp_path_factory.mktemp('readers'))
    os.chdir(before)


def test_5_damaged_or_random_bytes_are_read_or_refused(readers):
    for name, reader in readers.items():
        content = Path(name).read_bytes()
        slow = reader.__name__ == 'report'

        @hypothesis_settings(max_examples=3 if slow else 60)
        @given(st.binary(max_size=200) | st.randoms(use_true_random=False).map(
            lambda draw: faults.damaged(content, draw)))
        def read(damaged):
            faults.refused_or_read(name, reader, damaged)
        read()


@given(st.lists(st.text(max_size=30), max_size=4))
def test_5_random_arguments_are_settings_or_refused(argv):
    try:
        cfg = config.load(['--' + argument for argument in argv if argument not in ('help', 'h')])
        data_prep.check_languages(cfg)
    except UserError:
        pass


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
    assert list(data_prep.documents_of('a.tar')) == ['text'] * 3  # the link is not read
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['a.tar', 'inside']
    for name in ('../outside', '/tmp/outside', '.cache', 'a/b', ''):
        with pytest.raises(UserError, match='dataset must be'):
            data_prep.check_languages(settings(dataset=name))


def test_5_nothing_in_a_checkpoint_is_executed(alone):
    class Touch:
        def __reduce__(self):
            return os.system, ('touch executed',)
    torch.save({'step': Touch()}, 'ckpt.pt')
    with pytest.raises(UserError, match='cannot be read'):
        train.load_checkpoint('.', settings())
    assert not Path('executed').exists()


def test_5_broken_quotes_in_a_table_swallow_no_lines(tmp_path):
    (tmp_path / 'train.tsv').write_text('sentence\tlabel\n"open\t1\nit\'s "half"\t0\nclose"\t1\n""\t0\n')
    texts = [text for (text,), _ in analyze.read_task(tmp_path, 'sst2', 'train')]
    assert texts == ['"open', 'it\'s "half"', 'close"', '""']


# ---- 6


def test_6_a_run_that_begins_anew_drops_all_that_analysis_has_measured():
    written = re.findall(r"write_json\(run.out_dir / '(.*?)'", (ROOT / 'analyze.py').read_text())
    assert set(train.MEASURED) == set(written)


def test_6_a_second_run_into_a_folder_is_told_and_the_first_is_not_harmed(prepared, undisturbed):
    first = begin()
    for more in ([], ['--overwrite']):
        first.send_signal(signal.SIGSTOP)
        second = script('train.py', *RUN, *more)
        first.send_signal(signal.SIGCONT)
        assert_refused(second, f'out/a is being trained by process {first.pid} on ')
    first.communicate(timeout=120)
    assert first.returncode == 0
    assert faults.same(end_of('out/a'), undisturbed)


def test_6_of_two_preparations_of_a_dataset_the_second_waits(alone):
    command = [sys.executable, ROOT / 'data_prep.py', *arguments(**CLONES)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    waited, made = sorted([process.communicate(timeout=120)[0] for process in both], key=len)
    assert [process.returncode for process in both] == [0, 0]
    assert 'is being made by process' in waited and 'model ids' in made
    assert not [path for path in Path('data/.partial').iterdir() if path.suffix != '.lock']
    data_prep.Dataset(settings(**CLONES))


# ---- 7


def test_7_twenty_thousand_steps_hold_memory_handles_and_speed_steady(prepared):
    shape = {'n_layer': 1, 'n_embd': 8, 'n_head': 1, 'batch_size': 1, 'max_iters': 20_000,
             'eval_interval': 1000, 'checkpoint_interval': 1000, 'log_interval': 10}
    process = begin(arguments(**CLONES, **shape, out_dir='out/a'))
    log, samples = Path('out/a/speed.jsonl'), []
    while process.poll() is None:
        process.stdout.readline()  # drain
        if len(samples) < 4 and log.read_text().count('\n') >= 490 * (len(samples) + 1):  # at 4,900, 9,800, 14,700, 19,600
            status = Path(f'/proc/{process.pid}/status').read_text()
            handles = len(os.listdir(f'/proc/{process.pid}/fd'))
            samples.append((int(re.search(r'VmRSS:\s+(\d+) kB', status)[1]), handles))
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
        ppl = math.exp(nats.sum() / scored.sum())
        uncertainty = analyze.ppl_uncertainty(nats, scored)
        inside += abs(ppl / math.exp(4) - 1) < uncertainty
    assert uncertainty == pytest.approx(1.96 * 0.3 / math.sqrt(200), rel=0.2)
    assert 930 <= inside <= 970
    assert analyze.ppl_uncertainty(nats[:1], scored[:1]) is None


def test_8_weak_figures_are_said_to_be(in_runs):
    shutil.copytree('out', 'weak')
    runs = [f'weak/{name}' for name in ('mono_20', 'mono_50', 'mono_100', 'cloned')]
    assert script('analyze.py', 'ppl', *runs, '--device=cpu').status == 0
    results = json.loads(Path('weak/cloned/results.json').read_text())
    assert 0.01 < results['languages']['EN2']['ppl_uncertainty'] < 0.1
    results['languages']['EN2'] |= {'epochs': 1.5, 'ppl': 300}
    Path('weak/cloned/results.json').write_text(json.dumps(results))
    result = script('analyze.py', 'teff', *runs)
    assert result.status == 0, result.err
    assert 'PPL is uncertain by up to' in result.out and 'text read 1.50 times' in result.out
    assert re.search(r'extrapolated', result.out)


def test_8_fewer_parallel_sequences_than_asked_for_are_said(in_runs, documents):
    Path('few.txt').write_text('\n'.join(documents[0].split('\n')[:20]))
    result = script('analyze.py', 'alignment', 'out/cloned', '--parallel', 'few.txt', '--device=cpu')
    assert re.search(r'note: the text has \d+ parallel sequences, not 500', result.out)
