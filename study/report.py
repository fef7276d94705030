"""
Tables and figures of trained runs, beside the paper's; and the runs that these need.

    python -m study.report OUT_DIR... [--out DIR]      # -> report/: .csv, .md, .png, .pdf
    python -m study.report --plan table1               # the commands of the runs that are missing
    python -m study.report --plan table1 --jobs 2      # run them, two at a time
    python -m study.report --plan table1 --options="config/mini.py"   # the same, in a smaller model

runs.csv lists the runs, figures.csv what is drawn, paper.csv what the paper has. Runs go to out/ of
the working directory, which need not be the repository: python REPOSITORY/study/report.py ...
"""
import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # if started from elsewhere

import config
from study.plan import STUDY, plan, read_table

def parse(argv=None):
    parser = argparse.ArgumentParser(prog='python -m study.report', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('out_dirs', nargs='*', help='of trained runs; those without a perplexity are scored first')
    add('--out', default='report', help='folder to write (report)')
    add('--tokens', type=float, default=0, help='tokens that count as all data; the paper: 1.2B')
    add('--plan', help='print the commands of its runs that are missing: table1, fig09, ...')
    add('--jobs', type=int, default=0, help='run the plan, this many commands at a time')
    add('--options', default='', help='settings for all runs of the plan')
    add('--device', default='auto', help='for scoring: cuda, mps, cpu; auto: the first available')
    add('--dtype', default='float32', help='float32, bfloat16; auto: bfloat16 on cuda')
    add('--stride', type=int, help='tokens scored per window; default: a quarter of it')
    parser.set_defaults(batch_size=32)
    args = parser.parse_args(argv)
    for key, lowest in (('tokens', 0), ('jobs', 0), ('stride', 1)):
        if (value := getattr(args, key)) is not None and not lowest <= value < math.inf:
            sys.exit(f'--{key} must be at least {lowest}, not {value}')
    if not args.plan and not args.out_dirs:
        sys.exit('report needs the folders of trained runs, or --plan')
    return args

if __name__ == '__main__' and (args := parse()).plan:  # before torch is imported
    config.run(lambda: plan(args.plan, args.options, args.jobs))
    sys.exit()

import csv
import io
import itertools
import os
from collections import defaultdict
from operator import itemgetter
from types import SimpleNamespace

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

import analyze
import train
from data_prep import marginals

# ---- one long table: a row for every number that was measured on a run -------

PAPER_MEASURE = {  # ours -> paper.csv's; which tokens are paired depends on the kind of run
    'ppl': 'PPL', 'teff': 'TEff', 'gradients.macro_average': 'gradients', 'mean_accuracy': 'GLUE',
    'embeddings.input.mean': 'embeddings', 'cloned hidden_states.position': 'hidden states',
    'real hidden_states.matching': 'hidden states'}

def columns_of(cfg, all_data=None, model='gpt'):
    """The columns that a run's measurements share; figures select runs by tags."""
    corpora, n = [corpus for _, corpus in cfg.languages], len(cfg.languages)
    stages = [f'{"/".join(f"{100 * share:.3g}" for share in shares)} from {100 * start:g}%'
              for start, shares in cfg.schedule]
    schedule = ' then '.join(stages).replace(' from 0%', '')  # '90/10 then 10/90 from 50%'
    tokens = max(1, cfg.max_iters * cfg.batch_size * cfg.block_size)
    data, different = tokens / (all_data or tokens), len(set(corpora))
    kind = 'mono' if n == 1 else {n: 'real', 1: 'cloned'}.get(different, 'mixed')
    vocab = cfg.vocab if different > 1 else 'disjoint'
    if cfg.tokenizer == 'shared':
        vocab = 'shared'
    if cfg.anchor_frac and different < n:
        vocab = f'{100 * cfg.anchor_frac:g}% shared'
    if cfg.codeswitch:
        vocab = f'{100 * cfg.codeswitch:g}% switched'
    steady = n == 2 and len(cfg.schedule) == 1
    tags = {kind: True, vocab: True, schedule: True, 'whole': 0.99 < data < 1.01, 'steady': steady,
            'even': n == 2 and math.isclose(marginals(cfg.schedule)[1], 0.5)}
    seeds = {'seed', 'anchor_seed', 'dataset'}
    same = vars(cfg).keys() - train.FREE - seeds | {'dtype'}
    settings = [(key, getattr(cfg, key)) for key in sorted(same)]
    return {
        'kind': kind, 'pieces': cfg.vocab_size, 'dtype': cfg.dtype, 'corpora': ' '.join(corpora),
        'size': f'{cfg.n_layer}x{cfg.n_embd}' if model == 'gpt' else f'{model}-{cfg.n_embd}',
        'vocabulary': vocab, 'schedule': schedule, 'seed': cfg.seed, 'tokens': tokens,
        'data': float(f'{data:.2g}') if all_data else f'{tokens:,} tokens',
        'share': 100 * cfg.schedule[0][1][1] if steady else None,
        'anchors': 100 * cfg.anchor_frac, 'experiment': f'{model} {settings}',
        'tags': {tag for tag, holds in tags.items() if holds}}

def numbers_in(content, names, path=(), layer=0):
    """Nested JSON -> (language, layer, measure, value) of every number. A measure is its path in
    the file; lists are by layer, beside their mean; bins of frequency by power of ten."""
    if isinstance(content, dict) and 'below' in content:  # from 0, 1, 10, ... -> 1, 2, 3, ...
        power = len(str(int(analyze.number(content['from'], 0)))) if content['from'] else 0
        yield from numbers_in(content['mean'], names, path, 1 + power)
    elif isinstance(content, dict):
        for key in content:
            if key not in ('languages', 'settings'):
                yield from numbers_in(content[key], names, (*path, key))
    elif isinstance(content, list):
        for i, value in enumerate(content, 1):
            yield from numbers_in(value, names, path, i)
        if content and not isinstance(content[0], dict):
            yield from numbers_in(float(np.mean(content)), names, (*path, 'mean'))
    elif not isinstance(content, str):
        language = next((key for key in path if key in names), '')
        measure = '.'.join(key for key in path if key != language)
        yield language, layer, measure, analyze.number(content)

def read_run(folder, name, args, finished=True):
    """A run: its settings, its rows of teff, and everything else that was measured on it."""
    cfg, numbers = analyze.settings_of(folder), []
    names = [language for language, _ in cfg.languages]
    saved = config.read_json(f'{folder}/config.json', 'train.py --overwrite renews it') or {}
    model = saved.get('model', 'gpt') + ('-shared' if saved.get('shared_layer') else '')
    for file in 'alignment', 'glue':
        with analyze.measured(folder, file) as content:
            numbers += numbers_in(content, names)
    rows = analyze.rows_of_run(folder, args, finished) if model == 'gpt' else []
    for row in rows:
        row['run'] = name
    return SimpleNamespace(folder=folder, name=name, cfg=cfg, model=model, names=names, rows=rows,
                           numbers=numbers)

def paper_values():
    """{(size, corpora, vocabulary, schedule, data, measure, language or layer): (where, value)}."""
    values = {}
    for row in read_table('paper'):
        setting = *(row[key] for key in 'size corpora vocab schedule'.split()), float(row['data'])
        where = row['source'] + (f', row {row["row"]}' if row['row'] else '')
        values[*setting, row['measure'], int(row['number'])] = where, row['value']
    return values

def measurements(run, all_data, paper):
    """The rows of a run in the long table, one per number. `shown` is the value for people: of a
    TEff beyond the monolingual runs, what bounds it."""
    columns = columns_of(run.cfg, all_data, run.model)
    setting = [columns[key] for key in ('size', 'corpora', 'vocabulary', 'schedule', 'data')]
    rows, long = {row['language']: row for row in run.rows}, []
    numbers = [(*number, number[-1]) for number in run.numbers]
    for name, row in rows.items():  # a kept checkpoint has no TEff
        people = row | row.get('shown', {})
        for key in ('tokens', 'ppl', 'bits_per_byte', *analyze.ADDED):
            numbers.append((name, 0, key, row.get(key, math.nan), people.get(key)))
    for name, layer, measure, value, shown in numbers:
        n = layer or (run.names.index(name) if name else 0) + 1
        kind = PAPER_MEASURE.get(measure) or PAPER_MEASURE.get(f'{columns["kind"]} {measure}')
        where, printed = paper.get((*setting, kind, n), ('', ''))
        last = {'last'} if name in ('', run.names[-1]) else set()
        row = rows.get(name or run.names[-1], {})  # without a language it counts as the last one's
        if value == value:
            long.append(columns | {
                'run': run.name, 'language': name, 'layer': layer, 'measure': measure,
                'value': value, 'shown': shown, 'paper': where, 'printed': printed, 'step': 0,
                'exposure': row.get('exposure'), 'parameters': row.get('parameters'),
                'seen': row.get('tokens'), 'tags': columns['tags'] | last})
    return long

def over_seeds(rows):
    """The rows of a long table that differ in their seeds alone, as one: mean, lowest and highest
    value, and all of it as text."""
    groups, grouped = defaultdict(list), []
    for row in sorted(rows, key=itemgetter('seed')):
        groups[itemgetter('experiment', 'language', 'layer', 'measure', 'step')(row)].append(row)
    for same in groups.values():
        values, shown = ([row[key] for row in same] for key in ('value', 'shown'))
        low, high = map(analyze.as_text, (min(values), max(values)))
        mean = '' if isinstance(values[0], str) else float(np.mean(values))
        text = analyze.as_text(mean) + (f' ({low} to {high})' if low != high else '')
        if any(isinstance(value, str) for value in shown):  # remarks, bounds
            text = '; '.join(sorted({*map(analyze.as_text, shown)} - {''}))
        grouped.append(same[0] | {'value': mean, 'lowest': min(values), 'highest': max(values),
                                  'shown': text})
    return grouped

def read_runs(args):
    """The runs in the folders given, and notes that say which are left out."""
    folders = [os.path.normpath(path) for path in args.out_dirs if not os.path.isfile(path)]
    above = [os.path.dirname(os.path.abspath(folder)) for folder in folders]
    runs, notes = [], []
    for folder in dict.fromkeys(folders):
        try:
            runs.append(read_run(folder, os.path.relpath(folder, os.path.commonpath(above)), args))
        except SystemExit as e:
            notes.append(f'left out: {e}')
            print(f'note: {notes[-1]}')
    if not runs:
        sys.exit('none of these folders is a run with results: report needs runs, or --plan')
    return runs, notes

def gather(args):
    """The long table of these runs (rows), the same over seeds (grouped) and of kept checkpoints
    (steps); the runs, their laws, and notes."""
    runs, notes = read_runs(args)
    data = SimpleNamespace(runs=runs, notes=notes, rows=[], steps=[])
    rows = [row for run in data.runs for row in run.rows]
    data.laws, reasons = analyze.token_efficiency(rows)
    totals = {run.name: columns_of(run.cfg)['tokens'] for run in data.runs}
    several = {totals[run.name] for run in data.runs if len(run.cfg.languages) > 1}
    several = sorted(several or {max(totals.values())})
    all_data = args.tokens or (several[-1] if several[-1] < 1.01 * several[0] else None)
    data.notes += [*map(str, data.laws.values()), *reasons]
    if all_data:
        data.notes.append(f'all data: {all_data:,.0f} training tokens (the paper: 1.2B)')
    else:
        data.notes.append(
            f'multilingual runs read {" or ".join(f"{n:,}" for n in several)} tokens: '
            '--tokens must say which counts as all data for a comparison with the paper')
    paper = paper_values()
    for run in data.runs:
        data.rows += measurements(run, all_data, paper)
        kept = [read_run(path.parent, run.name, args, finished=False)
                for path in sorted(Path(run.folder).glob('step_*/results.json'))]
        for part in [*kept, run] if kept else []:
            for row in measurements(part, all_data, {}):
                data.steps.append(row | {'step': row['seen'], 'tags': row['tags'] | {'step'}})
    data.grouped, data.steps = over_seeds(data.rows), over_seeds(data.steps)
    return data

# ---- tables ------------------------------------------------------------------

BY_RUN = 'run seed size schedule vocabulary data'.split()

def write_csv(path, rows, columns):
    text = io.StringIO()
    lines = [[row.get(column, '') for column in columns] for row in rows]
    lines = [[f'{value:.6g}' if isinstance(value, float) else value for value in line]
             for line in lines]  # on six digits all machines agree
    csv.writer(text, lineterminator='\n').writerows([columns, *lines])
    analyze.write(path, text.getvalue())

def pivot(rows, table, key):
    """Rows of the long table -> rows and columns of a wide one, with row[key] in a column for each
    measure or, if the table's x is layer, each layer; the paper's beside or, of layers, below."""
    lines, by_layer, measures = {}, table['x'] == 'layer', tuple(table['panels'].split())
    for row in rows:
        if not row['measure'].startswith(measures) or by_layer != (row['layer'] > 0):
            continue
        index = {name: row[name] for name in (*BY_RUN, 'measure' if by_layer else 'language')}
        line = lines.setdefault(tuple(index.values()), dict(index))
        column = f'layer {row["layer"]}' if by_layer else row['measure']
        line[column] = row[key]
        if row['paper'] and by_layer:
            index['run'] = f"paper's {row['paper']}"
            lines.setdefault((*index.values(), line['run']), index)[column] = row['printed']
        elif row['paper']:
            line |= {"paper's": row['paper'], f'its {column}': row['printed']}
    return list(lines.values()), list(dict.fromkeys(itertools.chain(*lines.values())))

# ---- figures -----------------------------------------------------------------

COLOURS = '#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9'.split()  # the Okabe-Ito palette
LABELS = {'mlpe': 'alone (law)', 'step_ppl': 'alone (step-matched)'}  # measures in a legend

def subplots(rows, columns, width, height, **more):
    figure = Figure(figsize=(width, height), layout='constrained')
    return figure, figure.subplots(rows, columns, squeeze=False, **more)

def log_scale(axis):
    """Label an axis in plain numbers, whatever it spans."""
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(5))
    axis.set_major_formatter(EngFormatter(sep=''))
    axis.set_minor_locator(NullLocator())

def plot_lines(axes, rows, figure, measures, hues, styles):
    """Measures of rows by the figure's x: a line for each hue (colour), style (marker) and measure
    (solid, dotted, dashed), bars over seeds."""
    x, groups = figure['x'], defaultdict(list)
    for row in sorted(rows, key=itemgetter(x)):
        groups[measures.index(row['measure']), row[figure['hue']], row[figure['style']]].append(row)
    for (i, hue, style), line in sorted(groups.items()):
        kind = 0 if figure['hue'] == 'measure' else i
        label = [hue, style if len(styles) > 1 else '',
                 LABELS.get(measures[i], measures[i]) if kind else '']
        at, value, low, high = zip(*map(itemgetter(x, 'value', 'lowest', 'highest'), line))
        if x == 'schedule':
            at = [schedule.replace(' then', '\nthen') for schedule in at]
        if len(line) > 1 or x == 'schedule':
            color = COLOURS[hues.index(hue) % len(COLOURS)]
            axes.plot(at, value, color=color, marker='osD^v'[styles.index(style) % 5],
                      ls='' if x == 'schedule' else ('-', ':', '--')[kind % 3],
                      label=', '.join(filter(None, label)))
            axes.vlines(at, low, high, color=color, lw=4, alpha=0.35)
    if axes.lines:
        axes.legend()
    axes.margins(x=0.2 if x == 'schedule' else 0.05)

def draw_lines(rows, figure):
    """A row for each of the figure's panels, a column for each value of its columns `across`."""
    x, columns = figure['x'], defaultdict(list)
    panels = [part.split(':') for part in figure['panels'].split(';')]
    panels = {label.strip(): measures.split() for label, measures in panels}
    wanted = {measure for measures in panels.values() for measure in measures}
    rows = [row for row in rows if row['measure'] in wanted
            and row[x] is not None and row[x] == row[x]]
    across = [key for key in figure['across'].split() if len({row[key] for row in rows}) > 1]
    for row in rows:
        columns[', '.join(str(row[key]) for key in across)].append(row)
    columns = {title: column for title, column in sorted(columns.items())
               if len({row[x] for row in column}) > 1}
    rows = [row for column in columns.values() for row in column]
    if not rows:
        return None
    hues, styles = (sorted({row[figure[key]] for row in rows}) for key in ('hue', 'style'))
    measured = {row['measure'] for row in rows}
    panels = {label: names for label, names in panels.items() if measured & set(names)}
    picture, grid = subplots(len(panels), len(columns), 3.3 * len(columns), 2.4 * len(panels))
    for (label, measures), line in zip(panels.items(), grid):
        for axes, (title, column) in zip(line, columns.items()):
            own = [row for row in column if row['measure'] in measures]
            plot_lines(axes, own, figure, measures, hues, styles)
            axes.set(xlabel=figure['xlabel'], ylabel=label, title=title, visible=bool(axes.lines))
            if x == 'layer':
                axes.locator_params(axis='x', integer=True)
            if x in ('tokens', 'parameters', 'seen', 'exposure'):
                axes.set_xscale('log')
                log_scale(axes.xaxis)
            if label == 'PPL':
                axes.set_yscale('log')
                log_scale(axes.yaxis)
            if label == 'TEff':
                axes.axhline(1, color='grey', lw=0.8, ls=':')
            if label.startswith('net cosine'):  # so that noise does not look like alignment
                low, high = axes.get_ylim()
                axes.set_ylim(min(low, -0.1), max(high, 0.3))
    return picture

def draw_gradients(rows, figure):
    """Cosine of gradients of parallel sequences, parameter type by layer, a heat map per run."""
    start = 'gradients.blocks.'
    rows = [row for row in rows if row['measure'].startswith(start) and row['layer']]
    types = list(dict.fromkeys(row['measure'] for row in rows))
    runs = sorted({(row['share'], row['schedule'], row['run']) for row in rows})
    if not rows:
        return None
    n = max(row['layer'] for row in rows)
    width = 2.2 + (0.5 + 0.14 * n) * len(runs)
    picture, (grid,) = subplots(1, len(runs), width, 0.6 + 0.17 * len(types), sharey=True)
    for axes, (_, schedule, run) in zip(grid, runs):
        values = np.full((len(types), n), np.nan)
        for row in rows:
            if row['run'] == run:
                values[types.index(row['measure']), row['layer'] - 1] = row['value']
        image = axes.imshow(values, cmap='PuOr', vmin=-1, vmax=1, aspect='auto',
                            extent=(0.5, n + 0.5, len(types) - 0.5, -0.5))
        axes.set(title=f'{schedule}\nmean {np.nanmean(values):z.2f}', xlabel='layer')
        axes.set_yticks(range(len(types)), [name.removeprefix(start) for name in types])
    picture.colorbar(image, ax=grid, label='cosine of gradients', fraction=0.05)
    return picture

def draw_matching(runs, paths):
    """The matched tokens of a line, of an anchored 50/50 run of real languages if there is one."""
    runs = [run for run in runs if os.path.exists(f'{run.folder}/matching.json')]
    best = max(runs, default=None, key=lambda run: len(
        {'real', 'anchored', '50/50'} & columns_of(run.cfg)['tags']))
    for path in paths if best else []:
        with analyze.measured(best.folder, 'matching') as saved:
            analyze.plot_matching(saved['languages'], saved['tokens'], saved['pairs'], path)
    return bool(best)

def draw(data, figure, paths):
    """Draw a figure to files, if its runs are among these -> whether they are."""
    tags, kind = set(figure['runs'].split()), figure['draw']
    rows = data.steps if 'step' in tags else data.grouped
    rows = [row for row in rows if tags <= row['tags']]
    if kind == 'matching':
        return draw_matching(data.runs, paths)
    if kind == 'laws':
        for path in paths if data.laws else []:
            analyze.plot_teff(data.laws, [], path)
        return bool(data.laws)
    picture = draw_lines(rows, figure) if kind == 'lines' else draw_gradients(rows, figure)
    for path in paths if picture else []:
        analyze.save_figure(picture, path)
    return bool(picture)

# ---- command line ------------------------------------------------------------

def main(argv=None):
    args = parse(argv)
    data, folder, missing = gather(args), Path(args.out), []
    folder.mkdir(parents=True, exist_ok=True)
    columns = [*BY_RUN, *'corpora language layer measure value paper printed'.split()]
    write_csv(folder / 'measurements.csv', data.rows, columns)
    page = [f'# Language imbalance: {len(data.runs)} runs', '', *map('- {}'.format, data.notes)]
    for figure in read_table('figures'):
        name, heading = figure['figure'], ['', f'## {figure["title"]}', '']
        if figure['draw'] == 'table':
            rows, columns = pivot(data.rows, figure, 'value')
            if rows:
                write_csv(folder / f'{name}.csv', rows, columns)
                table = analyze.markdown(*pivot(data.grouped, figure, 'shown'))
                page += [*heading, *table, '', f'[{name}.csv]({name}.csv)']
            continue
        with matplotlib.style.context(STUDY / 'figures.mplstyle'):
            drawn = draw(data, figure, [folder / f'{name}.{kind}' for kind in ('png', 'pdf')])
        if drawn:
            page += [*heading, f'![{name}]({name}.png)', '', f'[{name}.pdf]({name}.pdf)']
        else:
            missing.append(f'- {figure["title"]}: `python -m study.report --plan {name}`')
    page += ['', '## Figures whose runs are missing', '', *(missing or ['None.'])]
    analyze.write(folder / 'report.md', '\n'.join(page) + '\n')

if __name__ == '__main__':
    config.run(main)
