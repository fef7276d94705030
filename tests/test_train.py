"""train.py: the loop, its checkpoints and logs, and what happens to a run already in the folder."""
import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLONES, ROOT, arguments, kill, script, settings, two_processes
from faults import same

import train


def log_of(out_dir):
    return [json.loads(line) for line in (Path(out_dir) / 'log.jsonl').read_text().splitlines()]


def contents(out_dir):
    """Every file of a run but the one that depends on the machine's speed."""
    return {p.name: p.read_bytes() for p in Path(out_dir).iterdir() if p.name != 'speed.jsonl'}


def load(path):
    return torch.load(path, weights_only=True)


def train_until_killed(command, out_dir):
    """Start a run and kill -9 it once it has a checkpoint."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not Path(out_dir, 'ckpt.pt').exists() and process.poll() is None:
        time.sleep(0.002)
    kill(process)


def test_missing_dataset_is_prepared_then_a_run_tells_what_it_saw_and_learned(alone):
    result = script('train.py', *arguments(**CLONES, max_iters=40, eval_interval=20, out_dir='out/a'))
    assert result.status == 0, result.err
    assert sorted(contents('out/a')) == ['ckpt.pt', 'config.json', 'log.jsonl']
    log = log_of('out/a')
    losses = [record['loss'] for record in log if 'loss' in record]
    assert len(losses) == 40 and losses[0] == pytest.approx(math.log(800), rel=0.03) and losses[-1] < losses[0] - 0.5
    assert [record['step'] for record in log if 'eval_loss' in record] == [20, 40]
    counted = [record for record in log if 'loss' in record][-1]['tokens_seen']
    assert sum(counted.values()) == 40 * 8 * 32 and counted['EN1'] > counted['EN2'] > 0
    assert 'tokens seen: EN1 {EN1:,}, EN2 {EN2:,}\n'.format(**counted) in result.out
    assert 'evaluation loss EN1 {EN1:.4f}, EN2 {EN2:.4f}\n'.format(**log[-1]['eval_loss']) in result.out
    assert 'python analyze.py ppl out/a' in result.out
    assert load('out/a/ckpt.pt')['sequences_read'] == [n // 32 for n in counted.values()]


def test_the_same_command_twice_writes_the_same_bytes(alone):
    files = []
    for _ in range(2):
        assert script('train.py', *arguments(**CLONES, out_dir='out/a')).status == 0
        files.append(contents('out/a'))
        shutil.rmtree('out')
        shutil.rmtree('data')
    assert files[0] == files[1]


def test_learning_rate_warms_up_and_follows_a_cosine():
    cfg = settings(learning_rate=6e-4, min_lr=6e-6, warmup_iters=500, max_iters=18265)
    assert train.learning_rate(0, cfg) == pytest.approx(6e-4 / 500)
    assert train.learning_rate(249, cfg) == pytest.approx(3e-4)
    assert train.learning_rate(500, cfg) == pytest.approx(6e-4)
    assert train.learning_rate(500 + (18265 - 500) / 2, cfg) == pytest.approx((6e-4 + 6e-6) / 2)
    assert train.learning_rate(18264, cfg) == pytest.approx(6e-6, rel=1e-3)


@pytest.mark.parametrize('model', ['gpt', 'word2vec'])
def test_micro_batches_and_processes_do_not_change_the_run(model, here):
    """The same sequences in the same languages at every step, the same loss and weights up to rounding."""
    common = dict(**CLONES, model=model, max_iters=8, dtype='float32', overwrite=True)
    train.main(settings(**common, out_dir='out/whole'))
    train.main(settings(**common, out_dir='out/micro', micro_batch_size=2))
    for name in ('two', 'two_shard'):
        shard = name == 'two_shard'
        run = arguments(**common, out_dir=f'out/{name}', micro_batch_size=2, shard=shard)
        two = subprocess.run(two_processes(ROOT / 'train.py', *run), capture_output=True, text=True)
        assert two.returncode == 0, two.stderr
    whole = log_of('out/whole')
    weights = load('out/whole/ckpt.pt')['model']
    for other in ('out/micro', 'out/two', 'out/two_shard'):
        for a, b in zip(whole, log_of(other), strict=True):
            assert a.get('tokens_seen') == b.get('tokens_seen')
            for key in a.keys() & {'loss', 'eval_loss'}:
                assert a[key] == pytest.approx(b[key], rel=1e-5), (other, a['step'])
        for name, value in load(f'{other}/ckpt.pt')['model'].items():
            torch.testing.assert_close(value, weights[name], atol=1e-4, rtol=1e-3)


def test_a_killed_and_resumed_word2vec_ends_bit_for_bit_like_an_undisturbed_one(alone):  # a GPT: test_faults.py
    common = dict(**CLONES, model='word2vec', max_iters=200, checkpoint_interval=10, eval_interval=30, log_interval=7)
    assert script('train.py', *arguments(**common, out_dir='out/undisturbed')).status == 0
    command = [sys.executable, str(ROOT / 'train.py'), *arguments(**common, out_dir='out/killed')]
    train_until_killed(command, 'out/killed')
    assert 0 < load('out/killed/ckpt.pt')['step'] < 200
    with open('out/killed/log.jsonl', 'a') as f:
        f.write('{"step": 199, "lo')  # as if killed while writing
    assert 'resumed after step' in script(*command[1:]).out
    assert contents('out/killed')['log.jsonl'] == contents('out/undisturbed')['log.jsonl']
    killed, undisturbed = load('out/killed/ckpt.pt'), load('out/undisturbed/ckpt.pt')
    assert same(killed, undisturbed)  # weights, optimiser, step, sequences read


@pytest.mark.parametrize('first', ['one', 'two'])
def test_a_checkpoint_of_one_process_continues_in_two_with_the_model_split_and_vice_versa(first, alone):
    run = arguments(**CLONES, max_iters=60, checkpoint_interval=10, log_interval=60, eval_interval=60)
    commands = [[sys.executable, str(ROOT / 'train.py'), *run, '--out_dir=out/a'],
                two_processes(ROOT / 'train.py', *run, '--out_dir=out/a', '--shard')]
    assert script('train.py', *run, '--out_dir=out/undisturbed').status == 0
    before, after = commands if first == 'one' else commands[::-1]
    train_until_killed(before, 'out/a')
    assert load('out/a/ckpt.pt')['step'] < 60
    second = subprocess.run(after, capture_output=True, text=True)
    assert second.returncode == 0, second.stderr
    a, b = load('out/a/ckpt.pt'), load('out/undisturbed/ckpt.pt')
    assert a['sequences_read'] == b['sequences_read'] and a['model'].keys() == b['model'].keys()
    assert a['optimizer']['param_groups'] == b['optimizer']['param_groups']
    for name, value in a['model'].items():
        torch.testing.assert_close(value, b['model'][name], atol=2e-3, rtol=1e-2)
        mean, expected = (c['optimizer']['state'][name]['exp_avg'] for c in (a, b))
        torch.testing.assert_close(mean, expected, atol=1e-4, rtol=1e-1)


def test_a_run_says_what_it_will_cost(here):
    # 6 x (26,496 + 400 x 32 weights) + attention 6 x 2 x 32 x 32, x 5,632 tokens
    result = script('train.py', *arguments(max_iters=22, out_dir='out/cost', overwrite=True))
    assert '22 steps of 8 x 32 tokens: 5,632 tokens, 1.4e+09 FLOPs, on 1 x cpu' in result.out


def test_evaluation_is_the_loss_over_the_same_windows_of_test_text(here):
    cfg = settings(**CLONES, out_dir='out/eval')
    train.prepare_dataset(cfg, True)
    dataset = train.Dataset(cfg)
    model = train.new_model(cfg, dataset.meta['vocab_size'])
    device, autocast = train.choose_device('cpu', 'auto')
    losses = [train.evaluate(model, dataset, cfg, device, autocast, micro) for micro in (1, 3, 8)]
    start, end = dataset.meta['corpora']['en']['test']
    windows = np.arange(start, end - 33, 32)
    chosen = windows[np.arange(16) * len(windows) // 16]  # eval_iters x batch_size, evenly spread
    for language, name in enumerate(dataset.names):
        ids = torch.tensor(np.stack([dataset.tokens['test'][w:w + 33] for w in chosen]).astype(int) + 400 * language)
        with torch.no_grad():
            logits = model(ids[:, :-1])
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).item()
        assert [loss[name] for loss in losses] == pytest.approx([expected] * 3, rel=1e-5)


# ---- runs in one folder


@pytest.fixture
def finished(alone):
    """Arguments of a finished run in out/a."""
    run = arguments(out_dir='out/a')
    assert script('train.py', *run).status == 0
    return run


def test_a_finished_run_says_so_and_is_left_alone(finished):
    before = contents('out/a')
    for resume in ([], ['--resume']):  # accepted, and means nothing
        result = script('train.py', *finished, *resume)
        assert result.status == 0 and result.out == 'out/a: this run is finished; --overwrite trains it again\n'
    assert contents('out/a') == before
    assert script('train.py', *finished, '--overwrite').status == 0
    assert contents('out/a') == before


def test_a_setting_that_a_saved_run_lacks_has_its_default(finished):
    saved = json.loads(Path('out/a/config.json').read_text())
    del saved['shared_layer']  # as if it had been added after this run
    Path('out/a/config.json').write_text(json.dumps(saved))
    assert 'is finished' in script('train.py', *finished).out
    result = script('train.py', *finished, '--shared_layer')
    assert 'holds a run with shared_layer = False, not True' in result.err


def test_every_checkpoint_is_kept_as_a_run_of_its_own(alone):
    run = dict(**CLONES, checkpoint_interval=5, out_dir='out/a')
    assert script('train.py', *arguments(**run, keep_checkpoints=True)).status == 0
    assert sorted(path.name for path in Path('out/a').glob('step_*')) == ['step_000005', 'step_000010', 'step_000012']
    for step in (5, 10, 12):
        kept = Path(f'out/a/step_{step:06}')
        saved = train.config.read_json(kept / 'config.json', '')
        assert train.load_checkpoint(kept, train.config.restored(saved, kept))['step'] == step
    assert os.path.samefile('out/a/ckpt.pt', 'out/a/step_000012/ckpt.pt')  # no second copy
    os.replace('out/a/ckpt_previous.pt', 'out/a/ckpt.pt')  # back to step 10
    (kept / 'results.json').write_text('{}')
    assert script('train.py', *arguments(**run, keep_checkpoints=True)).status == 0
    assert contents(kept).keys() == {'ckpt.pt', 'config.json'}
    assert script('train.py', *arguments(**run, overwrite=True)).status == 0
    assert not list(Path('out/a').glob('step_*'))


@pytest.mark.parametrize('change, says', [
    (['--learning_rate=1e-4'], 'holds a run with learning_rate = 0.003, not 0.0001'),
    (['--n_embd=64', '--resume'], 'holds a run with n_embd = 32, not 64'),
    (['--batch_size=4', '--micro_batch_size=3'], 'does not divide'),
    (['--out_dir=out/b', '--block_size=16'], 'made with block_size = 32'),
    (['--out_dir=out/b', '--n_embd=31'], 'a multiple of n_head'),
    (['--out_dir=out/b', '--device=tpu'], "device 'tpu' is not available"),
    (['--out_dir=out/b', '--model=rnn'], "model must be 'gpt' or 'word2vec'"),
    (['--out_dir=out/b', '--max_iters=0'], 'max_iters must be at least 1'),
    (['--out_dir=out/b', '--dtype=float16'], 'dtype must be'),
    (['--out_dir=out/b', '--compile=yes'], "compile must be 'auto', True or False, not 'yes'"),
    (['--out_dir=out/b', '--schedule=[(0.0,(0.5,))]'], 'schedule')])
def test_what_does_not_fit_is_refused_in_one_line_and_changes_nothing(change, says, alone, workplace):
    # one finished run serves all: it is only read
    if not (workplace / 'out' / 'read_only').exists():
        os.chdir(workplace)
        assert script('train.py', *arguments(out_dir='out/read_only')).status == 0
    shutil.copytree(workplace / 'out' / 'read_only', alone / 'out' / 'a')
    shutil.copytree(workplace / 'data' / 'tiny', alone / 'data' / 'tiny')
    os.chdir(alone)
    before = contents('out/a')
    result = script('train.py', *arguments(out_dir='out/a'), *change)
    assert result.status == 1 and says in result.err and len(result.err.splitlines()) == 1, result.err
    assert contents('out/a') == before and not list(Path('out').glob('b/*'))


def test_a_checkpoint_of_another_shape_or_no_checkpoint_at_all_is_refused(finished):
    whole, state = Path('out/a/ckpt.pt').read_bytes(), load('out/a/ckpt.pt') | {'step': 5, 'sequences_read': [40]}
    weights = {name: weight for name, weight in state['model'].items() if name != 'ln_f.bias'}
    by_number = dict(enumerate(state['optimizer']['state'].values()))  # as torch.optim and older versions have it
    for other in ({'model': weights}, {'optimizer': state['optimizer'] | {'state': by_number}}):
        torch.save(state | other, 'out/a/ckpt.pt')
        result = script('train.py', *finished)
        assert result.status == 1 and 'of another shape, or of an older version; --overwrite' in result.err
    for broken in (b'', whole[:1000], b'\x80\x04cos\nsystem\n(S"touch executed"\ntR.'):
        Path('out/a/ckpt.pt').write_bytes(broken)
        result = script('train.py', *finished)
        assert result.status == 1 and 'out/a/ckpt.pt cannot be read' in result.err and '--overwrite' in result.err
        assert not Path('executed').exists()


def test_a_language_that_will_be_read_more_than_once_is_announced_first(here, capsys):
    cfg = settings(**CLONES, max_iters=150, out_dir='out/epochs')
    train.prepare_dataset(cfg, True)
    sizes = {language['name']: language['sequences'] for language in train.Dataset(cfg).meta['languages']}
    cfg.max_iters = math.ceil(1.5 * sizes['EN1'] / 6)  # 8 x 0.75 a step
    train.main(cfg)
    out = capsys.readouterr().out.splitlines()
    first_step = next(i for i, line in enumerate(out) if line.startswith('step'))
    note, = [i for i, line in enumerate(out) if line.startswith('note: EN1')]
    assert note < first_step
    assert float(out[note].split(' reads ')[1].split()[0]) == pytest.approx(1.5, abs=0.1)
    # and the log says at which step each epoch began
    log = log_of('out/epochs')
    for name in sizes:
        seen = {record['step']: record['tokens_seen'][name] for record in log if 'loss' in record}
        expected = [step for step in seen if seen[step] > sizes[name] * 32 >= seen.get(step - 1, 0)]
        assert [record['step'] for record in log if record.get('language') == name] == expected


def test_three_languages_with_one_tokenizer_train_and_are_measured_each(alone, documents):
    for name, change in (('fr', str.upper), ('de', str.swapcase)):
        (alone / name).mkdir()
        for i, text in enumerate(documents[:20]):
            (alone / name / f'{i}.txt').write_text(change(text))
    run = arguments(corpora={'en': 'text/*.txt', 'fr': 'fr/*.txt', 'de': 'de/*.txt'}, dataset='three',
                    vocab_size=500, out_dir='out/three')
    result = script('train.py', ROOT / 'config' / 'en_fr_de_shared.py', *run)
    assert result.status == 0, result.err
    assert script('analyze.py', 'ppl', 'out/three', '--device=cpu').status == 0
    results = json.loads(Path('out/three/results.json').read_text())
    assert list(results['languages']) == ['EN', 'FR', 'DE'] and sum(results['tokens_seen'].values()) == 12 * 8 * 32
    assert all(1 < language['ppl'] < 700 for language in results['languages'].values())
    assert len({language['test_text'] for language in results['languages'].values()}) == 3


# ---- log_to, init_from


@pytest.mark.parametrize('log_to', ['tensorboard', 'wandb'])
def test_a_log_is_also_drawn_elsewhere_and_a_resumed_run_goes_on_there(log_to, alone):
    pytest.importorskip(log_to)
    run = arguments(**CLONES, out_dir='out/a', log_to=log_to, checkpoint_interval=5)
    for _ in range(2):
        assert script('train.py', *run, WANDB_MODE='offline').status == 0
        os.replace('out/a/ckpt_previous.pt', 'out/a/ckpt.pt')  # back to step 10
    if log_to == 'wandb':
        runs = list(Path('out/a/wandb').glob('offline-run-*'))
        assert len({run.name.rpartition('-')[2] for run in runs}) == 1  # of one id
        return
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    drawn = EventAccumulator('out/a/tensorboard').Reload()
    for key, of in ('loss', None), ('lr', None), ('tokens_seen', 'EN2'), ('eval_loss', 'EN1'):
        logged = [(record['step'], record[key][of] if of else record[key]) for record in log_of('out/a') if key in record]
        events = drawn.Scalars(f'{key}/{of}' if of else key)
        assert [event.step for event in events] == [step for step, _ in logged]
        assert [event.value for event in events] == pytest.approx([value for _, value in logged])
    assert {event.value for event in drawn.Scalars('p_language/EN2')} == {0.25}


@pytest.mark.parametrize('log_to, says', [('csv', "log_to must be 'tensorboard'"), ('wandb', r'pip install \.\[log\]')])
def test_a_tracker_that_is_not_there_is_named_before_anything_is_made(log_to, says, alone, monkeypatch):
    monkeypatch.setitem(sys.modules, 'wandb', None)
    with pytest.raises(train.UserError, match=says):
        train.main(settings(log_to=log_to, out_dir='out/a'))
    assert not Path('data').exists() and not Path('out').exists()


def test_a_run_begins_with_the_weights_of_another_and_resumes_without_it(alone, monkeypatch):
    train.main(settings(**CLONES, out_dir='out/first'))
    second = settings(**CLONES, out_dir='out/second', init_from='out/first', learning_rate=0.0, min_lr=0.0, checkpoint_interval=5)
    train.main(second)  # a learning rate of zero: the last weights are the first
    first, last = load('out/first/ckpt.pt'), load('out/second/ckpt.pt')
    assert same(first['model'], last['model']) and last['step'] == 12
    assert json.loads(Path('out/second/config.json').read_text())['init_from'] == 'out/first'
    os.replace('out/second/ckpt_previous.pt', 'out/second/ckpt.pt')  # back to step 10
    shutil.rmtree('out/first')
    train.main(second)
    assert same(load('out/second/ckpt.pt'), last)


@pytest.mark.parametrize('own, says', [
    ({'init_from': 'out/none'}, 'init_from must be a run'), ({'n_embd': 64}, r'its wte.weight is \[400, 32\], here \[400, 64\]'),
    ({'block_size': 16, 'dataset': 'short'}, 'its wpe.weight is'), ({'n_head': 4}, 'its n_head is 2, here 4'),
    ({'vocab_size': 401, 'dataset': 'larger'}, 'its vocabulary is'), ({'n_layer': 3}, 'is None, here'),
    ({'min_chars': 9000, 'dataset': 'fewer'}, 'its vocabulary is'), ({'model': 'word2vec'}, 'wpe.weight is')])
def test_weights_of_another_shape_or_vocabulary_are_refused(own, says, here):
    if not Path('out/first/ckpt.pt').exists():
        train.main(settings(out_dir='out/first'))
    with pytest.raises(train.UserError, match=says):
        train.main(settings(**{'out_dir': 'out/refused', 'init_from': 'out/first'} | own))
    assert not Path('out/refused/config.json').exists()
