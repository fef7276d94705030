"""analyze.py against closed forms, brute force, second solvers and the paper's figures."""
import csv
import gzip
import json
import math
import re
import shlex
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
    retrieval,
    read_task,
    shuffled_batches,
    sliding_window,
    task_metrics,
    token_efficiency,
    unit_rows,
)
from config import UserError, runs
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
    again = map(sum, sliding_window(run, ids, stride, batch_size=100))
    assert tuple(again) == pytest.approx((total, scored), rel=1e-6)


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


def test_results_hold_config_tokens_exposure_and_measures_and_are_the_same_every_time(in_runs):
    written = []
    for _ in range(2):
        result = script('analyze.py', 'ppl', 'out/cloned', '--device=cpu')
        assert result.status == 0, result.err
        written.append(Path('out/cloned/results.json').read_bytes())
    results = json.loads(written[0])
    assert written[0] == written[1]
    assert results['config']['languages'] == [['EN1', 'en'], ['EN2', 'en']]
    assert sum(results['tokens_seen'].values()) == 200 * 8 * 32
    text = np.fromfile('data/clones/train.bin', np.uint16)
    for name, measured in results['languages'].items():
        assert measured['ppl'] == pytest.approx(math.exp(measured['loss']))
        assert measured['exposure'] == pytest.approx(results['tokens_seen'][name] / len(set(text.tolist())))
        assert f'{name}: PPL {measured["ppl"]:.2f}' in result.out
    one, two = (results['languages'][name]['ppl'] for name in ('EN1', 'EN2'))
    assert one < two < 400  # the frequent clone is ahead
    assert script('analyze.py', 'ppl', 'out/cloned', '--device=cpu', '--languages', 'EN2').status == 0
    again = json.loads(Path('out/cloned/results.json').read_text())
    assert again['languages'] == {'EN2': results['languages']['EN2']}
    assert analyze.rows_of_run('out/cloned', None)[0]['role'] == 'multi'  # though only one was scored
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
    assert rows['mono_50', 'EN']['model'] == 'gpt-2x32'
    for name, steps in (('mono_20', 40), ('mono_50', 100), ('mono_100', 200)):
        assert int(rows[name, 'EN']['tokens']) == steps * 8 * 32
        assert float(rows[name, 'EN']['teff']) == pytest.approx(1, abs=1e-6)  # three runs fit exactly
        assert rows[name, 'EN']['teff_low'] == ''  # and say nothing of their scatter
    same = script('analyze.py', 'teff', '--runs', 'teff.csv')  # its own table is a table of runs
    assert same.status == 0
    for (run, language), row in rows.items():
        assert f'{float(row["teff"]):.2f}' in next(
            line for line in same.out.splitlines() if line.split()[1:4:2] == [run, language])


def test_teff_refuses_unfinished_runs(in_runs):
    if not Path('out/mono_20/results.json').exists():
        script('analyze.py', 'ppl', 'out/mono_20')
    results = json.loads(Path('out/mono_20/results.json').read_text())
    Path('short').mkdir(exist_ok=True)
    Path('short/results.json').write_text(json.dumps(results | {'step': 3}))
    result = script('analyze.py', 'teff', 'out/mono_20', 'short')
    assert result.status == 1 and 'is at step 3 of 40' in result.err and len(result.err.splitlines()) == 1


@pytest.mark.parametrize('command, says', [
    (['ppl', 'nowhere'], 'nowhere is not a run'), (['ppl'], 'needs the folders'),
    (['ppl', 'out/cloned', '--stride=33'], 'leaves tokens unscored'),
    (['ppl', 'out/cloned', '--batch_size=0'], 'at least 1'), (['teff'], 'needs the folders'),
    (['teff', 'out/cloned', '--runs=x.csv'], 'not both'), (['report'], 'needs the folders'),
    (['teff', '--runs=x.csv', '--plot=x.doc'], 'a figure is a .png'),
    (['teff', 'out/mono_20'], 'at least three'), (['teff', '--runs=none.csv'], 'cannot be read')])
def test_analyze_refuses_in_one_line(command, says, in_runs):
    result = script('analyze.py', *command)
    assert result.status == 1 and says in result.err and len(result.err.splitlines()) == 1, result.err


def test_float32_is_measured_without_tf32(in_runs):
    analyze.load_run('out/cloned', 'cpu')
    assert torch.get_float32_matmul_precision() == 'highest'


# ---- teff


def table(points, law='gpt', corpus='en', others=0):
    """(role, tokens, ppl) -> rows."""
    return [{'run': f'run{i}', 'model': law, 'corpus': corpus, 'language': 'EN', 'tokens': t, 'ppl': ppl,
             'role': role, 'others': others} for i, (role, t, ppl) in enumerate(points)]


@pytest.mark.parametrize('a, b, c, unit', [(0.034, 0.24, 0.08, 1.2e9), (0.02, 0.6, 0.05, 5e6), (0.2, 0.05, 0.25, 1e6)])
def test_known_law_gives_known_teff(a, b, c, unit):
    ppl = lambda t: 1 / (c - a * (t / unit) ** -b)
    fractions = (0.2, 0.35, 0.5, 0.8, 1)
    wanted = {0.3 * unit: 2.0, 0.6 * unit: 0.75, 0.9 * unit: 1.05}  # tokens -> TEff
    rows = table([('mono', f * unit, ppl(f * unit)) for f in fractions] + [('multi', t, ppl(teff * t)) for t, teff in wanted.items()])
    law, = token_efficiency(rows)[0].values()
    assert (law.a, law.b, law.c) == pytest.approx((a, b, c), rel=1e-4)
    for row, (tokens, teff) in zip(rows[5:], wanted.items()):
        assert row['teff'] == pytest.approx(teff, abs=5e-5)
        assert row['mlte'] == pytest.approx(teff * tokens, rel=5e-5) and row['mlpe'] == pytest.approx(ppl(tokens), rel=1e-5)
        assert row['teff_low'] == pytest.approx(teff, abs=1e-3) == row['teff_high']  # no scatter
    assert [row['extrapolated'] for row in rows] == ['no'] * 8


PAPER = [('mono', 1.2e9, 21.9), ('mono', 0.6e9, 25.3), ('mono', 0.12e9, 48.4)]  # Table 1, rows 1 to 3


# the authors' notebook: tokens in units of 1.2B (18,265 steps of 128 x 512), PPL, TEff
NOTEBOOK = {
    'en': """0.9 22.459745 0.999605, 0.1 32.805344 2.076345, 0.5 26.125090 0.886629, 0.5 26.136199 0.885111,
             0.1 35.535682 1.689081, 0.1 35.739059 1.665938, 0.5 24.566721 1.153236, 0.5 31.394057 0.470562,
             0.5 26.529730 0.834050, 0.5 24.435285 1.181752, 1.0 22.777108 0.834545, 1.0 20.423549 1.598080,
             1.8 20.060435 1.004415, 0.2 23.875490 3.293062, 1.0 23.345852 0.735146, 1.0 23.356490 0.733470,
             1.5 21.500561 0.769095, 1.5 19.258220 1.630378, 2.7 19.033202 0.994096, 0.3 22.270593 3.141136,
             1.5 22.169072 0.644389, 1.5 22.178973 0.642784, 0.9 22.474531 0.996040, 0.5 26.440641 0.845161,
             0.1 43.513504 1.103405, 0.5 29.107408 0.596393, 0.9 22.476303 0.995614, 0.5 25.972939 0.907881,
             0.1 39.514287 1.330714, 0.5 28.904887 0.610526, 1.0 23.026374 0.788493, 1.0 26.125081 0.443315""",
    'fr': """0.1 31.892938 1.054308, 0.5 19.390197 0.816211, 0.9 16.447420 0.968748, 0.5 20.509860 0.660904,
             0.1 29.044094 1.267816, 0.5 19.008312 0.884098, 0.9 16.477376 0.959315, 0.5 19.334022 0.825634,
             1.0 16.902637 0.755627, 1.0 17.138401 0.704769"""}
NOTEBOOK = {corpus: np.array([row.split() for row in rows.split(',')], float)
            for corpus, rows in NOTEBOOK.items()}


def authors_law(corpus):
    """The law through four of the authors' points (TEff x tokens, PPL), from the rarest to the most."""
    tokens, ppl, teff = NOTEBOOK[corpus][np.argsort(NOTEBOOK[corpus][:, 1])[[0, 3, 6, -1]]].T
    return ScalingLaw(teff * tokens, ppl)


@pytest.mark.parametrize('corpus', NOTEBOOK)
def test_all_of_the_authors_teffs_follow_from_a_law_through_four_of_their_points(corpus):
    law = authors_law(corpus)
    for tokens, ppl, teff in NOTEBOOK[corpus]:
        assert law.tokens(ppl) / tokens == pytest.approx(teff, rel=1e-5)


def test_the_teffs_that_the_paper_prints_follow_from_the_ppls_that_it_prints():
    """Within the rounding of both, in Tables 1 and 3."""
    printed, laws = {}, {corpus: authors_law(corpus) for corpus in NOTEBOOK}
    for row in analyze.read_table('paper.csv'):
        if row['source'] in ('Table 1', 'Table 3') and not row['value'].startswith('>'):
            key = row['source'], row['row'], row['number']
            printed.setdefault(key, row)[row['measure']] = float(row['value'])
    rows = [row for row in printed.values() if 'TEff' in row and len(row['corpora']) > 2]
    assert len(rows) == 47
    for row in rows:
        n, schedule = int(row['number']) - 1, row['schedule']
        share = float(schedule.split('/')[n]) / 100 if 'then' not in schedule else 0.5
        law, tokens = laws[row['corpora'].split()[n]], share * float(row['data'])
        least, most = (law.tokens(row['PPL'] + error) / tokens for error in (0.05, -0.05))
        assert least - 0.005 < row['TEff'] < most + 0.005, row


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
    assert list(token_efficiency(rows)[0]) == [('gpt', 'en', ''), ('gpt', 'fr', '')]
    assert [row['teff'] for row in rows] == pytest.approx([1] * 8)


def row(run, tokens, ppl, role='mono', others=0, **changes):
    """A row of teff of a run with settings, as rows_of_run gives it."""
    cfg = settings(max_iters=tokens // 8000, batch_size=80, block_size=100, warmup_iters=5)
    return {'run': run, 'model': 'gpt', 'corpus': 'en', 'language': 'EN', 'tokens': tokens, 'ppl': ppl,
            'role': role, 'others': others, 'cfg': SimpleNamespace(**vars(cfg) | changes)}


def known_ppl(tokens):
    return 1 / (0.08 - 0.034 * (tokens / 1e6) ** -0.24)


def law_runs(*amounts, **changes):
    return [row(f'mono{tokens}', tokens, known_ppl(tokens), **changes) for tokens in amounts]


def test_a_row_beyond_the_laws_asymptote_says_so_and_the_others_are_measured():
    rows = law_runs(200_000, 400_000, 600_000, 1_000_000) + [
        row('good', 900_000, 0.9 / 0.08, 'multi', 100_000), row('fair', 500_000, known_ppl(600_000), 'multi', 500_000)]
    token_efficiency(rows)
    assert rows[4]['extrapolated'] == 'beyond' and 'beyond the law, which ends at 12.5' in rows[4]['remark']
    assert math.isnan(rows[4]['teff']) and rows[5]['teff'] == pytest.approx(1.2, rel=1e-3)


@pytest.mark.parametrize('where, own, others, ppl, printed', [  # the paper's points: what a foreign token is worth
    ('EN2 at 90/10', 0.12, 1.08, 32.8, 0.12), ('50/50', 0.6, 0.6, 26.1, -0.11)])
def test_transfer_is_what_a_foreign_token_is_worth(where, own, others, ppl, printed):
    rows = table(PAPER) + table([('multi', own * 1e9, ppl)], others=others * 1e9)
    token_efficiency(rows)
    assert rows[-1]['tau'] == pytest.approx(printed, abs=0.02)
    assert rows[-1]['tau'] == pytest.approx((rows[-1]['mlte'] - own * 1e9) / (others * 1e9))
    assert math.isnan(rows[0]['tau'])


@pytest.mark.parametrize('changes, says', [
    ({'batch_size': 160, 'max_iters': 50}, 'odd has batch_size 160, mono200000 80'),
    ({'learning_rate': 1e-4}, 'odd has learning_rate 0.0001, mono200000 0.003'),
    ({'block_size': 50}, 'odd has block_size 50'), ({'warmup_iters': 40}, 'odd has warmup_iters 40, mono200000 5')])
def test_unlike_runs_are_refused_by_name_and_setting_unless_told_to_mix(changes, says):
    rows = law_runs(200_000, 600_000, 1_000_000, 1_600_000) + [row('odd', 800_000, 40.0, **changes)]
    laws, _ = token_efficiency(rows)
    assert says in rows[-1]['remark'] and math.isnan(rows[-1]['teff'])
    assert laws['gpt', 'en', ''].n == 4 and rows[0]['teff'] == pytest.approx(1, rel=1e-3)
    laws, _ = token_efficiency(law_runs(200_000, 600_000, 1_000_000, 1_600_000) + rows[-1:], mix_recipes=True)
    assert laws['gpt', 'en', ''].n == 5


def test_a_warm_up_of_as_many_steps_or_of_the_same_share_is_alike():
    rows = [row(f'm{n}', n, known_ppl(n), warmup_iters=n // 80_000) for n in (200_000, 600_000, 1_000_000)]
    laws, _ = token_efficiency(rows)
    assert laws['gpt', 'en', ''].n == 3


def test_a_step_matched_run_stands_beside_teff_and_out_of_the_law():
    multi = row('cloned', 100_000, 40.0, 'multi', 900_000, max_iters=125)
    steps = [row(f'step{i}', 120_000, ppl, batch_size=10, max_iters=125, seed=i) for i, ppl in enumerate((48, 52))]
    rows = law_runs(100_000, 400_000, 700_000, 1_000_000) + [multi, *steps]
    laws, _ = token_efficiency(rows)
    assert laws['gpt', 'en', ''].n == 4 and [step['role'] for step in steps] == ['step', 'step']
    assert multi['step_ppl'] == pytest.approx(50) and multi['gain'] == pytest.approx(0.2)
    assert all(step['remark'].endswith('step-matched') for step in steps)
    far = row('balanced', 500_000, 40.0, 'multi', 500_000, max_iters=125)  # needs a step-matched run of its own
    token_efficiency([*rows, far])
    assert math.isnan(far['gain'])


def test_a_row_where_the_law_misses_its_neighbours_by_more_than_its_interval_says_so():
    tokens = [100_000, 200_000, 300_000, 400_000, 600_000, 800_000, 900_000, 1_000_000]
    rows = [row(f'm{n}', n, known_ppl(n) * (1.1 if n == 600_000 else 1)) for n in tokens]
    near, away = (row(f'at{n}', n, known_ppl(n), 'multi', 1) for n in (650_000, 150_000))
    token_efficiency([*rows, near, away])
    assert re.search(r'law off: own TEff 0\.\d+ at 600,000 tokens', near['remark']) and 'law off' not in away['remark']


def test_test_texts_have_laws_of_their_own():
    rows = law_runs(200_000, 600_000, 1_000_000)
    other = [one | {'text': 'other', 'ppl': 2 * one['ppl']} for one in rows]
    laws, _ = token_efficiency(rows + other)
    assert len(laws) == 2 and [one['teff'] for one in rows + other] == pytest.approx([1] * 6)


HEADER = 'run,model,corpus,language,tokens,ppl,role\n'


@pytest.mark.parametrize('text, says', [
    ('', 'all rows'), ('run,model,corpus,language,tokens,ppl\nr,m,c,l,1,2\n', "'role'"),
    (HEADER + 'r,m,c,l,many,2,mono\n', 'could not convert'), (HEADER + 'r,m,c,l,1,2,mono\nr,m,c,l,1,nan,mono\n', 'line 3'),
    (HEADER + 'r,m,c,l,1,2\n', 'line 2'), (HEADER + 'r,m,c,l,1,2,both\n', 'both'),
    (HEADER + 'r,m,c,l,1,9,mono\nr,m,c,l,2,8,mono\n', 'at least three'), (HEADER + 'r,m,c,l,1,9,multi\n', 'at least three'),
    (HEADER + 'r,m,c,l,1,7,mono\nr,m,c,l,2,8,mono\nr,m,c,l,3,9,mono\n', 'do not improve'), (HEADER + '\xff', 'cannot be read')])
def test_a_bad_table_is_one_line_and_writes_nothing(text, says, tmp_path):
    (tmp_path / 'runs.csv').write_bytes(text.encode('latin-1'))
    with pytest.raises(UserError, match=says) as error:
        analyze.main(['teff', '--runs', f'{tmp_path}/runs.csv', '--csv', f'{tmp_path}/out.csv', '--plot', f'{tmp_path}/fig.png'])
    assert '\n' not in str(error.value) and [p.name for p in tmp_path.iterdir()] == ['runs.csv']


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


def states_of(run, pairs):
    return [[analyze.hidden_states(run, ids) for ids in pair] for pair in pairs]


def equal_rows(run):
    for table in (run.model.wte, run.model.lm_head):
        table.weight.data[V:] = table.weight.data[:V]
    return run


def test_equal_embedding_rows_make_hidden_states_and_gradients_equal_at_every_layer():
    run = equal_rows(cloned_model())
    found, retrieved = hidden_similarity(states_of(run, sequences()), clones=True)
    assert found['position'] == pytest.approx([1] * 3, abs=1e-6) == found['matching']
    assert retrieved['sequences'] == {'share': [1] * 3, 'chance': 0.25} and retrieved['tokens']['chance'] == 1 / 60
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
    assert hidden_similarity(states_of(run, sequences()), clones=True)[0]['position'] == pytest.approx([0, 0], abs=1e-7)
    found = embedding_similarity(run.model.wte.weight.data, np.arange(2 * V).reshape(2, V), np.ones(V))
    assert (found['mean'], found['all_pairs']) == pytest.approx((0, 0), abs=1e-12)


def random_states(n, length=20, seed=0, constant=0.0):
    """States of n unrelated sequences: (2 layers, length, 40), around a direction that all share."""
    noise = torch.randn(n, 2, length, 40, generator=torch.Generator().manual_seed(seed))
    return list(unit_rows(noise + constant))


def test_a_direction_that_all_states_share_has_net_0():
    a, b = random_states(30, constant=5.0), random_states(30, seed=1, constant=5.0)
    found, retrieved = hidden_similarity(zip(a, b), clones=True)
    for kind in ('position', 'control', 'control_within', 'matching', 'control_matching'):
        assert min(found[kind]) > 0.95
    assert found['net'] == pytest.approx([0, 0], abs=2e-3)
    assert max(retrieved['tokens']['share']) < 0.01 and retrieved['tokens']['chance'] == 1 / 600
    assert hidden_similarity(zip(a, b), clones=False)[0]['net'] == pytest.approx([0, 0], abs=2e-3)


def test_identical_states_of_unrelated_sequences_have_net_1_and_retrieval_1():
    states = random_states(30)
    found, retrieved = hidden_similarity(zip(states, states), clones=True)
    assert found['position'] == pytest.approx([1, 1]) and found['net'] == pytest.approx([1, 1], abs=0.03)
    assert retrieved['tokens']['share'] == retrieved['sequences']['share'] == [1, 1]
    found, retrieved = hidden_similarity(zip(states, states), clones=False)
    assert 'position' not in found and 'tokens' not in retrieved
    assert found['net'] == pytest.approx(np.subtract(found['matching'], found['control_matching']))


def test_controls_set_every_sequence_against_the_next_as_far_as_both_go():
    lengths = (5, 9, 7)
    a, b = ([states[:, :n] for states, n in zip(random_states(3, seed=seed), lengths)] for seed in (0, 1))
    found, _ = hidden_similarity(zip(a, b), clones=True)

    def by_hand(first, second):
        n = min(first.size(1), second.size(1))
        return [np.mean([float(first[layer, i] @ second[layer, i]) for i in range(n)]) for layer in (0, 1)]
    for kind, other in (('control', b), ('control_within', a)):
        expected = np.mean([by_hand(a[i], other[(i + 1) % 3]) for i in range(3)], 0)
        assert found[kind] == pytest.approx(expected, abs=1e-6)
    assert 'control' not in hidden_similarity([(a[0], b[0])], clones=True)[0]  # nothing is unrelated


def test_retrieval_finds_the_right_counterpart_in_a_permuted_copy():
    x = unit_rows(torch.randn(2, 50, 8))
    order = torch.randperm(50)
    assert retrieval(x[:, order], x[:, order]) == {'share': [1, 1], 'chance': 0.02}
    fixed = float((order == torch.arange(50)).float().mean())
    assert retrieval(x, x[:, order])['share'] == pytest.approx([fixed, fixed])


def test_candidates_for_retrieval_are_whole_sequences_up_to_a_bound():
    states = random_states(6)
    for most, tokens in ((10, 20), (45, 40), (4096, 120)):
        assert hidden_similarity(zip(states, states), True, most)[1]['tokens']['chance'] == 1 / tokens


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
    seen = rows[:, 7:]  # the first two apart never occurred
    assert found['mean_seen'] == pytest.approx(np.mean([cosine(i, j) for i, j in seen.T])) and found['subwords_seen'] == 18
    assert found['all_pairs_seen'] == pytest.approx(np.mean([cosine(i, j) for i in seen[0] for j in seen[1]]))
    never = embedding_similarity(table, rows, np.zeros(25))
    assert 'mean_seen' not in never and never['mean'] == pytest.approx(found['mean'])


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
    assert set(found['embeddings']) == {'input', 'output'}
    hidden = found['hidden_states']
    assert hidden.keys() == {'position', 'matching', 'control', 'control_within', 'control_matching', 'net'}
    assert all(len(layers) == 2 and -1 <= min(layers) <= max(layers) <= 1 for layers in hidden.values())
    assert hidden['net'] == pytest.approx(np.subtract(hidden['position'], hidden['control']), abs=1e-6)
    assert found['retrieval']['tokens']['chance'] == 1 / (6 * 32)


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
    found = json.loads(Path('out_two/alignment.json').read_text())
    assert 'position' not in found['hidden_states'] and set(found['retrieval']) == {'sequences'}
    result = script('analyze.py', 'matching', 'out_two', '--parallel', 'a.en', 'a.up', '--line', '2')
    assert result.status == 0, result.err
    assert Path('out_two/matching_line_2.png').read_bytes().startswith(b'\x89PNG') and result.out.count('\t') >= 4
    for files, says in (([], 'two aligned files'), (['a.en'], 'two aligned files'), (['a.en', 'text/00.txt'], 'not aligned')):
        result = script('analyze.py', 'alignment', 'out_two', *(['--parallel', *files] if files else []))
        assert result.status == 1 and any(word in result.err for word in says.split('|')) and len(result.err.splitlines()) == 1


@pytest.mark.parametrize('command, says', [
    (['alignment', 'out/mono_20'], 'two different languages'), (['alignment', 'out/cloned', '--languages', 'EN1', 'FR'], "no language 'FR'"),
    (['alignment', 'out/cloned', '--parallel', 'none.txt'], 'none.txt cannot be read'), (['alignment', 'out/cloned', '--sequences=0'], 'at least 1'),
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

# two examples of every task as GLUE distributes it: folder, file, texts and classes
OFFICIAL = {
    'cola': ('gj04\t1\t\tIt sails.\ngj04\t0\t*\tSails it the.\n',
             [(['It sails.'], 1), (['Sails it the.'], 0)]),
    'sst2': ('sentence\tlabel\na "fine film \t1\ndull\t0\n', [(['a "fine film '], 1), (['dull'], 0)]),
    'mrpc': ('\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n'
             '1\t7\t8\tOne.\tTwo.\r\n0\t9\t10\tThree.\tFour.\r\n',
             [(['One.', 'Two.'], 1), (['Three.', 'Four.'], 0)]),
    'qqp': ('id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n'
            '0\t1\t2\tWhy?\tHow?\t0\n5\t6\tlost\n1\t3\t4\tWho?\tWho is it?\t1\n',
            [(['Why?', 'How?'], 0), (['Who?', 'Who is it?'], 1)]),
    'mnli': ('index\tsentence1\tsentence2\tlabel1\tgold_label\n'
             '0\tA.\tB.\tneutral\tneutral\n1\tC.\tD.\tneutral\tcontradiction\n',
             [(['A.', 'B.'], 1), (['C.', 'D.'], 2)]),
    'qnli': ('index\tquestion\tsentence\tlabel\n'
             '0\tWhen?\tIn 1.\tentailment\n1\tWho?\tAt 2.\tnot_entailment\n',
             [(['When?', 'In 1.'], 0), (['Who?', 'At 2.'], 1)]),
    'rte': ('index\tsentence1\tsentence2\tlabel\n0\tA.\tB.\tnot_entailment\n1\tC.\tD.\tentailment\n',
            [(['A.', 'B.'], 1), (['C.', 'D.'], 0)])}


@pytest.mark.parametrize('task', analyze.GLUE)
def test_glues_own_files_are_read(task, tmp_path):
    text, examples = OFFICIAL[task]
    (tmp_path / 'train.tsv').write_text(text, 'utf-8', newline='')
    assert read_task(tmp_path / 'train.tsv', task) == examples


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
    examples = [([short, short], 0), ([short, long], 1), ([long, short], 0), ([long], 1), ([long, long], 0)]
    ids, classes = analyze.encode_examples(run, 0, examples, 32)
    eod = [tokenizer.eod]
    assert ids == (a + eod + a + eod, a + eod + b[:30 - len(a)] + eod, b[:30 - len(a)] + eod + a + eod,
                   b[:31] + eod, b[:15] + eod + b[:15] + eod)  # by length
    assert classes.tolist() == [0, 1, 0, 1, 0]


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
    sets = [analyze.encode_examples(run, 0, read_task(glue_data / 'SST-2' / f'{which}.tsv', 'sst2'), 32) for which in ('train', 'dev')]
    args = SimpleNamespace(learning_rate=0.0, batch_size=64, epochs=50, patience=3, eval_every=4, seed=0)
    before = {key: value.clone() for key, value in run.model.state_dict().items()}
    head, steps = analyze.fine_tune(run, *sets, 2, 'accuracy', 0, args, '')
    assert steps == 4 + 4 + 2 + 4  # the first evaluation is the best; three more are not better
    torch.testing.assert_close(run.model.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize('files, options, says', [
    ({}, [], 'the tasks are cola'), ({'SST-2/train.tsv': 'sentence\tlabel\na\t1\n'}, [], 'dev.tsv cannot be read'),
    ({}, ['--tasks=sst3'], 'the tasks are cola'), ({}, ['--tasks=rte'], 'has no folder rte'),
    ({'SST-2/train.tsv': 'sentence\tlabel\na\t7\n'}, [], "train.tsv cannot be read .*'7' is not in list"),
    ({'SST-2/train.tsv': 'words\tlabel\na\t1\n'}, [], "KeyError: 'sentence'"), ({'SST-2/train.tsv': ''}, [], 'must hold sst2'),
    ({'SST-2/train.tsv': '\xff'}, [], 'must hold sst2'),
    ({}, ['--learning_rate=-1'], '--learning_rate must be'), ({}, ['--epochs=0'], '--epochs must be')])
def test_glue_refuses_in_one_line(files, options, says, in_runs, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text.encode('latin-1'))
    with pytest.raises(UserError, match=says) as error:
        analyze.main(['glue', 'out/cloned', '--data', str(tmp_path), '--device=cpu', *options])
    assert '\n' not in str(error.value)


# ---- report

FIGURES = [shown for shown in analyze.read_table('figures.csv') if shown['draw'] != 'table']
LAW = {'en': (0.034, 0.24, 0.08), 'fr': (0.03, 0.3, 0.09)}  # 1/PPL = c - a * (t / 1M)^-b
CLONED = {'languages': [('EN1', 'en'), ('EN2', 'en')]}
REAL = {'languages': [('EN', 'en'), ('FR', 'fr')], 'corpora': {'en': 'e', 'fr': 'f'}}
HALF, MOST = [(0.0, (0.5, 0.5))], [(0.0, (0.9, 0.1))]
PAPERS_SIZE = {'n_layer': 12, 'n_embd': 768}


def write_run(out_dir, tokens=1_000_000, teff=(), inside=0.5, exposure=100, text='', step=None, **overrides):
    """A run whose PPL is the law's at teff x tokens seen, with every measure that its kind allows."""
    overrides = {'batch_size': 10, 'block_size': 100, 'warmup_iters': 5} | overrides
    cfg = settings(max_iters=tokens // overrides['batch_size'] // 100, **overrides)
    shares, languages, seen = train.marginals(cfg.schedule), {}, {}
    for (name, corpus), share, gain in zip(cfg.languages, shares, teff or [1]):
        a, b, c = LAW[corpus]
        seen[name] = round(share * tokens)
        ppl = 1 / (c - a * (gain * share * tokens / 1e6) ** -b)
        languages[name] = {'corpus': corpus, 'test_text': corpus + text, 'ppl': ppl, 'scored_tokens': 9,
                           'bits_per_byte': 1.0, 'exposure': exposure * share}
    folder = Path('out') / out_dir
    folder.mkdir(parents=True)
    (folder / 'config.json').write_text(json.dumps(vars(cfg)))
    names = [name for name, _ in cfg.languages]
    if cfg.model == 'gpt':
        (folder / 'results.json').write_text(json.dumps({
            'config': vars(cfg), 'step': step or cfg.max_iters, 'tokens_seen': seen, 'languages': languages,
            'non_embedding_parameters': 12 * cfg.n_layer * cfg.n_embd ** 2}))
    if len(names) < 2:
        return
    found, clones = {'languages': names}, cfg.languages[0][1] == cfg.languages[1][1]
    if clones:
        bins = [{'from': n, 'below': 10 * n or 1, 'subwords': 9, 'mean': n / 200} for n in (0, 1, 10, 100)]
        found['embeddings'] = dict.fromkeys(('input', 'output'), {'mean': 0.2, 'all_pairs': 0.1, 'by_frequency': bins})
    if cfg.model == 'gpt':
        kinds = ('position', 'control', 'matching', 'net') if clones else ('matching', 'control_matching', 'net')
        rng = np.random.default_rng(0)
        blocks = {kind: rng.uniform(-1, 1, cfg.n_layer).tolist() for kind in ('ln_1.weight', 'mlp.c_fc.weight')}
        found |= {'hidden_states': {kind: [inside] * cfg.n_layer for kind in kinds},
                  'retrieval': {'tokens': {'share': [0.1] * cfg.n_layer, 'chance': 0.01}},
                  'gradients': {'blocks': blocks, 'others': {'wte.weight': 0.0}, 'macro_average': 0.25}}
        metrics = {'majority': 0.5, 'steps': 3, **{name: {'accuracy': 0.8} for name in names}}
        (folder / 'glue.json').write_text(json.dumps({
            'languages': names, 'tasks': {'sst2': metrics}, 'mean_accuracy': dict.fromkeys(names, 0.8)}))
        (folder / 'matching.json').write_text(json.dumps({
            'languages': names, 'line': 1, 'tokens': [['a$b$', 'b'], ['c']], 'pairs': [[0, 0], [1, 5]]}))
    (folder / 'alignment.json').write_text(json.dumps(found))


def make_report(*command):
    analyze.main(['report', *command])


@pytest.fixture(scope='session')
def everything(tmp_path_factory):
    """A folder with runs for every table and figure, of known TEff, and the report on them."""
    folder = tmp_path_factory.mktemp('everything')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_runs()
        make_report(*runs_of_study(), '--tokens=1e6')
    return folder


@pytest.fixture
def study(everything, monkeypatch):
    monkeypatch.chdir(everything)
    return everything


def runs_of_study():
    return sorted(str(path) for path in Path('out').iterdir())


def write_runs():
    for size in (PAPERS_SIZE, {'n_layer': 2, 'n_embd': 64}):
        name = f'_{size["n_embd"]}'
        for corpus in ('en', 'fr'):
            for share in (1, 5, 10):
                write_run(f'mono_{corpus}_{share}{name}', 100_000 * share, languages=[(corpus.upper(), corpus)],
                          corpora={corpus: 'x'}, **size)
        for kind, languages, vocab in (('cloned', CLONED, 'disjoint'), ('real', REAL, 'anchored')):
            for ratio, schedule, teff in (('50_50', HALF, (0.89, 0.9)), ('90_10', MOST, (1.0, 2.08))):
                for double in (1, 2):
                    write_run(f'{kind}_{vocab}_{ratio}{name}' + '_2x' * (double > 1), 1_000_000 * double, schedule=schedule,
                              teff=[gain / double for gain in teff], vocab=vocab, **languages, **size)
    for ratio, schedule in (('50_50', HALF), ('90_10', MOST)):
        write_run(f'real_disjoint_{ratio}', teff=(0.9, 0.9), schedule=schedule, **REAL, **PAPERS_SIZE)
        write_run(f'w2v_{ratio}', schedule=schedule, model='word2vec', **CLONED)
    for seed, teff, inside in ((1, (0.93, 0.9), 0.7), (2, (0.82, 0.9), 0.6)):
        write_run(f'cloned_50_50_seed_{seed}', teff=teff, inside=inside, schedule=HALF, seed=seed, **CLONED, **PAPERS_SIZE)
    write_run('bfloat16', teff=(0.5, 0.5), schedule=HALF, dtype='bfloat16', **CLONED, **PAPERS_SIZE)  # no seed of these
    write_run('orders', teff=(0.83, 1.18), schedule=[(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))], **CLONED, **PAPERS_SIZE)
    write_run('anchors_50', teff=(1.1, 1.2), schedule=HALF, anchor_frac=0.5, **CLONED, **PAPERS_SIZE)
    write_run('step_matched', 100_000, teff=[1.5], batch_size=1, warmup_iters=5, **PAPERS_SIZE)
    for vocab, exposure in ((384, 5000), (512, 3000)):  # test texts of their own
        other = {'text': str(vocab), 'vocab_size': vocab, 'exposure': exposure}
        for share in (1, 5, 10):
            write_run(f'mono_{share}_v{vocab}', 100_000 * share, **other)
        write_run(f'step_matched_v{vocab}', 100_000, teff=[1.2], batch_size=1, **other)
        write_run(f'cloned_90_10_v{vocab}', teff=(1.0, 1.5), schedule=MOST, **CLONED, **other)
    for step, share in ((250, 0.25), (500, 0.5)):
        write_run(f'cloned_90_10_v384/step_{step:06}', int(share * 1e6), teff=(1, 3), inside=share, schedule=MOST,
                  step=step, text='384', exposure=5000, **CLONED)


def csv_of(name, folder='report'):
    with open(f'{folder}/{name}.csv', newline='') as f:
        return list(csv.DictReader(f))


def test_report_draws_every_figure_from_results_alone(study):
    for figure in FIGURES:
        for kind, start in (('png', b'\x89PNG'), ('pdf', b'%PDF')):
            assert Path(f'report/{figure["figure"]}.{kind}').read_bytes().startswith(start), figure['title']
    assert '--plan' not in Path('report/report.md').read_text()


def test_tables_have_ours_and_the_papers_beside_runs_of_its_size_and_data(study):
    rows = {(row['run'], row['language']): row for row in csv_of('table1_3_ppl')}
    rare = rows['cloned_disjoint_90_10_768', 'EN2']
    assert float(rare['teff']) == pytest.approx(2.08, abs=1e-4) and float(rare['tau']) == pytest.approx(0.12, abs=1e-3)
    assert (rare["paper's"], rare['its ppl'], rare['its teff']) == ('Table 1, row 5', '32.8', '2.08')
    assert float(rare['step_ppl']) == pytest.approx(known_ppl(150_000), rel=1e-5) and float(rare['gain']) > 0
    assert rows['step_matched', 'EN']['remark'].endswith('step-matched')
    assert rows['cloned_disjoint_50_50_768_2x', 'EN1']['its teff'] == '0.73'
    assert rows['real_anchored_90_10_768', 'FR']['its teff'] == '1.27' and rows['mono_fr_1_768', 'FR']['its ppl'] == '34.1'
    assert all(not row["paper's"] for (run, _), row in rows.items() if '_64' in run or '_v' in run)
    assert rows['cloned_90_10_v384', 'EN2']['exposure'] == '500'
    hidden = {(row['run'], row['measure']): row for row in csv_of('table2_4_hidden_states')}
    assert hidden["paper's Table 2", 'hidden_states.position']['layer 12'] in ('-0.21', '0.11')
    assert hidden["paper's Table 4", 'hidden_states.matching'] and ("paper's Table 2", 'hidden_states.net') not in hidden
    assert {row['its gradients.macro_average'] for row in csv_of('alignment') if row['run'] == 'real_anchored_50_50_768'} == {'0.17'}
    assert len(csv_of('glue')) == 3 * len([name for name in runs_of_study() if Path(name, 'glue.json').exists()])


def test_mean_and_range_are_over_seeds_of_one_precision_to_six_digits(study):
    rows = {(row['language'], row['measure']): row for row in csv_of('seeds')}
    assert {row['run'] for row in csv_of('seeds')} == {'cloned_disjoint_50_50_768'}  # without bfloat16
    for key, seeds in ((('EN1', 'teff'), (0.89, 0.93, 0.82)), (('', 'hidden_states.net.mean'), (0.5, 0.7, 0.6))):
        mean, lowest, highest = (float(rows[key][column]) for column in ('value', 'lowest', 'highest'))
        assert rows[key]['seeds'] == '3' and (lowest, highest) == pytest.approx((min(seeds), max(seeds)), abs=1e-4)
        assert mean == pytest.approx(sum(seeds) / 3, abs=1e-4) and len(rows[key]['value'].lstrip('0.')) <= 6
    text = Path('report/report.md').read_text()
    assert '| 0.88 (0.82 to 0.93) |' in text and 'cloned_50_50_seed_1 |' not in text
    assert 'cloned_50_50_seed_1' in {row['run'] for row in csv_of('table1_3_ppl')}  # in the csv nothing is left out


def test_without_agreement_or_tokens_it_is_said_that_totals_differ(study):
    runs = ['out/cloned_disjoint_50_50_768', 'out/cloned_disjoint_50_50_768_2x', 'out/cloned_disjoint_90_10_768']
    make_report(*runs, '--out=differ')
    text = Path('differ/report.md').read_text()
    assert 'multilingual runs read 1,000,000 or 2,000,000 tokens' in text and 'Table 1' not in text.split('## ')[2]
    make_report(runs[0], runs[2], '--out=agree')
    assert 'all data are 1,000,000' in Path('agree/report.md').read_text()
    assert csv_of('table1_3_ppl', 'agree')[0]["paper's"] == 'Table 1, row 4'


def test_time_is_added_up_over_interruptions_a_row_a_run(study, tmp_path):
    shutil.copytree('out', tmp_path / 'out')
    speed = ('{"step": 400, "tokens_per_second": 1000, "seconds": 1}\n'
             '{"step": 1000, "tokens_per_second": 6000, "seconds": 9999}\n')
    folders = [tmp_path / 'out' / name for name in ('orders', 'anchors_50', 'mono_en_1_64')]
    for folder in folders[:2]:
        (folder / 'speed.jsonl').write_text(speed)
    make_report(*map(str, folders), '--out=timed')
    rows = csv_of('time', 'timed')
    assert [(row['run'], float(row['minutes']), float(row['speed'])) for row in rows] == [
        (name, pytest.approx(500 / 60, rel=1e-5), 2000) for name in ('orders', 'anchors_50')]
    (folders[0] / 'speed.jsonl').write_text('{"step": 3}\n')
    make_report(*map(str, folders[:2]), '--out=damaged')
    assert 'left out: ' in Path('damaged/report.md').read_text()


def test_the_report_links_to_files_that_exist(study):
    links = re.findall(r'\]\((.+?)\)', Path('report/report.md').read_text())
    assert len(links) > 2 * len(FIGURES) and all((Path('report') / link).is_file() for link in links)


def test_report_twice_is_the_same_bytes(study):
    make_report(*runs_of_study(), '--tokens=1e6', '--out=again')
    first, again = ({path.name: path.read_bytes() for path in Path(folder).iterdir()} for folder in ('report', 'again'))
    assert first == again and len(first) == 2 * len(FIGURES) + 6 + 2 - 1


def test_exposure_and_time_are_of_the_rare_clone_beside_its_step_matched_run(study):
    found = analyze.gather(runs_of_study(), SimpleNamespace(tokens=1e6, mix_recipes=False))
    gains = {row['run']: row['exposure'] for row in found.grouped
             if row['measure'] == 'gain' and {'last', '90/10'} <= row['tags']}
    assert gains['cloned_90_10_v384'] == 500 and gains['cloned_90_10_v512'] == 300
    ppl = [(row['seen'], row['run']) for row in found.steps if row['measure'] == 'ppl' and row['language'] == 'EN2']
    assert sorted(ppl) == [(tokens, 'cloned_90_10_v384') for tokens in (25_000, 50_000, 100_000)]
    net = [row['value'] for row in found.steps if row['measure'] == 'hidden_states.net.mean']
    assert net == pytest.approx([0.25, 0.5, 0.5])


def test_report_lists_the_plans_of_what_is_missing(study):
    make_report('out/cloned_disjoint_50_50_768', '--out=one')
    text = Path('one/report.md').read_text()
    assert 'monolingual runs of gpt-12x768 on en: a law takes at least three amounts' in text
    plans = re.findall(r'`python analyze.py report --plan (\w+)`', text)
    assert {'fig01', 'fig05', 'schedules', 'exposure'} <= set(plans) and len(plans) > 10


def test_report_leaves_out_what_has_no_results_and_says_what_to_run(study, tmp_path, monkeypatch):
    shutil.copytree('out/mono_en_1_64', tmp_path / 'whole')
    shutil.copytree('out/mono_en_1_64', tmp_path / 'damaged')
    monkeypatch.chdir(tmp_path)
    Path('empty').mkdir()
    with pytest.raises(UserError, match='none of these folders is a run with results'):
        make_report('empty')
    Path('damaged/results.json').write_text('{')
    Path('untrained').mkdir()
    shutil.copy('whole/config.json', 'untrained')
    make_report('empty', 'untrained', 'damaged', 'whole', '--out=.')
    text = Path('report.md').read_text()
    for says in ('empty is not a run', 'untrained has no checkpoint yet',
                 'damaged/results.json cannot be read', 'python analyze.py ppl damaged writes it again'):
        assert says in text
    assert '# Language imbalance: 1 runs' in text


# ---- plan

@pytest.fixture
def plan(alone, monkeypatch):
    """A table of runs of one's own -> the lines that --plan prints."""
    for name in ('default.py', 'cloned_90_10.py'):
        shutil.copy(ROOT / 'config' / name, name)
    monkeypatch.setattr(config, 'DEFAULT', Path('default.py'))
    clones = {'languages': CLONES['languages'], 'schedule': HALF, 'dataset': 'clones'}
    table = [['run', 'config', 'overrides', 'measure', 'plans'],
             ['a', 'default.py', shlex.join(arguments()), 'ppl --stride=8', 'table1 fig09_scaling'],
             ['b', 'cloned_90_10.py default.py', shlex.join(arguments(**clones)),
              'ppl; alignment --sequences=$N', 'fig09_scaling']]
    with open('runs.csv', 'w', newline='') as f:
        csv.writer(f).writerows(table)

    def lines(capsys, *options):
        make_report(*options)
        return capsys.readouterr().out.splitlines()
    return lines


def test_plan_prints_a_shell_line_for_every_run_of_a_plan_or_of_its_beginning(plan, capsys):
    lines = plan(capsys, '--plan=fig09')
    assert len(lines) == 2 and [line.count(' && ') for line in lines] == [1, 2]
    assert lines[0].startswith('python train.py default.py --out_dir=out/a --dataset=tiny ')
    assert lines[0].endswith(' && python analyze.py ppl out/a --stride=8')
    assert lines[1].endswith(' && python analyze.py ppl out/b && python analyze.py alignment out/b --sequences=$N')
    assert all(subprocess.run(['bash', '-n', '-c', line]).returncode == 0 for line in lines)
    assert len(plan(capsys, '--plan=table1')) == 1
    with pytest.raises(UserError, match='the plans are fig09_scaling, table1'):
        make_report('--plan=fig0')


def test_plan_run_line_by_line_leaves_nothing_to_do_but_at_its_own_length(plan, capsys):
    small = ['--plan=table1', '--options=--n_layer=1 --eval_iters=1 --max_iters=6']
    line, = plan(capsys, *small)
    assert '--n_layer=1' in line and '--max_iters=6 ' in line
    train_command, ppl_command = (shlex.split(part) for part in line.split(' && '))
    train.main(config.load(train_command[2:]))
    capsys.readouterr()
    assert plan(capsys, *small) == [line]  # trained, not measured
    analyze.main([*ppl_command[2:], '--device=cpu'])
    capsys.readouterr()
    assert plan(capsys, *small) == []
    assert len(plan(capsys, '--plan=table1')) == 1  # the whole run is another


def test_jobs_run_side_by_side_on_a_thread_each_and_the_first_failure_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    meet = 'touch {0} && while [ ! -e {1} ]; do sleep 0.01; done && echo $OMP_NUM_THREADS > {0}'
    runs.side_by_side([meet.format('a', 'b'), meet.format('b', 'a')], 2)  # waits for the other
    assert Path('a').read_text() == Path('b').read_text() == '1\n'
    with pytest.raises(UserError, match='^echo why >&2; false: why$'):
        runs.side_by_side(['true', 'echo why >&2; false', 'sleep 0.1; touch later'], 1)


def test_committed_results_of_the_study_can_still_be_drawn(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    runs = sorted(str(path) for path in (ROOT / 'config' / 'study' / 'exposure').iterdir() if path.is_dir())
    if not runs:
        pytest.skip('no committed results')
    make_report(*runs, f'--out={tmp_path}')
    assert len(csv_of('table1_3_ppl', tmp_path)) >= len(runs) / 2
