"""analyze.py: perplexity by sliding window, scaling laws and token efficiency, alignment and matching: closed forms, brute
force, and second solvers."""
import csv
import gzip
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace

import networkx
import numpy as np
import pytest
import torch
from conftest import CLONES, ROOT, arguments, script, settings
from torch.nn import functional as F

import analyze
import config
import train
from analyze import (
    ScalingLaw,
    embedding_similarity,
    gradient_similarity,
    gradients,
    hidden_similarity,
    joined_lines,
    match,
    read_task,
    shuffled_batches,
    sliding_window,
    task_metrics,
    token_efficiency,
)
from config import UserError
from model import GPT, GPTConfig

# ---- ppl


def untrained(block_size=16, vocab_size=60):
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size, vocab_size, n_layer=2, n_embd=24, n_head=2)).eval()
    for p in model.parameters():
        p.data.mul_(4)  # far from uniform, so that a wrong context shows
    return SimpleNamespace(model=model, cfg=SimpleNamespace(block_size=block_size), device='cpu', autocast=train.choose_device('cpu', 'float32')[1])


def one_token_at_a_time(run, ids, stride):
    """The same contexts, the slow way: token t is scored in the window that starts at the last multiple of stride which
    leaves it block_size - stride tokens of context."""
    context, losses = run.cfg.block_size - stride, []
    for t in range(context + 1, len(ids)):
        start = (t - 1 - context) // stride * stride
        with torch.no_grad():
            logits = run.model(torch.from_numpy(ids[None, start:t]))[0, -1]
        losses.append(F.cross_entropy(logits, torch.tensor(ids[t])).item())
    return losses


@pytest.mark.parametrize('n', [14, 16, 17, 60, 61, 63, 64])
@pytest.mark.parametrize('stride', [1, 4, 16])
def test_sliding_window_is_scoring_one_token_at_a_time(n, stride):
    run, ids = untrained(), np.random.default_rng(n).integers(60, size=n)
    expected = one_token_at_a_time(run, ids, stride)
    total, scored = map(sum, sliding_window(run, ids, stride, batch_size=3))
    assert scored == len(expected) == max(0, n - 1 - (16 - stride))  # each once, the ragged end included
    assert total == pytest.approx(sum(expected), rel=1e-5)
    assert tuple(map(sum, sliding_window(run, ids, stride, batch_size=100))) == pytest.approx((total, scored), rel=1e-6)


def test_a_text_no_longer_than_the_first_context_scores_nothing():
    nats, scored = sliding_window(untrained(), np.arange(13), 4, 8)
    assert len(nats) == len(scored) == 0


def test_ppl_of_a_uniform_model_is_its_vocabulary_in_every_language(in_runs):
    shutil.copytree('out/cloned', 'out_uniform', dirs_exist_ok=True)
    state = torch.load('out_uniform/ckpt.pt', weights_only=True)
    state['model']['lm_head.weight'].zero_()
    torch.save(state, 'out_uniform/ckpt.pt')
    assert script('analyze.py', 'ppl', 'out_uniform').status == 0
    results = json.loads(Path('out_uniform/results.json').read_text())
    corpus = json.loads(Path('data/clones/meta.json').read_text())['corpora']['en']
    for measured in results['languages'].values():
        assert measured['ppl'] == pytest.approx(800, rel=1e-5)
        assert measured['bits_per_byte'] == pytest.approx(math.log2(800) * corpus['test_tokens'] / corpus['test_bytes'], rel=1e-5)
        assert measured['scored_tokens'] == corpus['test_tokens'] - 1 - 24


def test_results_hold_config_tokens_and_measures_and_are_the_same_every_time(in_runs):
    written = []
    for _ in range(2):
        result = script('analyze.py', 'ppl', 'out/cloned', '--device=cpu')
        assert result.status == 0, result.err
        written.append(Path('out/cloned/results.json').read_bytes())
    results = json.loads(written[0])
    assert written[0] == written[1]
    assert results['config']['languages'] == [['EN1', 'en'], ['EN2', 'en']] and results['config']['n_embd'] == 32
    assert sum(results['tokens_seen'].values()) == 200 * 8 * 32 and list(results['languages']) == ['EN1', 'EN2']
    for name, measured in results['languages'].items():
        assert measured['ppl'] == pytest.approx(math.exp(measured['loss']))
        assert f'{name}: PPL {measured["ppl"]:.2f}' in result.out
    assert results['languages']['EN1']['ppl'] < results['languages']['EN2']['ppl'] < 400  # the frequent clone is ahead
    assert script('analyze.py', 'ppl', 'out/cloned', '--device=cpu', '--languages', 'EN2').status == 0
    assert json.loads(Path('out/cloned/results.json').read_text())['languages'] == {'EN2': results['languages']['EN2']}
    unknown = script('analyze.py', 'ppl', 'out/cloned', '--device=cpu', '--languages', 'FR')
    assert unknown.status == 1 and "no language 'FR'; it has EN1, EN2" in unknown.err


def test_teff_measures_what_is_missing_prints_a_table_and_draws_its_figure(in_runs):
    for path in Path('out').glob('*/results.json'):
        path.unlink()
    folders = [f'out/{name}' for name in ('mono_20', 'mono_50', 'mono_100', 'cloned')]
    result = script('analyze.py', 'teff', *folders, '--csv', 'teff.csv', '--device=cpu')
    assert result.status == 0, result.err
    assert Path('out/teff.png').read_bytes().startswith(b'\x89PNG')
    again = script('analyze.py', 'teff', *folders, 'out/teff.png')  # as out/* gives them
    assert again.status == 0 and 'EN1: PPL' in result.out and 'EN1: PPL' not in again.out
    with open('teff.csv', newline='') as f:
        rows = {(row['run'], row['language']): row for row in csv.DictReader(f)}
    assert rows['mono_50', 'EN']['role'] == 'mono' and rows['cloned', 'EN2']['role'] == 'multi'
    assert rows['mono_50', 'EN']['model'] == 'gpt-2x32' and int(rows['mono_50', 'EN']['tokens']) == 100 * 8 * 32
    for name in ('mono_20', 'mono_50', 'mono_100'):
        assert float(rows[name, 'EN']['teff']) == pytest.approx(1, abs=1e-6)  # three points are met exactly
        assert rows[name, 'EN']['teff_low'] == ''  # and tell nothing of their scatter
    same = script('analyze.py', 'teff', '--runs', 'teff.csv')  # its own table is a table of runs
    assert same.status == 0 and same.out.splitlines() == [line for line in again.out.splitlines() if 'figure' not in line and 'scored tokens' not in line]


def test_teff_refuses_unfinished_runs_and_different_test_texts(in_runs):
    results = json.loads(Path('out/mono_20/results.json').read_text()) if Path('out/mono_20/results.json').exists() else None
    results = results or (script('analyze.py', 'ppl', 'out/mono_20') and json.loads(Path('out/mono_20/results.json').read_text()))
    for name, changes, says in (('short', {'step': 3}, 'is at step 3 of 40'),
                                ('other', {'languages': {'EN': results['languages']['EN'] | {'test_text': 'x'}}}, 'different test texts')):
        Path(name).mkdir(exist_ok=True)
        (Path(name) / 'results.json').write_text(json.dumps(results | changes))
        result = script('analyze.py', 'teff', 'out/mono_20', name)
        assert result.status == 1 and says in result.err and len(result.err.splitlines()) == 1


@pytest.mark.parametrize('command, says', [
    (['ppl', 'nowhere'], 'nowhere is not a run'), (['ppl', 'out/cloned', '--stride=33'], 'leaves tokens unscored'),
    (['ppl', 'out/cloned', '--batch_size=0'], 'at least 1'), (['teff'], 'needs the folders'), (['teff', 'out/cloned', '--runs=x.csv'], 'not both'),
    (['teff', '--runs=x.csv', '--plot=x.doc'], 'a figure is a .png'), (['teff', 'out/mono_20'], 'at least three'), (['teff', '--runs=none.csv'], 'cannot be read')])
def test_analyze_refuses_in_one_line(command, says, in_runs):
    result = script('analyze.py', *command)
    assert result.status == 1 and says in result.err and len(result.err.splitlines()) == 1, result.err


# ---- teff


def table(points, law='gpt', corpus='en'):
    """(role, tokens, ppl) -> rows."""
    return [{'run': f'run{i}', 'model': law, 'corpus': corpus, 'language': 'EN', 'tokens': t, 'ppl': ppl, 'role': role} for i, (role, t, ppl) in enumerate(points)]


@pytest.mark.parametrize('a, b, c, unit', [(0.034, 0.24, 0.08, 1.2e9), (0.02, 0.6, 0.05, 5e6), (0.2, 0.05, 0.25, 1e6)])
def test_known_law_gives_known_teff(a, b, c, unit):
    ppl = lambda t: 1 / (c - a * (t / unit) ** -b)
    fractions = (0.2, 0.35, 0.5, 0.8, 1)
    wanted = {0.3 * unit: 2.0, 0.6 * unit: 0.75, 0.9 * unit: 1.05}  # tokens -> TEff
    rows = table([('mono', f * unit, ppl(f * unit)) for f in fractions] + [('multi', t, ppl(teff * t)) for t, teff in wanted.items()])
    law, = token_efficiency(rows).values()
    assert (law.a, law.b, law.c) == pytest.approx((a, b, c), rel=1e-4)
    for row, (tokens, teff) in zip(rows[5:], wanted.items()):
        assert row['teff'] == pytest.approx(teff, abs=5e-5)
        assert row['mlte'] == pytest.approx(teff * tokens, rel=5e-5) and row['mlpe'] == pytest.approx(ppl(tokens), rel=1e-5)
        assert row['teff_low'] == pytest.approx(teff, abs=1e-3) == row['teff_high']  # no scatter
    assert [row['extrapolated'] for row in rows] == ['no'] * 8


PAPER = [('mono', 1.2e9, 21.9), ('mono', 0.6e9, 25.3), ('mono', 0.12e9, 48.4)]  # Table 1, rows 1 to 3


@pytest.mark.parametrize('row, share, ppl, printed', [('5, EN2', 0.1, 32.8, 2.08), ('4', 0.5, 26.1, 0.89), ('6, EN1', 0.1, 35.5, 1.69),
                                                      ('9, EN1', 0.5, 26.5, 0.83), ('9, EN2', 0.5, 24.4, 1.18)])
def test_papers_points_give_the_papers_teff(row, share, ppl, printed):
    """The paper's law had more points than it prints, hence the tolerance."""
    rows = table(PAPER + [('multi', share * 1.2e9, ppl)])
    token_efficiency(rows)
    assert rows[-1]['teff'] == pytest.approx(printed, abs=0.1)
    if row == '5, EN2':
        assert rows[-1]['teff'] == pytest.approx(2.1, abs=0.1)


def test_interval_holds_the_truth_in_95_of_100_laws():
    rng, inside, n = np.random.default_rng(0), 0, 400
    a, b, c = 0.034, 0.24, 0.08
    x = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1])
    ppl = 1 / (c - a * 0.3 ** -b)
    for _ in range(n):
        law = ScalingLaw(x, 1 / (c - a * x ** -b + rng.normal(0, 2e-4, len(x))))
        inside += 0.3 / law.interval(ppl) < law.tokens(ppl) < 0.3 * law.interval(ppl) or law.tokens(ppl) / law.interval(ppl) < 0.3 < law.tokens(ppl) * law.interval(ppl)
    assert 0.92 <= inside / n <= 0.98


def test_what_lies_outside_the_monolingual_runs_is_marked():
    rows = table(PAPER + [('multi', 0.12e9, 60.0), ('multi', 1.2e9, 21.0), ('multi', 1.2e9, 22.0)])
    token_efficiency(rows)
    assert [row['extrapolated'] for row in rows] == ['no', 'no', 'no', 'yes', 'yes', 'no']


def test_so_few_tokens_that_the_law_says_nothing_have_no_mlpe_but_a_teff():
    rows = table(PAPER + [('multi', 0.02 * 1.2e9, 48.4)])  # 1/PPL of the law is negative below 3% of the tokens
    token_efficiency(rows)
    assert math.isnan(rows[-1]['mlpe']) and rows[-1]['teff'] == pytest.approx(5)


def test_every_corpus_and_size_has_its_own_law():
    rows = table(PAPER + [('multi', 0.6e9, 25.3)]) + table([(r, t, 2 * p) for r, t, p in PAPER] + [('multi', 0.6e9, 50.6)], corpus='fr')
    assert list(token_efficiency(rows)) == [('gpt', 'en'), ('gpt', 'fr')]
    assert [row['teff'] for row in rows] == pytest.approx([1] * 8)


@pytest.mark.parametrize('text, says', [
    ('', 'has no rows'), ('run,model,corpus,language,tokens,ppl\nr,m,c,l,1,2\n', "no column 'role'"),
    ('run,model,corpus,language,tokens,ppl,role\nr,m,c,l,many,2,mono\n', 'line 2: tokens must be'),
    ('run,model,corpus,language,tokens,ppl,role\nr,m,c,l,1,2,mono\nr,m,c,l,1,nan,mono\n', 'line 3'),
    ('run,model,corpus,language,tokens,ppl,role\nr,m,c,l,1,2\n', 'line 2'),
    ('run,model,corpus,language,tokens,ppl,role\nr,m,c,l,1,2,both\n', 'role mono or multi'),
    ('run,model,corpus,language,tokens,ppl,role\nr,m,c,l,1,9,mono\nr,m,c,l,2,8,mono\n', 'at least three'),
    ('run,model,corpus,language,tokens,ppl,role\nr,m,c,l,1,9,multi\n', 'no monolingual run'),
    ('run,model,corpus,language,tokens,ppl,role\nr,m,c,l,1,7,mono\nr,m,c,l,2,8,mono\nr,m,c,l,3,9,mono\n', 'do not get better'),
    ('run,model,corpus,language,tokens,ppl,role\n' + ''.join(f'r,m,c,l,{t},{p},mono\n' for _, t, p in PAPER) + 'far,m,c,l,1e9,11,multi\n', 'run far, l: .* never reaches'),
    ('run,model,corpus,language,tokens,ppl,role\n\xff', 'cannot be read')])
def test_a_bad_table_is_one_line_and_writes_nothing(text, says, tmp_path, capsys):
    (tmp_path / 'runs.csv').write_bytes(text.encode('latin-1'))
    args = SimpleNamespace(runs=str(tmp_path / 'runs.csv'), out_dirs=[], csv=str(tmp_path / 'out.csv'), plot=str(tmp_path / 'fig.png'))
    with pytest.raises(UserError, match=says):
        analyze.teff(args)
    assert [p.name for p in tmp_path.iterdir()] == ['runs.csv']


def test_settings_of_a_run_survive_new_settings_in_default(in_runs):
    saved = json.loads(Path('out/mono_20/config.json').read_text())
    saved.pop('num_workers')  # as written by a version that had no such setting
    shutil.copytree('out/mono_20', 'older', dirs_exist_ok=True)
    Path('older/config.json').write_text(json.dumps(saved))
    assert analyze.load_run('older', 'cpu').cfg.num_workers == settings().num_workers - 2


# ---- alignment and matching

V = 30


def cloned_model(n_layer=3):
    """An untrained model over two clones of V pieces, as load_run gives it."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(block_size=20, vocab_size=2 * V, n_layer=n_layer, n_embd=24, n_head=2))
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return SimpleNamespace(model=model, device='cpu', autocast=train.choose_device('cpu', 'float32')[1])


def sequences(n=4):
    rng = np.random.default_rng(0)
    return [(ids, ids + V) for ids in (rng.integers(V, size=15) for _ in range(n))]


def equal_rows(run):
    for table in (run.model.wte, run.model.lm_head):
        table.weight.data[V:] = table.weight.data[:V]
    return run


def test_equal_embedding_rows_make_hidden_states_and_gradients_equal_at_every_layer():
    run = equal_rows(cloned_model())
    found = hidden_similarity(run, sequences(), clones=True)
    assert found['position'] == pytest.approx([1] * 3, abs=1e-6) and found['matching'] == pytest.approx([1] * 3, abs=1e-6)
    found = gradient_similarity(run, sequences())
    assert np.array(list(found['blocks'].values())) == pytest.approx(1, abs=1e-5) and found['macro_average'] == pytest.approx(1, abs=1e-5)
    assert all(len(layers) == 3 for layers in found['blocks'].values())
    assert found['others']['wpe.weight'] == pytest.approx(1, abs=1e-5)
    assert found['others']['wte.weight'] == 0  # different rows of the table


def test_orthogonal_embedding_rows_have_similarity_0():
    run = cloned_model(n_layer=2)
    for p in run.model.parameters():
        p.data.zero_()  # the blocks pass the embeddings on
    run.model.wte.weight.data[:V, :12] = torch.randn(V, 12)
    run.model.wte.weight.data[V:, 12:] = torch.randn(V, 12)
    assert hidden_similarity(run, sequences(), clones=True)['position'] == pytest.approx([0, 0], abs=1e-7)
    found = embedding_similarity(run.model.wte.weight.data, np.arange(2 * V).reshape(2, V), np.ones(V))
    assert (found['mean'], found['all_pairs']) == pytest.approx((0, 0), abs=1e-12)


def test_gradient_of_a_sequence_with_itself_has_similarity_1():
    run = cloned_model()
    found = gradient_similarity(run, [(a, a) for a, _ in sequences()])
    assert found['macro_average'] == pytest.approx(1) and all(v == pytest.approx(1) for v in found['others'].values())


def test_gradients_are_of_the_whole_sequence_with_query_key_and_value_apart():
    run, (ids, _) = cloned_model(), sequences()[0]
    found = gradients(run, ids)
    logits = run.model(torch.from_numpy(ids)[None, :-1])[0]
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(ids)[1:])
    fused, = torch.autograd.grad(loss, run.model.h[1].attn.c_attn.weight)
    whole = torch.cat([found[f'h.1.attn.c_attn.{part}.weight'] for part in 'qkv'])
    torch.testing.assert_close(whole, fused.flatten(), atol=1e-6, rtol=1e-4)
    assert len(found) == len(list(run.model.parameters())) + 2 * 2 * 3  # 2 more for each weight and bias of 3 layers


def test_embedding_similarity_is_brute_force_on_a_small_table():
    rng = np.random.default_rng(0)
    table, rows = torch.from_numpy(rng.normal(size=(50, 7))), np.stack([np.arange(25), np.arange(25, 50)])
    rows[1, :5] = rows[0, :5]  # anchors: one row for both
    frequency = np.array([0, 1, 9, 10, 99, 0, 0, 1, 9, 10, 99, 100, 999, 1000, 1000] + [5] * 10)
    found = embedding_similarity(table, rows, frequency)
    cosine = lambda i, j: float(table[i] @ table[j] / table[i].norm() / table[j].norm())
    assert found['subwords'] == 20
    assert found['mean'] == pytest.approx(np.mean([cosine(i, j) for i, j in rows.T[5:]]))
    assert found['all_pairs'] == pytest.approx(np.mean([cosine(i, j) for i in rows[0, 5:] for j in rows[1, 5:]]))
    assert [(b['from'], b['below'], b['subwords']) for b in found['by_frequency']] == [
        (0, 1, 2), (1, 10, 2 + 10), (10, 100, 2), (100, 1000, 2), (1000, 10000, 2)]
    assert found['by_frequency'][0]['mean'] == pytest.approx(np.mean([cosine(i, j) for i, j in rows.T[5:7]]))


@pytest.mark.parametrize('shape', [(1, 1), (6, 6), (4, 9), (9, 4), (1, 5)])
@pytest.mark.parametrize('tied', [False, True])
def test_matching_weighs_as_much_as_networkxs(shape, tied):
    rng = np.random.default_rng(sum(shape))
    cosine = rng.integers(3, size=shape) / 2 if tied else rng.normal(size=shape)
    rows, columns = match(cosine)
    graph = networkx.Graph()
    for i in range(shape[0]):
        for j in range(shape[1]):
            graph.add_edge(('row', i), ('column', j), weight=-cosine[i, j])
    best = networkx.bipartite.minimum_weight_full_matching(graph, [('row', i) for i in range(shape[0])], 'weight')
    weight = sum(cosine[i, best['row', i][1]] for i in range(shape[0]) if ('row', i) in best)
    assert len(set(rows)) == len(set(columns)) == len(rows) == min(shape)
    assert cosine[rows, columns].sum() == pytest.approx(weight)


def test_lines_are_joined_up_to_the_longest_and_short_ends_dropped():
    ids = lambda n, m: (np.full(n, n), np.full(m, m))
    lines = [ids(5, 4), ids(3, 5), ids(9, 20), ids(4, 2), ids(1, 1)]  # the third fits no sequence of 10
    assert [tuple(map(len, pair)) for pair in joined_lines(lines, 10)] == [(8, 9), (5, 3)]
    assert [tuple(map(len, pair)) for pair in joined_lines([*lines, ids(10, 10), ids(1, 1)], 10)] == [(8, 9), (5, 3), (10, 10)]


def test_only_a_line_feed_ends_a_line_of_parallel_text(tmp_path):
    (tmp_path / 'a.txt').write_bytes('one\u2028still one\x85and\x0bthis\r\ntwo\n'.encode())
    assert analyze.read_lines(str(tmp_path / 'a.txt')) == ['one\u2028still one\x85and\x0bthis', 'two']


def test_training_frequency_counts_what_the_run_has_read(in_runs):
    run = analyze.load_run('out/cloned', 'cpu')
    sampler = train.Sampler(run.dataset.pools, run.cfg.schedule, 8, 200, run.cfg.seed)
    expected = np.zeros((2, 400), int)
    for step in range(200):
        s, languages = sampler.next(step)
        x, _ = run.dataset.batch(s, languages)
        for row, language in zip(x, languages):
            np.add.at(expected[language], row - 400 * language, 1)
    for language in (0, 1):
        assert (analyze.training_frequency(run, language) == expected[language]).all()


def test_alignment_of_clones_on_test_text_and_on_given_lines(in_runs, documents):
    lines = [line for text in documents[:5] for line in text.splitlines() if line.strip()]
    with gzip.open('lines.gz', 'wt', encoding='utf-8') as f:
        f.write('\n'.join(lines))
    for extra in ([], ['--parallel', 'lines.gz'], ['--languages', 'EN2', 'EN1']):
        result = script('analyze.py', 'alignment', 'out/cloned', '--sequences=6', '--device=cpu', *extra)
        assert result.status == 0, result.err
    found = json.loads(Path('out/cloned/alignment.json').read_text())
    assert found['languages'] == ['EN2', 'EN1'] and found['sequences'] == 6
    assert set(found['embeddings']) == {'input', 'output'} and len(found['hidden_states']['position']) == 2
    for position, matched in zip(*found['hidden_states'].values()):
        assert -1 <= position <= 1 and -1 <= matched <= 1


def test_alignment_and_matching_of_two_corpora(in_runs, documents):
    Path('upper').mkdir(exist_ok=True)
    for i, text in enumerate(documents[:8]):
        (Path('upper') / f'{i}.txt').write_text(text.upper())
    two = dict(dataset='two', corpora={'en': 'text/*.txt', 'up': 'upper/*.txt'}, languages=[('EN', 'en'), ('UP', 'up')],
               schedule=[(0.0, (0.5, 0.5))], vocab='anchored', max_iters=20, out_dir='out_two', vocab_size=350)
    assert script('train.py', *arguments(**two)).status == 0
    lines = [line for line in documents[3].splitlines() if line.strip()]
    Path('a.en').write_text('\n'.join(lines))
    Path('a.up').write_text('\n'.join(lines).upper())
    result = script('analyze.py', 'alignment', 'out_two', '--sequences=5', '--parallel', 'a.en', 'a.up')
    assert result.status == 0, result.err
    assert set(json.loads(Path('out_two/alignment.json').read_text())['hidden_states']) == {'matching'}
    result = script('analyze.py', 'matching', 'out_two', '--parallel', 'a.en', 'a.up', '--line', '2')
    assert result.status == 0, result.err
    assert Path('out_two/matching_line_2.png').read_bytes().startswith(b'\x89PNG') and result.out.count('\t') >= 4
    for files, says in (([], 'need parallel text'), (['a.en'], 'a file each|two aligned files'), (['a.en', 'text/00.txt'], 'not aligned')):
        result = script('analyze.py', 'alignment', 'out_two', *(['--parallel', *files] if files else []))
        assert result.status == 1 and any(word in result.err for word in says.split('|')) and len(result.err.splitlines()) == 1


@pytest.mark.parametrize('command, says', [
    (['alignment', 'out/mono_20'], 'two different languages'), (['alignment', 'out/cloned', '--languages', 'EN1', 'FR'], "no language 'FR'"),
    (['alignment', 'out/cloned', '--parallel', 'none.txt'], 'none.txt: cannot be read'), (['alignment', 'out/cloned', '--sequences=0'], 'at least 1'),
    (['matching', 'out/cloned', '--parallel', 'text/00.txt', '--line=1000000'], 'has lines 1 to'),
    (['glue', 'out/mono_20', '--data', '.'], 'two different languages')])
def test_alignment_and_matching_refuse_in_one_line(command, says, in_runs):
    result = script('analyze.py', *command)
    assert result.status == 1 and says in result.err and len(result.err.splitlines()) == 1, result.err


def test_clones_with_one_vocabulary_have_no_embeddings_to_compare(in_runs):
    shutil.rmtree('out_shared', ignore_errors=True)
    assert script('train.py', *arguments(**CLONES | {'dataset': 'shared', 'anchor_frac': 1.0, 'max_iters': 3, 'out_dir': 'out_shared'})).status == 0
    result = script('analyze.py', 'alignment', 'out_shared', '--sequences=2')
    assert result.status == 1 and 'share their whole vocabulary' in result.err


def test_word2vec_is_measured_by_its_embeddings_and_has_no_perplexity(in_runs):
    assert script('train.py', *arguments(**CLONES | {'model': 'word2vec', 'max_iters': 20, 'out_dir': 'out_word2vec'})).status == 0
    result = script('analyze.py', 'alignment', 'out_word2vec', '--device=cpu')
    assert result.status == 0, result.err
    found = json.loads(Path('out_word2vec/alignment.json').read_text())
    assert set(found) == {'languages', 'embeddings'} and set(found['embeddings']) == {'input', 'output'}
    result = script('analyze.py', 'ppl', 'out_word2vec', '--device=cpu')
    assert result.status == 1 and 'has no perplexity' in result.err and len(result.err.splitlines()) == 1


# ---- glue

# every task as GLUE and SuperGLUE write it, and as JSON lines of the same fields or of the usual copies: two examples each
OFFICIAL = {
    'cola': ('CoLA', 'tsv', 'gj04\t1\t\tIt sails.\ngj04\t0\t*\tSails it the.\n'),
    'sst2': ('SST-2', 'tsv', 'sentence\tlabel\na "fine film \t1\ndull\t0\n'),
    'mrpc': ('MRPC', 'tsv', '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\tOne.\tTwo.\r\n0\t9\t10\tThree.\tFour.\r\n'),
    'qqp': ('QQP', 'tsv', 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n0\t1\t2\tWhy?\tHow?\t0\n5\t6\tlost\n1\t3\t4\tWho?\tWho is it?\t1\n'),
    'mnli': ('MNLI', 'tsv', 'index\tsentence1\tsentence2\tlabel1\tgold_label\n0\tA.\tB.\tneutral\tneutral\n1\tC.\tD.\tneutral\tcontradiction\n'),
    'qnli': ('QNLI', 'tsv', 'index\tquestion\tsentence\tlabel\n0\tWhen?\tIn 1.\tentailment\n1\tWho?\tAt 2.\tnot_entailment\n'),
    'rte': ('RTE', 'tsv', 'index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n1\tC.\tD.\tentailment\n'),
    'boolq': ('BoolQ', 'jsonl', '{"question": "is it", "passage": "It is.", "idx": 0, "label": true}\n{"question": "was it", "passage": "No.", "idx": 1, "label": false}\n'),
    'multirc': ('MultiRC', 'jsonl', '{"idx": 0, "passage": {"text": "He ate.", "questions": [{"question": "Who?", "answers": ['
                                    '{"text": "He", "idx": 0, "label": 1}, {"text": "She", "idx": 1, "label": 0}]}]}}\n'),
    'wsc': ('WSC', 'jsonl', '{"text": "Ann saw Eve, she ran.", "target": {"span1_text": "Ann", "span2_text": "she", "span1_index": 0}, "label": true}\n'
                            '{"text": "Bob hit it.", "target": {"span1_text": "Bob", "span2_text": "it"}, "label": false}\n')}
COPIES = {
    'cola': [('sentence', 'It sails.', 'label', 1), ('sentence', 'Sails it the.', 'label', 0)],
    'sst2': [('sentence', 'a "fine film ', 'label', 1), ('sentence', 'dull', 'label', 0)],
    'mrpc': [('sentence1', 'One.', 'sentence2', 'Two.', 'label', 1), ('sentence1', 'Three.', 'sentence2', 'Four.', 'label', 0)],
    'qqp': [('question1', 'Why?', 'question2', 'How?', 'label', 0), ('question1', 'Who?', 'question2', 'Who is it?', 'label', 1)],
    'mnli': [('premise', 'A.', 'hypothesis', 'B.', 'label', 1), ('premise', 'C.', 'hypothesis', 'D.', 'label', 2)],
    'qnli': [('question', 'When?', 'sentence', 'In 1.', 'label', 0), ('question', 'Who?', 'sentence', 'At 2.', 'label', 1)],
    'rte': [('premise', 'A.', 'hypothesis', 'B.', 'label', 'not_entailment'), ('premise', 'C.', 'hypothesis', 'D.', 'label', 'entailment')],
    'boolq': [('question', 'is it', 'passage', 'It is.', 'label', 1), ('question', 'was it', 'passage', 'No.', 'label', 0)],
    'multirc': [('paragraph', 'He ate.', 'question', 'Who?', 'answer', 'He', 'label', 1), ('paragraph', 'He ate.', 'question', 'Who?', 'answer', 'She', 'label', 0)],
    'wsc': [('text', 'Ann saw Eve, she ran.', 'span1_text', 'Ann', 'span2_text', 'she', 'label', 1), ('text', 'Bob hit it.', 'span1_text', 'Bob', 'span2_text', 'it', 'label', 0)]}


@pytest.mark.parametrize('task', analyze.GLUE)
def test_official_files_and_json_lines_of_a_task_are_the_same_examples(task, tmp_path):
    folder, kind, text = OFFICIAL[task]
    (tmp_path / f'train.{kind}').write_text(text, 'utf-8', newline='')
    official = read_task(tmp_path, task, 'train')
    (tmp_path / f'train.{kind}').unlink()
    (tmp_path / 'train.json').write_text('\n'.join(json.dumps(dict(zip(r[::2], r[1::2]))) for r in COPIES[task]))
    assert official == read_task(tmp_path, task, 'train') and len(official) == 2
    (texts, label), (_, other) = official
    assert label == COPIES[task][0][-1] if isinstance(COPIES[task][0][-1], int) else (label, other) == (1, 0)
    assert label != other and len(texts) == (1 if task in ('cola', 'sst2') else 2)


def test_metrics_are_their_definitions():
    rng = np.random.default_rng(0)
    for _ in range(20):
        predicted, true = rng.integers(2, size=(2, 50))
        precision, recall = (true[predicted == 1] == 1).mean(), (predicted[true == 1] == 1).mean()
        assert task_metrics(predicted, true, 'f1') == pytest.approx({'accuracy': (predicted == true).mean(), 'f1': 2 / (1 / precision + 1 / recall)})
        assert task_metrics(predicted, true, 'matthews')['matthews'] == pytest.approx(np.corrcoef(predicted, true)[0, 1])
    assert task_metrics(np.zeros(4), np.array([0, 1, 1, 0]), 'matthews')['matthews'] == 0  # one class only


def test_batches_hold_every_example_once_and_little_padding():
    lengths = np.random.default_rng(0).integers(1, 60, size=1000)
    batches = shuffled_batches(lengths, 8, [0, 0])
    assert sorted(np.concatenate(batches)) == list(range(1000)) and {len(b) for b in batches} == {8}
    assert sum(lengths[b].max() * len(b) for b in batches) < 1.2 * lengths.sum()
    assert [b.tolist() for b in batches] != [b.tolist() for b in shuffled_batches(lengths, 8, [0, 1])]


def test_a_long_example_loses_the_end_of_its_longer_text(in_runs):
    run = analyze.load_run('out/cloned', 'cpu')
    tokenizer = analyze.load_tokenizer(run.dataset.path / 'en.model')
    short, long = 'is it', 'the name of a module and the value of an attribute ' * 3
    a, b = tokenizer.encode(short), tokenizer.encode(long)
    ids, classes = analyze.encode_examples(run, 0, [([short, long], 1), ([long, short], 0), ([long], 1), ([long, long], 0), ([short, short], 0)], 32)
    eod = [tokenizer.eod]
    assert [i.tolist() for i in ids] == [a + eod + b[:30 - len(a)] + eod, b[:30 - len(a)] + eod + a + eod, b[:31] + eod,
                                         b[:15] + eod + b[:15] + eod, a + eod + a + eod]
    assert classes.tolist() == [1, 0, 1, 0, 0]


@pytest.fixture(scope='session')
def glue_data(tmp_path_factory):
    """SST-2's format, on a task that a look at one word solves."""
    folder, rng = tmp_path_factory.mktemp('glue'), np.random.default_rng(0)
    (folder / 'SST-2').mkdir()
    words = 'module class value name object type function string number file'.split()
    for which, n in (('train', 600), ('dev', 200)):
        rows = [(f'{" ".join(rng.choice(words, 2))} {("is not", "returns")[label]} {rng.choice(words)}', label)
                for label in rng.integers(2, size=n)]
        (folder / 'SST-2' / f'{which}.tsv').write_text('sentence\tlabel\n' + ''.join(f'{text}\t{label}\n' for text, label in rows))
    return folder


def test_glue_learns_in_l1_and_reports_both(in_runs, glue_data):
    command = ['analyze.py', 'glue', 'out/cloned', '--data', glue_data, '--epochs=8', '--learning_rate=5e-3', '--device=cpu']
    assert script(*command).status == 0
    first = Path('out/cloned/glue.json').read_bytes()
    assert script(*command).status == 0
    assert Path('out/cloned/glue.json').read_bytes() == first  # seeded
    found = json.loads(first)['tasks']['sst2']
    assert found['EN1']['accuracy'] > max(0.9, found['majority'] + 0.2) and 0.2 < found['EN2']['accuracy'] < 1
    assert found['majority'] < 0.6 and found['steps'] <= 8 * 10


def test_clones_that_share_all_embeddings_agree_exactly(in_runs, glue_data):
    assert script('train.py', *arguments(**CLONES | {'dataset': 'shared', 'anchor_frac': 1.0, 'max_iters': 3, 'out_dir': 'out_shared'})).status == 0
    result = script('analyze.py', 'glue', 'out_shared', '--data', glue_data, '--tasks=sst2', '--epochs=8', '--learning_rate=5e-3', '--device=cpu')
    assert result.status == 0, result.err
    found = json.loads(Path('out_shared/glue.json').read_text())
    assert found['tasks']['sst2']['EN1'] == found['tasks']['sst2']['EN2'] and found['mean_accuracy']['EN1'] > 0.6


def test_patience_ends_fine_tuning_and_the_best_evaluation_counts(in_runs, glue_data):
    run = analyze.load_run('out/cloned', 'cpu')
    sets = [analyze.encode_examples(run, 0, read_task(glue_data / 'SST-2', 'sst2', which), 32) for which in ('train', 'dev')]
    args = SimpleNamespace(learning_rate=0.0, batch_size=64, epochs=50, patience=3, eval_every=4, seed=0)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    head, steps = analyze.fine_tune(run, *sets, 2, 'accuracy', 0, args, '')
    assert steps == 4 + 4 + 2 + 4  # the first evaluation is the best; three more are not better
    torch.testing.assert_close(run.model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize('files, options, says', [
    ({}, [], 'has no folder of a task'), ({'SST-2/train.tsv': 'sentence\tlabel\na\t1\n'}, [], 'it needs dev.tsv or dev.jsonl'),
    ({}, ['--tasks=sst3'], 'the tasks are cola'), ({}, ['--tasks=rte'], 'has no folder RTE'),
    ({'SST-2/train.tsv': 'sentence\tlabel\na\t7\n'}, [], "train.tsv, line 2: unknown label '7'"),
    ({'SST-2/train.tsv': 'text\tlabel\na\t1\n'}, [], 'no field sentence'), ({'SST-2/train.tsv': ''}, [], 'has no examples'),
    ({'SST-2/train.jsonl': '{"sentence": "a", "label": 1}\n{'}, [], 'train.jsonl, after line 1'),
    ({'MultiRC/train.jsonl': '{"passage": {"text": 3}}'}, [], 'not a record of multirc'), ({'SST-2/train.tsv': '\xff'}, [], 'not a record'),
    ({}, ['--learning_rate=-1'], '--learning_rate must be'), ({}, ['--epochs=0'], '--epochs must be')])
def test_glue_refuses_in_one_line(files, options, says, in_runs, tmp_path, monkeypatch, capsys):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode('latin-1'))
    monkeypatch.setattr('sys.argv', ['analyze.py', 'glue', 'out/cloned', '--data', str(tmp_path), '--device=cpu', *options])
    with pytest.raises(UserError, match=says) as error:
        analyze.main()
    assert '\n' not in str(error.value)


# ---- report

LAW = {'en': (0.034, 0.24, 0.08), 'fr': (0.03, 0.3, 0.09)}  # 1/PPL = c - a * (t / 1M)^-b


def write_run(out_dir, tokens=1_000_000, teff=(), inside=0.5, **overrides):
    """A run whose PPL is the law's at teff x tokens seen, with every measure that its kind allows."""
    cfg = settings(batch_size=10, block_size=100, max_iters=tokens // 1000, **overrides)
    shares, languages, seen = train.marginals(cfg.schedule), {}, {}
    for (name, corpus), share, gain in zip(cfg.languages, shares, teff or [1]):
        a, b, c = LAW[corpus]
        seen[name] = round(share * tokens)
        ppl = 1 / (c - a * (gain * share * tokens / 1e6) ** -b)
        languages[name] = {'corpus': corpus, 'test_text': corpus, 'ppl': ppl, 'loss': math.log(ppl), 'bits_per_byte': 1.0, 'scored_tokens': 9}
    folder = Path('out') / out_dir
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(vars(cfg)))
    names, rng = [name for name, _ in cfg.languages], np.random.default_rng(0)
    if cfg.model == 'gpt':
        (folder / 'results.json').write_text(json.dumps({'config': vars(cfg), 'step': cfg.max_iters, 'tokens_seen': seen, 'languages': languages,
                                                         'non_embedding_parameters': 12 * cfg.n_layer * cfg.n_embd ** 2}))
    if len(names) < 2:
        return
    found, clones = {'languages': names}, cfg.languages[0][1] == cfg.languages[1][1]
    if clones:
        bins = [{'from': n, 'below': 10 * n or 1, 'subwords': 9, 'mean': share} for n, share in zip((0, 1, 10, 100), (0, 0.1, 0.2, 0.4))]
        found['embeddings'] = {table: {'mean': 0.2, 'all_pairs': 0.1, 'subwords': 36, 'by_frequency': bins} for table in ('input', 'output')}
    if cfg.model == 'gpt':
        found |= {'sequences': 5, 'hidden_states': {'position' if clones else 'matching': [inside] * cfg.n_layer},
                  'gradients': {'blocks': {kind: rng.uniform(-1, 1, cfg.n_layer).tolist() for kind in ('ln_1.weight', 'mlp.c_fc.weight')},
                                'others': {'wte.weight': 0.0, 'wpe.weight': 0.1, 'lm_head.weight': 0.0}, 'macro_average': 0.25}}
        (folder / 'glue.json').write_text(json.dumps({'languages': names, 'tasks': {'sst2': {
            'majority': 0.5, 'steps': 3, **{name: {'accuracy': 0.8} for name in names}}}, 'mean_accuracy': dict.fromkeys(names, 0.8)}))
        (folder / 'matching.json').write_text(json.dumps({'languages': names, 'line': 1, 'tokens': [['a', 'b'], ['c']], 'pairs': [[0, 0], [1, 5]]}))
    (folder / 'alignment.json').write_text(json.dumps(found))


def make_report(*command):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('sys.argv', ['analyze.py', 'report', *command])
        analyze.main()


@pytest.fixture(scope='session')
def everything(tmp_path_factory):
    """A folder with runs for every table and figure, of known TEff, and the report on them."""
    folder = tmp_path_factory.mktemp('everything')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_runs()
        make_report(*runs_of_study())
    return folder


@pytest.fixture
def study(everything, monkeypatch):
    monkeypatch.chdir(everything)
    return everything


def runs_of_study():
    return sorted(str(path) for path in Path('out').iterdir())


def write_runs():
    clones, real = {'languages': [('EN1', 'en'), ('EN2', 'en')]}, {'languages': [('EN', 'en'), ('FR', 'fr')], 'corpora': {'en': 'e', 'fr': 'f'}}
    half, most = [(0.0, (0.5, 0.5))], [(0.0, (0.9, 0.1))]
    for corpus in ('en', 'fr'):
        for share in (1, 5, 10):
            write_run(f'mono_{corpus}_{share}', 100_000 * share, languages=[(corpus.upper(), corpus)], corpora={corpus: 'x'})
            write_run(f'mono_{corpus}_{share}_wide', 100_000 * share, languages=[(corpus.upper(), corpus)], corpora={corpus: 'x'}, n_embd=64)
    for kind, languages, vocab in (('cloned', clones, 'disjoint'), ('real', real, 'anchored'), ('real', real, 'disjoint')):
        for name, schedule, teff in (('50_50', half, (0.89, 0.9)), ('90_10', most, (1.0, 2.08))):
            name = f'{kind}_{vocab}_{name}'
            write_run(name, teff=teff, schedule=schedule, vocab=vocab, **languages)
            if vocab == 'anchored' or kind == 'cloned':
                write_run(f'{name}_2x', 2_000_000, teff=(0.4, 0.5), schedule=schedule, vocab=vocab, **languages)
                for tokens in (1_000_000, 2_000_000):
                    write_run(f'{name}_wide_{tokens}', tokens, teff=(0.45, 0.45), schedule=schedule, vocab=vocab, n_embd=64, **languages)
    for seed, teff, inside in ((1, (0.93, 0.9), 0.7), (2, (0.82, 0.9), 0.6)):
        write_run(f'cloned_disjoint_50_50_seed_{seed}', teff=teff, inside=inside, schedule=half, seed=seed, **clones)
    write_run('orders', teff=(0.83, 1.18), schedule=[(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))], **clones)
    write_run('anchors_50', teff=(1.1, 1.2), schedule=half, anchor_frac=0.5, **clones)
    for name, schedule in (('w2v_50', half), ('w2v_90', most)):
        write_run(name, schedule=schedule, model='word2vec', **clones)


def csv_of(name):
    with open(f'report/{name}.csv', newline='') as f:
        return list(csv.DictReader(f))


def test_report_draws_every_figure_and_fills_every_table_from_results_alone(study):
    for name, title, *_ in analyze.FIGURES:
        assert Path(f'report/{name}.png').read_bytes().startswith(b'\x89PNG') and Path(f'report/{name}.pdf').read_bytes().startswith(b'%PDF'), title
    assert 'missing' not in Path('report/report.md').read_text()
    rows = {(row['run'], row['language']): row for row in csv_of('table1_cloned')}
    assert float(rows['cloned_disjoint_90_10', 'EN2']['TEff']) == pytest.approx(2.08, abs=1e-4)
    assert float(rows['cloned_disjoint_50_50', 'EN1']['TEff']) == pytest.approx(0.89, abs=1e-4)
    for language, where, ppl, teff in (('EN1', 'Table 1, row 5', '22.5', '1.00'), ('EN2', 'Table 1, row 5', '32.8', '2.08')):
        row = rows['cloned_disjoint_90_10', language]
        assert (row["paper's"], row['its PPL'], row['its TEff']) == (where, ppl, teff)
    assert rows['cloned_disjoint_50_50_2x', 'EN1']['its TEff'] == '0.73' and rows['anchors_50', 'EN1']["paper's"] == ''
    rows = {(row['run'], row['language']): row for row in csv_of('table3_real')}
    assert rows['real_anchored_90_10', 'FR']['its TEff'] == '1.27' and rows['real_disjoint_90_10', 'FR']['its TEff'] == '1.05'
    assert rows['mono_fr_1', 'FR']['its PPL'] == '34.1' and ('cloned_disjoint_50_50', 'EN1') not in rows
    assert {row['its gradients'] for row in csv_of('gradients') if row['run'] == 'real_anchored_50_50'} == {'0.17'}
    assert sum(row['run'] == "paper's Table 4" for row in csv_of('table2_4_hidden_states')) == 6  # two of the runs have another width
    assert len(csv_of('glue')) == len([name for name in runs_of_study() if 'w2v' not in name and 'mono' not in name])


def test_report_gives_mean_and_range_of_what_was_run_with_several_seeds(study):
    rows = {row['measure']: row for row in csv_of('seeds')}
    assert {row['run'] for row in csv_of('seeds')} == {'cloned_disjoint_50_50'} and len(rows) == len(csv_of('seeds'))
    for measure, seeds in (('TEff EN1', (0.89, 0.93, 0.82)), ('hidden states', (0.5, 0.7, 0.6))):
        mean, lowest, highest = (float(rows[measure][column]) for column in ('mean', 'lowest', 'highest'))
        assert rows[measure]['seeds'] == '3' and (lowest, highest) == pytest.approx((min(seeds), max(seeds)), abs=1e-4)
        assert mean == pytest.approx(sum(seeds) / 3, abs=1e-4)
    text = Path('report/report.md').read_text()
    assert '| 0.88 (0.82 to 0.93) / 0.90 (0.90 to 0.90) | Table 1, row 4 |' in text and 'cloned_disjoint_50_50_seed_1 |' not in text.split('## Similarity of gradients')[0]
    assert ' 0.60 0.60 |' in text  # hidden states
    assert [row['run'] for row in csv_of('table1_cloned')].count('cloned_disjoint_50_50_seed_1') == 2  # in the csv nothing is left out


def test_report_adds_up_training_time_over_interruptions(study, tmp_path):
    shutil.copytree('out', tmp_path / 'out')
    speed = '{"step": 400, "tokens_per_second": 1000, "seconds": 1}\n{"step": 1000, "tokens_per_second": 6000, "seconds": 9999}\n'
    for name in ('orders', 'anchors_50'):
        (tmp_path / 'out' / name / 'speed.jsonl').write_text(speed)
    make_report(*(str(tmp_path / 'out' / name) for name in ('orders', 'anchors_50', 'mono_en_1')), '--out=timed')
    with open('timed/time.csv', newline='') as f:
        rows = list(csv.DictReader(f))
    assert [(row['run'], float(row['minutes']), int(row['tokens'])) for row in rows] == [
        ('orders', pytest.approx(500 / 60, rel=1e-5), 10 ** 6), ('anchors_50', pytest.approx(500 / 60, rel=1e-5), 10 ** 6),
        ('all 2', pytest.approx(1000 / 60, rel=1e-5), 2 * 10 ** 6)]
    (tmp_path / 'out' / 'orders' / 'speed.jsonl').write_text('{"step": 3}\n')
    make_report(str(tmp_path / 'out' / 'orders'), '--out=damaged')
    assert 'no training time: ' in Path('damaged/report.md').read_text() and not Path('damaged/time.csv').exists()


def test_report_html_needs_no_other_file_and_markdown_links_to_files_that_exist(study):
    text, html = (Path(f'report/report.{kind}').read_text() for kind in ('md', 'html'))
    assert html.count('<img') == len(analyze.FIGURES) == len(re.findall(r'src="data:image/png;base64,', html))
    assert not re.search(r'<script|<link|https?://|url\(', html)
    links = re.findall(r'\]\((.+?)\)', text)
    assert len(links) > 2 * len(analyze.FIGURES) and all((Path('report') / link).is_file() for link in links)


def test_report_twice_is_the_same_bytes(study):
    make_report(*runs_of_study(), '--out=again')
    first, again = ({path.name: path.read_bytes() for path in Path(folder).iterdir()} for folder in ('report', 'again'))
    assert first == again and len(first) == 2 * len(analyze.FIGURES) + 7 + 2


def test_report_lists_what_is_missing_with_commands_whose_configs_exist(study):
    make_report('out/cloned_disjoint_50_50', '--out=one')
    text = Path('one/report.md').read_text()
    assert 'no TEff: gpt-2x32 on en: there is no monolingual run' in text
    commands = [line for line in text.splitlines() if line.startswith('for ')]
    assert len(commands) > 10
    for command in commands:
        assert subprocess.run(['bash', '-n', '-c', command]).returncode == 0
        loop = re.match(r'for c in (.+?); do python train.py config/\$c.py(.*?)( &&|; done)', command)
        for name in loop[1].split() if loop else re.findall(r'config/(\w+).py', command):
            overrides = loop[2].replace('${c}', name).split() if loop else []
            config.load([str(ROOT / 'config' / f'{name}.py'), *overrides])


def test_report_leaves_out_what_has_no_results_and_says_what_to_run(study, tmp_path, monkeypatch):
    shutil.copytree('out/mono_en_1', tmp_path / 'whole')
    shutil.copytree('out/mono_en_1', tmp_path / 'damaged')
    monkeypatch.chdir(tmp_path)
    Path('empty').mkdir()
    with pytest.raises(UserError, match='none of these folders is a run with results: python train.py'):
        make_report('empty')
    Path('damaged/results.json').write_text('{')
    Path('untrained').mkdir()
    shutil.copy('whole/config.json', 'untrained')
    make_report('empty', 'untrained', 'damaged', 'whole', '--out=.')
    text = Path('report.md').read_text()
    for says in ('empty is not a run', 'untrained has no checkpoint yet: python train.py', 'damaged/results.json is damaged: python analyze.py ppl damaged'):
        assert f'left out: {says}' in text
    assert '1 runs' in text and Path('table1_cloned.csv').exists() is False


def test_plan_run_line_by_line_fills_the_table(alone, capsys, documents):
    """The whole English-French table, at the smallest size: 1/200 of the steps, of 4 sequences of 8 tokens."""
    Path('fr').mkdir()
    for i, text in enumerate(documents):
        Path(f'fr/{i:02}.txt').write_text(text.swapcase())
    tiny = ('--n_layer=1 --n_embd=8 --n_head=1 --block_size=8 --batch_size=4 --vocab_size=400 --warmup_iters=0 --eval_iters=1 --test_frac=0.05 '
            '--device=cpu --num_workers=1')
    plan = ['report', '--plan=table3', '--scale=0.005', f'--options={tiny}']
    make_report(*plan[1:])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20 == len(set(lines)) and all(line.startswith('python train.py') for line in lines)
    for line in lines:
        train_command, ppl_command = (part.split() for part in line.split(' && '))
        corpora = {c: f'{folder}/*.txt' for c, folder in (('en', 'text'), ('fr', 'fr')) if f"'{c}':" in Path(train_command[2]).read_text()}
        with pytest.MonkeyPatch.context() as patch:
            train.main(config.load([*train_command[2:], f'--corpora={corpora}']))
            patch.setattr('sys.argv', [*ppl_command[1:], '--stride=8', '--batch_size=1000'])
            analyze.main()
    capsys.readouterr()
    make_report(*plan[1:])
    assert not capsys.readouterr().out  # nothing is left to do
    make_report(*runs_of_study())
    with open('report/table3_real.csv', newline='') as f:
        found = list(csv.DictReader(f))
    assert {row["paper's"] for row in found} == {f'Table 1, row {row}' for row in (1, 2, 3)} | {f'Table 3, row {row}' for row in range(4, 21)}
    assert len(found) == 6 + 2 * 14


def test_plan_resumes_what_was_interrupted_and_leaves_out_what_is_done(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name, file in (('cloned_50_50', 'ckpt.pt'), ('cloned_90_10', 'results.json')):
        Path('out', name).mkdir(parents=True)
        shutil.copy(study / 'out' / 'mono_en_1' / 'results.json', Path('out', name, file))
    make_report('--plan=table1')
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12 and not any('cloned_90_10.py' in line for line in lines)
    assert [line.endswith('cloned_50_50.py --resume && python analyze.py ppl out/cloned_50_50') for line in lines].count(True) == 1
    assert all(subprocess.run(['bash', '-n', '-c', line]).returncode == 0 for line in lines)


def test_study_is_redrawn_from_its_committed_results_and_the_readme_shows_it(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    committed = ROOT / 'config' / 'study' / 'results'
    runs = sorted(path for path in committed.iterdir() if path.is_dir())
    assert {path.name for path in runs} == {path.stem for path in (ROOT / 'config' / 'study').glob('*.py')}  # every run that there is
    make_report(*(str(run.relative_to(ROOT)) for run in runs), f'--out={tmp_path}')
    tables = [name for name, *_ in analyze.TABLES if (tmp_path / f'{name}.csv').exists()]
    assert tables and all((committed / f'{name}.csv').read_bytes() == (tmp_path / f'{name}.csv').read_bytes() for name in tables)
    page, readme = (tmp_path / 'report.md').read_text(), (ROOT / 'README.md').read_text()
    for title in ('Table 1: cloned languages', 'Table 3: real languages', 'Tables 2 and 4: similarity of hidden states'):
        table = page.split(f'## {title}\n\n')[1].split('\n\n')[0]
        assert table in readme, title
    with open(committed / 'table1_cloned.csv') as f:
        rows = list(csv.DictReader(f))
    page_rows = re.findall(r'^\| (\w+) \|' + r'[^|]*\|' * 3 + r' ([\d./* ]+) \|', page.partition('## Table 3')[0], re.M)  # no ranges
    assert len(page_rows) > 20
    for run, teff in page_rows:  # a star for each language that the csv calls extrapolated
        assert [cell.endswith('*') for cell in teff.split(' / ')] == [row['extrapolated'] == 'yes' for row in rows if row['run'] == run], run
