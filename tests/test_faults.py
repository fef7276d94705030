"""What can go wrong with a run of days; each test is named after the point that it proves.

1 kill at any time, 2 preemption, 3 keep what matters, 4 other hardware, 5 hostile or damaged files,
6 two at once, 7 slow leaks, 8 numbers that lie. `python tests/faults.py` does more of 1 and 5."""
import contextlib
import math
import os
import re
import resource
import shutil
import signal
import sys
import tarfile
from pathlib import Path

import faults
import numpy as np
import pytest
import torch
from conftest import CLONES, arguments, begin, family, kill, load, run, script, settings, trained

import analyze
import data_prep
import train
from config import UserError

LONG = dict(**CLONES, max_iters=300, log_interval=7, eval_interval=100, checkpoint_interval=40,
            out_dir='out/a')
RUN = arguments(**LONG)
LAST, PREVIOUS = Path('out/a/ckpt.pt'), Path('out/a/ckpt_previous.pt')

def end_of_run():
    """What must be the same bit for bit: the log, and the tensors of the checkpoint."""
    return {'log': Path('out/a/log.jsonl').read_text(), 'checkpoint': load(LAST)}

def assert_continues_to(undisturbed):
    trained(**LONG)
    assert faults.same(end_of_run(), undisturbed)

@pytest.fixture(scope='module')
def undisturbed(workplace):
    """The end of a run that nothing has befallen. Beside it, out/killed: killed when it had saved
    its second checkpoint."""
    with contextlib.chdir(workplace):
        trained(**LONG)
        end = end_of_run()
        shutil.rmtree('out/a')
        kill(begin(*RUN, until=PREVIOUS))
        os.rename('out/a', 'out/killed')
    return end

@pytest.fixture
def prepared(alone, undisturbed, workplace):
    """A fresh folder with the dataset of that run."""
    shutil.copytree(workplace / 'data' / 'clones', 'data/clones')

@pytest.fixture
def killed(prepared, workplace):
    """The same with the run that was killed."""
    shutil.copytree(workplace / 'out' / 'killed', 'out/a')

def test_1_kills_at_random_moments_change_nothing():
    assert faults.run_kills(4, seed=100, jobs=2) == 0

def test_1_killed_between_two_renames_the_checkpoint_before_is_taken(killed, undisturbed, capsys):
    LAST.unlink(missing_ok=True)  # moved to ckpt_previous.pt, its successor still aside
    assert_continues_to(undisturbed)
    assert 'resumed after step' in capsys.readouterr().out

@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_2_a_signal_stops_the_run_after_its_step_saved_with_status_75(
        number, prepared, undisturbed):
    process = begin(*RUN)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    stopped = re.search(r'stopped by a signal after step (\d+), saved in out/a', out)
    assert process.returncode == 75 and err == ''
    assert load(LAST)['step'] == int(stopped[1]) < 300
    assert_continues_to(undisturbed)

def second_of(process):
    """The id of the process of rank 1."""
    pid, = (pid for pid in family(process.pid)
            if b'\0RANK=1\0' in Path(f'/proc/{pid}/environ').read_bytes())
    return pid

@pytest.mark.parametrize('shard', [False, True])
def test_2_all_processes_stop_at_the_step_at_which_one_got_the_signal(shard, prepared):
    process = begin(*RUN, f'--shard={shard}', processes=2)
    os.kill(second_of(process), signal.SIGUSR1)
    out, err = process.communicate(timeout=120)
    step = int(re.search(r'stopped by a signal after step (\d+)', out)[1])
    assert process.returncode and step < 300 and 'exitcode  : 75' in err
    assert load(LAST)['step'] == step

def test_3_the_checkpoint_before_a_damaged_one_is_there_and_offered(killed, undisturbed):
    assert load(PREVIOUS)['step'] == load(LAST)['step'] - 40
    content = bytearray(LAST.read_bytes())
    content[len(content) // 2] ^= 1  # one bit of a weight
    LAST.write_bytes(content)
    with pytest.raises(UserError, match=f'its checksum differs.*`mv {PREVIOUS} {LAST}` goes back'):
        trained(**LONG)
    with pytest.raises(UserError, match='checksum'):
        analyze.main(['ppl', 'out/a'])
    PREVIOUS.replace(LAST)
    assert_continues_to(undisturbed)

def test_3_a_full_disk_while_saving_keeps_the_old_checkpoint(killed, undisturbed):
    before = LAST.read_bytes()
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    result = script('train.py', *RUN, preexec_fn=limit)  # a checkpoint is larger
    assert result.status == 1 and 'could not be saved in out/a' in result.err, result.err
    assert LAST.read_bytes() == before and not list(Path('out/a').glob('*.partial'))
    assert_continues_to(undisturbed)

def test_3_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(prepared):
    says = '(the loss is (nan|inf)|a weight is not finite) at step .*: try a lower learning_rate'
    with pytest.raises(UserError, match=says):
        trained(**LONG | {'learning_rate': 1e18, 'checkpoint_interval': 1, 'log_interval': 50})
    for path in Path('out/a').glob('*.pt'):
        assert all(weight.isfinite().all() for weight in load(path)['model'].values())

@pytest.mark.parametrize('alone', [True, False])
def test_4_a_second_ctrl_c_ends_a_process_at_once_but_not_one_of_torchruns(alone):
    code = f"""import os, signal, train
caught = train.catch_signals({alone})
for number in signal.SIGTERM, signal.SIGINT:
    os.kill(os.getpid(), number)
print('says why it stops', len(caught))"""
    says = '' if alone else 'says why it stops 2\n'
    assert run(sys.executable, '-c', code).out == says

@pytest.mark.parametrize('shard', [False, True])
def test_4_no_thread_of_a_process_group_is_left_to_an_interpreter_that_ends(shard, prepared):
    """One that still runs then aborts about one run in a hundred."""
    Path('threads.py').write_text(f"""import runpy, sys
from pathlib import Path
runpy.run_path({train.__file__!r}, run_name='__main__')
print(*[path.read_text() for path in Path('/proc/self/task').glob('*/comm')], file=sys.stderr)
""")
    run = *RUN, '--max_iters=2', f'--shard={shard}'
    result = script(Path('threads.py').resolve(), *run, processes=2)
    assert result.status == 0 and ('python' in result.err) != shard, result.err  # sharded: os._exit
    assert 'gloo' not in result.err and 'next: python analyze.py ppl out/a' in result.out

def test_4_a_process_that_dies_ends_the_others_and_the_run_continues(prepared, undisturbed):
    process = begin(*RUN, processes=2, until=LAST)
    os.kill(second_of(process), signal.SIGKILL)
    _, err = process.communicate(timeout=120)
    assert 'another process of this run has died; the same command continues' in err, err
    assert 'train.py", line' not in err and process.returncode
    assert load(LAST)['step'] < 300
    trained(**LONG)
    steps = [re.findall('"step": .*?,', end['log']) for end in (end_of_run(), undisturbed)]
    assert steps[0] == steps[1]

def test_5_damaged_files_of_every_kind_are_read_or_refused():
    assert faults.run_inputs(30, seed=1) == 0

def test_5_members_that_point_outside_write_nothing(tmp_path, monkeypatch):
    (tmp_path / 'inside').mkdir()
    monkeypatch.chdir(tmp_path / 'inside')
    names = '../outside.txt', str(tmp_path / 'absolute.txt'), 'fine.txt'
    Path('a.tar').write_bytes(faults.tar({name: b'text\n' for name in names}))
    with tarfile.open('a.tar', 'a') as archive:
        link = tarfile.TarInfo('link.txt')
        link.type, link.linkname = tarfile.SYMTYPE, '/etc/passwd'
        archive.addfile(link)
    assert list(data_prep.documents_of('a.tar')) == ['text'] * 3  # the link is not read
    assert sorted(path.name for path in tmp_path.rglob('*')) == ['a.tar', 'inside']

def test_5_nothing_in_a_checkpoint_is_executed(alone):
    class Touch:
        def __reduce__(self):
            return os.system, ('touch executed',)
    torch.save({'step': Touch()}, 'ckpt.pt')
    with pytest.raises(UserError, match='cannot be read'):
        train.load_checkpoint('.', settings())
    assert not Path('executed').exists()

def test_6_a_run_that_begins_anew_drops_all_that_analysis_has_measured():
    source = Path(analyze.__file__).read_text()
    assert set(train.MEASURED) == set(re.findall(r"write_json\(run.out_dir / '(.*?)'", source))

def test_6_a_second_run_into_a_folder_is_told_and_the_first_is_not_harmed(prepared, undisturbed):
    first = begin(*RUN)
    first.send_signal(signal.SIGSTOP)
    for overwrite in (False, True):
        with pytest.raises(UserError, match=f'out/a is being trained by process {first.pid} on '):
            trained(**LONG, overwrite=overwrite)
    first.send_signal(signal.SIGCONT)
    first.communicate(timeout=120)
    assert first.returncode == 0
    assert faults.same(end_of_run(), undisturbed)

def test_6_of_two_preparations_of_a_dataset_the_second_waits(alone):
    preparation = dict(name='data_prep.py', until='data/.partial/clones.lock')
    first = begin(*arguments(**CLONES), **preparation)
    first.send_signal(signal.SIGSTOP)
    second = begin(*arguments(**CLONES), **preparation)
    assert second.stdout.readline() == (f'data/clones is being made by process {first.pid} on '
                                        f'{os.uname().nodename}: waiting\n')
    first.send_signal(signal.SIGCONT)
    made, found = (process.communicate(timeout=120)[0] for process in (first, second))
    assert first.returncode == second.returncode == 0
    assert 'training a BPE' in made and 'data/clones already exists' not in made
    assert 'training a BPE' not in found and 'already exists' in found
    assert not [path for path in Path('data/.partial').iterdir() if path.suffix != '.lock']
    data_prep.Dataset(settings(**CLONES))

def test_7_thousands_of_steps_hold_memory_handles_and_speed_steady(prepared):
    small = {'n_layer': 1, 'n_embd': 8, 'n_head': 1, 'batch_size': 1, 'max_iters': 6000,
             'eval_interval': 500, 'checkpoint_interval': 500, 'log_interval': 10}
    process, samples = begin(*arguments(**LONG | small)), []
    for line in process.stdout:
        if re.match('step [1-5],250/', line):  # halfway between two checkpoints
            folder = Path(f'/proc/{process.pid}')
            stat = (folder / 'stat').read_text().rpartition(')')[2].split()
            user, system, pages = (int(stat[i]) for i in (11, 12, 21))
            samples.append((user + system, pages, len(os.listdir(folder / 'fd'))))
    assert process.wait() == 0 and len(samples) == 5
    ticks, pages, handles = zip(*samples)
    assert pages[-1] < pages[0] + 256 and len(set(handles)) == 1, samples  # 260 bytes a step
    assert ticks[4] - ticks[3] < 2 * (ticks[1] - ticks[0]), samples  # of CPU time, in 1,000 steps

def test_8_uncertainty_of_ppl_is_that_of_a_mean():
    rng, inside = np.random.default_rng(0), 0
    scored = np.full(200, 50)
    for _ in range(1000):
        nats = 50 * rng.normal(4, 0.3, 200)  # mean 4 nats a token, 0.3 between stretches
        ppl = math.exp(nats.sum() / scored.sum())
        uncertainty = analyze.ppl_uncertainty(nats, scored)
        inside += abs(ppl / math.exp(4) - 1) < uncertainty
    assert 930 <= inside <= 970
    assert analyze.ppl_uncertainty(nats[:1], scored[:1]) is None
