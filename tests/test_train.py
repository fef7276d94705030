"""train.py: the schedule, the loop, its checkpoints and logs, and what is in the folder already."""
import contextlib
import json
import math
import multiprocessing
import os
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLONES, arguments, load, refused, same, script, settings, trained, write_text
from conftest import torchrun_variables
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

def test_languages_are_drawn_by_the_schedule_and_every_seed_and_epoch_differs():
    cfg = settings(schedule=[(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))], batch_size=16, max_iters=1000)
    run = Sampler([np.arange(900)] * 2, cfg)
    drawn = np.array([run.next(step)[1].sum() for step in range(1000)])
    for stage, p in ((drawn[:500], 0.1), (drawn[500:], 0.9)):
        assert abs(stage.sum() - 8000 * p) < 4 * np.sqrt(8000 * p * (1 - p))  # sampling error
    alone = Sampler([np.arange(160)], settings(batch_size=16))
    epochs = np.reshape([alone.next(step)[0] for step in range(20)], (2, 160))
    assert (epochs[0] != epochs[1]).any()
    cfg.seed, first = 1, Sampler(run.starts, cfg).next(0)
    assert np.all(np.any(np.not_equal(first, Sampler(run.starts, cfg).next(0)), 1))

@st.composite
def schedules(draw):
    """Languages and a valid schedule for them."""
    n = draw(st.integers(1, 5))
    starts = [0.0, *sorted(draw(st.sets(st.integers(1, 99), max_size=3)))]
    weights = st.lists(st.integers(0, 9), min_size=n, max_size=n).filter(any)
    stages = [(start / 100, draw(weights)) for start in starts]
    return {'languages': [(f'L{i}', 'en') for i in range(n)],
            'schedule': [(start, tuple(w / sum(ws) for w in ws)) for start, ws in stages]}

@given(schedules(), st.integers(0, 3), st.sampled_from([0.2, -0.2, 1.0, math.nan, math.inf]))
def test_any_schedule_has_the_marginals_of_its_steps_but_none_with_a_wrong_number(drawn, i, off):
    schedule, cfg = drawn['schedule'], settings(**drawn)
    data_prep.check_languages(cfg)
    mean = np.mean([train.p_language(schedule, step / 100) for step in range(100)], 0)
    np.testing.assert_allclose(data_prep.marginals(schedule), mean, atol=1e-9)
    i %= len(schedule)
    start, ps = schedule[i]
    wrong = [*schedule[:i], (start, (ps[0] + off, *ps[1:])), *schedule[i + 1:]]
    not_rising, late = [*schedule, schedule[-1]], [(start + 0.005, ps) for start, ps in schedule]
    for cfg.schedule in (wrong, not_rising, late, [(start, ps[1:]) for start, ps in schedule]):
        refused('^schedule', data_prep.check_languages, cfg)

@given(schedules(), st.data())
def test_any_sampler_reads_each_language_in_whole_epochs_and_goes_on_from_its_counts(drawn, data):
    starts = [100 * i + np.arange(data.draw(st.integers(1, 30)))
              for i in range(len(drawn['languages']))]
    batch_size, seed, stop = (data.draw(st.integers(i, n)) for i, n in ((1, 12), (0, 99), (0, 20)))
    cfg = settings(**drawn, batch_size=batch_size, max_iters=20, seed=seed)
    whole, resumed, seen = Sampler(starts, cfg), Sampler(starts, cfg), [[] for _ in starts]
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

def test_a_share_of_the_input_tokens_is_read_in_another_clone_and_the_targets_stay(here):
    languages = [('EN1', 'en'), ('EN2', 'en'), ('EN3', 'en')]
    cfg = settings(dataset='three', languages=languages, schedule=[(0.0, (0.5, 0.25, 0.25))],
                   batch_size=400)
    data_prep.prepare(cfg)
    dataset = data_prep.Dataset(cfg)
    starts, languages = Sampler(dataset.starts, cfg).next(7)
    cfg.codeswitch = 0.2  # of all input tokens
    inputs = Sampler(dataset.starts, cfg).input_languages(7, languages)
    x, y = dataset.windows('train', starts, languages)
    switched, targets = dataset.windows('train', starts, languages, inputs)
    assert np.array_equal(targets, y) and switched.flags.c_contiguous and targets.flags.c_contiguous
    assert np.array_equal(switched % 400, x % 400) and np.array_equal(switched // 400, inputs)
    others = (inputs - languages[:, None]) % 3  # 0: the language of the sequence
    for other, share in (0, 0.8), (1, 0.1), (2, 0.1):  # within the error of sampling
        n = others.size
        assert abs(np.count_nonzero(others == other) - n * share) < 4 * (n * share) ** 0.5
    assert np.any(inputs != Sampler(dataset.starts, cfg).input_languages(8, languages))

def test_a_schedule_of_3000_stages_trains(here):
    stages = [(i / 3000, (0.9, 0.1) if i % 500 < 250 else (0.1, 0.9)) for i in range(3000)]
    trained(**CLONES | {'dataset': 'stages', 'schedule': stages}, out_dir='out/stages')
    shares = [record['p_language']['EN1'] for record in log_of('out/stages') if 'loss' in record]
    assert shares == 6 * [0.9, 0.1]

def test_a_run_prepares_its_dataset_learns_says_what_it_saw_and_is_left_alone(alone, capsys):
    run = dict(**CLONES, max_iters=40, eval_interval=20, out_dir='out/a')
    trained(**run)
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
    before = contents('out/a')
    trained(**run | {'log_interval': 5})
    says = 'out/a: this run is finished; --overwrite trains it again\n'
    assert capsys.readouterr().out == says and contents('out/a') == before
    trained(**run, overwrite=True)
    assert contents('out/a') == before

def test_learning_rate_warms_up_and_follows_a_cosine():
    cfg = settings(learning_rate=6e-4, min_lr=6e-6, warmup_iters=500, max_iters=18265)
    middle = 500 + (18265 - 500) / 2
    expected = {0: 6e-4 / 500, 249: 3e-4, 500: 6e-4, middle: (6e-4 + 6e-6) / 2, 18265: 6e-6}
    for step, rate in expected.items():
        assert train.learning_rate(step, cfg) == pytest.approx(rate)

def node(rank, cfg, variables):
    """Train as a process of torchrun, in a folder of its own -> what it says in the end."""
    os.environ |= variables | {'RANK': f'{rank}'}
    os.chdir(f'{rank}')
    with pytest.raises(SystemExit) as error:
        train.main(cfg)
    return error.value.code

@pytest.mark.parametrize('change', ['step', 'data'])
def test_nodes_that_differ_in_their_step_or_their_data_refuse(change, alone, documents):
    cfg = settings(out_dir='out/a', checkpoint_interval=5, log_interval=7)
    for rank, n in enumerate((20, 20 - (change == 'data'))):
        write_text(Path(f'{rank}/text'), documents[:n])
        with contextlib.chdir(f'{rank}'):
            trained(**vars(cfg))
            os.rename('out/a/ckpt_previous.pt', 'out/a/ckpt.pt')  # back to step 10
    if change == 'step':
        shutil.rmtree('1/out')
    variables = torchrun_variables(0, 2)
    with multiprocessing.get_context('fork').Pool(2) as pool:
        both = pool.starmap_async(node, [(rank, cfg, variables) for rank in (0, 1)], 1)
        says, same_text = both.get(60)
    states = re.findall(r"\((\d+), '(\w+)'\)", says)
    assert says == same_text and says.startswith('nodes differ')
    assert states[0][0] == '10' and states[1][0] == ('0' if change == 'step' else '10')
    assert (states[0][1] != states[1][1]) == (change == 'data')

def test_evaluation_is_the_loss_over_the_same_windows_of_test_text(here):
    cfg = settings(**CLONES)
    data_prep.prepare(cfg)
    dataset = data_prep.Dataset(cfg)
    model, device = train.new_model(cfg, dataset.vocab_size), train.choose_device('cpu', 'auto')
    text = torch.tensor(dataset.corpora[0]['test'].astype(int))
    windows = text.unfold(0, 33, 32)
    windows = windows[torch.arange(16) * len(windows) // 16]  # eval_iters x batch_size, spread out
    with torch.no_grad():
        expected = {name: torch.nn.functional.cross_entropy(
            model(windows[:, :-1] + offset).mT, windows[:, 1:] + offset).item()
            for name, offset in (('EN1', 0), ('EN2', 400))}
    for micro_batch_size in (1, 3, 8):
        losses = train.evaluate(model, dataset, cfg, *device, micro_batch_size)
        assert losses == pytest.approx(expected, rel=1e-5)

def test_a_language_that_will_be_read_more_than_once_is_announced_first(here, capsys):
    short = CLONES | {'dataset': 'epochs', 'max_tokens': 20_000}
    data_prep.prepare(settings(**short))
    n = len(data_prep.Dataset(settings(**short)).starts[0])
    trained(**short, max_iters=math.ceil(1.5 * n / 6), out_dir='out/epochs')  # 8 x 0.75 a step
    before, note, after = capsys.readouterr().out.partition('note: EN1 has ')
    assert 'step 1/' not in before and 'step 1/' in after
    seen = log_of('out/epochs')[-2]['tokens_seen']['EN1']
    expected = float(re.search(r'tokens, which this run reads (\S+) times', after)[1])
    assert expected == pytest.approx(seen / 32 / n, abs=0.1) and seen > 45 * n
    assert 'note: no step' not in before and 'warm-up' not in before

def test_stages_warm_up_and_languages_that_a_run_will_hardly_see_are_announced(here, capsys):
    schedule = [(0.0, (0.99, 0.01)), (0.01, (1.0, 0.0)), (0.02, (1.0, 0.0))]
    few = {'dataset': 'few', 'schedule': schedule, 'max_iters': 4, 'warmup_iters': 4}
    trained(**CLONES | few, out_dir='out/few')
    notes = capsys.readouterr().out
    assert 'only 0.0 sequences of EN2 are to be expected, perhaps none' in notes
    assert 'no step reaches 1 of 3 stages' in notes and 'within its warm-up of 4 steps' in notes

def test_weight_decay_and_clipping_are_torchs_own_and_zero_leaves_adam(here, monkeypatch):
    trained(out_dir='out/adam')
    first, weights = train.new_model(settings(), 400), load('out/adam/ckpt.pt')['model']
    with monkeypatch.context() as patched:
        patched.setattr(torch.optim, 'AdamW', lambda groups, weight_decay, **options: (
            torch.optim.Adam([p for group in groups for p in group['params']], **options)))
        trained(out_dir='out/plain')
    assert same(load('out/plain/ckpt.pt')['model'], weights)
    still = {'learning_rate': 1e-9, 'min_lr': 1e-9, 'warmup_iters': 0}  # the decay alone is seen
    trained(**still, weight_decay=1e8, max_iters=3, grad_clip=0.5, out_dir='out/decay')
    decayed = load('out/decay/ckpt.pt')['model']
    for name, p in first.named_parameters():
        left = 0.9 ** 3 if p.dim() > 1 else 1
        torch.testing.assert_close(decayed[name], left * p.detach(), atol=1e-6, rtol=1e-4)
    norms = [line['grad_norm'] for line in log_of('out/decay') if 'loss' in line]
    assert len(norms) == 3 and min(norms) > 0.5  # before clipping
    assert 'grad_norm' not in log_of('out/adam')[0]

NEW = {'out_dir': 'out/b', 'dataset': 'new', 'corpora': {'en': 'no/such/text'}}

@pytest.mark.parametrize('change, says', [
    ({'n_embd': 64}, 'config.json has n_embd = 32, not 64'),
    ({'out_dir': 'out/b', 'block_size': 16}, 'made with block_size = 32'),
    (NEW, "corpus source 'no/such/text'"),  # all that follows is told before any corpus is read
    (NEW | {'n_embd': 31}, 'n_embd must be a multiple'), (NEW | {'dtype': 'float16'}, 'dtype must'),
    (NEW | {'n_layer': 0}, 'n_layer must be'), (NEW | {'max_iters': 0}, 'max_iters must be'),
    (NEW | {'device': 'tpu'}, "'tpu' is not avail"), (NEW | {'compile': 'yes'}, 'compile must be'),
    (NEW | {'codeswitch': 0.1}, 'codeswitch must be 0 without clones'),
    (NEW | {'corpora': {'en': 'no', 'fr': 'no'}, 'languages': [*CLONES['languages'], ('FR', 'fr')],
            'schedule': [(0.0, (0.5, 0.3, 0.2))], 'vocab': 'anchored', 'codeswitch': 0.1},
     'where corpora share pieces'),
    (NEW | CLONES | {'dataset': 'new', 'codeswitch': 1.5}, 'codeswitch must be at most 1'),
    (NEW | {'log_to': 'csv'}, 'log_to must'), (NEW | {'log_to': 'wandb'}, r'pip install \.\[log\]'),
    (NEW | {'schedule': [(0.0, (0.5,))]}, 'schedule'), (NEW | {'init_from': 'no'}, 'must be a run'),
    (NEW | {'init_from': 'out/empty'}, 'out/empty'), (NEW | {'init_from': 'out/bare'}, 'out/bare'),
    (NEW | {'init_from': 'out/first', 'n_embd': 64}, 'config.json has n_embd = 32, not 64'),
    (NEW | {'init_from': 'out/first', 'block_size': 16}, 'config.json has block_size = 32'),
    (NEW | {'init_from': 'out/first', 'n_head': 4}, 'config.json has n_head = 2, not 4'),
    (NEW | {'init_from': 'out/first', 'n_layer': 3}, 'config.json has n_layer = 2')])
def test_what_does_not_fit_is_refused_and_changes_nothing(change, says, here, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    trained(out_dir='out/first')  # once, for all
    for lacks, name in ('ckpt.pt', 'out/empty'), ('config.json', 'out/bare'):
        shutil.copytree('out/first', name, ignore=lambda *_: [lacks], dirs_exist_ok=True)
    before = contents('out/first')
    refused(says, trained, **{'out_dir': 'out/first'} | change)
    assert contents('out/first') == before and not contents('out/b')
    assert not Path('data/new').exists()

class Touch:
    def __reduce__(self):
        return os.system, ('touch executed',)

def test_a_checkpoint_of_another_shape_is_refused_and_code_in_it_not_executed(alone):
    trained(out_dir='out/a')
    state = load('out/a/ckpt.pt') | {'step': 5, 'sequences_read': [40]}
    weights = {name: weight for name, weight in state['model'].items() if name != 'ln_f.bias'}
    for other in ({'model': weights}, {'optimizer': state['optimizer'] | {'param_groups': []}}):
        torch.save(state | other, 'out/a/ckpt.pt')
        refused('its shape differs, or its version is older; --overwrite', trained, out_dir='out/a')
    torch.save(state | {'model': Touch()}, 'out/a/ckpt.pt')
    refused('out/a/ckpt.pt cannot be read', trained, out_dir='out/a')
    assert not Path('executed').exists()

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
        ids = [run.name.rpartition('-')[2] for run in Path('out/a/wandb').glob('offline-run-*')]
        assert len(set(ids)) == 1
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    drawn = EventAccumulator('out/a/tensorboard').Reload()
    for key in 'loss', 'tokens_seen/EN2', 'eval_loss/EN1':
        kind, _, name = key.partition('/')
        logged = {line['step']: line[kind][name] if name else line[kind]
                  for line in log_of('out/a') if kind in line}
        assert {event.step: event.value for event in drawn.Scalars(key)} == pytest.approx(logged)

def test_a_run_begins_with_the_weights_of_another_and_resumes_without_it(alone):
    trained(**CLONES, out_dir='out/first')
    second = dict(**CLONES, out_dir='out/second', init_from='out/first', checkpoint_interval=5,
                  learning_rate=0.0, min_lr=0.0)  # the last weights are the first
    trained(**second)
    first, last = load('out/first/ckpt.pt'), load('out/second/ckpt.pt')
    assert same(first['model'], last['model']) and last['step'] == 12
    assert json.loads(Path('out/second/config.json').read_text())['init_from'] == 'out/first'
    os.replace('out/second/ckpt_previous.pt', 'out/second/ckpt.pt')  # back to step 10
    for changes in {'vocab_size': 401}, {'min_chars': 9000}:  # another number of pieces, or others
        refused('the ids of out/first stand for other pieces', trained,
                **second | changes | {'dataset': 'other', 'out_dir': 'out/third'})
        shutil.rmtree('data/other')
    shutil.rmtree('out/first')
    trained(**second)
    assert same(load('out/second/ckpt.pt'), last)
