"""config: settings and their overrides, the shipped configs, and which script imports which."""
import ast
import os
import re
import sys

import pytest
from conftest import ROOT, run, script

import config
from data_prep import check_languages

CONFIGS = sorted({*(ROOT / 'config').glob('*.py')} - {ROOT / 'config/__init__.py', config.DEFAULT})

def test_later_arguments_override_earlier_ones(tmp_path):
    a, b = (str(tmp_path / name) for name in ('a.py', 'b.py'))
    (tmp_path / 'a.py').write_text('n_layer = 3\nn_head = 5\n')
    (tmp_path / 'b.py').write_text('import math\n_two = 2\nn_head = 3 * _two\nn_embd = 96\n')
    cfg = config.load([a, b, '--n_embd=64', '--learning_rate=1', '--overwrite', '--dataset=2024',
                       "--corpora={'a': 'b'}", '--compile=False'])
    assert (cfg.n_layer, cfg.n_head, cfg.n_embd, cfg.block_size) == (3, 6, 64, 512)
    assert cfg.overwrite is True and cfg.compile is False
    assert (cfg.dataset, cfg.corpora) == ('2024', {'a': 'b'})
    assert cfg.learning_rate == 1.0 and type(cfg.learning_rate) is float
    assert config.load(['--n_embd=64', b]).n_embd == 96
    assert config.load(['--compile=True', '--compile=auto']).compile == 'auto'

def test_numbers_of_numpy_are_plain_ones_and_a_config_imports_its_neighbour(tmp_path):
    (tmp_path / 'shares.py').write_text('p = [3, 1]\n')
    (tmp_path / 'a.py').write_text(
        'import numpy as np\nimport shares\nlearning_rate = np.float32(0.5)\n'
        'max_iters = np.int64(30)\nschedule = [(np.float64(0), np.array(shares.p) / 4)]\n')
    cfg = config.load([str(tmp_path / 'a.py'), '--out_dir=~/out', '--warmup_iters=1e1'])
    assert (cfg.learning_rate, cfg.max_iters, cfg.schedule) == (0.5, 30, [[0, [0.75, 0.25]]])
    assert {type(cfg.learning_rate), type(cfg.schedule[0][1][0])} == {float}
    assert (cfg.out_dir, cfg.warmup_iters) == (os.path.expanduser('~/out'), 10)
    assert type(cfg.max_iters) is type(cfg.warmup_iters) is int
    assert str(tmp_path) not in sys.path

@pytest.mark.parametrize('argument, says', [
    ('--n_layers=3', "unknown setting 'n_layers', did you mean n_layer"),
    ('--n_layer', 'like 12, not True: --n_layer=VALUE'), ('--n_layer=1.5', 'like 12, not 1.5'),
    ('--wandb_log=True', 'did you mean one of --help'), ('--schedule={1}', 'schedule cannot'),
     ('--n_layer=three', "n_layer must be like 12, not 'three'"),
    ('--languages=EN', 'languages must be like '), ('no/such.py', 'no/such.py cannot be read'),
    ('--learning_rate=-1', 'must be between 0 and'), ('--learning_rate=1e999', 'between 0 and'),
    (f'--learning_rate=1{400 * "0"}', 'between 0 and')])
def test_a_bad_setting_is_refused_by_name(argument, says):
    with pytest.raises(SystemExit, match=says):
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
def test_help_names_every_setting_with_its_default_at_once(program):
    before = os.times()
    result = run(sys.executable, '-X', 'importtime', ROOT / program, '--help')
    after = os.times()
    assert result.status == 0 and sum(after[2:4]) - sum(before[2:4]) < 1  # s of CPU time
    assert 'config' in result.err and not re.search(r'\| +torch\b', result.err)
    for key, default in vars(config.load([])).items():
        shown = re.search(rf'^{key} = ([^#\n]*)', result.out, re.M)
        assert shown and ast.literal_eval(shown[1].strip()) == default, key

@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_a_shipped_config_loads_says_what_it_is_and_only_sets_variables(path):
    text = path.read_text('utf-8')
    check_languages(cfg := config.load([str(path)]))
    assert all(re.match(r'hf:\w|corpora/eltec-\w{3}\.tar\.xz$', source)
               for source in cfg.corpora.values())
    assert text.startswith(f'# config/{path.name} - ')
    assert {type(node) for node in ast.parse(text).body} == {ast.Assign}

@pytest.mark.parametrize('name, may_import', [
    ('config/__init__', ''), ('data_prep', 'config'), ('model', ''),
    ('train', 'config data_prep model'), ('analyze', 'config data_prep model train')])
def test_imports_go_one_way(name, may_import):
    ours = {'config', 'data_prep', 'model', 'train', 'analyze', 'extras', 'study'}
    modules = set()
    for node in ast.walk(ast.parse((ROOT / f'{name}.py').read_text('utf-8'))):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            modules.add((node.module or '').split('.')[0])
    assert modules & ours <= {*may_import.split()}
