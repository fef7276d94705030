"""config: settings and their overrides, the configs, the table of runs, the paper's figures."""
import ast
import functools
import json
import os
import re
import shlex
from operator import itemgetter
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, script

import analyze
import config
from config import UserError, tables
from data_prep import check_languages, data_settings, marginals

MODULES = '__init__ default figures huggingface runs tables tracking'.split()
CONFIGS = sorted(p for p in (ROOT / 'config').rglob('*.py') if p.stem not in MODULES)
ALL_DATA = 18265 * 128 * 512  # tokens: the paper's 1.2B

def test_later_arguments_override_earlier_ones(tmp_path):
    a, b = (str(tmp_path / name) for name in ('a.py', 'b.py'))
    (tmp_path / 'a.py').write_text('n_layer = 3\nn_head = 5\n')
    (tmp_path / 'b.py').write_text('n_head = 6\nn_embd = 96\n')
    cfg = config.load([a, b, '--n_embd=64', '--learning_rate=1', '--resume', '--dataset=2024',
                       "--corpora={'a': 'b'}", '--compile=False'])
    assert (cfg.n_layer, cfg.n_head, cfg.n_embd, cfg.block_size) == (3, 6, 64, 512)
    assert (cfg.resume, cfg.dataset, cfg.corpora, cfg.compile) == (True, '2024', {'a': 'b'}, False)
    assert cfg.learning_rate == 1.0 and type(cfg.learning_rate) is float
    assert config.load(['--n_embd=64', b]).n_embd == 96
    assert config.load(['--compile=True', '--compile=auto']).compile == 'auto'

@pytest.mark.parametrize('argument, says', [
    ('--n_layers=3', "unknown setting 'n_layers', did you mean 'n_layer'"),
    ('--n_layer=three', "n_layer must be of type int, like 12, not 'three'"),
    ('--languages=EN', 'languages must be of type list'),
    ('--learning_rate=-1', 'learning_rate must be between 0 and'),
    ('--learning_rate=1e999', 'learning_rate must be between 0 and'),
    ('no/such/config.py', 'no/such/config.py cannot be read')])
def test_a_bad_setting_is_refused_by_name(argument, says):
    with pytest.raises(UserError, match=says):
        config.load([argument])

def test_a_broken_config_is_one_line_unless_debug_asks_for_the_traceback(tmp_path):
    (tmp_path / 'c.py').write_text('n_layer = = 3\n')
    result = script('train.py', tmp_path / 'c.py')
    assert result.status == 1 and 'SyntaxError' in result.err and result.err.count('\n') == 1
    result = script('train.py', tmp_path / 'c.py', env=os.environ | {'DEBUG': '1'})
    assert 'Traceback' in result.err

def test_a_saved_run_has_todays_defaults_for_new_settings_and_loses_old_ones():
    assert config.restored({'n_layer': 3, 'gone': 1}, '') == config.load(['--n_layer=3'])

@pytest.mark.parametrize('program', ['train.py', 'data_prep.py'])
def test_help_names_every_setting_with_its_default(program):
    result = script(program, '--help')
    assert result.status == 0
    for key, default in vars(config.load([])).items():
        shown = re.search(rf'^ *--{key} = ([^#\n]*)', result.out, re.M)
        assert shown and ast.literal_eval(shown[1].strip()) == default, key

@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_loads_and_says_what_it_is(path):
    check_languages(config.load([str(path)]))
    assert path.read_text().startswith('# ')

PAPER = tables.paper_values()  # {(*setting, measure, number): (where, value)}

@functools.cache
def runs():
    rows = [SimpleNamespace(**row) for row in tables.read_table('runs.csv')]
    for row in rows:
        files = [str(ROOT / file) for file in row.config.split()]
        row.cfg = cfg = config.load([*files, *shlex.split(row.overrides)])
        row.plans = row.plans.split()
        row.tokens = cfg.max_iters * cfg.batch_size * cfg.block_size
        columns = analyze.columns_of(cfg, ALL_DATA)
        row.setting = itemgetter('size', 'corpora', 'vocabulary', 'schedule', 'data')(columns)
    return rows

def test_every_run_has_its_own_name_and_every_figure_of_the_paper_has_a_run():
    assert len({run.run for run in runs()}) == len(runs())
    for run in runs():
        check_languages(run.cfg)
        commands = {measure.split()[0] for measure in run.measure.split(';')}
        assert run.plans and commands <= {'ppl', 'alignment', 'matching', 'glue'}, run.run
    assert {key[:5] for key in PAPER} <= {run.setting for run in runs()}

def test_runs_of_one_dataset_have_equal_data_settings_and_amounts():
    first = {}
    for run in runs():
        other = first.setdefault(run.cfg.dataset, run)
        assert data_settings(run.cfg) == data_settings(other.cfg), (run.run, other.run)
        if 'hf:' in str(run.cfg.corpora):  # the hub is read as far as training needs
            assert run.tokens == pytest.approx(other.tokens, rel=0.002), (run.run, other.run)

def test_the_studys_results_have_the_settings_of_their_rows():
    cfgs = {run.run: run.cfg for run in runs()}
    for path in (ROOT / 'config' / 'study').glob('*/*/results.json'):
        row, saved = '/'.join(path.parts[-3:-1]), json.loads(path.read_text())['config']
        wanted = json.loads(json.dumps(vars(cfgs[row])))
        assert {key for key in saved if saved[key] != wanted[key]} <= {'out_dir', 'dataset'}, row

# Table 3 begins with rows of Table 1
ROWS = [f'Table 1, row {n}' for n in range(1, 14)] + [f'Table 3, row {n}' for n in range(4, 21)]

@pytest.mark.parametrize('where', ROWS)
def test_every_row_of_the_papers_tables_is_one_run(where):
    values = {key: value for key, (place, value) in PAPER.items() if place == where}
    setting, = {key[:5] for key in values}
    run, = [run for run in runs() if f'table{where[6]}' in run.plans and run.setting == setting]
    assert run.tokens == pytest.approx(setting[-1] * ALL_DATA, rel=0.005)
    if 'then' in setting[3]:  # half of the tokens each
        np.testing.assert_allclose(marginals(run.cfg.schedule), 0.5, atol=1e-9)
    if not run.overrides:  # it has a config of its own
        names = run.config, run.cfg.dataset, run.cfg.out_dir
        assert names == (f'config/{run.run}.py', run.run, f'out/{run.run}')
    readme = (ROOT / 'config' / 'README.md').read_text().split('\n')
    line, = [line for line in readme if line.startswith(f'| {where} |')]
    _, _, name, _, ppl, teff, tokens, *_ = (cell.strip() for cell in line.split('|'))
    assert name == (run.run if run.overrides else f'[{run.run}]({run.run}.py)')
    assert tokens == f'{run.tokens / 1e9:.2g}B'
    numbers = [number for *_, measure, number in values if measure == 'PPL']
    assert ppl == ' / '.join(values[*setting, 'PPL', number] for number in numbers)
    assert teff == ' / '.join(values.get((*setting, 'TEff', number), '-') for number in numbers)

@pytest.mark.parametrize('size', ['4x512', '12x768', '24x1024'])
@pytest.mark.parametrize('corpus', ['en', 'fr'])
def test_the_law_of_every_size_has_runs_from_5_to_300_percent_of_the_tokens(corpus, size):
    law = [run for run in runs() if 'fig05_laws' in run.plans
           and run.setting[:2] == (size, corpus)]
    shares = sorted(run.tokens / ALL_DATA for run in law)
    assert shares == pytest.approx([0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1, 1.5, 2, 3], rel=0.003)
    assert {run.cfg.batch_size for run in law} == {256 if size == '24x1024' else 128}

@pytest.mark.parametrize('setting, measure, source, values', [
    (('12x768', 'en fr', 'disjoint', '50/50', 1), 'gradients', 'Fig. 13', '0.04'),  # arXiv: swapped
    (('12x768', 'en fr', 'disjoint', '90/10', 1), 'gradients', 'Fig. 13', '0.05'),
    (('12x768', 'en en', 'disjoint', '95/5', 1), 'embeddings', 'Appendix C', '0.28'),  # arXiv 90/10
    (('12x768', 'en en', 'disjoint', '90/10', 1), 'embeddings', 'read off Fig. 6', '0.20'),
    (('12x768', 'en en', 'disjoint', '90/10', 3), 'PPL', "authors' notebook", '19.03 22.27'),
    (('12x768', 'en en', '0.05 anchors', '50/50', 1), 'PPL', 'read off Fig. 8', '23.4'),
    (('4x512', 'en en', 'disjoint', '90/10', 0.5), 'TEff', 'read off Fig. 9', '1.17 3.46')])
def test_a_figure_beside_the_tables_stands_with_its_source(setting, measure, source, values):
    found = [figure for key, figure in PAPER.items() if key[:6] == (*setting, measure)]
    assert found == [(source, value) for value in values.split()]
