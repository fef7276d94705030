"""analyze.py against closed forms, brute force, second solvers and the paper's figures."""
import contextlib
import csv
import itertools
import json
import math
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import conftest
import networkx
import numpy as np
import pytest
import torch
from conftest import CLONES, ROOT, load, settings, trained, write_text
from pytest import approx
from torch.nn import functional as F

import analyze
import train
from analyze import ScalingLaw, hidden_similarity, load_run, token_efficiency
from model import GPT, GPTConfig

V = 30  # base ids of a clone
MONO = 'out/mono_20 out/mono_50 out/mono_100'

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
    with open(path, newline='', encoding='utf-8') as f:
        return list(csv.DictReader(f))

def copy_of_clones(out_dir, change=dict):
    """A copy of the cloned run with its weights changed."""
    shutil.copytree('out/cloned', out_dir)
    checkpoint = load(f'{out_dir}/ckpt.pt')
    torch.save(checkpoint | {'model': change(checkpoint['model'])}, f'{out_dir}/ckpt.pt')

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
    """Beside the four: clones of one vocabulary, two corpora, only two tables, unlike results."""
    lines = [line for text in documents for line in text.splitlines() if 9 < len(line) < 40]
    lines.insert(5, ' '.join(lines[:40]))
    two = {'dataset': 'two', 'corpora': {'en': 'text/*.txt', 'up': 'upper/*.txt'},
           'languages': [('EN', 'en'), ('UP', 'up')], 'schedule': [(0.0, (0.5, 0.5))],
           'vocab': 'anchored', 'vocab_size': 350}
    with contextlib.chdir(runs):
        write_text(runs / 'upper', map(str.upper, documents[:8]))
        write('a.en', '\n'.join(lines))
        write('a.up', '\n'.join(lines).upper())
        trained(**two, out_dir='more/two')
        trained(**CLONES | {'dataset': 'shared'}, anchor_frac=1.0, max_iters=3, out_dir='more/shared')
        tables = 'wte.weight', 'lm_head.weight'
        copy_of_clones('more/word2vec', lambda weights: {name: weights[name] for name in tables})
        measure('ppl', *MONO.split())
        results = read('out/mono_50/results.json')
        write('more/unfinished/results.json', results | {'step': 3})
        write('more/stride/results.json', results | {'stride': 16})
        write('more/heads/results.json', results | {'config': results['config'] | {'n_head': 4}})

@pytest.mark.parametrize('command, says', [
    ('ppl', 'needs the folders'), ('ppl more/word2vec', 'has no perplexity'),
    ('ppl out/cloned --stride=33', 'leaves tokens unscored'),
    ('ppl out/cloned --batch_size=0', 'at least 1'),
    ('ppl out/cloned --languages FR', "no language 'FR'; it has EN1, EN2"),
    ('teff', 'needs the folders'), ('teff out/cloned --runs=x.csv', 'not both'),
    ('teff --plot=x.doc', 'a figure must be .png'), ('teff --plot=png', 'a figure must be .png'),
    ('teff out/mono_20', 'at least three'), ('teff out/mono_20 more/unfinished', 'is at step 3 of 100'),
    (f'teff {MONO} more/heads', '^more/heads has n_head 4, out/mono_20 2: .* only in tokens'),
    (f'teff {MONO} more/stride', '^more/stride has stride 16, out/mono_20 8'),
    (f'teff {MONO} more/stride', 'analyze.py ppl more/stride --stride=8'),
    (f'teff {MONO} --stride=4', 'scored with --stride=8: analyze.py ppl out/mono_20 --stride=4'),
    ('alignment out/mono_20', 'two different languages'),
    ('alignment out/cloned --languages EN1 EN1', 'two different languages'),
    ('alignment out/cloned --parallel none.txt', 'none.txt cannot be read'),
    ('alignment more/shared', 'share their whole vocabulary'),
    ('alignment more/two --parallel a.en', 'two aligned files'),
    ('alignment more/two --parallel a.en text/00.txt', 'not aligned'),
    ('matching out/cloned --parallel a.en --line=1000000', 'has lines 1 to')])
def test_a_mistake_is_refused_in_one_line(command, says, in_runs, more_runs):
    refused(says, *command.split())

@pytest.mark.parametrize('options', [
    '-h', 'ppl -h', 'teff -h', 'alignment -h', 'matching -h', 'ppl out --stride=0', 'ppl nowhere'])
def test_help_and_mistyped_options_need_no_torch_and_a_refusal_is_status_1_and_one_line(options):
    code = ('import atexit, runpy, sys, time; sys.argv = sys.argv[1:]\n'
            'atexit.register(lambda: print("torch" in sys.modules, time.process_time()))\n'
            'runpy.run_path(sys.argv[0], run_name="__main__")')
    result = conftest.run(sys.executable, '-c', code, ROOT / 'analyze.py', *options.split())
    *_, torch_imported, seconds = result.out.split()
    assert torch_imported == str(options == 'ppl nowhere')
    if options == 'ppl nowhere':
        assert result.status == 1 and result.err.count('\n') == 1 and 'not a run' in result.err
    else:
        assert float(seconds) < 1

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

def test_ppl_of_a_uniform_model_is_its_vocabulary_in_every_language_and_without_tf32(in_runs):
    copy_of_clones('uniform', lambda saved: saved | {'lm_head.weight': saved['wte.weight'] * 0})
    torch.set_float32_matmul_precision('high')
    measure('ppl', 'uniform')
    assert torch.get_float32_matmul_precision() == 'highest'
    corpus = load_run('uniform', 'cpu').dataset.corpora[0]
    bits = math.log2(800) * corpus['test_tokens'] / corpus['test_bytes']
    for measured in read('uniform/results.json')['languages'].values():
        assert [measured['ppl'], measured['bits_per_byte']] == approx([800, bits], rel=1e-5)
        assert measured['scored_tokens'] == corpus['test_tokens'] - 1 - 24

def test_ppl_counts_tokens_and_exposure_and_gives_the_same_bytes_twice(in_runs):
    measure('ppl', 'out/cloned')
    first = Path('out/cloned/results.json').read_bytes()
    measure('ppl', 'out/cloned')
    assert Path('out/cloned/results.json').read_bytes() == first
    results, dataset = read('out/cloned/results.json'), load_run('out/cloned', 'cpu').dataset
    seen, ids = results['tokens_seen'], set(dataset.corpora[0]['train'].tolist())
    assert sum(seen.values()) == 200 * 8 * 32
    for (name, measured), starts in zip(results['languages'].items(), dataset.starts):
        assert [measured[key] for key in ('ppl', 'exposure', 'epochs')] == approx(
            [math.exp(measured['loss']), seen[name] / len(ids), seen[name] / (32 * len(starts))])
    one, two = (results['languages'][name]['ppl'] for name in ('EN1', 'EN2'))
    assert one < two < 400  # the frequent clone is ahead
    assert analyze.rows_of_run('out/cloned', None)[0]['role'] == 'multi'  # by what it read

def test_ppl_of_one_language_keeps_the_other_only_if_it_was_scored_alike(in_runs):
    copy_of_clones('half')
    measure('ppl', 'half')
    results = read('half/results.json')
    old, scored = {'EN1': {'ppl': 7}, 'EN2': {'ppl': 8}}, results['languages']['EN2']
    for changes in {}, {'stride': 4}, {'step': 100}, {'tokens_seen': {'EN1': 1, 'EN2': 1}}:
        write('half/results.json', results | {'languages': old} | changes)
        measure('ppl', 'half', '--languages', 'EN2')
        kept = {} if changes else {'EN1': {'ppl': 7}}
        assert read('half/results.json') == results | {'languages': kept | {'EN2': scored}}

def test_teff_measures_what_is_missing_and_draws_only_if_told(in_runs, capsys):
    for path in Path('out').glob('*/results.json'):
        path.unlink()
    folders, pictures = [*MONO.split(), 'out/cloned'], set(Path().rglob('*.p[nds]*'))
    measure('teff', *folders, '--csv=teff.csv')
    assert 'EN1: PPL' in capsys.readouterr().out and set(Path().rglob('*.p[nds]*')) == pictures
    for n, notes in ((1, 0), (2, 1)):  # a single sequence has no control
        measure('alignment', 'out/cloned', f'--sequences={n}')
        capsys.readouterr()
        measure('teff', *folders, 'out/cloned/', 'teff.csv', '--plot=teff.png')  # as globs give them
        shown = capsys.readouterr().out
        assert 'EN1: PPL' not in shown and shown.count('out/cloned: net cosine') == notes
    assert Path('teff.png').read_bytes().startswith(b'\x89PNG')
    *rows, _, _ = rows_of('teff.csv')
    for steps, row in zip((20, 50, 100), rows, strict=True):
        assert (row['run'], row['role'], row['tokens']) == (f'mono_{steps}', 'mono', f'{512 * steps}')
        assert float(row['teff']) == approx(1, abs=1e-6)  # three runs fit exactly
        assert row['teff_low'] == ''  # and say nothing of their scatter

# ---- teff

@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """A fresh working directory, unless a test asks for another."""
    monkeypatch.chdir(tmp_path)

def known_ppl(tokens, a=0.034, b=0.24, c=0.08, unit=1e6):
    return 1 / (c - a * (tokens / unit) ** -b)

def scored(name, tokens, ppl, others=0, corpus='en', text='', stride=25, **changes):
    """Write the results of a run on so many tokens, and others in another language -> its row."""
    steps, n = changes.get('max_iters', round(tokens) // 8000), 1 + (others > 0)
    cfg = settings(**{
        'batch_size': 80, 'block_size': 100, 'max_iters': steps, 'warmup_iters': steps // 10,
        'languages': [('L1', corpus), ('L2', corpus)][:n], 'schedule': [(0.0, [1 / n] * n)],
        'corpora': {corpus: 'x'}} | changes)
    write(f'{name}/results.json', {
        'config': vars(cfg), 'step': steps, 'stride': stride, 'non_embedding_parameters': 9,
        'tokens_seen': {'L1': round(tokens), 'L2': round(others)},
        'languages': {'L1': {'ppl': ppl, 'test_text': text, 'exposure': 5, 'epochs': 2}}})
    return analyze.rows_of_run(name, None)[0]

def monos(*amounts, law=known_ppl):
    return [scored(f'mono_{n:.0f}', n, law(n)) for n in amounts]

@pytest.mark.parametrize('law', [
    (0.034, 0.24, 0.08, 1.2e9), (0.02, 0.6, 0.06, 5e6), (0.2, 0.05, 0.25, 1e6)])
def test_known_law_gives_known_teff(law):
    unit = law[-1]
    wanted = {0.3 * unit: 2.0, 0.6 * unit: 0.75, 0.9 * unit: 1.05}  # tokens -> TEff
    rows = monos(*unit * np.array([0.2, 0.35, 0.5, 0.8, 1]), law=lambda n: known_ppl(n, *law))
    rows += [scored(f'multi_{n:.0f}', n, known_ppl(teff * n, *law), unit) for n, teff in wanted.items()]
    fitted, = token_efficiency(rows)[0].values()
    assert (fitted.a, fitted.b, fitted.c) == approx(law[:3], rel=1e-4)
    for row, teff in zip(rows[5:], wanted.values()):
        assert row['teff'] == approx(teff, abs=5e-5)
        assert row['mlpe'] == approx(known_ppl(row['tokens'], *law), rel=1e-5)
        assert row['tau'] == approx((teff - 1) * row['tokens'] / unit, abs=1e-4)
        assert row['teff_low'] == approx(teff, abs=1e-3) == row['teff_high']  # no scatter

# of the authors' notebook: tokens in units of 1.2B (18,265 steps of 128 x 512), PPL, TEff
NOTEBOOK = {
    'en': [(2.7, 19.033202, 0.994096), (1.5, 19.258220, 1.630378), (1.0, 20.423549, 1.598080),
           (0.3, 22.270593, 3.141136), (0.9, 22.459745, 0.999605), (0.5, 26.125090, 0.886629),
           (0.1, 32.805344, 2.076345), (0.1, 43.513504, 1.103405)],
    'fr': [(0.9, 16.447420, 0.968748), (1.0, 17.138401, 0.704769), (0.5, 19.390197, 0.816211),
           (0.5, 20.509860, 0.660904), (0.1, 29.044094, 1.267816), (0.1, 31.892938, 1.054308)]}

def test_the_authors_teffs_and_those_of_the_papers_tables_1_and_3_follow_from_one_law_and_the_ppls():
    laws, values = {}, {}
    for corpus, points in NOTEBOOK.items():
        tokens, ppls, teffs = np.transpose(points)
        laws[corpus] = ScalingLaw(teffs * tokens, ppls)
        assert np.array([laws[corpus].tokens(ppl) for ppl in ppls]) / tokens == approx(teffs, rel=1e-5)
    for row in rows_of(ROOT / 'study' / 'paper.csv'):
        if row['source'] in ('Table 1', 'Table 3') and ' ' in row['corpora']:
            _, _, *setting, measure, n, value = row.values()
            values.setdefault((*setting, int(n)), {})[measure] = value
    values = {key: value for key, value in values.items() if 'TEff' in value}
    assert len(values) == 47
    for key, value in values.items():
        _, corpora, _, data, schedule, n = key
        share = 0.5 if 'then' in schedule else float(schedule.split('/')[n - 1]) / 100
        law, tokens = laws[corpora.split()[n - 1]], share * float(data)
        ppl, teff = float(value['PPL']), float(value['TEff'])
        least, most = (law.tokens(ppl + error) / tokens for error in (0.05, -0.05))
        assert least - 0.005 < teff < most + 0.005, key  # the rounding of both

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

@pytest.mark.parametrize('tokens, ppl, teff, extrapolated, printed', [
    (500_000, known_ppl(600_000), 1.2, 'no', '1.20'), (150_000, known_ppl(300_000), 2, 'no', '2.00'),
    (500_000, known_ppl(100_000), 0.2, 'yes', '< 0.40'),  # by the shortest run
    (500_000, known_ppl(2_000_000), 4, 'yes', '> 2.00'),  # by the longest
    (900_000, 0.9 / 0.08, math.nan, 'beyond', '> 1.11')])
def test_outside_the_monolingual_runs_teff_is_marked_and_printed_as_a_bound(
        tokens, ppl, teff, extrapolated, printed, capsys):
    monos(200_000, 400_000, 600_000, 1_000_000)
    scored('multi', tokens, ppl, others=1_000_000)
    measure('teff', *Path().iterdir(), '--csv=teff.csv', '--plot=teff.pdf')
    rows = {row['run']: row for row in rows_of('teff.csv')}
    row = rows.pop('multi')
    assert float(row['teff'] or 'nan') == approx(teff, rel=1e-3, nan_ok=True)
    assert {other['extrapolated'] for other in rows.values()} == {'no'}
    assert row['extrapolated'] == extrapolated and (not row['mlpe']) == (tokens < 200_000)
    assert ('below the limit of the law, 12.5' in row['remark']) == (teff != teff)
    lines = [re.split(r' *\| ?', line) for line in capsys.readouterr().out.split('\n') if line[:1] == '|']
    shown, = (dict(zip(lines[0], line)) for line in lines if line[1] == 'multi')
    assert shown['teff'] == printed
    assert {shown.get(key, '') != '' for key in ('mlte', 'head_start', 'tau')} == {extrapolated == 'no'}

@pytest.mark.parametrize('other', [{'n_layer': 3}, {'corpus': 'fr'}, {'text': 'b'}])
def test_every_size_corpus_and_test_text_has_its_own_law(other):
    rows = monos(200_000, 600_000, 1_000_000)
    rows += [scored(f'other_{row["tokens"]}', row['tokens'], 2 * row['ppl'], **other) for row in rows]
    key = f'gpt-{other.get("n_layer", 2)}x32', other.get('corpus', 'en'), other.get('text', '')
    assert list(token_efficiency(rows)[0]) == [('gpt-2x32', 'en', ''), key]
    assert [row['teff'] for row in rows] == approx([1] * 6)

@pytest.mark.parametrize('changes, says', [
    ({'batch_size': 160, 'max_iters': 50}, 'batch_size 160, mono_200000 80'),
    ({'learning_rate': 1e-4}, 'learning_rate 0.0001, mono_200000 0.003'),
    ({'n_head': 4}, 'n_head 4, mono_200000 2'), ({'stride': 50}, 'stride 50, mono_200000 25'),
    ({'warmup_iters': 40}, 'warmup_iters 40, mono_200000 2')])
@pytest.mark.parametrize('others', [0, 100_000])
def test_unlike_runs_are_left_out_by_name_and_setting_unless_told_to_mix(changes, says, others):
    rows = monos(200_000, 600_000, 1_000_000, 1_600_000)
    rows.append(scored('unlike', 800_000, 40.0, others, **changes))
    law, = token_efficiency(rows)[0].values()
    assert law.n == 4 and rows[0]['teff'] == approx(1, rel=1e-3)
    assert f'unlike has {says}' in rows[-1]['remark'] and math.isnan(rows[-1]['teff'])
    law, = token_efficiency(rows, mix_recipes=True)[0].values()
    assert law.n == 4 + (not others) and rows[-1]['teff'] >= 0

def test_runs_of_one_name_are_two_and_a_table_that_teff_wrote_gives_the_same_numbers(capsys):
    """Beside step-matched runs, which stand out of the law."""
    rng = np.random.default_rng(0)
    monos(100_000, 400_000, 700_000, 1_000_000, law=lambda n: known_ppl(n) * rng.uniform(0.99, 1.01))
    scored('a/rare', 200_000, known_ppl(300_000), others=800_000, max_iters=125)
    scored('b/rare', 300_000, known_ppl(600_000), others=700_000, max_iters=60)
    for i, (tokens, ppl, steps) in enumerate([(208_000, 48, 125), (208_000, 52, 125),
                                              (200_000, 99, 60), (330_000, 99, 60)]):
        scored(f'step_{i}', tokens, ppl, batch_size=10, max_iters=steps)
    folders = [*Path().glob('[ms]*'), 'a/rare', Path('b/rare').absolute()]
    measure('teff', *folders, '--csv=1.csv')
    assert '4 monolingual runs' in capsys.readouterr().out
    table, text = rows_of('1.csv'), Path('1.csv').read_text('utf-8')
    assert [row['run'] for row in table if row['role'] == 'multi'] == ['a/rare', 'b/rare']
    assert sum(row['role'] == 'step' for row in table) == 4
    a, b = ({key: float(value) for key, value in row.items() if re.fullmatch('[0-9.-]+', value)}
            for row in table[-2:])
    assert (a['teff'], b['teff']) == approx((1.5, 2), rel=0.1) and a['teff_low'] < a['teff'] < a['teff_high']
    assert (a['step_ppl'], a['gain']) == approx((50, 1 - a['ppl'] / 50))
    assert 'gain' not in b  # it needs a step-matched run of its own
    assert a['head_start'] == approx(a['mlte'] - 200_000) == approx(800_000 * a['tau'])
    for bom in '', '\ufeff':  # which spreadsheets write
        write('table.csv', bom + text)
        measure('teff', '--runs=table.csv', '--csv=2.csv')
        assert Path('2.csv').read_text('utf-8') == text

@pytest.mark.parametrize('lines, says', [
    ('', 'all rows'), ('r,m,c,l,many,2,mono', 'could not convert'), ('\xff', 'cannot be read'),
    ('r,m,c,l,1,2,mono\nr,m,c,l,1,nan,mono', 'line 3'), ('r,m,c,l,1,2,both', 'line 2: 2.0, both'),
    ('r,m,c,l,1,7,mono\nr,m,c,l,2,8,mono\nr,m,c,l,3,9,mono', 'do not improve')])
def test_a_bad_table_writes_nothing(lines, says):
    Path('a.csv').write_bytes(f'{",".join(analyze.COLUMNS)}\n{lines}\n'.encode('latin-1'))
    refused(says, 'teff', '--runs=a.csv', '--csv=b.csv', '--plot=b.png')
    assert [*Path().iterdir()] == [Path('a.csv')]

# ---- alignment and matching

def sequences():
    """Four texts in either clone."""
    texts = np.random.default_rng(0).integers(V, size=(4, 15))
    return [(ids, ids + V) for ids in texts]

def random_states(n, seed=0, shared=0.0):
    """States of n unrelated texts (2 layers, 20 tokens, 40), about a direction that all share."""
    noise = torch.randn(n, 2, 20, 40, generator=torch.Generator().manual_seed(seed))
    return list(F.normalize(noise + shared, dim=-1))

def test_equal_embeddings_make_hidden_states_and_gradients_equal():
    run = random_run()
    for table in (run.model.wte, run.model.lm_head):
        table.weight.data[V:] = table.weight.data[:V]
    states = [[analyze.hidden_states(run, ids) for ids in pair] for pair in sequences()]
    cosines, retrieved = hidden_similarity(states, clones=True)
    assert cosines['position'] == approx([1] * 3, abs=1e-6) == cosines['matching']
    assert retrieved['sequences'] == {'share': [1] * 3, 'chance': 0.25}
    result = analyze.gradient_similarity(run, sequences())
    assert np.array(list(result['blocks'].values())) == approx(np.ones((15, 3)), abs=1e-5)
    assert result['macro_average'] == approx(1, abs=1e-5) == result['others']['wpe.weight']
    assert result['others']['wte.weight'] == 0  # different rows of the table

@pytest.mark.parametrize('clones', [True, False])
def test_net_tells_equal_states_from_a_direction_that_all_share(clones):
    a, b = (random_states(30, seed, shared=5.0) for seed in (0, 1))
    cosines, retrieved = hidden_similarity(zip(a, b), clones)
    assert cosines.pop('net') == approx([0, 0], abs=2e-3)
    assert len(cosines) == 3 + clones and np.min(list(cosines.values())) > 0.95
    assert max(max(part['share']) for part in retrieved.values()) < 0.2
    a = random_states(30)
    cosines, retrieved = hidden_similarity(zip(a, a), clones, most=45)
    kind, control = ('position', 'control') if clones else ('matching', 'control_matching')
    assert cosines[kind] == approx([1, 1]) and max(cosines[control]) < 0.5
    assert cosines['net'] == approx(np.subtract(cosines[kind], cosines[control]))
    assert [part['share'] for part in retrieved.values()] == [[1, 1]] * (1 + clones)
    assert not clones or retrieved['tokens']['chance'] == 1 / 40  # whole texts of 20, up to most

def test_controls_set_every_sequence_against_the_next_as_far_as_both_go():
    a, b = ([states[:, :n] for states, n in zip(random_states(3, seed), (5, 9, 7))] for seed in (0, 1))
    control = hidden_similarity(zip(a, b), clones=True)[0]['control']
    for layer in (0, 1):
        pairs = [zip(a[i][layer], b[(i + 1) % 3][layer]) for i in range(3)]
        expected = np.mean([np.mean([float(x @ y) for x, y in pair]) for pair in pairs])
        assert control[layer] == approx(expected, abs=1e-6)
    assert 'control' not in hidden_similarity([(a[0], b[0])], True)[0]  # nothing is unrelated

def test_gradients_are_of_the_whole_sequence_with_query_key_and_value_apart():
    run, (ids, _) = random_run(), sequences()[0]
    gradients, whole = analyze.gradients(run, ids), torch.from_numpy(ids)
    loss = F.cross_entropy(run.model(whole[None, :-1])[0], whole[1:])
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
        assert result[f'all_pairs{suffix}'] == mean(itertools.product(a, b))
    bins = [(b['from'], b['below'], b['subwords']) for b in result['by_frequency']]
    assert bins == [(0, 1, 2), (1, 10, 12), (10, 100, 2), (100, 1000, 2), (1000, 10000, 2)]
    assert result['by_frequency'][0]['mean'] == mean(rows[:, 5:7].T)
    assert 'mean_seen' not in analyze.embedding_similarity(table, rows, np.zeros(25))

@pytest.mark.parametrize('shape', [(1, 1), (6, 6), (4, 9), (9, 4), (1, 5)])
@pytest.mark.parametrize('tied', [False, True])
def test_matching_weighs_as_much_as_networkxs(shape, tied):
    rng, graph = np.random.default_rng(sum(shape)), networkx.Graph()
    cosine = rng.integers(3, size=shape) / 2 if tied else rng.normal(size=shape)
    rows, columns = analyze.match(cosine)
    graph.add_weighted_edges_from((i, -1 - j, -value) for (i, j), value in np.ndenumerate(cosine))
    best = networkx.bipartite.minimum_weight_full_matching(graph, range(shape[0]))
    assert len(set(rows)) == len(set(columns)) == len(rows) == min(shape)
    assert cosine[rows, columns].sum() == approx(sum(cosine[i, -1 - j] for i, j in best.items() if i >= 0))

@pytest.mark.parametrize('shortest, lengths', [
    (0, [(8, 9), (5, 3), (10, 10), (10, 9)]), (1, [(8, 9), (5, 3), (10, 10), (1, 1), (10, 9)])])
def test_lines_are_joined_up_to_the_longest_and_short_sequences_dropped(shortest, lengths):
    lines = [(5, 4), (3, 5), (9, 20), (4, 2), (1, 1), (10, 10), (1, 1), (10, 9)]
    pairs = analyze.joined_lines([tuple(map(np.arange, line)) for line in lines], 10, shortest)
    assert [tuple(map(len, pair)) for pair in pairs] == lengths

def test_only_a_line_feed_ends_a_line_of_parallel_text_and_a_bom_is_no_part_of_it(in_runs):
    write('u.txt', '\ufeffone\u2028still one\x85and\x0bthis\r\ntwo\n')
    lines, _, _ = analyze.parallel_lines(load_run('out/cloned', 'cpu'), [0, 1], True, ['u.txt'])
    assert lines == [('one\u2028still one\x85and\x0bthis',) * 2, ('two', 'two')]

def test_long_lines_of_clones_are_cut_and_those_of_two_corpora_counted(in_runs, more_runs, capsys):
    for name, clones, noted in (('out/cloned', True, False), ('more/two', False, True)):
        run, files = load_run(name, 'cpu'), ['a.en', 'a.up']
        lines, encode, _ = analyze.parallel_lines(run, [0, 1], clones, files)
        whole = [encode(line) for line in lines]
        longer = sum(max(map(len, line)) > 32 for line in whole)
        pairs = analyze.parallel_sequences(run, [0, 1], clones, files, 10 ** 6)
        assert max(max(map(len, pair)) for pair in pairs) <= 32 and longer
        read = sum(len(a) for a, _ in pairs)
        note = f'note: {longer:,} of {len(lines):,} lines'
        assert (note in capsys.readouterr().out) == noted
        if clones:
            assert all(np.array_equal(a + 400, b) for a, b in pairs)
            assert read > 0.95 * sum(len(a) for a, _ in whole)

def test_training_frequency_counts_what_the_run_has_read(in_runs):
    run, expected = load_run('out/cloned', 'cpu'), np.zeros((2, 400), int)
    run.step = 800  # a second epoch of EN2
    sampler = train.Sampler(run.dataset.starts, run.cfg)
    drawn = np.concatenate([sampler.languages(step) for step in range(800)])
    for language, n in enumerate(np.bincount(drawn)):
        orders = [np.random.default_rng([run.cfg.seed, language, epoch]).permutation(
            run.dataset.starts[language]) for epoch in (0, 1)]
        for start in np.concatenate(orders)[:n]:
            expected[language] += np.bincount(run.dataset.corpora[0]['train'][start:start + 32], minlength=400)
    assert np.array_equal([analyze.training_frequency(run, language) for language in (0, 1)], expected)

def test_clones_are_aligned_without_parallel_text_and_two_tables_alone_by_embeddings(in_runs, more_runs):
    for extra in ([], ['--parallel', 'a.en'], ['--languages', 'EN2', 'EN1']):
        measure('alignment', 'out/cloned', '--sequences=6', *extra)
        result = read('out/cloned/alignment.json')
        for layers in result['hidden_states'].values():
            assert len(layers) == 2 and np.abs(layers).max() <= 1
    assert result['languages'] == ['EN2', 'EN1'] and result['sequences'] == 6
    assert result['retrieval']['tokens']['chance'] == 1 / (6 * 32)
    measure('alignment', 'more/word2vec', '--languages', 'EN2', 'EN1')
    expected = {key: result[key] for key in ('languages', 'embeddings')}
    assert read('more/word2vec/alignment.json') == expected

def test_two_corpora_are_aligned_and_matched(in_runs, more_runs, capsys):
    parallel = '--parallel', 'a.en', 'a.up'
    measure('alignment', 'more/two', '--sequences=5', *parallel)
    result = read('more/two/alignment.json')
    assert 'position' not in result['hidden_states'] and set(result['retrieval']) == {'sequences'}
    measure('matching', 'more/two', *parallel, '--line=2')
    result = read('more/two/matching.json')
    texts, said = [''.join(side) for side in result['tokens']], capsys.readouterr().out
    assert texts[0].upper() == texts[1] and said.count('\t') == 2 * len(result['pairs']) > 4
    assert Path('more/two/matching_line_2.png').read_bytes().startswith(b'\x89PNG')
