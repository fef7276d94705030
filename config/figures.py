"""The figures that analyze.py draws, in the style of figures.mplstyle; a report's are listed in
figures.csv. `found` is what analyze.gather returns, `figure` a row of figures.csv."""
import os
from pathlib import Path

import numpy as np

from data_prep import atomic_write

COLOURS = '#0072B2 #D55E00 #009E73 #CC79A7 #E69F00 #56B4E9'.split()  # the Okabe-Ito palette
LABELS = {'mlpe': 'alone (law)', 'step_ppl': 'alone (step-matched)'}  # measures in a legend

def subplots(rows, columns, width, height, **more):
    """A figure, size in inches, that needs no display, and its axes (rows, columns)."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    pyplot.close('all')
    pyplot.style.use(Path(__file__).with_name('figures.mplstyle'))
    return pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False, **more)

def save(picture, path):
    kind = Path(path).suffix[1:]
    undated = {'pdf': {'CreationDate': None}, 'svg': {'Date': None}}.get(kind)  # reproducible bytes
    atomic_write(Path(path), lambda aside: picture.savefig(
        aside, dpi=200, format=kind, metadata=undated))
    print(f'figure: {os.path.relpath(path)}')

def log_scale(axes, which):
    """Make the x or y axis logarithmic, labelled in plain numbers whatever it spans."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
    axes.set(**{f'{which}scale': 'log'})
    axis = getattr(axes, f'{which}axis')
    low, high = sorted(axis.get_view_interval())
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else MaxNLocator(5))
    axis.set_major_formatter(EngFormatter(sep=''))
    axis.set_minor_locator(NullLocator())

def teff(laws, rows=()):
    """PPL by tokens: the laws and their runs, and an arrow from each row to its law, over MLTE."""
    height = max(4, 0.2 * (len(laws) + len(rows)))  # the legend has a line for each
    picture, ((axes,),) = subplots(1, 1, 8, height)
    for i, law in enumerate(laws.values()):
        x = np.geomspace(law.shortest, law.unit, 200)
        axes.plot(x, law.ppl(x), color=f'C{i}', lw=1, label=law.name)
        for run in law.runs:
            axes.plot(run['tokens'], run['ppl'], 'o', color=f'C{i}')
    for i, row in enumerate(rows, len(laws)):
        star = '*' if row['extrapolated'] == 'yes' else ''
        label = f'{row["run"]}, {row["language"]}: TEff {row["teff"]:.2f}{star}'
        axes.plot(row['tokens'], row['ppl'], 's', color=f'C{i}', label=label)
        axes.annotate('', (row['mlte'], row['ppl']), (row['tokens'], row['ppl']),
                      arrowprops={'arrowstyle': '->', 'color': f'C{i}'})
    axes.set(xlabel='training tokens in the language (*: extrapolated)', ylabel='PPL')
    log_scale(axes, 'x')
    log_scale(axes, 'y')
    axes.legend(loc='upper left', bbox_to_anchor=(1, 1))
    return picture

def matching(languages, tokens, pairs):
    """Two rows of tokens, lines between matched ones; a match beyond the row points at '...'."""
    places = []  # the middle of each token; a character is 0.11 inch wide
    for side in tokens:
        widths = np.array([0.11 * len(token) + 0.22 for token in (*side, '...')])
        places.append(np.cumsum(widths) - widths / 2)
    right = max(xs[-1] for xs in places)
    picture, ((axes,),) = subplots(1, 1, right + 1.6, 2.4)
    for y, language, side, xs in zip((1, 0), languages, tokens, places):
        axes.text(-0.3, y, language, ha='right', va='center', fontweight='bold')
        for x, token in zip(xs, (*side, '...')):
            axes.text(x, y, token, ha='center', va='center', family='monospace', fontsize=9)
    for pair in pairs:
        ends = [xs[min(k, len(xs) - 1)] for k, xs in zip(pair, places)]
        inside = all(k < len(side) for k, side in zip(pair, tokens))
        axes.plot(ends, [0.86, 0.14], '-' if inside else ':', color='C0' if inside else 'grey')
    axes.set(xlim=(-1.2, right + 0.3), ylim=(-0.25, 1.25))
    axes.axis('off')
    return picture

# ---- the figures of a report -------------------------------------------------

def chosen(found, figure):
    """The rows, over seeds, of a figure's runs: those with all of its tags."""
    tags = set(figure['runs'].split())
    rows = found.steps if 'step' in tags else found.grouped
    return [row for row in rows if tags <= row['tags']]

def plot_lines(axes, rows, figure, measures, among):
    """Measures of rows by the figure's x: a line for each value of its hue (colour), of its style
    (marker) and measure (solid, dotted, dashed), bars over seeds. A hue has one colour in all
    panels (among: the rows of all)."""
    x, hue, style = figure['x'], figure['hue'], figure['style']
    hues, styles = (sorted({row[column] for row in among}) for column in (hue, style))
    names, groups = sorted({row[x] for row in rows}), {}
    categories = x == 'schedule'
    for row in sorted(rows, key=lambda row: row[x]):
        key = measures.index(row['measure']), row[hue], row[style]
        groups.setdefault(key, []).append(row)
    for (i, colour, marker), line in sorted(groups.items()):
        if len(line) == 1 and not categories:
            continue
        kind = 0 if hue == 'measure' else i
        measure = LABELS.get(measures[i], measures[i])
        label = [colour] + [marker] * (len(styles) > 1) + [measure] * (kind > 0)
        look = {'color': COLOURS[hues.index(colour) % len(COLOURS)],
                'marker': 'osD^v'[styles.index(marker) % 5],
                'ls': '' if categories else ('-', ':', '--')[kind % 3]}
        at = [names.index(row[x]) if categories else row[x] for row in line]
        axes.plot(at, [row['value'] for row in line], label=', '.join(label), **look)
        axes.vlines(at, [row['lowest'] for row in line], [row['highest'] for row in line],
                    color=look['color'], lw=4, alpha=0.35)
    if categories:
        axes.set_xticks(range(len(names)), [name.replace(' then', '\nthen') for name in names])
        axes.margins(x=0.2)
    if axes.lines:
        axes.legend()

def lines(found, figure):
    """A row for each of the figure's panels, a column for each value of its columns `across`."""
    def title(row):
        return ', '.join(str(row[column]) for column in across)
    panels = [part.split(':') for part in figure['panels'].split(';')]
    panels = {label.strip(): measures.split() for label, measures in panels}
    x, wanted = figure['x'], {measure for measures in panels.values() for measure in measures}
    rows = [row for row in chosen(found, figure)
            if row['measure'] in wanted and row[x] is not None and row[x] == row[x]]
    across = [column for column in figure['across'].split() if len({row[column] for row in rows}) > 1]
    spans = {at: {row[x] for row in rows if title(row) == at} for at in map(title, rows)}
    rows = [row for row in rows if len(spans[title(row)]) > 1]
    there, columns = {row['measure'] for row in rows}, sorted(set(map(title, rows)))
    panels = {label: measures for label, measures in panels.items() if there & set(measures)}
    if not rows:
        return None
    picture, grid = subplots(len(panels), len(columns), 3.3 * len(columns), 2.4 * len(panels))
    for (label, measures), line in zip(panels.items(), grid):
        for axes, at in zip(line, columns):
            here = [row for row in rows if title(row) == at and row['measure'] in measures]
            plot_lines(axes, here, figure, measures, rows)
            axes.set(xlabel=figure['xlabel'], ylabel=label, title=at, visible=bool(axes.lines))
            if x == 'layer':
                axes.locator_params(axis='x', integer=True)
            if x in ('tokens', 'parameters', 'seen', 'exposure'):
                log_scale(axes, 'x')
            if label == 'PPL':
                log_scale(axes, 'y')
            if label == 'TEff':
                axes.axhline(1, color='grey', lw=0.8, ls=':')
            if label.startswith('net cosine'):  # so that noise does not look like alignment
                low, high = axes.get_ylim()
                axes.set_ylim(min(low, -0.1), max(high, 0.3))
    return picture

def gradients(found, figure):
    """Cosine of the gradients of parallel sequences, parameter type by layer, a heat map per run."""
    start = 'gradients.blocks.'
    rows = [row for row in chosen(found, figure) if row['measure'].startswith(start) and row['layer']]
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

def saved_matching(found, figure):
    """The matched tokens of one line, of an anchored 50/50 run of real languages if there is one."""
    def like_the_papers(run):
        return len({'real', 'anchored', '50/50'} & run.tags)
    best = max((run for run in found.runs if run.matching), key=like_the_papers, default=None)
    return best and matching(*best.matching)

DRAW = {'lines': lines, 'gradients': gradients, 'matching': saved_matching,
        'laws': lambda found, figure: teff(found.laws) if found.laws else None}
