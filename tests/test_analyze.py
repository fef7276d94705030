"""analyze.py against closed forms, brute force, second solvers and the paper's figures."""
import csv
import itertools
import json
import math
import re
import shlex
import shutil
from pathlib import Path
from types import SimpleNamespace

import networkx
import numpy as np
import pytest
import torch
from conftest import CLONES, ROOT, arguments, script, settings, write_text
from pytest import approx
from torch.nn import functional as F

import analyze
import config
import train
from analyze import ScalingLaw, hidden_similarity, load_run, token_efficiency, unit_rows
from config import UserError, figures, runs, tables
from model import GPT, GPTConfig

V = 30  # base ids of a clone

def measure(*command):
    analyze.main([*map(str, command), '--device=cpu'])

def refused(says, *command):
    with pytest.raises(UserError, match=says) as error:
        measure(*command)
    assert '\n' not in str(error.value)

def read(path):
    return json.loads(Path(path).read_text())

def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content if isinstance(content, str) else json.dumps(content))

def rows_of(path):
    with open(path, newline='') as f:
        return list(csv.DictReader(f))

def random_run():
    """An untrained model, far from uniform, as load_run gives it."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(16, 2 * V, n_layer=3, n_embd=24, n_head=2))
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return SimpleNamespace(model=model, cfg=SimpleNamespace(block_size=16), device='cpu',
                           autocast=train.choose_device('cpu', 'float32')[1])

@pytest.fixture(scope='session')
def more_runs(runs, documents):
    """Beside the four: clones of one vocabulary, word2vec, two corpora, half a run."""
    lines = [line for text in documents for line in text.splitlines() if 9 < len(line) < 40]
    two = {'dataset': 'two', 'corpora': {'en': 'text/*.txt', 'up': 'upper/*.txt'},
           'languages': [('EN', 'en'), ('UP', 'up')], 'schedule': [(0.0, (0.5, 0.5))],
           'vocab': 'anchored', 'vocab_size': 350}
    more = {'shared': CLONES | {'dataset': 'shared', 'anchor_frac': 1.0, 'max_iters': 3},
            'word2vec': CLONES | {'model': 'word2vec'}, 'two': two}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(runs)
        write_text(runs / 'upper', map(str.upper, documents[:8]))
        write('a.en', '\n'.join(lines))
        write('a.up', '\n'.join(lines).upper())
        for name, changes in more.items():
            train.main(config.load(arguments(**changes, out_dir=f'more/{name}')))
        measure('ppl', 'out/mono_20')
        write('more/unfinished/results.json', read('out/mono_20/results.json') | {'step': 3})

@pytest.mark.parametrize('command, says', [
    ('ppl out/cloned --stride=33', 'leaves tokens unscored'),
    ('ppl out/cloned --batch_size=0', 'at least 1'),
    ('ppl out/cloned --languages FR', "no language 'FR'; it has EN1, EN2"),
    ('ppl more/word2vec', 'has no perplexity'),
    ('teff', 'needs the folders'), ('teff out/cloned --runs=x.csv', 'not both'),
    ('teff out/mono_20', 'at least three'), ('teff --plot=x.doc', 'a figure must be .png'),
    ('teff --plot=png', 'a figure must be .png'),
    ('teff out/mono_20 more/unfinished', 'is at step 3 of 40'),
    ('report upper', 'none of these folders is a run'),
    ('alignment out/mono_20', 'two different languages'),
    ('alignment out/cloned --parallel none.txt', 'none.txt cannot be read'),
    ('alignment more/shared', 'share their whole vocabulary'),
    ('alignment more/two --parallel a.en', 'two aligned files'),
    ('alignment more/two --parallel a.en text/00.txt', 'not aligned'),
    ('matching out/cloned --parallel a.en --line=1000000', 'has lines 1 to'),
    ('glue more/two --data .', 'takes a GPT of two clones'),
    ('glue out/cloned --data . --tasks=rte', '--data . has no folder rte; the tasks are cola')])
def test_a_mistake_is_refused_in_one_line(command, says, in_runs, more_runs):
    refused(says, *command.split())

def test_a_refusal_is_status_1_and_one_line():
    result = script('analyze.py', 'ppl', 'nowhere')
    assert (result.status, result.err.count('\n')) == (1, 1) and 'not a run' in result.err

# ---- ppl

@pytest.mark.parametrize('n', [13, 14, 16, 17, 60, 61, 63, 64])
@pytest.mark.parametrize('stride', [1, 4, 16])
def test_sliding_window_is_scoring_one_token_at_a_time(n, stride):
    run, ids = random_run(), np.random.default_rng(n).integers(2 * V, size=n)
    context, expected = 16 - stride, []
    for t in range(context + 1, n):
        start = (t - 1 - context) // stride * stride  # the window that scores token t
        with torch.no_grad():
            logits = run.model(torch.from_numpy(ids[None, start:t]))[0, -1]
        expected.append(F.cross_entropy(logits, torch.tensor(ids[t])).item())
    nats, scored = analyze.sliding_window(run, ids, stride, batch_size=3)
    assert scored.sum() == len(expected) == max(0, n - 1 - context)
    assert nats.sum() == approx(sum(expected), rel=1e-5)

def test_ppl_of_a_uniform_model_is_its_vocabulary_in_every_language(in_runs):
    shutil.copytree('out/cloned', 'uniform')
    state = torch.load('uniform/ckpt.pt', weights_only=True)
    state['model']['lm_head.weight'].zero_()
    torch.save(state, 'uniform/ckpt.pt')
    measure('ppl', 'uniform')
    corpus = read('data/clones/meta.json')['corpora']['en']
    bits = math.log2(800) * corpus['test_tokens'] / corpus['test_bytes']
    for measured in read('uniform/results.json')['languages'].values():
        assert measured['ppl'] == approx(800, rel=1e-5)
        assert measured['bits_per_byte'] == approx(bits, rel=1e-5)
        assert measured['scored_tokens'] == corpus['test_tokens'] - 1 - 24

def test_ppl_counts_tokens_and_exposure_and_gives_the_same_bytes_twice(in_runs):
    measure('ppl', 'out/cloned')
    first = Path('out/cloned/results.json').read_bytes()
    measure('ppl', 'out/cloned')
    assert Path('out/cloned/results.json').read_bytes() == first
    results = read('out/cloned/results.json')
    seen, ids = results['tokens_seen'], np.fromfile('data/clones/train.bin', np.uint16)
    assert sum(seen.values()) == 200 * 8 * 32
    for name, measured in results['languages'].items():
        assert measured['ppl'] == approx(math.exp(measured['loss']))
        assert measured['exposure'] == approx(seen[name] / len(set(ids.tolist())))
    one, two = (results['languages'][name]['ppl'] for name in ('EN1', 'EN2'))
    assert one < two < 400  # the frequent clone is ahead
    measure('ppl', 'out/cloned', '--languages', 'EN2')
    assert read('out/cloned/results.json')['languages'] == {'EN2': results['languages']['EN2']}
    assert analyze.rows_of_run('out/cloned', None)[0]['role'] == 'multi'  # by what it read

def test_teff_measures_what_is_missing_and_writes_a_table_that_it_reads(in_runs, capsys):
    for path in Path('out').glob('*/results.json'):
        path.unlink()
    folders = [f'out/{name}' for name in ('mono_20', 'mono_50', 'mono_100', 'cloned')]
    measure('teff', *folders, '--csv=teff.csv')
    assert Path('out/teff.png').read_bytes().startswith(b'\x89PNG')
    assert 'EN1: PPL' in capsys.readouterr().out
    for n, notes in ((1, 0), (2, 1)):  # a single sequence has no control
        measure('alignment', 'out/cloned', f'--sequences={n}')
        capsys.readouterr()
        measure('teff', *folders, 'out/cloned/', 'out/teff.png')  # as several globs give them
        shown = capsys.readouterr().out
        assert 'EN1: PPL' not in shown
        assert shown.count('out/cloned: net cosine of hidden states of EN1 and EN2') == notes
    rows = {(row['run'], row['language']): row for row in rows_of('teff.csv')}
    for steps in (20, 50, 100):
        row = rows[f'mono_{steps}', 'EN']
        assert (row['role'], row['tokens']) == ('mono', str(2 * steps * 8 * 32))
        assert float(row['teff']) == approx(1, abs=1e-6)  # three runs fit exactly
        assert row['teff_low'] == ''  # and say nothing of their scatter
    measure('teff', '--runs=teff.csv', '--csv=again.csv')
    again = [float(row['teff']) for row in rows_of('again.csv')]
    assert again == approx([float(row['teff']) for row in rows.values()], rel=1e-5)

def test_float32_is_measured_without_tf32(in_runs):
    torch.set_float32_matmul_precision('high')
    load_run('out/cloned', 'cpu')
    assert torch.get_float32_matmul_precision() == 'highest'

# ---- teff

def known_ppl(tokens, a=0.034, b=0.24, c=0.08, unit=1e6):
    return 1 / (c - a * (tokens / unit) ** -b)

def row(role, tokens, ppl, others=0, law=('gpt', 'en', ''), **changes):
    """A row of teff, as rows_of_run gives it."""
    cfg = {'batch_size': 80, 'block_size': 100,
           'max_iters': tokens // 8000, 'warmup_iters': tokens // 80_000}  # always a tenth
    return {'run': f'{role}_{tokens:.0f}', 'language': 'EN', 'role': role, 'tokens': tokens,
            'ppl': ppl, 'others': others, 'cfg': settings(**cfg | changes),
            **dict(zip(('model', 'corpus', 'text'), law))}

def monos(*amounts, **changes):
    return [row('mono', tokens, known_ppl(tokens), **changes) for tokens in amounts]

@pytest.mark.parametrize('law', [
    (0.034, 0.24, 0.08, 1.2e9), (0.02, 0.6, 0.05, 5e6), (0.2, 0.05, 0.25, 1e6)])
def test_known_law_gives_known_teff(law):
    unit = law[-1]
    wanted = {0.3 * unit: 2.0, 0.6 * unit: 0.75, 0.9 * unit: 1.05}  # tokens -> TEff
    rows = [row('mono', share * unit, known_ppl(share * unit, *law))
            for share in (0.2, 0.35, 0.5, 0.8, 1)]
    rows += [row('multi', n, known_ppl(teff * n, *law)) for n, teff in wanted.items()]
    fitted, = token_efficiency(rows)[0].values()
    assert (fitted.a, fitted.b, fitted.c) == approx(law[:3], rel=1e-4)
    for found, teff in zip(rows[5:], wanted.values()):
        assert found['teff'] == approx(teff, abs=5e-5)
        assert found['mlpe'] == approx(known_ppl(found['tokens'], *law), rel=1e-5)
        assert found['teff_low'] == approx(teff, abs=1e-3) == found['teff_high']  # no scatter

# of the authors' notebook: tokens in units of 1.2B (18,265 steps of 128 x 512), PPL, TEff
NOTEBOOK = {
    'en': [(2.7, 19.033202, 0.994096), (1.5, 19.258220, 1.630378), (1.0, 20.423549, 1.598080),
           (0.3, 22.270593, 3.141136), (0.9, 22.459745, 0.999605), (0.5, 26.125090, 0.886629),
           (0.1, 32.805344, 2.076345), (0.1, 43.513504, 1.103405)],
    'fr': [(0.9, 16.447420, 0.968748), (1.0, 17.138401, 0.704769), (0.5, 19.390197, 0.816211),
           (0.5, 20.509860, 0.660904), (0.1, 29.044094, 1.267816), (0.1, 31.892938, 1.054308)]}

def authors_law(corpus):
    """The law through the authors' points (TEff x tokens, PPL)."""
    tokens, ppl, teff = np.transpose(NOTEBOOK[corpus])
    return ScalingLaw(teff * tokens, ppl)

@pytest.mark.parametrize('corpus', NOTEBOOK)
def test_the_authors_teffs_follow_from_one_law(corpus):
    law = authors_law(corpus)
    for tokens, ppl, teff in NOTEBOOK[corpus]:
        assert law.tokens(ppl) / tokens == approx(teff, rel=1e-5)

def test_the_teffs_that_the_paper_prints_follow_from_the_ppls_that_it_prints():
    """Within the rounding of both, in Tables 1 and 3."""
    paper, laws = tables.paper_values(), {corpus: authors_law(corpus) for corpus in NOTEBOOK}
    lines = [(key, value) for key, (where, value) in paper.items()
             if key[5] == 'TEff' and ' ' in key[1] and where.startswith('Table')]
    assert len(lines) == 47
    for (*setting, _, n), teff in lines:
        _, corpora, _, schedule, data = setting
        share = 0.5 if 'then' in schedule else float(schedule.split('/')[n - 1]) / 100
        law, (_, ppl) = laws[corpora.split()[n - 1]], paper[*setting, 'PPL', n]
        least, most = (law.tokens(float(ppl) + error) / share / data for error in (0.05, -0.05))
        assert least - 0.005 < float(teff) < most + 0.005, (setting, n)

def test_where_the_law_accelerates_a_worse_ppl_than_its_start_is_worth_no_tokens():
    law = ScalingLaw([25, 50, 100], [1 / (0.02 + 0.08 * x) for x in (0.25, 0.5, 1)])
    assert law.b == approx(-1) and law.tokens(1 / 0.06) == approx(50) and law.tokens(1000) == 0

def test_interval_holds_the_truth_in_95_of_100_laws():
    x, true, inside = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1]), 0.3, 0
    for noise in np.random.default_rng(0).normal(0, 2e-4, (200, len(x))):
        law = ScalingLaw(x, 1 / (1 / known_ppl(x, unit=1) + noise))
        ppl = known_ppl(true, unit=1)
        inside += abs(math.log(law.tokens(ppl) / true)) < math.log(law.interval(ppl))
    assert 0.92 <= inside / 200 <= 0.98

@pytest.mark.parametrize('tokens, ppl, teff, extrapolated', [
    (500_000, known_ppl(600_000), 1.2, 'no'), (150_000, known_ppl(300_000), 2, 'no'),
    (500_000, known_ppl(100_000), 0.2, 'yes'),
    (500_000, known_ppl(2_000_000), 4, 'yes'), (900_000, 0.9 / 0.08, math.nan, 'beyond')])
def test_what_lies_outside_the_monolingual_runs_is_marked(tokens, ppl, teff, extrapolated):
    rows = [*monos(200_000, 400_000, 600_000, 1_000_000), row('multi', tokens, ppl)]
    token_efficiency(rows)
    assert rows[-1]['teff'] == approx(teff, rel=1e-3, nan_ok=True)
    assert [found['extrapolated'] for found in rows] == ['no'] * 4 + [extrapolated]
    assert math.isnan(rows[-1]['mlpe']) == (tokens < 200_000)
    assert ('below the limit of the law, 12.5' in rows[-1]['remark']) == (teff != teff)

@pytest.mark.parametrize('other', [('wide', 'en', ''), ('gpt', 'fr', ''), ('gpt', 'en', 'b')])
def test_every_size_corpus_and_test_text_has_its_own_law(other):
    rows = monos(200_000, 600_000, 1_000_000)
    rows += [row('mono', found['tokens'], 2 * found['ppl'], law=other) for found in rows]
    assert list(token_efficiency(rows)[0]) == [('gpt', 'en', ''), other]
    assert [found['teff'] for found in rows] == approx([1] * 6)

@pytest.mark.parametrize('changes, says', [
    ({'batch_size': 160, 'max_iters': 50}, 'batch_size 160, mono_200000 80'),
    ({'learning_rate': 1e-4}, 'learning_rate 0.0001, mono_200000 0.003'),
    ({'warmup_iters': 40}, 'warmup_iters 40, mono_200000 2')])
def test_unlike_runs_are_left_out_by_name_and_setting_unless_told_to_mix(changes, says):
    rows = monos(200_000, 600_000, 1_000_000, 1_600_000)
    rows.append(row('mono', 800_000, 40.0, **changes))
    law, = token_efficiency(rows)[0].values()
    assert law.n == 4 and rows[0]['teff'] == approx(1, rel=1e-3)
    assert f'mono_800000 has {says}' in rows[-1]['remark'] and math.isnan(rows[-1]['teff'])
    assert token_efficiency(rows, mix_recipes=True)[0]['gpt', 'en', ''].n == 5

def test_a_step_matched_run_stands_beside_teff_and_out_of_the_law():
    rows = monos(100_000, 400_000, 700_000, 1_000_000)
    steps = [row('mono', 104_000, ppl, batch_size=10, max_iters=steps)
             for ppl, steps in ((48, 125), (52, 125), (99, 60))]
    rare, more = (row('multi', n, 40.0, 1_000_000 - n, max_iters=125) for n in (100_000, 120_000))
    law, = token_efficiency([*rows, *steps, rare, more])[0].values()
    assert law.n == 4 and [step['role'] for step in steps] == ['step', 'step', 'mono']
    assert (rare['step_ppl'], rare['gain']) == approx((50, 0.2))
    assert math.isnan(more['gain'])  # it needs a step-matched run of its own

@pytest.mark.parametrize('lines, says', [
    ('', 'all rows'), ('r,m,c,l,many,2,mono', 'could not convert'), ('\xff', 'cannot be read'),
    ('r,m,c,l,1,2,mono\nr,m,c,l,1,nan,mono', 'line 3'), ('r,m,c,l,1,2,both', 'line 2: 2.0, both'),
    ('r,m,c,l,1,7,mono\nr,m,c,l,2,8,mono\nr,m,c,l,3,9,mono', 'do not improve')])
def test_a_bad_table_writes_nothing(lines, says, tmp_path):
    path = tmp_path / 'runs.csv'
    path.write_bytes(f'{",".join(analyze.COLUMNS)}\n{lines}\n'.encode('latin-1'))
    refused(says, 'teff', '--runs', path, f'--csv={tmp_path}/a.csv', f'--plot={tmp_path}/a.png')
    assert list(tmp_path.iterdir()) == [path]

# ---- alignment and matching

def sequences():
    """Four texts in either clone."""
    texts = np.random.default_rng(0).integers(V, size=(4, 15))
    return [(ids, ids + V) for ids in texts]

def random_states(n, seed=0, shared=0.0):
    """States of n unrelated texts (2 layers, 20 tokens, 40), about a direction that all share."""
    noise = torch.randn(n, 2, 20, 40, generator=torch.Generator().manual_seed(seed))
    return list(unit_rows(noise + shared))

def test_equal_embeddings_make_hidden_states_and_gradients_equal():
    run = random_run()
    for table in (run.model.wte, run.model.lm_head):
        table.weight.data[V:] = table.weight.data[:V]
    states = [[analyze.hidden_states(run, ids) for ids in pair] for pair in sequences()]
    found, retrieved = hidden_similarity(states, clones=True)
    assert found['position'] == approx([1] * 3, abs=1e-6) == found['matching']
    assert retrieved['sequences'] == {'share': [1] * 3, 'chance': 0.25}
    found = analyze.gradient_similarity(run, sequences())
    assert np.array(list(found['blocks'].values())) == approx(np.ones((15, 3)), abs=1e-5)
    assert found['macro_average'] == approx(1, abs=1e-5) == found['others']['wpe.weight']
    assert found['others']['wte.weight'] == 0  # different rows of the table

@pytest.mark.parametrize('clones', [True, False])
def test_net_tells_equal_states_from_a_direction_that_all_share(clones):
    a, b = (random_states(30, seed, shared=5.0) for seed in (0, 1))
    found, retrieved = hidden_similarity(zip(a, b), clones)
    assert found.pop('net') == approx([0, 0], abs=2e-3)
    assert len(found) == 3 + clones and np.min(list(found.values())) > 0.95
    assert max(max(part['share']) for part in retrieved.values()) < 0.2
    a = random_states(30)
    found, retrieved = hidden_similarity(zip(a, a), clones, most=45)
    kind, control = ('position', 'control') if clones else ('matching', 'control_matching')
    assert found[kind] == approx([1, 1]) and max(found[control]) < 0.5
    assert found['net'] == approx(np.subtract(found[kind], found[control]))
    assert [part['share'] for part in retrieved.values()] == [[1, 1]] * (1 + clones)
    assert not clones or retrieved['tokens']['chance'] == 1 / 40  # whole texts of 20, up to most

def test_controls_set_every_sequence_against_the_next_as_far_as_both_go():
    a, b = ([states[:, :n] for states, n in zip(random_states(3, seed), (5, 9, 7))]
            for seed in (0, 1))
    found, _ = hidden_similarity(zip(a, b), clones=True)
    for layer in (0, 1):
        pairs = [zip(a[i][layer], b[(i + 1) % 3][layer]) for i in range(3)]
        expected = np.mean([np.mean([float(x @ y) for x, y in pair]) for pair in pairs])
        assert found['control'][layer] == approx(expected, abs=1e-6)
    assert 'control' not in hidden_similarity([(a[0], b[0])], True)[0]  # nothing is unrelated

def test_gradients_are_of_the_whole_sequence_with_query_key_and_value_apart():
    run, (ids, _) = random_run(), sequences()[0]
    found = analyze.gradients(run, ids)
    whole = torch.from_numpy(ids)
    loss = F.cross_entropy(run.model(whole[None, :-1])[0], whole[1:])
    fused, = torch.autograd.grad(loss, run.model.h[1].attn.c_attn.weight)
    parts = torch.cat([found[f'h.1.attn.c_attn.{part}.weight'] for part in 'qkv'])
    torch.testing.assert_close(parts, fused.flatten(), atol=1e-6, rtol=1e-4)
    assert sum(map(len, found.values())) == sum(p.numel() for p in run.model.parameters())

def test_embedding_similarity_is_brute_force_on_a_small_table():
    table = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 7)))
    rows = np.arange(50).reshape(2, 25)
    rows[1, :5] = rows[0, :5]  # anchors: one row for both
    frequency = np.array([9] * 5 + [0, 0, 1, 9, 10, 99, 100, 999, 1000, 1000] + [5] * 10)
    def cosines(a, b):
        return [float(F.cosine_similarity(table[i], table[j], dim=0)) for i, j in zip(a, b)]
    found = analyze.embedding_similarity(table, rows, frequency)
    for suffix, (a, b) in (('', rows[:, 5:]), ('_seen', rows[:, 7:])):
        assert found[f'subwords{suffix}'] == len(a)
        assert found[f'mean{suffix}'] == approx(np.mean(cosines(a, b)))
        all_pairs = cosines(*zip(*itertools.product(a, b)))
        assert found[f'all_pairs{suffix}'] == approx(np.mean(all_pairs))
    bins = [(b['from'], b['below'], b['subwords']) for b in found['by_frequency']]
    assert bins == [(0, 1, 2), (1, 10, 12), (10, 100, 2), (100, 1000, 2), (1000, 10000, 2)]
    assert found['by_frequency'][0]['mean'] == approx(np.mean(cosines(*rows[:, 5:7])))
    assert 'mean_seen' not in analyze.embedding_similarity(table, rows, np.zeros(25))

@pytest.mark.parametrize('shape', [(1, 1), (6, 6), (4, 9), (9, 4), (1, 5)])
@pytest.mark.parametrize('tied', [False, True])
def test_matching_weighs_as_much_as_networkxs(shape, tied):
    rng, graph = np.random.default_rng(sum(shape)), networkx.Graph()
    cosine = rng.integers(3, size=shape) / 2 if tied else rng.normal(size=shape)
    rows, columns = analyze.match(cosine)
    for (i, j), value in np.ndenumerate(cosine):
        graph.add_edge(i, shape[0] + j, weight=-value)
    best = networkx.bipartite.minimum_weight_full_matching(graph, range(shape[0]))
    weight = sum(cosine[i, best[i] - shape[0]] for i in range(shape[0]) if i in best)
    assert len(set(rows)) == len(set(columns)) == len(rows) == min(shape)
    assert cosine[rows, columns].sum() == approx(weight)

def test_lines_are_joined_up_to_the_longest_and_short_ends_dropped():
    lines = [(5, 4), (3, 5), (9, 20), (4, 2), (1, 1), (10, 10), (1, 1), (10, 9)]
    pairs = analyze.joined_lines([tuple(map(np.arange, line)) for line in lines], 10)
    assert [tuple(map(len, pair)) for pair in pairs] == [(8, 9), (5, 3), (10, 10), (10, 9)]

def test_the_sequence_of_a_line_begins_with_it_however_short():
    lines = [tuple(map(np.arange, line)) for line in [(1, 1), (10, 10)]]
    first, default = (next(analyze.joined_lines(lines, 10, n)) for n in (1, 0))
    assert (len(first[0]), len(default[0])) == (1, 10)

def test_only_a_line_feed_ends_a_line_of_parallel_text(tmp_path):
    path = tmp_path / 'a.txt'
    path.write_bytes('one\u2028still one\x85and\x0bthis\r\ntwo\n'.encode())
    assert analyze.read_lines(path) == ['one\u2028still one\x85and\x0bthis', 'two']

def test_training_frequency_counts_what_the_run_has_read(in_runs):
    run, expected = load_run('out/cloned', 'cpu'), np.zeros((2, 400), int)
    sampler = train.Sampler(run.dataset.pools, run.cfg.schedule, 8, 200, run.cfg.seed)
    for step in range(200):
        drawn, languages = sampler.next(step)
        for ids, language in zip(run.dataset.batch(drawn, languages)[0], languages):
            np.add.at(expected[language], ids - 400 * language, 1)
    found = [analyze.training_frequency(run, language) for language in (0, 1)]
    assert (np.array(found) == expected).all()

def test_alignment_of_clones_needs_no_parallel_text(in_runs, more_runs):
    for extra in ([], ['--parallel', 'a.en'], ['--languages', 'EN2', 'EN1']):
        measure('alignment', 'out/cloned', '--sequences=6', *extra)
        found = read('out/cloned/alignment.json')
        for layers in found['hidden_states'].values():
            assert len(layers) == 2 and np.abs(layers).max() <= 1
    assert found['languages'] == ['EN2', 'EN1'] and found['sequences'] == 6
    assert found['retrieval']['tokens']['chance'] == 1 / (6 * 32)

def test_two_corpora_are_aligned_and_matched(in_runs, more_runs, capsys):
    parallel = '--parallel', 'a.en', 'a.up'
    measure('alignment', 'more/two', '--sequences=5', *parallel)
    found = read('more/two/alignment.json')
    assert 'position' not in found['hidden_states'] and set(found['retrieval']) == {'sequences'}
    measure('matching', 'more/two', *parallel, '--line=2')
    found = read('more/two/matching.json')
    texts, said = [''.join(side) for side in found['tokens']], capsys.readouterr().out
    assert texts[0].upper() == texts[1] and said.count('\t') == 2 * len(found['pairs']) > 4
    assert Path('more/two/matching_line_2.png').read_bytes().startswith(b'\x89PNG')

def test_word2vec_is_measured_by_its_embeddings(in_runs, more_runs):
    measure('alignment', 'more/word2vec')
    found = read('more/word2vec/alignment.json')
    assert found.keys() == {'languages', 'embeddings'}
    measure('report', 'more/word2vec', '--out=word2vec')  # without results.json
    assert rows_of('word2vec/alignment.csv')

# ---- glue

@pytest.mark.parametrize('task, classes, text', [
    ('cola', (1, 0), 'gj04\t1\t\tA "b \ngj04\t0\t*\tC.\n'),
    ('sst2', (1, 0), 'sentence\tlabel\nA "b \t1\nC.\t0\n'),
    ('mrpc', (1, 0), '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n'
                     '1\t7\t8\tA "b \tB.\r\n0\t9\t10\tC.\tD.\r\n'),
    ('qqp', (0, 1), 'id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n'
                    '0\t1\t2\tA "b \tB.\t0\n5\t6\tlost\n1\t3\t4\tC.\tD.\t1\n'),
    ('mnli', (1, 2), 'index\tsentence1\tsentence2\tlabel1\tgold_label\n'
                     '0\tA "b \tB.\tneutral\tneutral\n1\tC.\tD.\tneutral\tcontradiction\n'),
    ('qnli', (0, 1), 'index\tquestion\tsentence\tlabel\n'
                     '0\tA "b \tB.\tentailment\n1\tC.\tD.\tnot_entailment\n'),
    ('rte', (1, 0), 'index\tsentence1\tsentence2\tlabel\n'
                    '0\tA "b \tB.\tnot_entailment\n1\tC.\tD.\tentailment\n')])
def test_glues_own_files_are_read(task, classes, text, tmp_path):
    (tmp_path / 'train.tsv').write_text(text, 'utf-8', newline='')
    texts = [['A "b '], ['C.']] if task in ('cola', 'sst2') else [['A "b ', 'B.'], ['C.', 'D.']]
    assert analyze.read_task(tmp_path / 'train.tsv', task) == list(zip(texts, classes))

@pytest.mark.parametrize('text, says', [
    ('sentence\tlabel\na\t7\n', "train.tsv cannot be read .*'7' is not in list"),
    ('words\tlabel\na\t1\n', "KeyError: 'sentence'"), ('', 'must hold sst2'),
    ('sentence\tlabel\na\t1\n', 'dev.tsv cannot be read')])
def test_other_files_are_refused(text, says, in_runs, tmp_path):
    write(tmp_path / 'SST-2' / 'train.tsv', text)
    refused(says, 'glue', 'out/cloned', '--data', tmp_path)

def test_metrics_are_their_definitions():
    rng = np.random.default_rng(0)
    for predicted, true in rng.integers(2, size=(20, 2, 50)):
        precision, recall = true[predicted == 1].mean(), predicted[true == 1].mean()
        f1 = {'accuracy': (predicted == true).mean(), 'f1': 2 / (1 / precision + 1 / recall)}
        assert analyze.task_metrics(predicted, true, 'f1') == approx(f1)
        correlation = np.corrcoef(predicted, true)[0, 1]
        assert analyze.task_metrics(predicted, true, 'matthews')['matthews'] == approx(correlation)
    assert analyze.task_metrics(np.zeros(4), np.array([0, 1, 1, 0]), 'matthews')['matthews'] == 0

def test_batches_hold_every_example_once_and_little_padding():
    lengths = np.random.default_rng(0).integers(1, 60, size=1000)
    batches = analyze.shuffled_batches(lengths, 8, [0, 0])
    assert sorted(np.concatenate(batches)) == list(range(1000))
    assert sum(lengths[batch].max() * len(batch) for batch in batches) < 1.2 * lengths.sum()

def test_a_long_example_loses_the_end_of_its_longer_text(in_runs):
    run = load_run('out/cloned', 'cpu')
    tokenizer = analyze.tokenizer_of(run, 0)
    short, long = 'is it', 'the name of a module and the value of an attribute ' * 3
    (a, b), eod = map(tokenizer.encode, (short, long)), [tokenizer.eod]
    examples = [[short, short], [short, long], [long, short], [long], [long, long]]
    ids, classes = analyze.encode_examples(run, 0, list(zip(examples, range(5))), 32)
    rest = b[:30 - len(a)]
    assert ids == (a + eod + a + eod, a + eod + rest + eod, rest + eod + a + eod, b[:31] + eod,
                   b[:15] + eod + b[:15] + eod)  # by length
    assert classes.tolist() == [0, 1, 2, 3, 4]

@pytest.fixture(scope='session')
def glue_data(tmp_path_factory):
    """SST-2's format, on a task that a look at one word solves."""
    folder, rng = tmp_path_factory.mktemp('glue'), np.random.default_rng(0)
    words = 'module class value name object type function string number file'.split()
    for which, n in (('train', 600), ('dev', 200)):
        rows = [(*rng.choice(words, 3), label) for label in rng.integers(2, size=n)]
        lines = [f'{a} {b} {("is not", "returns")[label]} {c}\t{label}' for a, b, c, label in rows]
        write(folder / 'SST-2' / f'{which}.tsv', '\n'.join(['sentence\tlabel', *lines]))
    return folder

def fine_tuned(run, data, *options):
    measure('glue', run, '--data', data, '--epochs=8', '--learning_rate=5e-3', *options)
    return read(f'{run}/glue.json')

def test_glue_learns_in_l1_and_reports_both(in_runs, glue_data):
    first, again = (fine_tuned('out/cloned', glue_data) for _ in range(2))
    assert first == again  # seeded
    found = first['tasks']['sst2']
    assert found['EN1']['accuracy'] > 0.9 and 0.2 < found['EN2']['accuracy'] < 1
    assert found['majority'] < 0.6 and found['steps'] <= 8 * 10

def test_clones_that_share_all_embeddings_agree_exactly(in_runs, more_runs, glue_data):
    found = fine_tuned('more/shared', glue_data)
    assert found['tasks']['sst2']['EN1'] == found['tasks']['sst2']['EN2']
    assert found['mean_accuracy']['EN1'] > 0.6

@pytest.mark.parametrize('patience', [2, 3])  # among worse, among equal scores
def test_the_best_evaluation_counts(patience, in_runs, glue_data, monkeypatch):
    scores, metrics = [], analyze.task_metrics
    monkeypatch.setattr(analyze, 'task_metrics', lambda *args: scores.append(
        metrics(*args)['accuracy']) or metrics(*args))
    options = f'--patience={patience}', '--eval_every=4', '--seed=1'
    steps = fine_tuned('out/cloned', glue_data, *options)['tasks']['sst2']['steps']
    *tried, reported, _ = scores
    assert reported == max(tried) and tried.index(reported) == len(tried) - 1 - patience
    assert steps == [10 * epoch + step for epoch in range(8) for step in (4, 8, 10)][len(tried) - 1]

# ---- report, on runs of known TEff

FIGURES = [shown for shown in tables.read_table('figures.csv') if shown['draw'] != 'table']
LAW = {'en': (0.034, 0.24, 0.08), 'fr': (0.03, 0.3, 0.09)}
CLONED = {'languages': [('EN1', 'en'), ('EN2', 'en')]}
REAL = {'languages': [('EN', 'en'), ('FR', 'fr')], 'corpora': {'en': 'e', 'fr': 'f'}}
HALF = {'schedule': [(0.0, (0.5, 0.5))], 'teff': (0.89, 0.9)}
MOST = {'schedule': [(0.0, (0.9, 0.1))], 'teff': (1.0, 2.08)}
PAPERS = {'n_layer': 12, 'n_embd': 768}

def write_run(name, tokens=1_000_000, teff=(1, 1), inside=0.5, exposure=100, text='', **changes):
    """A run whose PPL is the law's at teff x tokens; its states are as alike as inside."""
    changes = {'batch_size': 10, 'block_size': 100, 'warmup_iters': 5} | changes
    steps = tokens // changes['batch_size'] // 100
    cfg = settings(**{'max_iters': steps} | changes)
    seen, languages, files = {}, {}, {'config': vars(cfg)}
    for (language, corpus), share, gain in zip(cfg.languages, train.marginals(cfg.schedule), teff):
        seen[language] = round(share * tokens)
        languages[language] = {
            'corpus': corpus, 'test_text': corpus + text, 'bits_per_byte': 1.0,
            'ppl': known_ppl(gain * share * tokens, *LAW[corpus]), 'exposure': exposure * share}
    files['results'] = {'config': vars(cfg), 'step': steps, 'tokens_seen': seen,
                        'languages': languages, 'non_embedding_parameters': cfg.n_embd ** 2}
    if len(seen) == 2:
        layers = [inside] * cfg.n_layer
        kinds = 'position', 'control', 'matching', 'control_matching', 'net'
        bins = [{'from': n, 'below': 10 * n or 1, 'mean': n / 200} for n in (0, 1, 10, 100)]
        table = {'mean': 0.2, 'all_pairs': 0.1, 'by_frequency': bins}
        files['alignment'] = {
            'embeddings': {'input': table, 'output': table},
            'hidden_states': dict.fromkeys(kinds, layers),
            'retrieval': {'tokens': {'share': layers, 'chance': 0.01}},
            'gradients': {'blocks': {'ln_1.weight': layers, 'mlp.c_fc.weight': layers},
                          'macro_average': 0.25}}
        files['glue'] = {'mean_accuracy': dict.fromkeys(seen, 0.8)}
        files['matching'] = {'languages': list(seen), 'tokens': [['a$b$', 'b'], ['c']],
                             'pairs': [[0, 0], [1, 5]]}
    for file, content in files.items():
        write(f'out/{name}/{file}.json', content)

def write_runs():
    for name, size in (('', PAPERS), ('small_', {})):
        for corpus, tenths in itertools.product(LAW, (1, 5, 10)):
            write_run(f'{name}mono_{corpus}_{tenths}', 100_000 * tenths, **size,
                      languages=[(corpus.upper(), corpus)], corpora={corpus: 'x'})
        for times, (ratio, mix) in itertools.product((1, 2), (('50', HALF), ('90', MOST))):
            tail, mix = f'_{ratio}_{times}x', {'tokens': times * 1_000_000} | mix | size
            write_run(f'{name}cloned{tail}', **mix, **CLONED)
            write_run(f'{name}real{tail}', **mix, **REAL, vocab='anchored')
    write_run('disjoint_50', **HALF, **REAL, **PAPERS)
    write_run('disjoint_90', **MOST, **REAL, **PAPERS)
    write_run('step_matched', 100_000, teff=[1.5], batch_size=1, **PAPERS)
    others = {
        'seed_1': {'seed': 1, 'teff': (0.93, 0.9), 'inside': 0.7},
        'seed_2': {'seed': 2, 'teff': (0.82, 0.9), 'inside': 0.6},
        'bfloat16': {'dtype': 'bfloat16', 'teff': (0.5, 0.5)}, 'anchors': {'anchor_frac': 0.5},
        'orders': {'schedule': [(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))]}}
    for name, changes in others.items():
        write_run(name, **HALF | CLONED | PAPERS | changes)
    for pieces, exposure in ((384, 5000), (512, 3000)):
        own = {'text': str(pieces), 'vocab_size': pieces, 'exposure': exposure}
        for tenths in (1, 5, 10):
            write_run(f'mono_{tenths}_v{pieces}', 100_000 * tenths, **own)
        write_run(f'step_matched_v{pieces}', 100_000, teff=[1.2], batch_size=1, **own)
        write_run(f'rare_v{pieces}', **MOST | CLONED | own)
    for share in (0.25, 0.5):  # checkpoints of a run of 1,000 steps
        write_run(f'rare_v384/step_{1000 * share:06.0f}', int(share * 1e6), inside=share,
                  max_iters=1000, vocab_size=384, text='384', **MOST | CLONED)

@pytest.fixture(scope='session')
def reported(tmp_path_factory):
    """Runs for every figure, and the report on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder := tmp_path_factory.mktemp('reported'))
        write_runs()
        measure('report', *Path('out').iterdir(), '--tokens=1e6')
    return folder

@pytest.fixture
def study(reported, monkeypatch):
    monkeypatch.chdir(reported)

@pytest.fixture
def report(study, monkeypatch, tmp_path):
    """A report without figures on some runs -> its text; tables are in tmp_path."""
    def report(*command):
        monkeypatch.setattr(analyze.figures, 'save', lambda *_: None)
        measure('report', *command, f'--out={tmp_path}')
        return (tmp_path / 'report.md').read_text()
    return report

def test_report_draws_and_links_every_figure_from_results_alone(study):
    text = Path('report/report.md').read_text()
    links = set(re.findall(r'\]\((.+?)\)', text))
    drawn = {f'{figure["figure"]}.{kind}' for figure in FIGURES for kind in ('png', 'pdf')}
    assert drawn < links and '--plan' not in text
    starts = {'png': b'\x89PNG', 'pdf': b'%PDF', 'csv': b'run,'}
    assert all(Path('report', link).read_bytes().startswith(starts[link[-3:]]) for link in links)

def test_the_papers_figures_stand_beside_runs_of_its_size_and_data(study):
    def rows(table, column):
        return {(row['run'], row[column]): row for row in rows_of(f'report/{table}.csv')}
    ppl = rows('table1_3_ppl', 'language')
    rare = ppl['cloned_90_1x', 'EN2']
    assert [float(rare[key]) for key in ('teff', 'tau', 'step_ppl')] == approx(
        [2.08, 0.12, known_ppl(150_000)], rel=1e-4)
    assert rare["paper's"] == 'Table 1, row 5'
    assert (rare['its ppl'], rare['its teff']) == ('32.8', '2.08')
    assert ppl['cloned_50_2x', 'EN1']['its teff'] == '0.73'
    assert ppl['real_90_1x', 'FR']['its teff'] == '1.27'
    assert ppl['mono_fr_1', 'FR']['its ppl'] == '34.1'
    assert {row['size'] for row in ppl.values() if row["paper's"]} == {'12x768'}
    hidden = rows('table2_4_hidden_states', 'measure')
    assert hidden["paper's Table 2", 'hidden_states.position']['layer 12'] in ('-0.21', '0.11')
    assert ("paper's Table 2", 'hidden_states.net') not in hidden
    assert rows('alignment', 'language')['real_50_1x', '']['its gradients.macro_average'] == '0.17'
    assert {row['mean_accuracy'] for row in rows_of('report/glue.csv')} == {'0.8'}

def test_mean_and_range_are_over_seeds_of_one_precision(study):
    text = Path('report/report.md').read_text()
    assert '| 0.88 (0.82 to 0.93) |' in text and '| seed_1 ' not in text
    assert '| 0.60 (0.50 to 0.70) |' in text and '| bfloat16 ' in text
    assert 'seed_1' in {row['run'] for row in rows_of('report/table1_3_ppl.csv')}

def test_gain_and_course_of_training_are_of_the_rare_clone(study):
    found = analyze.gather(Path('out').glob('*_v*'), SimpleNamespace(tokens=0, mix_recipes=False))
    gains = {row['run']: row['exposure'] for row in found.grouped
             if row['measure'] == 'gain' and {'last', '90/10'} <= row['tags']}
    assert gains == {'rare_v384': 500, 'rare_v512': 300}
    ppl = {(row['run'], row['seen']): row['value'] for row in found.steps
           if row['measure'] == 'ppl' and row['language'] == 'EN2'}
    assert ppl == approx({('rare_v384', n): known_ppl(2.08 * n) for n in (25_000, 50_000, 100_000)})
    net = {row['seen']: row['value'] for row in found.steps
           if row['measure'] == 'hidden_states.net.mean'}
    assert net == approx({25_000: 0.25, 50_000: 0.5, 100_000: 0.5})

def test_report_twice_is_the_same_bytes(study):
    names, written = ('mono_en_1', 'mono_en_5', 'mono_en_10', 'cloned_50_1x', 'seed_1'), []
    for out in ('once', 'again'):
        measure('report', *(f'out/{name}' for name in names), f'--out={out}')
        written.append({path.name: path.read_bytes() for path in Path(out).iterdir()})
    assert written[0] == written[1]
    drawn = {figure['draw'] for figure in FIGURES if f'{figure["figure"]}.pdf' in written[0]}
    assert drawn == {figure['draw'] for figure in FIGURES}  # every kind

def test_a_hue_keeps_its_colour_where_others_are_absent():
    rows = [{'measure': 'ppl', 'x': x, 'hue': hue, 'style': '', 'value': 1, 'lowest': 1, 'highest': 1}
            for hue in 'ab' for x in (1, 2)]
    figure = {'x': 'x', 'hue': 'hue', 'style': 'style'}
    _, ((whole, part),) = figures.subplots(1, 2, 4, 2)
    figures.plot_lines(whole, rows, figure, ['ppl'], rows)
    figures.plot_lines(part, rows[2:], figure, ['ppl'], rows)
    a, b = (line.get_color() for line in whole.lines)
    assert a != b == part.lines[0].get_color()

def test_nothing_stands_beside_the_paper_while_totals_differ(report, tmp_path):
    runs = 'out/cloned_50_1x', 'out/cloned_90_1x', 'out/cloned_50_2x'
    assert 'multilingual runs read 1,000,000 or 2,000,000 tokens' in report(*runs)
    assert "paper's" not in rows_of(tmp_path / 'table1_3_ppl.csv')[0]
    report(*runs[:2])
    assert rows_of(tmp_path / 'table1_3_ppl.csv')[0]["paper's"] == 'Table 1, row 4'

def test_report_says_what_it_leaves_out_and_what_to_run(report, tmp_path):
    folders = empty, untrained, damaged, _ = [tmp_path / name for name in 'abcd']
    empty.mkdir()
    for folder in folders[1:]:
        shutil.copytree('out/small_mono_en_1', folder)
    (untrained / 'results.json').unlink()
    write(damaged / 'results.json', '{')
    text = report(*folders)
    for says in (f'{empty} is not a run', f'{untrained} has no checkpoint yet',
                 f'{damaged}/results.json cannot be read', f'analyze.py ppl {damaged} writes it',
                 'monolingual runs of gpt-2x32 on en: a law needs at least three token counts',
                 '# Language imbalance: 1 runs'):
        assert says in text
    plans = set(re.findall(r'`python analyze.py report --plan (\w+)`', text))
    assert {'fig01_ratio', 'fig05_laws', 'schedules', 'exposure'} <= plans and len(plans) > 10

def test_committed_teff_is_that_of_a_law_fitted_directly(report, tmp_path):
    folders = sorted((ROOT / 'config' / 'study' / 'exposure').glob('*/'))
    report(*folders)
    found = {folder.name: read(folder / 'results.json') for folder in folders}
    rare = found['0384_cloned_90_10']
    points = [(run['tokens_seen']['EN'], run['languages']['EN']['ppl']) for run in found.values()
              if 'EN' in run['languages'] and all(run['config'][key] == rare['config'][key]
                                                  for key in ('vocab_size', 'batch_size'))]
    mlte = ScalingLaw(*zip(*points)).tokens(rare['languages']['EN2']['ppl'])
    row, = (row for row in rows_of(tmp_path / 'table1_3_ppl.csv')
            if (row['run'], row['language']) == ('0384_cloned_90_10', 'EN2'))
    assert float(row['teff']) == approx(mlte / rare['tokens_seen']['EN2'], rel=1e-5)

# ---- plan

@pytest.fixture
def plan(alone, monkeypatch, capsys):
    """A table of runs of one's own -> the lines that --plan prints."""
    for name in ('default', 'cloned_90_10'):
        shutil.copy(ROOT / 'config' / f'{name}.py', '.')
    monkeypatch.setattr(config, 'DEFAULT', Path('default.py'))
    with open('runs.csv', 'w', newline='') as f:
        csv.writer(f).writerows([
            runs.COLUMNS,
            ['a', 'default.py', shlex.join(arguments()), 'ppl --stride=8', 'table1 fig09_scaling'],
            ['b', 'cloned_90_10.py', '', 'ppl; alignment --sequences=$N', 'fig09_scaling']])
    def lines(*options):
        capsys.readouterr()
        measure('report', *options)
        return capsys.readouterr().out.splitlines()
    return lines

def test_plan_prints_a_shell_line_for_every_run_that_is_missing(plan):
    lines = plan('--plan=fig09')
    assert lines[0].startswith('python train.py default.py --out_dir=out/a --dataset=tiny ')
    assert lines[0].endswith(' && python analyze.py ppl out/a --stride=8')
    assert lines[1:] == ['python train.py cloned_90_10.py --out_dir=out/b && python analyze.py ppl'
                         ' out/b && python analyze.py alignment out/b --sequences=$N']
    assert plan('--plan=table1') == lines[:1]
    refused('the plans are fig09_scaling, table1', 'report', '--plan=fig0')

def test_a_plan_that_has_run_leaves_nothing_to_do(plan):
    small = '--plan=table1', '--options=--n_layer=1 --eval_iters=1 --max_iters=6'
    line, = plan(*small)
    train_command, ppl_command = (shlex.split(part) for part in line.split(' && '))
    train.main(config.load(train_command[2:]))
    assert plan(*small) == [line]  # trained, not measured
    measure(*ppl_command[2:])
    assert plan(*small) == []
    assert len(plan('--plan=table1')) == 1  # the whole run is another
    assert len(plan(small[0], f'{small[1]} --learning_rate=1e-3')) == 1

def test_jobs_run_side_by_side_on_a_thread_each_and_stop_at_a_failure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    meet = 'touch {0} && while [ ! -e {1} ]; do sleep 0.01; done && echo $OMP_NUM_THREADS > {0}'
    runs.side_by_side([meet.format('a', 'b'), meet.format('b', 'a')], 2)  # waits for the other
    assert Path('a').read_text() == Path('b').read_text() == '1\n'
    with pytest.raises(UserError, match='^echo why >&2; false: why$'):
        runs.side_by_side(['true', 'echo why >&2; false', 'sleep 0.1; touch later'], 1)
