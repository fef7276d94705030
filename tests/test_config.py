"""config: settings, their overrides, and what the shipped configs promise."""
import ast
import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, script

import analyze
import config
import train
from config import UserError
from data_prep import check_languages, marginals

CONFIGS = sorted(p for p in (ROOT / 'config').rglob('*.py') if p.name not in ('__init__.py', 'default.py'))


def test_command_line_overrides_config_file_overrides_default(tmp_path):
    file = tmp_path / 'c.py'
    file.write_text('n_layer = 3\nn_head = 5\n')
    cfg = config.load([str(file), '--n_head=7', '--learning_rate=1', '--resume', '--dataset=2024', "--corpora={'a': 'b'}", '--compile=False'])
    assert (cfg.n_layer, cfg.n_head, cfg.n_embd) == (3, 7, 768)
    assert (cfg.learning_rate, cfg.resume, cfg.dataset, cfg.corpora, cfg.compile) == (1.0, True, '2024', {'a': 'b'}, False)
    assert type(cfg.learning_rate) is float


@pytest.mark.parametrize('argument, says', [
    ('--n_layers=3', "did you mean 'n_layer'"),
    ('--n_layer=three', 'n_layer must be of type int'),
    ('--n_layer=3.0', 'n_layer must be of type int'),
    ('--languages=EN', 'languages must be of type list'),
    ('--learning_rate=-1', 'from 0 on'),
    ('--learning_rate=1e999', 'from 0 on'),
    ('no/such/config.py', 'no/such/config.py cannot be read'),
    ("--corpora={'en': 'a', 'en': 'b'}", "'en' is there twice"),
])
def test_bad_setting_is_refused_by_name(argument, says):
    with pytest.raises(UserError, match=says):
        config.load([argument])


def test_broken_config_file_is_one_line(tmp_path):
    (tmp_path / 'c.py').write_text('n_layer = = 3\n')
    result = script('train.py', tmp_path / 'c.py')
    assert result.status == 1 and len(result.err.splitlines()) == 1 and 'SyntaxError' in result.err


def test_two_corpora_of_one_name_in_a_config_file_are_refused(tmp_path):
    (tmp_path / 'c.py').write_text("corpora = {'en': 'a/*.txt',\n           'en': 'b/*.txt'}\n")
    with pytest.raises(UserError, match="c.py: 'en' is there twice"):
        config.load([str(tmp_path / 'c.py')])


@pytest.mark.parametrize('program', ['train.py', 'data_prep.py'])
def test_help_names_every_setting_with_its_default(program):
    result = script(program, '--help')
    assert result.status == 0
    for key, default in config.settings(config.DEFAULT).items():
        assert f'--{key} = ' in result.out
        assert repr(default) in result.out or str(default) in result.out or f'{default:.0e}'.replace('e-0', 'e-') in result.out


def test_the_readmes_table_has_every_setting_with_its_default_and_remark():
    readme = (ROOT / 'README.md').read_text().replace('\\|', '|')
    remarks = re.findall(r'^(\w+) = .*?  +# (.*)$', config.DEFAULT.read_text(), re.M)
    for key, default in config.settings(config.DEFAULT).items():
        assert re.search(rf'^\| `{key}` \| `(.+?)` \|', readme, re.M), key
        assert ast.literal_eval(re.search(rf'^\| `{key}` \| `(.+?)` \|', readme, re.M)[1]) == default, key
    assert len(remarks) > 30 and all(f'` | {remark}' in readme for _, remark in remarks)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: str(p.relative_to(ROOT / 'config')))
def test_shipped_config_loads_and_makes_sense(path):
    check_languages(config.load([str(path)]))
    lines = path.read_text().splitlines()
    assert lines[0].startswith('# ') and len(lines) < 15


# Table 1 of the paper: row -> tokens in billions, p(language) over the whole run
TABLE_1 = {1: (1.2, [1]), 2: (0.6, [1]), 3: (0.12, [1]), 4: (1.2, [.5, .5]), 5: (1.2, [.9, .1]), 6: (1.2, [.1] * 10), 7: (1.2, [.5] + [1 / 18] * 9),
           8: (1.2, [.5, .5]), 9: (1.2, [.5, .5]), 10: (2.4, [.5, .5]), 11: (2.4, [.5, .5]), 12: (3.6, [.5, .5]), 13: (3.6, [.5, .5])}


# Table 3: row -> tokens in billions, p(EN) and p(FR) over the whole run, vocabulary (a dash: of one language)
TABLE_3 = {1: (1.2, [1], '-'), 2: (0.6, [1], '-'), 3: (0.12, [1], '-'), 4: (1.2, [1], '-'), 5: (0.6, [1], '-'), 6: (0.12, [1], '-'),
           7: (1.2, [.5, .5], 'disjoint'), 8: (1.2, [.9, .1], 'disjoint'), 9: (1.2, [.1, .9], 'disjoint'), 10: (1.2, [.5, .5], 'disjoint'),
           11: (1.2, [.5, .5], 'anchored'), 12: (1.2, [.9, .1], 'anchored'), 13: (1.2, [.1, .9], 'anchored'),
           **{row: (1.2, [.5, .5], 'anchored') for row in (14, 15, 16)}, **{row: (2.4, [.5, .5], 'anchored') for row in (17, 18)},
           **{row: (3.6, [.5, .5], 'anchored') for row in (19, 20)}}


@pytest.mark.parametrize('table, row', [(1, row) for row in TABLE_1] + [(3, row) for row in TABLE_3])
def test_every_row_of_the_papers_tables_is_one_config(table, row):
    path, = [p for p in CONFIGS if re.search(rf'Table {table}, row {row}[:;]', p.read_text().split('\n')[0])]
    cfg = config.load([str(path)])
    tokens, p, *vocab = (TABLE_1 if table == 1 else TABLE_3)[row]
    if table == 3:
        assert [corpus for _, corpus in cfg.languages] == (['en', 'fr'] if len(p) == 2 else ['fr' if row > 3 else 'en'])
        assert vocab == ['-'] or vocab == [cfg.vocab]
    assert cfg.max_iters * cfg.batch_size * cfg.block_size == pytest.approx(tokens * 1e9, rel=0.005)
    np.testing.assert_allclose(marginals(cfg.schedule), p, atol=1e-9)
    assert (cfg.dataset, cfg.out_dir) == (path.stem, f'out/{path.stem}')


def paper_rows():
    with open(ROOT / 'config' / 'paper.csv', encoding='utf-8') as f:
        return list(csv.DictReader(f))


def test_figures_of_the_paper_are_as_it_prints_them():
    paper = ROOT.parent / 'shared' / 'paper' / 'language_imbalance_paper.txt'
    if not paper.exists():
        pytest.skip('the paper lies in ../shared, which is not here')
    lines = [line.split('\t') for line in paper.read_text('utf-8').replace('$>1\\text{B}$', '>1B').splitlines()]
    _, table_1, table_3 = (list(group) for group in split_at(lines, lambda line: line[0] == 'Run Type'))
    printed = {f'Table {n}': {line[1]: line[-4:] for line in table if len(line) > 4 and line[1].isdigit()} for n, table in ((1, table_1), (3, table_3))}
    layers = {('Table 2', 'disjoint'): [line[2:] for line in table_1 if line[0] in ('50%', '90%')],
              ('Table 4', 'disjoint'): [line[-12:] for line in table_3 if len(line) == 15 and line[1].endswith('%')][:2],
              ('Table 4', 'anchored'): [line[-12:] for line in table_3 if len(line) == 15 and line[1].endswith('%')][2:]}
    seen = 0
    for row in paper_rows():
        number = int(row['number']) - 1
        if row['measure'] in ('PPL', 'TEff'):
            values = printed[row['source']][row['row']][:2] if row['measure'] == 'PPL' else printed[row['source']][row['row']][2:]
            values = values if len(row['corpora'].split()) > 1 else [value for value in values if value != '-']
        elif row['measure'] == 'hidden states':
            values = layers[row['source'], row['vocab']][row['schedule'] == '90/10']
        else:  # gradients and embeddings stand in the text
            assert row['value'] in paper.read_text('utf-8')
            continue
        assert values[number] == row['value'], row
        seen += 1
    assert seen == 2 * 3 + 2 * 10 * 2 - 1 + 2 * 3 + 2 * 14 * 2 + 6 * 12


def split_at(items, is_start):
    groups = [[]]
    for item in items:
        groups += [[]] if is_start(item) else []
        groups[-1].append(item)
    return groups


@pytest.mark.parametrize('table, row', [(1, row) for row in TABLE_1] + [(3, row) for row in TABLE_3 if row > 3])
def test_report_puts_the_papers_row_beside_its_config(table, row):
    path, = [p for p in CONFIGS if f'Table {table}, row {row}:' in p.read_text() or f'Table {table}, row {row};' in p.read_text()]
    setting = analyze.setting_of(config.load([str(path)]), 18265 * 128 * 512)
    found = [row for row in paper_rows() if (row['corpora'], row['vocab'], float(row['data']), row['schedule']) == setting and row['measure'] == 'PPL']
    assert found and {(row['source'], row['row']) for row in found} == {(f'Table {table}', str(row))}


def line_of(path):
    """The line of config/README.md that a config should have: what it is, the paper's figures, cost in tokens and FLOPs."""
    cfg = config.load([str(path)])
    what = path.read_text().split('\n')[0].removeprefix(f'# config/{path.name} - ')
    names = [name for name, _ in cfg.languages]
    setting = analyze.setting_of(cfg, 18265 * 128 * 512) if (cfg.n_embd, cfg.model) == (768, 'gpt') else None
    printed = [row for row in paper_rows() if (row['corpora'], row['vocab'], float(row['data']), row['schedule']) == setting]
    papers = {measure: ' / '.join(next((row['value'] for row in printed if (row['measure'], row['number']) == (measure, number)), '-')
                                  for number in sorted({row['number'] for row in printed if row['measure'] == 'PPL'}))
              for measure in ('PPL', 'TEff')}
    with torch.device('meta'):
        flops, _ = train.new_model(cfg, (1 if cfg.tokenizer == 'shared' else len(names)) * cfg.vocab_size).cost_per_token()
    tokens = cfg.max_iters * cfg.batch_size * cfg.block_size
    return (f'| [{path.stem}]({path.name}) | {what} | {papers["PPL"]} | {papers["TEff"]} | {tokens / 1e9:.2g}B '
            f'| {flops * tokens:.1e} |')


def test_the_table_of_configs_has_every_config_with_its_cost_and_the_papers_figures():
    readme = (ROOT / 'config' / 'README.md').read_text()
    for path in (ROOT / 'config').glob('*.py'):
        if path.stem not in ('__init__', 'default', 'laptop', 'novels'):
            assert line_of(path) in readme, line_of(path)


def test_quickstart_runs_differ_in_languages_and_length_only():
    runs = {p.stem: vars(config.load([str(p)])) for p in sorted((ROOT / 'config' / 'quickstart').glob('*.py'))}
    assert len(runs) == 6
    varying = {key for key in runs['mono_100'] if len({repr(run[key]) for run in runs.values()}) > 1}
    assert varying == {'dataset', 'out_dir', 'languages', 'schedule', 'max_iters'}
    for name, run in runs.items():
        share = int(name[5:]) / 100 if name.startswith('mono') else 1
        assert run['max_iters'] == round(share * runs['mono_100']['max_iters'])
        assert Path(run['out_dir']) == Path('out/quickstart') / name
