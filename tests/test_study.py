"""study/: the tables of runs, of figures and of the paper; plans; reports on runs of known TEff."""
import contextlib
import csv
import itertools
import json
import os
import pty
import re
import resource
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import CLONES, ROOT, arguments, refused, run, settings, trained
from pytest import approx

import train
from data_prep import check_languages, data_settings, marginals
from study import plan, report

ALL_DATA = 18265 * 128 * 512  # tokens: the paper's 1.2B
FIGURES = {row['figure']: row['draw'] for row in plan.read_table('figures')[4:]}  # after the tables
PAPER = report.paper_values()  # {(*setting, measure, number): (where, value)}

def write(path, content):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(content if isinstance(content, str) else json.dumps(content))

def rows_of(path):
    return list(csv.DictReader(Path(path).read_text().splitlines()))

# ---- runs.csv, paper.csv, results/

RUNS = [SimpleNamespace(**row) for row in plan.read_table('runs')]
for row in RUNS:
    row.trainer, _, row.cfg = plan.trainer_of(vars(row))
    columns = report.columns_of(row.cfg, ALL_DATA)
    row.plans, row.tokens = row.plans.split(), columns['tokens']
    row.setting = *(columns[key] for key in 'size corpora vocabulary schedule data'.split()),

def test_every_run_has_its_own_name_each_dataset_one_content_and_the_papers_figures_a_run():
    assert len({row.run for row in RUNS}) == len(RUNS) > 280
    first = {row.cfg.dataset: row for row in RUNS[::-1]}
    for row in RUNS:
        check_languages(row.cfg)
        assert row.plans and {measure.split()[0] for measure in row.measure.split(';')} <= {
            'ppl', 'alignment', 'matching', 'extras.glue', 'extras.lens'}, row.run
        assert row.trainer == ('extras.word2vec' if 'word2vec' in row.run else 'train.py')
        rates = '--learning_rate=', '--min_lr='  # word2vec's own ones, which the plan does not know
        assert row.trainer == 'train.py' or all(rate in row.overrides for rate in rates), row.run
        other = first[row.cfg.dataset]
        assert data_settings(row.cfg) == data_settings(other.cfg), (row.run, other.run)
        if 'hf:' in str(row.cfg.corpora):  # the hub is read as far as training needs
            assert row.tokens == approx(other.tokens, rel=0.002), (row.run, other.run)
    assert {key[:5] for key in PAPER} <= {row.setting for row in RUNS}

def test_the_studys_results_have_the_settings_of_their_rows():
    cfgs = {row.run: json.loads(json.dumps(vars(row.cfg))) for row in RUNS}
    saved = [p for p in ROOT.glob('study/results/*/*/*') if p.stem in ('results', 'config')]
    assert len(saved) == len(list(ROOT.glob('study/results/*/*/'))) > 140
    for path in saved:
        run, content = '/'.join(path.parts[-3:-1]), json.loads(path.read_text())
        kept = content.get('config', content)
        different = {key for key, value in cfgs[run].items() if kept.get(key, value) != value}
        assert different <= {'out_dir', 'dataset'}, run
        assert kept.get('model', 'gpt') == ('word2vec' if 'word2vec' in run else 'gpt')

ROWS = [f'Table 1, row {n}' for n in range(1, 14)] + [f'Table 3, row {n}' for n in range(4, 21)]
@pytest.mark.parametrize('where', ROWS)
def test_every_row_of_the_papers_tables_is_one_run(where):
    values = {key: value for key, (place, value) in PAPER.items() if place == where}
    setting, = {key[:5] for key in values}
    row, = [row for row in RUNS if f'table{where[6]}' in row.plans and row.setting == setting]
    assert row.tokens == approx(setting[-1] * ALL_DATA, rel=0.005)
    if 'then' in setting[3]:  # half of the tokens each
        assert list(marginals(row.cfg.schedule)) == approx([0.5, 0.5])
    name = row.run
    if not row.overrides:  # it has a config of its own
        names = row.config, row.cfg.dataset, row.cfg.out_dir
        assert names == (f'config/{name}.py', name, f'out/{name}')
        name = f'[{name}]({name}.py)'
    numbers = [number for *_, measure, number in values if measure == 'PPL']
    ppl, teff = (' / '.join(values.get((*setting, measure, number), '-') for number in numbers)
                 for measure in ('PPL', 'TEff'))
    readme = (ROOT / 'config' / 'README.md').read_text().split('\n')
    line, = [line for line in readme if line.startswith(f'| {where} |')]
    cells = [cell.strip() for cell in line.split('|')]
    assert [cells[2], *cells[4:7]] == [name, ppl, teff, f'{row.tokens / 1e9:.2g}B']

@pytest.mark.parametrize('size, batch_size', [('4x512', 128), ('12x768', 128), ('24x1024', 256)])
@pytest.mark.parametrize('corpus', ['en', 'fr'])
def test_a_law_has_runs_from_5_to_300_percent_of_the_tokens(corpus, size, batch_size):
    law = [row for row in RUNS if 'fig05_laws' in row.plans and row.setting[:2] == (size, corpus)]
    assert sorted(row.tokens / ALL_DATA for row in law) == approx(
        [0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1, 1.5, 2, 3], rel=0.003)
    assert {row.cfg.batch_size for row in law} == {batch_size}

@pytest.mark.parametrize('setting, measure, source, values', [
    (('12x768', 'en fr', 'disjoint', '50/50', 1), 'gradients', 'Fig. 13', '0.04'),  # arXiv: swapped
    (('12x768', 'en fr', 'disjoint', '90/10', 1), 'gradients', 'Fig. 13', '0.05'),
    (('12x768', 'en en', 'disjoint', '95/5', 1), 'embeddings', 'Appendix C', '0.28'),  # arXiv 90/10
    (('12x768', 'en en', 'disjoint', '90/10', 1), 'embeddings', 'read off Fig. 6', '0.20'),
    (('12x768', 'en en', 'disjoint', '90/10', 3), 'PPL', "authors' notebook", '19.03 22.27'),
    (('12x768', 'en en', '5% shared', '50/50', 1), 'PPL', 'read off Fig. 8', '23.4'),
    (('4x512', 'en en', 'disjoint', '90/10', 0.5), 'TEff', 'read off Fig. 9', '1.17 3.46')])
def test_a_figure_beside_the_tables_stands_with_its_source(setting, measure, source, values):
    figures = [figure for key, figure in PAPER.items() if key[:6] == (*setting, measure)]
    assert figures == [(source, value) for value in values.split()]

# ---- plans

PYTHON = shlex.quote(sys.executable)

def side_by_side(runs, **options):
    """Begin shell commands as --jobs does -> the process."""
    code = f'import sys; sys.path.append({str(ROOT)!r}); from study.plan import side_by_side'
    command = [sys.executable, '-c', f'{code}; side_by_side({runs!r}, 2)']
    env = os.environ | {'OMP_NUM_THREADS': '2'}
    return subprocess.Popen(command, text=True, env=env, **{'stdout': subprocess.PIPE} | options)

@pytest.fixture
def small(alone, monkeypatch):
    """A table of runs of one's own, in a working directory that is not the repository."""
    monkeypatch.setattr(plan, 'STUDY', alone)
    monkeypatch.delenv('PYTHONPATH')
    tiny, clones = arguments(), arguments(**CLONES | {'codeswitch': 0.0}, max_iters=3, min_lr=0.001)
    with open('runs.csv', 'w', newline='') as f:
        csv.writer(f).writerows([
            'run config overrides measure plans'.split(),
            ['a', 'config/default.py', shlex.join(tiny), 'ppl --stride=8', 'table1 fig09_scaling'],
            ['b', 'config/cloned_90_10.py', '--keep_checkpoints --checkpoint_interval=7000',
             'ppl; alignment --sequences=$N; extras.glue --data $GLUE', 'fig09_scaling'],
            ['w', 'extras.word2vec config/default.py', shlex.join(clones), 'alignment', 'fig06']])

def test_a_plan_is_a_shell_line_for_every_run_that_is_missing(small, capsys):
    plan.plan('fig09')
    a, b = capsys.readouterr().out.splitlines()
    assert a.startswith(f'{PYTHON} {ROOT}/train.py {ROOT}/config/default.py --out_dir=out/a --')
    assert a.endswith(f' && {PYTHON} {ROOT}/analyze.py ppl out/a --stride=8')
    folders = 'out/b', 'out/b/step_007000', 'out/b/step_014000'
    assert b.split(' && ') == [
        f'{PYTHON} {ROOT}/train.py {ROOT}/config/cloned_90_10.py --out_dir=out/b '
        '--keep_checkpoints --checkpoint_interval=7000',
        *(f'{PYTHON} {ROOT}/analyze.py ppl {folder}' for folder in folders),
        *(f'{PYTHON} {ROOT}/analyze.py alignment {folder} --sequences=$N' for folder in folders),
        f'PYTHONPATH={ROOT} {PYTHON} -m extras.glue out/b --data $GLUE']
    assert plan.missing_runs('table1') == {'a': a}
    refused('the plans are fig06, fig09_scaling, table1', plan.plan, 'fig0')

def test_a_plan_that_has_run_from_another_directory_leaves_nothing_to_do(small):
    options = '--n_layer=1 --eval_iters=1'
    trained(n_layer=1, eval_iters=1, out_dir='out/a')
    assert 'train.py' in plan.missing_runs('table1', options)['a']  # trained, not measured
    process = side_by_side(plan.missing_runs('table1', options))
    assert process.communicate()[0].endswith('a: done; 0 to go\n')
    assert plan.missing_runs('table1', options) == {}
    for other in '', f'{options} --learning_rate=1e-3':  # these are other runs
        assert len(plan.missing_runs('table1', other)) == 1
    assert plan.FREE == train.FREE  # with other values of these a run is the same

def test_word2vec_which_does_not_resume_begins_again_or_is_only_measured(small):
    assert run('sh', '-c', plan.missing_runs('fig06')['w'].split(' && ')[0]).status == 0
    assert plan.missing_runs('fig06') == {'w': f'{PYTHON} {ROOT}/analyze.py alignment out/w'}
    os.rename('out/w/ckpt.pt', 'ckpt.pt')
    assert ' --overwrite && ' in plan.missing_runs('fig06')['w']
    os.rename('ckpt.pt', 'out/w/ckpt.pt')
    assert run('sh', '-c', plan.missing_runs('fig06')['w']).status == 0
    assert plan.missing_runs('fig06') == {} and 'embed' in Path('out/w/alignment.json').read_text()

@pytest.mark.parametrize('argument', ['--help', '--plan=table1', '--plan=study'])
def test_help_and_plans_are_instant_and_work_from_any_directory(argument, tmp_path):
    at_once = lambda: resource.setrlimit(resource.RLIMIT_CPU, (1, 1))  # a second of CPU time
    result = run(sys.executable, '-X', 'importtime', ROOT / 'study' / 'report.py', argument,
                 cwd=tmp_path, env=os.environ | {'PYTHONPATH': ''}, preexec_fn=at_once)
    assert result.status == 0 and not re.search(r'\| +(torch|numpy|matplotlib)\b', result.err)
    paths = re.findall(rf'{re.escape(str(ROOT))}/\S+\.py', result.out)
    assert ('plan' in argument) == bool(paths) and all(map(os.path.exists, paths))

def test_jobs_run_side_by_side_on_a_thread_each_and_a_terminal_shows_their_last_lines(tmp_path):
    meet = 'echo a; touch {}; until [ -e {} ]; do sleep .1; done; echo $OMP_NUM_THREADS' + '.' * 200
    runs = {'x': f'{meet.format("a", "b")}; sleep 0.7', 'y': meet.format('b', 'a')}
    terminal, end = pty.openpty()
    side_by_side(runs, stdout=end, cwd=tmp_path).wait()
    text = os.read(terminal, 1 << 16).decode().replace('\r', '')
    assert 'y: done; 1 to go\nx: 1......' in text and text.endswith('x: done; 0 to go\n')
    assert f'\x1b[1F\x1b[J{"x: 1".ljust(79, ".")}\n' in text  # cut to the width of the terminal

@pytest.mark.parametrize('event, status, says', [
    ('echo why >&2; false', 1, 'second failed: why\n'),
    ('kill -HUP $PPID; sleep 60', 129, ''),  # to the plan itself
    ('kill -INT $PPID; sleep 60', 130, ''), ('kill -TERM $PPID; sleep 60', 143, '')])
def test_jobs_save_and_stop_if_one_fails_or_the_plan_is_told_to(event, status, says, tmp_path):
    first = """sh -c 'trap "echo saved; exit 75" TERM; touch begun; sleep 60 & wait' && true"""
    second = f'until [ -e begun ]; do sleep 0.01; done; {event}'
    runs = {'first': first, 'second': second, 'third': 'touch third'}
    process = side_by_side(runs, cwd=tmp_path, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=50)
    assert 'first stopped: saved\n' in out and not (tmp_path / 'third').exists()
    assert (process.returncode, err) == (status, says)

# ---- reports, on runs of known TEff

LAW = {'en': (0.034, 0.24, 0.08), 'fr': (0.03, 0.3, 0.09)}
CLONED = {'languages': [('EN1', 'en'), ('EN2', 'en')]}
REAL = {'languages': [('EN', 'en'), ('FR', 'fr')], 'corpora': {'en': 'e', 'fr': 'f'},
        'vocab': 'anchored'}
HALF = {'schedule': [(0.0, (0.5, 0.5))], 'teff': (0.89, 0.9)}
MOST = {'schedule': [(0.0, (0.9, 0.1))], 'teff': (1.0, 2.08)}
TWICE = {'tokens': 2_000_000}
SMALL = {'n_layer': 2, 'n_embd': 32, 'inside': None}
PAPERS = {'n_layer': 12, 'n_embd': 768}
SIZES = {'': PAPERS, '_small': SMALL, '_v384': {'vocab_size': 384}, '_v512': {'vocab_size': 512}}
CHANGES = {  # of two clones of the paper's size that read half of the tokens each
    'half': {}, 'half_2x': TWICE, 'half_small': SMALL, 'real': REAL, 'real_2x': REAL | TWICE,
    'real_small': REAL | SMALL, 'real_rare': REAL | MOST, 'apart': REAL | {'vocab': 'disjoint'},
    'apart_rare': REAL | MOST | {'vocab': 'disjoint'}, 'anchors': {'anchor_frac': 0.5},
    'orders': {'schedule': [(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))]},
    'seed_1': {'seed': 1, 'teff': (0.93, 0.9), 'inside': 0.7},
    'seed_2': {'seed': 2, 'teff': (0.82, 0.9), 'inside': 0.6},
    'bfloat16': {'dtype': 'bfloat16', 'teff': (0.5, 0.5), 'inside': None}}

def known_ppl(tokens, corpus='en'):
    a, b, c = LAW[corpus]
    return 1 / (c - a * (tokens / 1e6) ** -b)

def write_run(name, tokens=1_000_000, teff=(1, 1), inside=0.5, batch_size=10, **changes):
    """A run whose PPL is the law's at teff x tokens, and whose states are as alike as `inside`."""
    steps = tokens // batch_size // 100
    cfg = settings(**{'max_iters': steps, 'block_size': 100} | changes, batch_size=batch_size)
    seen, languages = {}, {}
    for (language, corpus), share, gain in zip(cfg.languages, marginals(cfg.schedule), teff):
        n = seen[language] = round(share * tokens)
        languages[language] = {'test_text': f'{corpus} {cfg.vocab_size}',
                               'ppl': known_ppl(gain * n, corpus), 'exposure': n / cfg.vocab_size}
    files = {'config': vars(cfg), 'results': {
        'config': vars(cfg), 'step': steps, 'tokens_seen': seen, 'languages': languages,
        'non_embedding_parameters': cfg.n_embd ** 2}}
    if inside and len(seen) == 2:
        bins = [{'from': n, 'below': 10 * n or 1, 'mean': n / 200} for n in (0, 1, 10, 100)]
        table = {'mean': 0.2, 'all_pairs': 0.1, 'by_frequency': bins}
        layers = [inside] * cfg.n_layer
        files['alignment'] = {
            'embeddings': {'input': table, 'output': table},
            'hidden_states': {'position': layers, 'matching': layers, 'net': layers},
            'gradients': {'blocks': dict.fromkeys('abcdefgh', layers), 'macro_average': 0.25}}
        files['glue'] = {'mean_accuracy': dict.fromkeys(seen, 0.8)}
        files['matching'] = {'languages': list(seen), 'tokens': [['a$b$', 'b'], ['c']],
                             'pairs': [[0, 0]]}
    for file, content in files.items():
        write(f'out/{name}/{file}.json', content)

@pytest.fixture(scope='session')
def reported(tmp_path_factory):
    """Runs for every figure, and the report on them."""
    folder = tmp_path_factory.mktemp('reported')
    with contextlib.chdir(folder):
        for size, changes in SIZES.items():
            for corpus, tenths in itertools.product(LAW, (1, 5, 10)):
                write_run(f'mono_{corpus}_{tenths}{size}', 100_000 * tenths, **changes,
                          languages=[(corpus.upper(), corpus)], corpora={corpus: 'x'})
            write_run(f'step_matched{size}', 100_000, teff=[1.5], batch_size=1, **changes)
            write_run(f'rare{size}', **CLONED | MOST | changes)
        for name, changes in CHANGES.items():
            write_run(name, **CLONED | HALF | PAPERS | changes)
        for step in (250, 500):  # checkpoints of a run of 1,000 steps
            write_run(f'rare_v384/step_{step:06}', 1000 * step, inside=step / 1000, max_iters=1000,
                      **CLONED | MOST | SIZES['_v384'])
        report.main([*map(str, Path('out').iterdir()), '--tokens=1e6'])
    return folder

@pytest.fixture
def study(reported, monkeypatch):
    monkeypatch.chdir(reported)

@pytest.fixture
def tables(study, monkeypatch, tmp_path):
    """A report without figures on some runs -> its text; tables are in tmp_path."""
    monkeypatch.setattr(report, 'draw', lambda *_: False)
    def written(*command):
        report.main([*map(str, command), f'--out={tmp_path}'])
        return (tmp_path / 'report.md').read_text()
    return written

def test_a_report_draws_and_links_every_figure_from_results_alone(study):
    text = Path('report/report.md').read_text()
    links = set(re.findall(r'\]\((.+?)\)', text))
    drawn = {f'{name}.{kind}' for name in FIGURES for kind in ('png', 'pdf')}
    assert drawn < links and '--plan' not in text
    starts = {'png': b'\x89PNG', 'pdf': b'%PDF', 'csv': b'run,'}
    assert all(Path('report', link).read_bytes().startswith(starts[link[-3:]]) for link in links)

def test_the_papers_figures_stand_beside_runs_of_its_size_and_data(study):
    def rows(table, column):
        return {(row['run'], row[column]): row for row in rows_of(f'report/{table}.csv')}
    ppl = rows('table1_3_ppl', 'language')
    rare = ppl['rare', 'EN2']
    assert [float(rare[key]) for key in ('teff', 'tau', 'head_start', 'step_ppl')] == approx(
        [2.08, 0.12, 108_000, known_ppl(150_000)], rel=1e-4)
    printed = [rare[key] for key in ("paper's", 'its ppl', 'its teff')]
    assert printed == ['Table 1, row 5', '32.8', '2.08']
    assert ppl['half_2x', 'EN1']['its teff'] == '0.73'
    assert ppl['real_rare', 'FR']['its teff'] == '1.27'
    assert ppl['mono_fr_1', 'FR']['its ppl'] == '34.1'
    assert {row['size'] for row in ppl.values() if row["paper's"]} == {'12x768'}
    hidden = rows('table2_4_hidden_states', 'measure')
    assert hidden["paper's Table 2", 'hidden_states.position']['layer 12'] in ('-0.21', '0.11')
    assert ("paper's Table 2", 'hidden_states.net') not in hidden
    assert rows('alignment', 'language')['real', '']['its gradients.macro_average'] == '0.17'
    assert {row['mean_accuracy'] for row in rows_of('report/glue.csv')} == {'0.8'}

def test_mean_and_range_are_over_seeds_of_one_precision(study):
    text = Path('report/report.md').read_text()
    assert '| 0.88 (0.82 to 0.93) |' in text and '| seed_1 ' not in text
    assert '| 0.60 (0.50 to 0.70) |' in text and '| bfloat16 ' in text
    assert 'seed_1' in {row['run'] for row in rows_of('report/table1_3_ppl.csv')}

def test_an_extrapolation_is_a_bound_for_people_and_a_number_in_the_csv(tables, tmp_path):
    monos = [f'out/mono_en_{tenths}_small' for tenths in (1, 5, 10)]  # 0.1M to 1M tokens
    for seed, teff in enumerate([0.9, 0.45]):
        write_run(f'../far/{seed}', 4_000_000, seed=seed, **CLONED | HALF | {'teff': (teff, 0.04)})
    text = re.sub(' +', ' ', tables(*monos, f'{Path.cwd()}/far/0', 'far/1', './out/../far/1/'))
    assert text.count('| 0.45; > 0.50 |') == text.count('| < 0.05 |') == 1
    teffs = {row['run']: float(row['teff']) for row in rows_of(tmp_path / 'table1_3_ppl.csv')
             if row['language'] == 'EN1'}  # by the path below the folder of all
    assert teffs == approx({'far/0': 0.9, 'far/1': 0.45}, rel=1e-4)

def test_gain_and_course_of_training_are_of_the_rare_clone(study):
    data = report.gather(report.parse([*map(str, Path('out').glob('*_v*'))]))
    gains = {row['run']: row['exposure'] for row in data.grouped
             if row['measure'] == 'gain' and {'last', '90/10'} <= row['tags']}
    assert gains == {f'rare_v{pieces}': 100_000 / pieces for pieces in (384, 512)}
    assert {row['run'] for row in data.steps} == {'rare_v384'}
    ppl, net = ({row['seen']: row['value'] for row in data.steps
                 if row['measure'] == measure and row['language'] in ('', 'EN2')}
                for measure in ('ppl', 'hidden_states.net.mean'))
    assert ppl == approx({n: known_ppl(2.08 * n) for n in (25_000, 50_000, 100_000)})
    assert net == approx({25_000: 0.25, 50_000: 0.5, 100_000: 0.5})

def test_a_report_twice_is_the_same_bytes(study):
    runs, written = ('mono_en_1', 'mono_en_5', 'mono_en_10', 'half', 'seed_1'), []
    for out in ('once', 'again'):
        report.main([*map('out/{}'.format, runs), f'--out={out}'])
        written.append({path.name: path.read_bytes() for path in Path(out).iterdir()})
    assert written[0] == written[1]
    assert {FIGURES[name] for name in FIGURES if f'{name}.pdf' in written[0]} == {*FIGURES.values()}

def test_a_hue_keeps_its_colour_where_others_are_absent():
    rows = [{'measure': 'ppl', 'x': x, 'hue': hue, 'style': '', 'across': across, 'value': 1,
             'lowest': 1, 'highest': 1} for x in (1, 2) for hue, across in ('a1', 'b1', 'b2')]
    figure = {key: key for key in 'x hue style across xlabel'.split()} | {'panels': 'PPL: ppl'}
    whole, part = report.draw_lines(rows, figure).axes
    a, b = (line.get_color() for line in whole.lines)
    assert a != b == part.lines[0].get_color()

def test_nothing_stands_beside_the_paper_while_totals_differ(tables, tmp_path):
    folders = 'out/half', 'out/rare', 'out/half_2x'
    assert 'multilingual runs read 1,000,000 or 2,000,000 tokens' in tables(*folders)
    assert "paper's" not in rows_of(tmp_path / 'table1_3_ppl.csv')[0]
    tables(*folders[:2])
    assert rows_of(tmp_path / 'table1_3_ppl.csv')[0]["paper's"] == 'Table 1, row 4'

def test_a_report_says_what_it_leaves_out_and_what_to_run(tables, tmp_path):
    folders = empty, untrained, damaged, _ = [tmp_path / name for name in 'abcd']
    empty.mkdir()
    for folder in folders[1:]:
        shutil.copytree('out/mono_en_1_small', folder)
    (untrained / 'results.json').unlink()
    write(damaged / 'results.json', '{')
    text = tables(*folders, 'out/half/results.json')  # out/* also matches files
    assert f'{empty} is not a run' in text and f'{untrained} has no checkpoint yet' in text
    assert f'{damaged}/results.json cannot be read' in text and f'ppl {damaged} writes it' in text
    assert '1 runs\n' in text and 'gpt-2x32 on en: a law needs at least three token counts' in text
    plans = set(re.findall(r'`python -m study.report --plan (\w+)`', text))
    assert {'fig01_ratio', 'fig05_laws', 'schedules', 'exposure'} <= plans and len(plans) > 10
    assert all(map(plan.missing_runs, plans))

@pytest.mark.parametrize('command, says', [
    ('out', 'none of these folders is a run'), ('', 'needs the folders'),
    ('out --tokens=-1', '--tokens must be at least 0'), ('--jobs=-1', '--jobs must be')])
def test_a_mistake_is_refused_in_one_line(command, says, tables):
    refused(says, tables, *command.split())

@pytest.mark.parametrize('file', ['results', 'config', 'alignment', 'glue', 'matching'])
@pytest.mark.parametrize('content', [
    '', '[]', '{"languages": 3, "tokens": [[1], 2], "pairs": [["x", 0]], "step": 1e400}',
    '{"n_layer": "two", "tasks": {"sst2": null}, "hidden_states": {"net": [[], "a", {}]}}'])
def test_a_damaged_file_is_read_or_refused_in_one_line(file, content, study, monkeypatch, tmp_path):
    monkeypatch.setattr(report, 'draw_lines', lambda *_: None)  # it takes seconds
    shutil.copytree('out/real', tmp_path / 'run')
    write(tmp_path / 'run' / f'{file}.json', content)
    try:
        report.main([f'{tmp_path}/run', f'--out={tmp_path}'])
    except SystemExit as e:
        assert isinstance(e.code, str) and '\n' not in e.code
