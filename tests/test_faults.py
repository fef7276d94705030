"""What can go wrong with a run of days; each test is named after the point that it proves.

1 kill at any time, 2 preemption, 3 keep what matters, 4 other hardware, 5 hostile or damaged files,
6 two at once, 7 slow leaks. `python tests/faults.py` does more of 1 and 5."""
import contextlib
import json
import os
import re
import resource
import shutil
import signal
from pathlib import Path

import faults
import pytest
import torch
from conftest import CLONES, arguments, begin, family, kill, load, refused, same, trained
from conftest import torchrun_variables

import analyze
import train

LONG = dict(**CLONES, max_iters=300, log_interval=7, eval_interval=100, checkpoint_interval=40,
            out_dir='out/a')
RUN = arguments(**LONG)
LAST, PREVIOUS = Path('out/a/ckpt.pt'), Path('out/a/ckpt_previous.pt')

def end_of_run():
    """What must be the same bit for bit: the log, and the tensors of the checkpoint."""
    log = map(json.loads, Path('out/a/log.jsonl').read_text().splitlines())
    return {'log': [*log], 'checkpoint': load(LAST)}

def assert_continues_to(undisturbed):
    trained(**LONG)
    assert same(end_of_run(), undisturbed)

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
    """A fresh folder with the data of that run."""
    shutil.copytree(workplace / 'data', 'data')

@pytest.fixture
def killed(prepared, workplace):
    """The same with the run that was killed."""
    shutil.copytree(workplace / 'out/killed', 'out/a')

def test_1_kills_at_random_moments_and_5_damaged_files_of_every_kind_do_no_harm():
    assert faults.run_kills(3, seed=4) == 0  # one of every stage
    assert faults.run_inputs(20, seed=1) == 0

def test_1_killed_between_renames_the_last_checkpoint_is_taken(killed, undisturbed, capsys):
    LAST.unlink(missing_ok=True)  # moved to ckpt_previous.pt, its successor not yet in place
    Path('out/a/results.json').write_text('measured at a later step')
    with open('out/a/log.jsonl', 'a') as f:
        f.write('{"step": 119, "lo')  # as if killed while writing
    assert_continues_to(undisturbed)
    assert 'resumed after step' in capsys.readouterr().out
    assert not Path('out/a/results.json').exists()

def test_2_a_signal_stops_a_saved_run_6_whose_folder_no_other_took(prepared, undisturbed):
    process = begin(*RUN)
    process.send_signal(signal.SIGSTOP)
    process.send_signal(signal.SIGTERM)
    for overwrite in (False, True):
        refused('another process trains in out/a: ', trained, **LONG, overwrite=overwrite)
    process.send_signal(signal.SIGCONT)
    out, err = process.communicate(timeout=60)
    stopped = re.search(r'stopped by a signal after step (\d+), saved in out/a', out)
    assert process.returncode == 75 and err == ''
    assert load(LAST)['step'] == int(stopped[1]) < 300
    assert_continues_to(undisturbed)

@pytest.mark.parametrize('signals', ['SIGINT', 'SIGUSR1', 'SIGTERM SIGINT SIGINT'])
def test_2_any_signals_finish_the_step_and_save(signals, prepared, monkeypatch, capsys):
    def rate_with_signals(step, cfg, rate=train.learning_rate):
        for name in signals.split() if step == 50 else ():
            os.kill(os.getpid(), signal.Signals[name])  # in step 51
        return rate(step, cfg)
    monkeypatch.setattr(train, 'learning_rate', rate_with_signals)
    with pytest.raises(SystemExit) as error:
        trained(**LONG)
    assert error.value.code == 75 and load(LAST)['step'] == 51
    assert 'stopped by a signal after step 51' in capsys.readouterr().out

def test_2_torchrun_passes_a_signal_on_and_its_processes_save(prepared):
    process = begin(*RUN, processes=2, until=LAST)
    process.send_signal(signal.SIGUSR1)
    out, _ = process.communicate(timeout=120)
    step = int(re.search(r'stopped by a signal after step (\d+)', out)[1])
    assert process.returncode == 1 and load(LAST)['step'] == step < 300

def second_of(process):
    """The id of the process of rank 1."""
    return next(pid for pid in family(process.pid)
                if b'\0RANK=1\0' in Path(f'/proc/{pid}/environ').read_bytes())

THREADS = f"""import atexit, os, runpy
from pathlib import Path
names = lambda: [path.read_text() for path in Path('/proc/self/task').glob('*/comm')]
atexit.register(lambda: Path('threads' + os.environ['RANK']).write_text(''.join(names())))
runpy.run_path({train.__file__!r}, run_name='__main__')"""

def test_2_processes_stop_as_one_and_4_a_run_continues_on_more_or_fewer(prepared, undisturbed):
    Path('threads.py').write_text(THREADS)
    process = begin(*RUN, '--micro_batch_size=2', name=Path('threads.py').resolve(), processes=2,
                    until=LAST)
    os.kill(second_of(process), signal.SIGUSR1)
    out, err = process.communicate(timeout=120)
    step = int(re.search(r'stopped by a signal after step (\d+)', out)[1])
    assert process.returncode and 'exitcode  : 75' in err
    assert load(LAST)['step'] == step < 300
    for a, b in zip(end_of_run()['log'], undisturbed['log']):
        assert a['tokens_seen'] == b['tokens_seen']
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-4)
    # a thread of the process group that outlives it aborts the interpreter one run in a hundred
    assert not any('gloo' in Path(f'threads{rank}').read_text() for rank in (0, 1))

    PREVIOUS.unlink(missing_ok=True)
    kill(begin(*RUN, until=PREVIOUS))  # on one, saved once
    PREVIOUS.unlink()
    process = begin(*RUN, processes=2, until=PREVIOUS)
    os.kill(second_of(process), signal.SIGKILL)
    out, err = process.communicate(timeout=120)
    assert 'resumed after step' in out and process.returncode
    assert 'another process of this run has died; the same command continues' in err, err
    assert 'train.py", line' not in err and load(LAST)['step'] < 300
    trained(**LONG)
    (log, end), (expected_log, expected) = (run.values() for run in (end_of_run(), undisturbed))
    assert [line['step'] for line in log] == [line['step'] for line in expected_log]
    assert end['sequences_read'] == expected['sequences_read']
    assert end['optimizer']['param_groups'] == expected['optimizer']['param_groups']
    torch.testing.assert_close(end['model'], expected['model'], atol=2e-3, rtol=1e-2)
    moments = (checkpoint['optimizer']['state'] for checkpoint in (end, expected))
    torch.testing.assert_close(*moments, atol=1e-4, rtol=1e-1)

def test_3_a_full_disk_or_a_damaged_file_leaves_a_checkpoint_to_go_on_from(killed, undisturbed):
    content, (soft, hard) = LAST.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # a checkpoint is larger
        refused('could not be saved in out/a', trained, **LONG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert LAST.read_bytes() == content and not list(Path('out/a').glob('*.partial'))
    assert load(PREVIOUS)['step'] == load(LAST)['step'] - 40
    middle = len(content) // 2
    LAST.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1:])
    refused(f'its checksum differs.*`mv {PREVIOUS} {LAST}` goes back', trained, **LONG)
    refused('its checksum differs', analyze.main, ['ppl', 'out/a'])
    PREVIOUS.replace(LAST)
    assert_continues_to(undisturbed)

def test_3_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(prepared):
    refused('(the loss is (nan|inf)|a weight is not finite) at step .*: try a lower learning_rate',
            trained, **LONG | {'learning_rate': 1e18, 'checkpoint_interval': 1, 'log_interval': 50})
    for path in Path('out/a').glob('*.pt'):
        assert all(weight.isfinite().all() for weight in load(path)['model'].values())

def test_7_thousands_of_steps_hold_memory_handles_and_speed_steady(prepared):
    small = {'n_layer': 1, 'n_embd': 8, 'n_head': 1, 'batch_size': 1, 'max_iters': 3000,
             'eval_interval': 250, 'checkpoint_interval': 250, 'log_interval': 25}
    process, samples = begin(*arguments(**LONG | small)), []
    for line in process.stdout:
        if re.match('step (6|1,1|1,6|2,1|2,6)25/', line):  # halfway between two checkpoints
            folder = Path(f'/proc/{process.pid}')
            stat = (folder / 'stat').read_text().rpartition(')')[2].split()
            user, system, pages = (int(stat[i]) for i in (11, 12, 21))
            samples.append((user + system, pages, len(os.listdir(folder / 'fd'))))
    assert process.wait() == 0 and len(samples) == 5
    ticks, pages, handles = zip(*samples)
    assert pages[-1] < pages[0] + 128 and len(set(handles)) == 1, samples  # 260 bytes a step
    assert ticks[4] - ticks[3] < 2 * (ticks[1] - ticks[0]), samples  # of CPU time, in 500 steps
