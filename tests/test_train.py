"""train.py: the schedule, the loop, its checkpoints and logs, and what is in the folder already."""
import contextlib
import json
import math
import multiprocessing
import os
import re
import shutil
import socket
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLONES, arguments, load, same, script, settings, trained, write_text
from hypothesis import given
from hypothesis import strategies as st

import config
import data_prep
import train
from train import Sampler

def log_of(out_dir):
    return [json.loads(line) for line in Path(out_dir, 'log.jsonl').read_text().splitlines()]

def contents(out_dir):
    """{name: content} of the files of a run."""
    return {path.name: path.read_bytes() for path in Path(out_dir).glob('[!.]*') if path.is_file()}

# ---- the schedule ------------------------------------------------------------

def test_a_run_draws_languages_by_the_schedule_and_another_seed_draws_others():
    schedule = [(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))]
    run, other = (Sampler([np.arange(900)] * 2, settings(
        schedule=schedule, batch_size=16, max_iters=1000, seed=seed)) for seed in (0, 1))
    drawn = np.array([run.next(step)[1].sum() for step in range(1000)])
    other.next(0)
    for stage, p in ((drawn[:500], 0.1), (drawn[500:], 0.9)):
        assert abs(stage.sum() - 8000 * p) < 4 * np.sqrt(8000 * p * (1 - p))  # sampling error
    assert (run.languages(0) != other.languages(0)).any()
    assert (run.orders[0] != other.orders[0]).any()

@st.composite
def schedules(draw):
    """Languages and a valid schedule for them."""
    n = draw(st.integers(1, 5))
    starts = [0.0, *sorted(draw(st.sets(st.integers(1, 99), max_size=3)))]
    weights = st.lists(st.integers(0, 9), min_size=n, max_size=n).filter(any)
    stages = [(start, draw(weights)) for start in starts]
    return {'languages': [(f'L{i}', 'en') for i in range(n)],
            'schedule': [(start / 100, tuple(w / sum(ws) for w in ws)) for start, ws in stages]}

@given(schedules())
def test_any_schedule_is_accepted_and_its_marginals_are_the_mean_of_its_steps(drawn):
    data_prep.check_languages(settings(**drawn))
    schedule = drawn['schedule']
    mean = np.mean([train.p_language(schedule, step / 100) for step in range(100)], 0)
    np.testing.assert_allclose(data_prep.marginals(schedule), mean, atol=1e-9)

@given(schedules(), st.integers(0, 3), st.sampled_from([0.2, -0.2, 1.0, math.nan, math.inf]))
def test_any_schedule_with_a_wrong_number_is_refused(drawn, stage, off):
    schedule = drawn['schedule']
    stage %= len(schedule)
    start, ps = schedule[stage]
    wrong = [*schedule[:stage], (start, (ps[0] + off, *ps[1:])), *schedule[stage + 1:]]
    not_rising, late = [*schedule, schedule[-1]], [(start + 0.005, ps) for start, ps in schedule]
    for bad in (wrong, not_rising, late, [(start, ps[1:]) for start, ps in schedule]):
        with pytest.raises(SystemExit, match='^schedule'):
            data_prep.check_languages(settings(**drawn | {'schedule': bad}))

@given(schedules(), st.data())
def test_any_sampler_reads_each_language_in_whole_epochs_and_goes_on_from_its_counts(drawn, data):
    starts = [100 * i + np.arange(data.draw(st.integers(1, 30)))
              for i in range(len(drawn['languages']))]
    batch_size, seed, stop = (data.draw(st.integers(low, high))
                              for low, high in ((1, 12), (0, 99), (0, 20)))
    cfg = settings(**drawn, batch_size=batch_size, max_iters=20, seed=seed)
    whole, resumed = Sampler(starts, cfg), Sampler(starts, cfg)
    seen = [[] for _ in starts]
    for step in range(20):
        if step == stop:
            resumed.read[:] = whole.read
        batch, languages = whole.next(step)
        assert len(batch) == batch_size
        assert (train.p_language(cfg.schedule, step / 20)[languages] > 0).all()
        for start, language in zip(batch, languages):
            seen[language].append(start)
        if step >= stop:
            assert np.array_equal(resumed.next(step), (batch, languages))
    assert whole.read.tolist() == [*map(len, seen)] and whole.read.sum() == 20 * batch_size
    for own, read in zip(starts, seen):
        for i in range(0, len(read), len(own)):
            counts = Counter(read[i:i + len(own)])
            assert set(counts) <= {*own.tolist()} and set(counts.values()) == {1}

def test_a_schedule_of_3000_stages_trains(here):
    stages = [(i / 3000, (0.9, 0.1) if i % 500 < 250 else (0.1, 0.9)) for i in range(3000)]
    trained(**CLONES | {'dataset': 'stages', 'schedule': stages}, out_dir='out/stages')
    shares = [record['p_language']['EN1'] for record in log_of('out/stages') if 'loss' in record]
    assert shares == 6 * [0.9, 0.1]

# ---- the loop ----------------------------------------------------------------

def test_a_run_prepares_its_dataset_says_what_it_costs_and_saw_and_learns(alone, capsys):
    trained(**CLONES, max_iters=40, eval_interval=20, out_dir='out/a')
    out = capsys.readouterr().out
    assert sorted(contents('out/a')) == ['ckpt.pt', 'config.json', 'log.jsonl']
    # 6 x (26,496 + 800 x 32 weights) + attention 6 x 2 x 32 x 32, x 10,240 tokens
    assert ', 10,240 tokens, 3.3e+09 FLOPs, on 1 x cpu\n' in out
    log = log_of('out/a')
    steps = [record for record in log if 'loss' in record]
    losses, seen = [record['loss'] for record in steps], steps[-1]['tokens_seen']
    assert len(losses) == 40 and losses[0] == pytest.approx(math.log(800), rel=0.03)
    assert losses[-1] < losses[0] - 0.5
    assert [record['step'] for record in log if 'eval_loss' in record] == [20, 40]
    assert sum(seen.values()) == 40 * 8 * 32 and seen['EN1'] > seen['EN2'] > 0
    assert 'tokens seen: EN1 {EN1:,}, EN2 {EN2:,}\n'.format(**seen) in out
    assert 'loss EN1 {EN1:.4f}, EN2 {EN2:.4f}\n'.format(**log[-1]['eval_loss']) in out
    assert load('out/a/ckpt.pt')['sequences_read'] == [n // 32 for n in seen.values()]

def test_learning_rate_warms_up_and_follows_a_cosine():
    cfg = settings(learning_rate=6e-4, min_lr=6e-6, warmup_iters=500, max_iters=18265)
    middle = 500 + (18265 - 500) / 2
    expected = {0: 6e-4 / 500, 249: 3e-4, 500: 6e-4, middle: (6e-4 + 6e-6) / 2, 18265: 6e-6}
    for step, rate in expected.items():
        assert train.learning_rate(step, cfg) == pytest.approx(rate)

THREADS = f"""import runpy, sys
from pathlib import Path
runpy.run_path({train.__file__!r}, run_name='__main__')
print(*[path.read_text() for path in Path('/proc/self/task').glob('*/comm')], file=sys.stderr)"""

def test_micro_batches_and_processes_do_not_change_the_run(alone):
    """The same sequences in the same languages, the same loss and weights up to rounding."""
    common = dict(**CLONES, max_iters=8, dtype='float32')
    micro = common | {'micro_batch_size': 2}
    trained(**common, out_dir='out/whole')
    trained(**micro, out_dir='out/micro')
    Path('threads.py').write_text(THREADS)
    result = script(alone / 'threads.py', *arguments(**micro, out_dir='out/two'), processes=2)
    assert result.status == 0 and 'next: python analyze.py ppl out/two' in result.out, result.err
    # a thread of the process group that outlives it aborts the interpreter one run in a hundred
    assert 'python' in result.err and 'gloo' not in result.err, result.err
    weights = load('out/whole/ckpt.pt')['model']
    for other in ('out/micro', 'out/two'):
        for a, b in zip(log_of('out/whole'), log_of(other), strict=True):
            assert a.get('tokens_seen') == b.get('tokens_seen')
            for key in a.keys() & {'loss', 'eval_loss'}:
                assert a[key] == pytest.approx(b[key], rel=1e-5), (other, a['step'])
        torch.testing.assert_close(load(f'{other}/ckpt.pt')['model'], weights, atol=1e-4, rtol=1e-3)

def node(rank, port, cfg):
    """A process as torchrun starts it, in a folder of its own."""
    os.environ |= {'RANK': str(rank), 'LOCAL_RANK': '0', 'WORLD_SIZE': '2',
                   'MASTER_ADDR': 'localhost', 'MASTER_PORT': str(port)}
    with contextlib.chdir(str(rank)):
        config.run(lambda: train.main(cfg))

@pytest.mark.parametrize('change', ['step', 'data'])
def test_nodes_that_differ_in_their_step_or_their_data_refuse(change, alone, documents, capfd):
    cfg = settings(out_dir='out/a', checkpoint_interval=5, log_interval=7)
    for rank, n in enumerate((20, 20 - (change == 'data'))):
        write_text(Path(f'{rank}/text'), documents[:n])
        with contextlib.chdir(str(rank)):
            trained(**vars(cfg))
            os.rename('out/a/ckpt_previous.pt', 'out/a/ckpt.pt')  # back to step 10
            if change == 'step' and rank:
                shutil.rmtree('out')
    with socket.create_server(('localhost', 0)) as server:
        port = server.getsockname()[1]
    fork = multiprocessing.get_context('fork').Process
    nodes = [fork(target=node, args=(rank, port, cfg)) for rank in (0, 1)]
    for process in nodes:
        process.start()
    for process in nodes:
        process.join(60)
        assert process.exitcode == 1
    err = capfd.readouterr().err
    line, = re.findall('^nodes differ in .*', err, re.M)
    steps, sums = zip(*re.findall(r"\((\d+), '(\w+)'\)", line))
    assert steps == ('10', '0' if change == 'step' else '10')
    assert (len(set(sums)) == 2) == (change == 'data')

def test_evaluation_is_the_loss_over_the_same_windows_of_test_text(here):
    cfg = settings(**CLONES, out_dir='out/eval')
    data_prep.prepare(cfg)
    dataset = data_prep.Dataset(cfg)
    model = train.new_model(cfg, dataset.vocab_size)
    device = train.choose_device('cpu', 'auto')
    losses = [train.evaluate(model, dataset, cfg, *device, micro) for micro in (1, 3, 8)]
    text = dataset.corpora[0]['test'].astype(int)
    starts = np.arange(0, len(text) - 32, 32)
    starts = starts[np.arange(16) * len(starts) // 16]  # eval_iters x batch_size, evenly spread
    base = torch.tensor(np.stack([text[start:start + 33] for start in starts]))
    for language, name in enumerate(dataset.names):
        ids = base + 400 * language
        with torch.no_grad():
            logits = model(ids[:, :-1]).flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).item()
        assert [loss[name] for loss in losses] == pytest.approx([expected] * 3, rel=1e-5)

def test_a_language_that_will_be_read_more_than_once_is_announced_first(here, capsys):
    short = CLONES | {'dataset': 'epochs', 'max_tokens': 20_000}
    data_prep.prepare(settings(**short))
    n = len(data_prep.Dataset(settings(**short)).starts[0])
    trained(**short, max_iters=math.ceil(1.5 * n / 6), out_dir='out/epochs')  # 8 x 0.75 a step
    before, note, after = capsys.readouterr().out.partition('note: EN1 has ')
    assert 'step 1/' not in before and 'step 1/' in after
    seen = log_of('out/epochs')[-2]['tokens_seen']['EN1']
    assert f'tokens, which this run reads {seen / 32 / n:.2f} times' in after and seen > 45 * n

# ---- the folder of a run -----------------------------------------------------

def test_a_finished_run_says_so_and_is_left_alone(alone, capsys):
    trained(out_dir='out/a')
    before = contents('out/a')
    capsys.readouterr()
    trained(out_dir='out/a', log_interval=5)
    says = 'out/a: this run is finished; --overwrite trains it again\n'
    assert capsys.readouterr().out == says and contents('out/a') == before
    trained(out_dir='out/a', overwrite=True)
    assert contents('out/a') == before

NEW = {'out_dir': 'out/b', 'dataset': 'new', 'corpora': {'en': 'no/such/text'}}

@pytest.mark.parametrize('change, says', [
    ({'n_embd': 64}, 'holds a run with n_embd = 32, not 64'),
    ({'out_dir': 'out/b', 'block_size': 16}, 'made with block_size = 32'),
    ({**NEW}, "corpus source 'no/such/text'"),  # what follows is told before any corpus is read
    ({**NEW, 'micro_batch_size': 3}, 'batch_size must be a multiple of micro_batch_size'),
    ({**NEW, 'n_embd': 31}, 'n_embd must be a multiple of n_head'),
    ({**NEW, 'n_layer': 0}, 'n_layer must be at least 1'),
    ({**NEW, 'device': 'tpu'}, "device 'tpu' is not available"),
    ({**NEW, 'max_iters': 0}, 'max_iters must be at least 1'),
    ({**NEW, 'dtype': 'float16'}, 'dtype must be'),
    ({**NEW, 'compile': 'yes'}, "compile must be 'auto', True or False, not 'yes'"),
    ({**NEW, 'log_to': 'csv'}, "log_to must be 'tensorboard'"),
    ({**NEW, 'log_to': 'wandb'}, r'pip install \.\[log\]'),
    ({**NEW, 'schedule': [(0.0, (0.5,))]}, 'schedule')])
def test_what_does_not_fit_is_refused_and_changes_nothing(change, says, here, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    trained(out_dir='out/finished')  # once, for all
    before = contents('out/finished')
    with pytest.raises(SystemExit, match=says):
        trained(**{'out_dir': 'out/finished'} | change)
    assert contents('out/finished') == before and not contents('out/b')
    assert not Path('data/new').exists()

def test_a_checkpoint_of_another_shape_is_refused(alone):
    trained(out_dir='out/a')
    state = load('out/a/ckpt.pt') | {'step': 5, 'sequences_read': [40]}
    weights = {name: weight for name, weight in state['model'].items() if name != 'ln_f.bias'}
    no_groups = state['optimizer'] | {'param_groups': []}
    for other in ({'model': weights}, {'optimizer': no_groups}):
        torch.save(state | other, 'out/a/ckpt.pt')
        with pytest.raises(SystemExit, match='its shape differs, or its version is older; --overwrite'):
            trained(out_dir='out/a')

def test_every_checkpoint_is_kept_as_a_run_of_its_own(alone):
    run = dict(**CLONES, checkpoint_interval=5, out_dir='out/a', keep_checkpoints=True)
    trained(**run)
    for step in (5, 10, 12):
        kept = Path(f'out/a/step_{step:06}')
        saved = config.restored(config.read_json(kept / 'config.json', ''), kept)
        assert train.load_checkpoint(kept, saved)['step'] == step
    assert len(list(Path('out/a').glob('step_*'))) == 3
    os.replace('out/a/ckpt_previous.pt', 'out/a/ckpt.pt')  # back to step 10
    (kept / 'results.json').write_text('{}')
    trained(**run)
    assert contents(kept).keys() == {'ckpt.pt', 'config.json'}
    (kept / 'export').mkdir()
    trained(**run | {'keep_checkpoints': False}, overwrite=True)
    assert not list(Path('out/a').glob('step_*'))

@pytest.mark.parametrize('log_to', ['tensorboard', 'wandb'])
def test_a_log_is_also_drawn_elsewhere_and_a_resumed_run_goes_on_there(log_to, alone, monkeypatch):
    pytest.importorskip(log_to)
    monkeypatch.setenv('WANDB_MODE', 'offline')
    run = arguments(**CLONES, out_dir='out/a', log_to=log_to, checkpoint_interval=5)
    for _ in range(2):
        result = script('train.py', *run)
        assert result.status == 0, result.err
        os.replace('out/a/ckpt_previous.pt', 'out/a/ckpt.pt')  # back to step 10
    if log_to == 'wandb':
        runs = list(Path('out/a/wandb').glob('offline-run-*'))
        assert len({run.name.rpartition('-')[2] for run in runs}) == 1  # of one id
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    drawn = EventAccumulator('out/a/tensorboard').Reload()
    for key, name in ('loss', None), ('lr', None), ('tokens_seen', 'EN2'), ('eval_loss', 'EN1'):
        logged = {record['step']: record[key][name] if name else record[key]
                  for record in log_of('out/a') if key in record}
        events = drawn.Scalars(f'{key}/{name}' if name else key)
        assert {event.step: event.value for event in events} == pytest.approx(logged)
    assert {event.value for event in drawn.Scalars('p_language/EN2')} == {0.25}

def test_a_run_begins_with_the_weights_of_another_and_resumes_without_it(alone):
    trained(**CLONES, out_dir='out/first')
    second = dict(**CLONES, out_dir='out/second', init_from='out/first', checkpoint_interval=5)
    second |= {'learning_rate': 0.0, 'min_lr': 0.0}  # the last weights are the first
    trained(**second)
    first, last = load('out/first/ckpt.pt'), load('out/second/ckpt.pt')
    assert same(first['model'], last['model']) and last['step'] == 12
    assert json.loads(Path('out/second/config.json').read_text())['init_from'] == 'out/first'
    os.replace('out/second/ckpt_previous.pt', 'out/second/ckpt.pt')  # back to step 10
    shutil.rmtree('out/first')
    trained(**second)
    assert same(load('out/second/ckpt.pt'), last)

@pytest.mark.parametrize('own, says', [
    ({'init_from': 'out/none'}, 'init_from must be a run'),
    ({'init_from': 'out/empty'}, 'out/empty'),
    ({'n_embd': 64}, 'config.json has n_embd = 32, not 64'),
    ({'block_size': 16, 'dataset': 'short'}, 'has block_size = 32'),
    ({'n_head': 4}, 'has n_head = 2, not 4'), ({'n_layer': 3}, 'has n_layer = 2'),
    ({'vocab_size': 401, 'dataset': 'larger'}, 'the ids of out/first stand for other pieces'),
    ({'min_chars': 9000, 'dataset': 'fewer'}, 'the ids of out/first stand for other pieces')])
def test_weights_of_another_shape_or_vocabulary_are_refused(own, says, here):
    trained(out_dir='out/first')  # once, for all
    shutil.copytree('out/first', 'out/empty', ignore=lambda *_: ['ckpt.pt'], dirs_exist_ok=True)
    with pytest.raises(SystemExit, match=says):
        trained(**{'out_dir': 'out/refused', 'init_from': 'out/first'} | own)
    assert not Path('out/refused/config.json').exists()
