"""analyze.py against closed forms, brute force, second solvers and the paper's figures."""
import contextlib
import csv
import json
import math
import re
import shutil
import sys
from collections import Counter
from pathlib import Path

import conftest
import networkx
import numpy as np
import pytest
import torch
from conftest import CLONES, ROOT, load, settings, trained, write_text
from pytest import approx
from torch.nn import functional as F

import analyze
from analyze import ScalingLaw, load_run, token_efficiency
from train import Sampler

def measure(*command):
    analyze.main([*map(str, command), '--device=cpu'])

def refused(says, *command):
    with pytest.raises(SystemExit, match=says) as error:
        measure(*command)
    assert '\n' not in str(error.value)

def read(path):
    return json.loads(Path(path).read_text('utf-8'))

def write(path, text):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(text if isinstance(text, str) else json.dumps(text), 'utf-8', newline='')

def rows_of(path):
    return list(csv.DictReader(Path(path).read_text('utf-8').splitlines()))

@pytest.fixture(scope='session')
def lines(runs, documents):
    """Lines, in a.en and, as capitals, a.up. Beside the four runs: one on two corpora, one of
    clones that share all pieces, one that has only two tables."""
    lines = [line for text in documents for line in text.splitlines() if 9 < len(line) < 40]
    lines[4:4] = 'one\u2028still one\x85and\x0bthis', ' '.join(lines[:40])
    two = {'dataset': 'two', 'corpora': {'en': 'text/*.txt', 'up': 'upper/*.txt'},
           'languages': [('EN', 'en'), ('UP', 'up')], 'schedule': [(0.0, (0.5, 0.5))]}
    shared = CLONES | {'dataset': 'shared', 'anchor_frac': 1.0}
    with contextlib.chdir(runs):
        write_text(runs / 'upper', map(str.upper, documents[:8]))
        write('a.en', '\ufeff' + '\r\n'.join(lines))
        write('a.up', '\n'.join(lines).upper() + '\n')
        trained(**two, vocab='anchored', vocab_size=350, out_dir='more/two')
        trained(**shared, max_iters=3, out_dir='more/shared')
        shutil.copytree('out/cloned', 'more/tables')
        saved = load('more/tables/ckpt.pt')
        tables = {name: saved['model'][name] for name in ('wte.weight', 'lm_head.weight')}
        torch.save(saved | {'model': tables}, 'more/tables/ckpt.pt')
    return lines

@pytest.mark.parametrize('command, says', [
    ('ppl more/tables', 'has no perplexity'), ('teff', 'needs the folders'),
    ('ppl out/cloned --stride=33', 'leaves tokens unscored'),
    ('ppl out/cloned --batch_size=0', 'at least 1'), ('teff out/mono_20', 'at least three'),
    ('alignment out/cloned --languages FR EN1', "no language 'FR'; it has EN1, EN2"),
    ('teff out/cloned --runs=x.csv', 'not both'), ('teff --plot=x.doc', 'a figure must be .png'),
    ('teff --plot=png', 'a figure must be .png'), ('alignment out/mono_20', 'two different lang'),
    ('alignment out/cloned --languages EN1 EN1', 'must name two different languages'),
    ('alignment out/cloned --parallel none.txt', 'none.txt cannot be read'),
    ('alignment more/two --parallel a.en text/00.txt', 'are not aligned: [0-9]+ and [0-9]+ lines'),
    ('alignment more/two --parallel a.en', 'need two aligned files'), ('alignment more/shared',
     'share their whole'), ('matching out/cloned --parallel a.en --line=999999', 'lines 1 to')])
def test_a_mistake_is_refused_in_one_line(command, says, in_runs, lines):
    refused(says, *command.split())

@pytest.mark.parametrize('options, status, says', [
    *((f'{command} -h', 0, 'usage: ') for command in ('', 'ppl', 'teff', 'alignment', 'matching')),
    ('ppl out --stride=0', 1, '--stride must be at least 1'), ('ppl out', 1, 'out is not a run')])
def test_help_and_mistyped_options_need_no_torch_and_a_refusal_is_status_1(options, status, says):
    code = ('import atexit, runpy, sys, time; sys.argv = sys.argv[1:]\n'
            'atexit.register(lambda: print("torch" in sys.modules, time.process_time()))\n'
            'runpy.run_path(sys.argv[0], run_name="__main__")')
    result = conftest.run(sys.executable, '-c', code, ROOT / 'analyze.py', *options.split())
    *_, with_torch, seconds = result.out.split()
    assert with_torch == str(options == 'ppl out') and (float(seconds) < 1 or with_torch == 'True')
    assert result.status == status == result.err.count('\n')
    assert (result.err or result.out).startswith(says) and 'default: None' not in result.out

# ---- ppl

@pytest.mark.parametrize('n', [28, 29, 32, 33, 60, 61, 63, 64])
@pytest.mark.parametrize('stride', [1, 4, 32])
def test_sliding_window_is_scoring_one_token_at_a_time(n, stride, in_runs):
    run, expected = load_run('out/cloned', 'cpu'), []
    ids = np.random.default_rng(n).integers(800, size=n)
    for t in range(33 - stride, n):
        start = (t + stride - 33) // stride * stride  # the window that scores token t
        with torch.no_grad():
            logits = run.model(torch.from_numpy(ids[None, start:t]))[0, -1]
        expected.append(F.cross_entropy(logits, torch.tensor(ids[t])).item())
    nats, scored = analyze.sliding_window(run, ids, stride, batch_size=3)
    assert scored == len(expected) == max(0, n + stride - 33)
    assert nats == approx(sum(expected), rel=1e-5)

def test_ppl_scores_every_language_and_counts_what_the_run_read(in_runs):
    run = load_run('out/cloned', 'cpu')
    torch.set_float32_matmul_precision('high')
    measure('ppl', 'out/cloned')
    assert torch.get_float32_matmul_precision() == 'highest'  # without TF32
    results, data = read('out/cloned/results.json'), run.dataset
    by_name, corpus, text = results['languages'], data.corpora[0], data.corpora[0]['test']
    assert by_name['EN1']['ppl'] < by_name['EN2']['ppl'] < 400  # the frequent clone is ahead
    starts, languages = np.hstack([*map(Sampler(data.starts, run.cfg).next, range(200))])
    for language, measured in enumerate(by_name.values()):
        nats, n = analyze.sliding_window(run, text.astype(int) + 400 * language, 8, 50)
        sequences = np.array([corpus['train'][i:i + 33] for i in starts[languages == language]])
        seen, counts = 32 * len(sequences), np.bincount(sequences[:, :-1].ravel(), minlength=400)
        expected = {
            'loss': nats / n, 'ppl': math.exp(nats / n), 'scored_tokens': len(text) - 1 - 24,
            'bits_per_byte': nats / n / math.log(2) * len(text) / corpus['test_bytes'],
            'exposure': seen / len(set(corpus['train'].tolist())),
            'epochs': seen / (32 * len(data.starts[language])),
            'bigram_ppl': analyze.ngram_ppl(sequences, text[24:], 2, 400),
            'trigram_ppl': analyze.ngram_ppl(sequences, text[23:], 3, 400)}
        assert {key: measured[key] for key in expected} == approx(expected, rel=1e-5)
        assert [*results['tokens_seen'].values()][language] == seen
        assert np.array_equal(analyze.training_frequency(run, language), counts)
    assert analyze.rows_of_run('out/cloned', None)[0]['role'] == 'multi'  # by what it read
    measure('ppl', 'out/cloned')  # the same bytes twice
    assert Path('out/cloned/results.json').read_text() == json.dumps(results, indent=1) + '\n'

def test_ngram_ppl_is_brute_force_with_witten_bell():
    rng, count = np.random.default_rng(0), Counter()
    sequences, text = rng.integers(8, size=(9, 12)), rng.integers(9, size=60)
    for row in sequences.tolist():
        count.update(gram for n in (1, 2, 3) for gram in zip(*(row[i:] for i in range(n))))
    def p(gram):
        like = [count[g] for g in count if len(g) == len(gram) and g[:-1] == gram[:-1]]
        lower = p(gram[1:]) if gram else 1 / 9
        return (count[gram] + len(like) * lower) / (sum(like) + len(like)) if like else lower
    for order in (1, 2, 3):
        nats = [-math.log(p(gram)) for gram in zip(*(text[i:].tolist() for i in range(order)))]
        assert analyze.ngram_ppl(sequences, text, order, 9) == approx(math.exp(np.mean(nats)))

def test_teff_measures_what_is_missing_and_draws_only_if_told(in_runs, capsys):
    for path in Path('out').glob('*/results.json'):
        path.unlink()
    before, folders = set(Path().rglob('*.p[nds]*')), [*Path('out').glob('mono*'), 'out/cloned']
    measure('teff', *folders, '--csv=teff.csv')
    assert 'EN1: PPL' in capsys.readouterr().out and set(Path().rglob('*.p[nds]*')) == before
    for n, notes in ((1, 0), (2, 1)):  # a single sequence has no control
        measure('alignment', 'out/cloned', f'--sequences={n}')
        capsys.readouterr()
        measure('teff', *folders, 'out/cloned/', 'teff.csv', '--plot=a.png')  # as globs give them
        shown = capsys.readouterr().out
        assert 'EN1: PPL' not in shown and shown.count(': net cosine') == notes
    assert Path('a.png').read_bytes().startswith(b'\x89PNG')
    rows = [row for row in rows_of('teff.csv') if row['role'] == 'mono']
    assert {row['run']: int(row['tokens']) for row in rows} == {
        f'mono_{n}': 2 * n * 8 * 32 for n in (20, 50, 100)}
    assert [float(row['teff']) for row in rows] == approx([1] * 3, abs=1e-6)  # an exact fit
    assert [row['teff_low'] for row in rows] == [''] * 3  # which says nothing of their scatter

# ---- teff

def known_ppl(tokens, a=0.034, b=0.24, c=0.08, unit=1e6):
    return 1 / (c - a * (tokens / unit) ** -b)

def scored(name, tokens, ppl, others=0, corpus='en', text='', stride=25, **changes):
    """Write the results of a run on so many tokens, and others in another language -> its row."""
    steps, n = changes.get('max_iters', round(tokens) // 8000), 1 + (others > 0)
    cfg = settings(**{
        'batch_size': 80, 'block_size': 100, 'max_iters': steps, 'warmup_iters': steps // 10,
        'languages': [('L1', corpus), ('L2', corpus)][:n], 'schedule': [(0.0, [1 / n] * n)],
        'corpora': {corpus: 'x'}} | changes)
    write(f'run/{name}/results.json', {
        'config': vars(cfg), 'step': steps, 'stride': stride, 'non_embedding_parameters': 9,
        'tokens_seen': {'L1': round(tokens), 'L2': round(others)}, 'languages': {'L1': {
            'ppl': ppl, 'test_text': text, 'exposure': 5, 'epochs': 2, 'trigram_ppl': 40}}})
    return analyze.rows_of_run(f'run/{name}', None)[0]

def test_known_laws_one_for_each_size_corpus_and_test_text_give_known_teff(alone):
    laws = {(2, 'en', ''): (0.034, 0.24, 0.08, 1.2e9), (3, 'en', ''): (0.02, 0.6, 0.06, 5e6),
            (2, 'fr', ''): (0.2, 0.05, 0.25, 1e6), (2, 'en', 'b'): (-0.08, -1, 0.02, 2e6)}
    rows, wanted = [], {0.3: 2.0, 0.6: 0.75, 0.9: 1.05}  # share of the tokens -> TEff
    for (n_layer, corpus, text), law in laws.items():
        for share in (0.2, 0.35, 0.5, 0.8, 1, *wanted):
            n, teff = round(share * law[-1]), wanted.get(share, 1)
            rows.append(scored(len(rows), n, known_ppl(teff * n, *law), (teff != 1) * law[-1],
                               corpus, text, n_layer=n_layer))
    fitted, _ = token_efficiency(rows)
    assert list(fitted) == [(f'gpt-{n_layer}x32', *key) for n_layer, *key in laws]
    for i, (law, (a, b, c, unit)) in enumerate(zip(fitted.values(), laws.values())):
        assert (law.a, law.b, law.c) == approx((a, b, c), rel=1e-4)
        for row, (share, teff) in zip(rows[8 * i + 5:], wanted.items()):
            assert row['mlpe'] == approx(known_ppl(share, a, b, c, unit=1), rel=1e-5)
            assert (row['teff'], row['tau']) == approx((teff, (teff - 1) * share), abs=5e-5)
            assert row['teff_low'] == approx(teff, abs=1e-3) == row['teff_high']  # no scatter
    assert law.tokens(1000) == 0  # worse than a law that accelerates begins

# of the authors' notebook: tokens in units of 1.2B (18,265 steps of 128 x 512), PPL, TEff
NOTEBOOK = {
    'en': [(2.7, 19.033202, 0.994096), (1.5, 19.258220, 1.630378), (1.0, 20.423549, 1.598080),
           (0.3, 22.270593, 3.141136), (0.9, 22.459745, 0.999605), (0.5, 26.125090, 0.886629),
           (0.1, 32.805344, 2.076345), (0.1, 43.513504, 1.103405)],
    'fr': [(0.9, 16.447420, 0.968748), (1.0, 17.138401, 0.704769), (0.5, 19.390197, 0.816211),
           (0.5, 20.509860, 0.660904), (0.1, 29.044094, 1.267816), (0.1, 31.892938, 1.054308)]}

def test_one_law_gives_the_authors_teffs_and_those_of_the_papers_tables_1_and_3():
    laws, values = {}, {}
    for corpus, points in NOTEBOOK.items():
        tokens, ppls, teffs = np.transpose(points)
        laws[corpus] = ScalingLaw(teffs * tokens, ppls)
        assert [*map(laws[corpus].tokens, ppls)] == approx(teffs * tokens, rel=1e-5)
    for row in rows_of(ROOT / 'study' / 'paper.csv'):
        if row['source'] in ('Table 1', 'Table 3') and ' ' in row['corpora']:
            _, _, *setting, measure, n, value = row.values()
            values.setdefault((*setting, int(n)), {})[measure] = value
    values = {key: value for key, value in values.items() if 'TEff' in value}
    assert len(values) == 47
    for (_, corpora, vocab, data, schedule, n), value in values.items():
        share = 0.5 if 'then' in schedule else float(schedule.split('/')[n - 1]) / 100
        law, tokens = laws[corpora.split()[n - 1]], share * float(data)
        least, most = (law.tokens(float(value['PPL']) + e) / tokens for e in (0.05, -0.05))
        assert least - 0.005 < float(value['TEff']) < most + 0.005, (vocab, schedule, n)  # rounded

def test_a_run_that_repeats_its_text_is_measured_by_the_law_but_not_in_it(alone):
    rows = [scored(n, n, known_ppl(n)) for n in (200_000, 400_000, 600_000, 1_000_000)]
    rows.append(scored('again', 400_000, known_ppl(300_000), own_tokens={'L1': 200_000}))
    law, = token_efficiency(rows)[0].values()
    assert law.n == 4 and rows[-1]['role'] == 'repeat'
    assert (rows[-1]['teff'], rows[-1]['teff_unique']) == approx((0.75, 1.5), rel=1e-3)

def test_interval_holds_the_truth_in_95_of_100_laws():
    x, true, inside = np.array([0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1]), 0.3, 0
    for noise in np.random.default_rng(0).normal(0, 2e-4, (200, len(x))):
        law, ppl = ScalingLaw(x, 1 / (1 / known_ppl(x, unit=1) + noise)), known_ppl(true, unit=1)
        inside += abs(math.log(law.tokens(ppl) / true)) < math.log(law.interval(ppl))
    assert 0.92 <= inside / 200 <= 0.98

@pytest.mark.parametrize('changes, says', [
    ({'batch_size': 160, 'max_iters': 50}, 'batch_size 160, run/200000 80'),
    ({'learning_rate': 1e-4}, 'learning_rate 0.0001, run/200000 0.003'),
    ({'n_head': 4}, 'n_head 4, run/200000 2'),
    ({'warmup_iters': 40}, 'warmup_iters 40, run/200000 2'),
    ({'stride': 5}, 'stride 5, run/200000 25 (analyze.py ppl run/odd --stride=25 scores it')])
@pytest.mark.parametrize('others', [0, 100_000])
def test_unlike_runs_are_left_out_by_name_and_setting(changes, says, others, alone):
    rows = [scored(n, n, known_ppl(n)) for n in (200_000, 600_000, 1_000_000, 1_600_000)]
    rows.append(scored('odd', 800_000, 30.0, others, **changes))
    folders = [row['run'] for row in rows]
    refused(f'^run/odd has {re.escape(says)}.*: .* only in tokens', 'teff', *folders)
    refused('--stride=25: analyze.py ppl run/200000 --stride=4', 'teff', *folders, '--stride=4')
    law, = token_efficiency(rows)[0].values()
    assert law.n == 4 and rows[0]['teff'] == approx(1, rel=1e-3)
    assert f'run/odd has {says}' in rows[-1]['remark'] and math.isnan(rows[-1]['teff'])
    write('run/odd/results.json', read('run/odd/results.json') | {'step': 3})
    refused('run/odd is at step 3 of [1-9]', 'teff', *folders)

def test_teff_beyond_the_runs_is_a_bound_and_a_table_that_teff_wrote_gives_the_same(alone, capsys):
    for n in (200_000, 400_000, 600_000, 1_000_000):
        scored(n, n, known_ppl(n))
    multi = [  # tokens, TEff, as printed, extrapolated, steps, PPL of step-matched runs
        ('a/b', 500_000, 1.2, '1.20', 'no', 125, 50), ('c/b', 150_000, 2, '2.00', 'no', 60, ''),
        ('p', 500_000, 0.2, '< 0.40', 'yes', 90, ''), ('q', 500_000, 4, '> 2.00', 'yes', 90, ''),
        ('limit', 900_000, '', '> 1.11', 'yes', 90, '')]
    for name, n, teff, *_, steps, _ in multi:
        scored(name, n, known_ppl(teff * n) if teff else 11.25, others=1_000_000, max_iters=steps)
    for n, ppl, steps in (518_000, 48, 125), (520_000, 52, 125), (500_001, 9, 60), (160_000, 9, 60):
        scored(f'step/{n}', n, ppl, batch_size=10, max_iters=steps)
    folders = sorted({path.parent for path in Path('run').rglob('*.json')})
    measure('teff', folders[0].absolute(), *folders[1:], '--csv=1.csv', '--plot=a.pdf')
    law, *lines = capsys.readouterr().out.splitlines()
    lines = [re.split(r' *\| ?', line) for line in lines if line[0] == '|']
    rows, text = {row['run']: row for row in rows_of('1.csv')}, Path('1.csv').read_text('utf-8')
    assert '; 4 monolingual runs' in law and len(rows) == 13  # of one name in two folders: two
    for name, row in rows.items():
        assert row['role'] == ('mono' if name.isdigit() else 'step' if 'step' in name else 'multi')
        assert ('worse than trigram counts' in row['remark']) == (float(row['ppl']) > 40)
        assert row['remark'].endswith('text read 2.00 times') and row['exposure'] == '5.0'
    for name, n, teff, printed, mark, _, step_ppl in multi:
        row = {key: float(x) if re.fullmatch('[0-9.-]+', x) else x for key, x in rows[name].items()}
        shown, = (dict(zip(lines[0], line)) for line in lines if line[1] == name)
        assert (row['extrapolated'], shown['teff']) == (mark, printed)
        assert (row['mlpe'] == '') == (n < 200_000) and row['step_ppl'] == step_ppl
        assert row['gain'] == (step_ppl and 1 - row['ppl'] / step_ppl)
        assert ('below the limit of the law, 12.5' in row['remark']) == (name == 'limit')
        if teff:  # every text is read twice
            assert row['teff_unique'] == approx(2 * row['teff'])
        for key, unit in ('head_start', 1), ('tau', 1_000_000):
            assert row[key] == (teff and approx((teff - 1) * n / unit, rel=1e-3))
            assert (shown[key] == '') == (mark != 'no')
    for bom in '', '\ufeff':  # which spreadsheets write
        write('table.csv', bom + text)
        measure('teff', '--runs=table.csv', '--csv=2.csv')
        assert Path('2.csv').read_text('utf-8') == text

@pytest.mark.parametrize('lines, says', [
    ('', 'all rows'), ('r,m,c,l,many,2,mono', 'could not convert'), ('\xff', 'cannot be read'),
    ('r,m,c,l,1,2,mono\nr,m,c,l,1,nan,mono', 'line 3'), ('r,m,c,l,1,2,both', 'line 2: 2.0, both'),
    ('r,m,c,l,1,0.5,mono', '0.5 is not between 1 and'), ('r,m,c,l,0,2,mono', '0 is not between 1'),
    ('r,m,c,l,1,7,mono\nr,m,c,l,2,8,mono\nr,m,c,l,3,9,mono', 'do not improve')])
def test_a_bad_table_writes_nothing(lines, says, alone):
    Path('a.csv').write_bytes(f'{",".join(analyze.COLUMNS)}\n{lines}\n'.encode('latin-1'))
    refused(says, 'teff', '--runs=a.csv', '--csv=b.csv', '--plot=b.png')
    assert {path.name for path in Path().iterdir()} == {'a.csv', 'text'}

# ---- alignment and matching

@pytest.mark.parametrize('clones', [True, False])
def test_net_is_over_the_next_text_and_none_of_a_direction_that_all_share(clones):
    noise = torch.randn(2, 30, 2, 20, 40, generator=torch.Generator().manual_seed(0))
    states = F.normalize(noise + 5, dim=-1)
    a, b = ([x[:, :20 - i % 3] for i, x in enumerate(side)] for side in states)
    cosines, retrieved = analyze.hidden_similarity(zip(a, b), clones)
    error, net = cosines.pop('net_error'), cosines.pop('net')
    assert net == approx([0, 0], abs=2e-3) and max(error) < 1e-3
    assert len(cosines) == 3 + clones and np.min(list(cosines.values())) > 0.95
    assert max(max(part['share']) for part in retrieved.values()) < 0.2
    own, control = (np.array([  # as far as both go
        [np.mean([float(x @ y) for x, y in zip(a[i][layer], b[(i + step) % 30][layer])])
         for layer in (0, 1)] for i in range(30)]) for step in (0, 1))
    assert cosines['control'] == approx(control.mean(0), abs=1e-6)
    if clones:
        assert error == approx(np.std(own - control, axis=0, ddof=1) / 30 ** 0.5, abs=1e-7)
    alone, _ = analyze.hidden_similarity(zip(a[:1], b), clones)  # nothing unrelated
    assert not {'control', 'net', 'net_error'} & alone.keys()

@pytest.mark.parametrize('shape', [(1, 1), (6, 6), (4, 9), (9, 4), (1, 5)])
@pytest.mark.parametrize('tied', [False, True])
def test_matching_weighs_as_much_as_networkxs(shape, tied):
    rng, graph = np.random.default_rng(sum(shape)), networkx.Graph()
    cosine = rng.integers(3, size=shape) / 2 if tied else rng.normal(size=shape)
    rows, columns = analyze.match(cosine)
    graph.add_weighted_edges_from((i, -1 - j, -x) for (i, j), x in np.ndenumerate(cosine))
    best = networkx.bipartite.minimum_weight_full_matching(graph, range(shape[0]))
    assert len(set(rows)) == len(set(columns)) == len(rows) == min(shape)
    weight = sum(cosine[i, -1 - j] for i, j in best.items() if i >= 0)
    assert cosine[rows, columns].sum() == approx(weight)

def test_equal_embeddings_make_states_and_gradients_equal_with_query_key_and_value_apart(in_runs):
    run, texts = load_run('out/cloned', 'cpu'), np.random.default_rng(0).integers(400, size=(4, 15))
    pairs = [(ids, ids + 400) for ids in texts]
    for table in (run.model.wte, run.model.lm_head):
        table.weight.data[400:] = table.weight.data[:400]
    states = [[analyze.hidden_states(run, ids) for ids in pair] for pair in pairs]
    for clones, kind, control in (1, 'position', 'control'), (0, 'matching', 'control_matching'):
        cosines, retrieved = analyze.hidden_similarity(states, clones, most=50)
        assert cosines[kind] == approx([1, 1], abs=1e-6) == cosines['matching']
        assert cosines['net'] == approx(np.subtract(1, cosines[control])) and cosines['net'][1] > 0
        assert retrieved.pop('sequences') == {'share': [1, 1], 'chance': 0.25}
        expected = {'share': [1, 1], 'chance': 1 / 45, 'chance_by_position': 1 / 3}
        assert retrieved == ({'tokens': expected} if clones else {})
    result = analyze.gradient_similarity(run, pairs)
    assert np.array([*result['blocks'].values()]) == approx(np.ones((15, 2)), abs=1e-5)
    assert result['macro_average'] == approx(1, abs=1e-5) == result['others']['wpe.weight']
    assert result['others']['wte.weight'] == 0  # different rows of the table
    gradients, ids = analyze.gradients(run, texts[0]), torch.from_numpy(texts[0])
    loss = F.cross_entropy(run.model(ids[None, :-1])[0], ids[1:])  # of the whole sequence
    fused, = torch.autograd.grad(loss, run.model.h[1].attn.c_attn.weight)
    parts = torch.cat([gradients[f'h.1.attn.c_attn.{part}.weight'] for part in 'qkv'])
    torch.testing.assert_close(parts, fused.flatten(), atol=1e-6, rtol=1e-4)
    assert sum(map(len, gradients.values())) == sum(p.numel() for p in run.model.parameters())

def test_embedding_similarity_is_brute_force_on_a_small_table():
    table = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 7)))
    rows = np.arange(50).reshape(2, 25)
    rows[1, :5] = rows[0, :5]  # anchors: one row for both
    frequency = np.array([9] * 5 + [0, 0, 1, 9, 10, 99, 100, 999, 1000, 1000] + [5] * 10)
    def mean(pairs):
        return approx(np.mean([F.cosine_similarity(table[i], table[j], dim=0) for i, j in pairs]))
    result = analyze.embedding_similarity(table, rows, frequency)
    for suffix, (a, b) in (('', rows[:, 5:]), ('_seen', rows[:, 7:])):
        assert result[f'subwords{suffix}'] == len(a) and result[f'mean{suffix}'] == mean(zip(a, b))
        assert result[f'all_pairs{suffix}'] == mean((i, j) for i in a for j in b)
    order = 5 + np.argsort(frequency[5:], kind='stable')[2:]  # of those seen, i and j are near
    near = [(rows[0, i], rows[1, j]) for m, i in enumerate(order) for n, j in enumerate(order)
            if 0 < abs(m - n) <= 5]
    assert result['frequency_matched'] == mean(near)
    first, *_ = result['by_frequency']
    assert [(b['from'], b['below'], b['subwords']) for b in result['by_frequency']] == [
        (0, 1, 2), (1, 10, 12), (10, 100, 2), (100, 1000, 2), (1000, 10000, 2)]
    assert first['mean'] == mean(rows[:, 5:7].T)
    unseen = analyze.embedding_similarity(table, rows, np.zeros(25))
    assert not {'mean_seen', 'frequency_matched'} & unseen.keys()

def test_lines_are_joined_up_to_the_longest_and_short_sequences_dropped():
    lines = [(5, 4), (3, 5), (9, 20), (4, 2), (1, 1), (10, 10), (1, 1), (10, 9)]
    pairs = analyze.joined_lines([tuple(map(np.arange, line)) for line in lines], 10)
    assert [tuple(map(len, pair)) for pair in pairs] == [(8, 9), (5, 3), (10, 10), (10, 9)]

@pytest.mark.parametrize('name', ['out/cloned', 'more/two'])
def test_only_line_feeds_end_lines_and_longer_ones_are_counted(name, in_runs, lines, capsys):
    run, clones, files = load_run(name, 'cpu'), name == 'out/cloned', ['a.en', 'a.up']
    pairs = analyze.parallel_lines(run, [0, 1], clones, files)
    assert len(pairs) == len(lines)
    for line, sides in zip(lines, pairs):
        text, twin = (''.join(pieces).replace('\u2581', ' ') for pieces, _ in sides)
        if '<0x' not in text + twin:  # a byte of a character that has no piece
            assert (text, twin) == (line, line if clones else line.upper())
    longer = sum(max(len(ids) for _, ids in pair) > 32 for pair in pairs)
    joined = analyze.parallel_sequences(run, [0, 1], clones, files, 10 ** 6)
    note = f'note: {longer:,} of {len(lines):,} lines exceed a block of 32 tokens: not used'
    assert note in capsys.readouterr().out
    assert max(len(side) for pair in joined for side in pair) <= 32
    if clones:
        a, b = np.concatenate(joined, 1)
        assert np.array_equal(a + 400, b) and len(a) > 320

def test_clones_need_no_parallel_text_and_two_tables_alone_have_embeddings(in_runs, lines):
    for extra in ([], ['--parallel', 'a.en'], ['--languages', 'EN2', 'EN1']):
        measure('alignment', 'out/cloned', '--sequences=6', *extra)
        result = read('out/cloned/alignment.json')
        states = np.array([*result['hidden_states'].values()])
        assert states.shape == (6, 2) and np.abs(states).max() <= 1 and result['sequences'] == 6
    assert result['retrieval']['tokens']['chance'] == 1 / (6 * 32)
    measure('alignment', 'more/tables', '--languages', 'EN2', 'EN1')
    expected = {'languages': ['EN2', 'EN1'], 'embeddings': result['embeddings']}
    assert read('more/tables/alignment.json') == expected and result.items() > expected.items()

def test_two_corpora_are_aligned_and_matched(in_runs, lines, capsys):
    parallel = '--parallel', 'a.en', 'a.up'
    measure('alignment', 'more/two', '--sequences=5', *parallel)
    result = read('more/two/alignment.json')
    assert 'position' not in result['hidden_states'] and set(result['retrieval']) == {'sequences'}
    measure('matching', 'more/two', *parallel, '--line=9')
    result, shown = read('more/two/matching.json'), capsys.readouterr().out
    en, up = result['tokens']
    assert ''.join(en).upper() == ''.join(up) and shown.count('\t') == 2 * len(result['pairs']) > 4
    assert len(result['pairs']) == min(len(en), len(up))
    assert Path('more/two/matching_line_9.png').read_bytes().startswith(b'\x89PNG')
