"""train.py: the loop, its checkpoints and logs, and what happens to a run already in the folder."""
import json
import math
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLONES, arguments, begin, kill, load, script, settings, trained
from faults import same

import config
import train
from config import UserError

def log_of(out_dir):
    return [json.loads(line) for line in Path(out_dir, 'log.jsonl').read_text().splitlines()]

def contents(out_dir):
    """Every file of a run but the one that depends on the machine's speed."""
    return {p.name: p.read_bytes() for p in Path(out_dir).iterdir() if p.name != 'speed.jsonl'}

def test_a_run_prepares_its_dataset_says_what_it_costs_and_saw_and_learns(alone):
    run = arguments(**CLONES, max_iters=40, eval_interval=20, out_dir='out/a')
    result = script('train.py', *run)
    assert result.status == 0, result.err
    assert sorted(contents('out/a')) == ['ckpt.pt', 'config.json', 'log.jsonl']
    # 6 x (26,496 + 800 x 32 weights) + attention 6 x 2 x 32 x 32, x 10,240 tokens
    assert ': 10,240 tokens, 3.3e+09 FLOPs, on 1 x cpu\n' in result.out
    log = log_of('out/a')
    steps = [record for record in log if 'loss' in record]
    losses, seen = [record['loss'] for record in steps], steps[-1]['tokens_seen']
    assert len(losses) == 40 and losses[0] == pytest.approx(math.log(800), rel=0.03)
    assert losses[-1] < losses[0] - 0.5
    assert [record['step'] for record in log if 'eval_loss' in record] == [20, 40]
    assert sum(seen.values()) == 40 * 8 * 32 and seen['EN1'] > seen['EN2'] > 0
    assert 'tokens seen: EN1 {EN1:,}, EN2 {EN2:,}\n'.format(**seen) in result.out
    assert 'loss EN1 {EN1:.4f}, EN2 {EN2:.4f}\n'.format(**log[-1]['eval_loss']) in result.out
    assert load('out/a/ckpt.pt')['sequences_read'] == [n // 32 for n in seen.values()]

def test_learning_rate_warms_up_and_follows_a_cosine():
    cfg = settings(learning_rate=6e-4, min_lr=6e-6, warmup_iters=500, max_iters=18265)
    middle = 500 + (18265 - 500) / 2
    expected = {0: 6e-4 / 500, 249: 3e-4, 500: 6e-4, middle: (6e-4 + 6e-6) / 2, 18265: 6e-6}
    for step, rate in expected.items():
        assert train.learning_rate(step, cfg) == pytest.approx(rate)

@pytest.mark.parametrize('model', ['gpt', 'word2vec'])
def test_micro_batches_and_processes_do_not_change_the_run(model, here):
    """The same sequences in the same languages, the same loss and weights up to rounding."""
    common = dict(**CLONES, model=model, max_iters=8, dtype='float32', overwrite=True)
    micro = common | {'micro_batch_size': 2}
    trained(**common, out_dir='out/whole')
    trained(**micro, out_dir='out/micro')
    for name, shard in ('two', False), ('two_shard', True):
        two = arguments(**micro, out_dir=f'out/{name}', shard=shard)
        result = script('train.py', *two, processes=2)
        assert result.status == 0, result.err
    weights = load('out/whole/ckpt.pt')['model']
    for other in ('out/micro', 'out/two', 'out/two_shard'):
        for a, b in zip(log_of('out/whole'), log_of(other), strict=True):
            assert a.get('tokens_seen') == b.get('tokens_seen')
            for key in a.keys() & {'loss', 'eval_loss'}:
                assert a[key] == pytest.approx(b[key], rel=1e-5), (other, a['step'])
        torch.testing.assert_close(load(f'{other}/ckpt.pt')['model'], weights, atol=1e-4, rtol=1e-3)

@pytest.mark.parametrize('model, processes', [
    ('word2vec', (1, 1)), ('gpt', (1, 2)), ('gpt', (2, 1))])  # GPT on 1 and 1: test_faults.py
def test_a_killed_run_resumes_also_on_fewer_or_more_processes(model, processes, alone):
    common = dict(**CLONES, model=model, max_iters=120, checkpoint_interval=4, log_interval=7,
                  shard=True)
    trained(**common, out_dir='out/undisturbed')
    run = arguments(**common, out_dir='out/a')
    kill(begin(*run, processes=processes[0], until='out/a/ckpt.pt'))
    assert 0 < load('out/a/ckpt.pt')['step'] < 120
    with open('out/a/log.jsonl', 'a') as f:
        f.write('{"step": 119, "lo')  # as if killed while writing
    result = script('train.py', *run, processes=processes[1])
    assert 'resumed after step' in result.out, result.err
    a, b = load('out/a/ckpt.pt'), load('out/undisturbed/ckpt.pt')
    if processes == (1, 1):
        assert contents('out/a')['log.jsonl'] == contents('out/undisturbed')['log.jsonl']
        assert same(a, b)
    assert a['sequences_read'] == b['sequences_read']
    assert a['optimizer']['param_groups'] == b['optimizer']['param_groups']
    torch.testing.assert_close(a['model'], b['model'], atol=2e-3, rtol=1e-2)
    moments = (checkpoint['optimizer']['state'] for checkpoint in (a, b))
    torch.testing.assert_close(*moments, atol=1e-4, rtol=1e-1)

def test_evaluation_is_the_loss_over_the_same_windows_of_test_text(here):
    cfg = settings(**CLONES, out_dir='out/eval')
    train.prepare_dataset(cfg, True)
    dataset = train.Dataset(cfg)
    model = train.new_model(cfg, dataset.meta['vocab_size'])
    device = train.choose_device('cpu', 'auto')
    losses = [train.evaluate(model, dataset, cfg, *device, micro) for micro in (1, 3, 8)]
    start, end = dataset.meta['corpora']['en']['test']
    starts = np.arange(start, end - 33, 32)
    starts = starts[np.arange(16) * len(starts) // 16]  # eval_iters x batch_size, evenly spread
    base = torch.tensor(np.stack([dataset.tokens['test'][s:s + 33] for s in starts]).astype(int))
    for language, name in enumerate(dataset.names):
        ids = base + 400 * language
        with torch.no_grad():
            logits = model(ids[:, :-1]).flatten(0, 1)
        expected = torch.nn.functional.cross_entropy(logits, ids[:, 1:].flatten()).item()
        assert [loss[name] for loss in losses] == pytest.approx([expected] * 3, rel=1e-5)

def test_a_language_that_will_be_read_more_than_once_is_announced_first(here, capsys):
    short = CLONES | {'dataset': 'epochs', 'max_tokens': 20_000}
    train.prepare_dataset(settings(**short), True)
    languages = train.Dataset(settings(**short)).meta['languages']
    sizes = {language['name']: language['sequences'] for language in languages}
    steps = math.ceil(1.5 * sizes['EN1'] / 6)  # 8 x 0.75 a step
    trained(**short, max_iters=steps, out_dir='out/epochs')
    before, note, after = capsys.readouterr().out.partition('note: EN1 has ')
    assert 'step 1/' not in before and 'step 1/' in after
    epochs = float(after.split(' reads ')[1].split()[0])
    assert epochs == pytest.approx(1.5, abs=0.1)
    # and the log says at which step each epoch began
    log = log_of('out/epochs')
    for name, size in sizes.items():
        seen = {record['step']: record['tokens_seen'][name] for record in log if 'loss' in record}
        begun = [step for step in seen if seen[step] > size * 32 >= seen.get(step - 1, 0)]
        assert [record['step'] for record in log if record.get('language') == name] == begun

def test_a_finished_run_says_so_and_is_left_alone(alone, capsys):
    trained(out_dir='out/a')
    before = contents('out/a')
    capsys.readouterr()
    trained(out_dir='out/a', resume=True)  # accepted, and means nothing
    says = 'out/a: this run is finished; --overwrite trains it again\n'
    assert capsys.readouterr().out == says and contents('out/a') == before
    trained(out_dir='out/a', overwrite=True)
    assert contents('out/a') == before

@pytest.mark.parametrize('change, says', [
    ({'n_embd': 64, 'resume': True}, 'holds a run with n_embd = 32, not 64'),
    ({'batch_size': 4, 'micro_batch_size': 3}, 'does not divide'),
    ({'out_dir': 'out/b', 'block_size': 16}, 'made with block_size = 32'),
    ({'out_dir': 'out/b', 'n_embd': 31}, 'a multiple of n_head'),
    ({'out_dir': 'out/b', 'device': 'tpu'}, "device 'tpu' is not available"),
    ({'out_dir': 'out/b', 'model': 'rnn'}, "model must be 'gpt' or 'word2vec'"),
    ({'out_dir': 'out/b', 'max_iters': 0}, 'max_iters must be at least 1'),
    ({'out_dir': 'out/b', 'dtype': 'float16'}, 'dtype must be'),
    ({'out_dir': 'out/b', 'compile': 'yes'}, "compile must be 'auto', True or False, not 'yes'"),
    ({'out_dir': 'out/b', 'schedule': [(0.0, (0.5,))]}, 'schedule')])
def test_what_does_not_fit_is_refused_and_changes_nothing(change, says, here):
    trained(out_dir='out/finished')  # once, for all
    before = contents('out/finished')
    with pytest.raises(UserError, match=says):
        trained(**{'out_dir': 'out/finished'} | change)
    assert contents('out/finished') == before and not list(Path('out').glob('b/*'))

def test_a_checkpoint_of_another_shape_is_refused(alone):
    trained(out_dir='out/a')
    state = load('out/a/ckpt.pt') | {'step': 5, 'sequences_read': [40]}
    weights = {name: weight for name, weight in state['model'].items() if name != 'ln_f.bias'}
    moments = dict(enumerate(state['optimizer']['state'].values()))  # as torch.optim has them
    for other in ({'model': weights}, {'optimizer': state['optimizer'] | {'state': moments}}):
        torch.save(state | other, 'out/a/ckpt.pt')
        with pytest.raises(UserError, match='shape differs, or its version is older; --overwrite'):
            trained(out_dir='out/a')

def test_every_checkpoint_is_kept_as_a_run_of_its_own(alone):
    run = dict(**CLONES, checkpoint_interval=5, out_dir='out/a')
    trained(**run, keep_checkpoints=True)
    assert len(list(Path('out/a').glob('step_*'))) == 3
    for step in (5, 10, 12):
        kept = Path(f'out/a/step_{step:06}')
        saved = config.restored(config.read_json(kept / 'config.json', ''), kept)
        assert train.load_checkpoint(kept, saved)['step'] == step
    assert os.path.samefile('out/a/ckpt.pt', kept / 'ckpt.pt')  # no second copy
    os.replace('out/a/ckpt_previous.pt', 'out/a/ckpt.pt')  # back to step 10
    (kept / 'results.json').write_text('{}')
    trained(**run, keep_checkpoints=True)
    assert contents(kept).keys() == {'ckpt.pt', 'config.json'}
    trained(**run, overwrite=True)
    assert not list(Path('out/a').glob('step_*'))

# ---- log_to, init_from

@pytest.mark.parametrize('log_to', ['tensorboard', 'wandb'])
def test_a_log_is_also_drawn_elsewhere_and_a_resumed_run_goes_on_there(
        log_to, alone, monkeypatch):
    pytest.importorskip(log_to)
    monkeypatch.setenv('WANDB_MODE', 'offline')
    run = arguments(**CLONES, out_dir='out/a', log_to=log_to, checkpoint_interval=5)
    for _ in range(2):
        assert script('train.py', *run).status == 0
        os.replace('out/a/ckpt_previous.pt', 'out/a/ckpt.pt')  # back to step 10
    if log_to == 'wandb':
        runs = list(Path('out/a/wandb').glob('offline-run-*'))
        assert len({run.name.rpartition('-')[2] for run in runs}) == 1  # of one id
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    drawn = EventAccumulator('out/a/tensorboard').Reload()
    for key, of in ('loss', None), ('lr', None), ('tokens_seen', 'EN2'), ('eval_loss', 'EN1'):
        logged = {record['step']: record[key][of] if of else record[key]
                  for record in log_of('out/a') if key in record}
        events = drawn.Scalars(f'{key}/{of}' if of else key)
        assert {event.step: event.value for event in events} == pytest.approx(logged)
    assert {event.value for event in drawn.Scalars('p_language/EN2')} == {0.25}

@pytest.mark.parametrize('log_to, says', [
    ('csv', "log_to must be 'tensorboard'"), ('wandb', r'pip install \.\[log\]')])
def test_a_tracker_that_is_not_there_is_named_at_once(log_to, says, alone, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(train.UserError, match=says):
        train.main(settings(log_to=log_to, out_dir='out/a'))
    assert not Path('data').exists() and not Path('out').exists()

def test_a_run_begins_with_the_weights_of_another_and_resumes_without_it(alone, monkeypatch):
    train.main(settings(**CLONES, out_dir='out/first'))
    second = settings(**CLONES, out_dir='out/second', init_from='out/first', checkpoint_interval=5,
                      learning_rate=0.0, min_lr=0.0)  # the last weights are the first
    train.main(second)
    first, last = load('out/first/ckpt.pt'), load('out/second/ckpt.pt')
    assert same(first['model'], last['model']) and last['step'] == 12
    assert json.loads(Path('out/second/config.json').read_text())['init_from'] == 'out/first'
    os.replace('out/second/ckpt_previous.pt', 'out/second/ckpt.pt')  # back to step 10
    shutil.rmtree('out/first')
    train.main(second)
    assert same(load('out/second/ckpt.pt'), last)

@pytest.mark.parametrize('own, says', [
    ({'init_from': 'out/none'}, 'init_from must be a run'),
    ({'n_embd': 64}, r'its wte.weight is \[400, 32\], here \[400, 64\]'),
    ({'block_size': 16, 'dataset': 'short'}, 'its wpe.weight is'),
    ({'n_head': 4}, 'its n_head is 2, here 4'), ({'n_layer': 3}, 'is None, here'),
    ({'vocab_size': 401, 'dataset': 'larger'}, 'its vocabulary is'),
    ({'min_chars': 9000, 'dataset': 'fewer'}, 'its vocabulary is')])
def test_weights_of_another_shape_or_vocabulary_are_refused(own, says, here):
    train.main(settings(out_dir='out/first'))  # once, for all
    with pytest.raises(train.UserError, match=says):
        train.main(settings(**{'out_dir': 'out/refused', 'init_from': 'out/first'} | own))
    assert not Path('out/refused/config.json').exists()
