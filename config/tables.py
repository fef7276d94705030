"""The tables that analyze.py prints and reports: rows {column: value} as text, the long table of
measurements, averaged over seeds or pivoted, and the paper's values from paper.csv."""
import csv
import io
from collections import defaultdict
from operator import itemgetter

import numpy as np

import config

BY_RUN = ['run', 'seed', 'size', 'schedule', 'vocabulary', 'data']
PAPER_MEASURE = {  # ours -> paper.csv's; which tokens are paired depends on the kind of run
    'ppl': 'PPL', 'teff': 'TEff', 'gradients.macro_average': 'gradients',
    'mean_accuracy': 'GLUE', 'embeddings.input.mean': 'embeddings',
    'cloned hidden_states.position': 'hidden states',
    'real hidden_states.matching': 'hidden states'}

def six_digits(value):  # on which all machines agree
    return f'{value:.6g}'.replace('nan', '') if isinstance(value, float) else str(value)

def as_text(value):
    """A value for people; nothing for nan."""
    if not isinstance(value, (int, float)):
        return str(value)
    digits = 2 if abs(value) < 100 else 1 if abs(value) < 1000 else 0
    return '' if value != value else f'{value:,.{0 if isinstance(value, int) else digits}f}'

def with_spread(row):
    """A value over seeds: the mean and, of several, the lowest and the highest."""
    low, high = as_text(row['lowest']), as_text(row['highest'])
    several = low != high and not isinstance(row['value'], str)
    return as_text(row['value']) + f' ({low} to {high})' * several

def as_lines(rows, columns, to_text):
    """Rows -> lists of text, the header first."""
    columns = columns or list(dict.fromkeys(column for row in rows for column in row))
    return [columns, *([to_text(row.get(column, '')) for column in columns] for row in rows)]

def as_csv(rows, columns=()):
    """The text of a .csv file."""
    out = io.StringIO()
    csv.writer(out, lineterminator='\n').writerows(as_lines(rows, columns, six_digits))
    return out.getvalue()

def as_markdown(rows, columns=()):
    """The lines of a Markdown table."""
    lines = as_lines(rows, columns, as_text)
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ['-' * width for width in widths])
    return [f'| {" | ".join(map(str.ljust, line, widths))} |' for line in lines]

def read_table(name):
    """The rows of config/NAME."""
    path = config.DEFAULT.with_name(name)
    with config.reading(path, 'git checkout restores it'):
        return list(csv.DictReader(path.read_text('utf-8').splitlines()))

def paper_values():
    """paper.csv: {(setting, measure, number of language or layer): (where, value)}."""
    values = {}
    for row in read_table('paper.csv'):
        setting = [row[key] for key in ('size', 'corpora', 'vocab', 'schedule')]
        where = row['source'] + (row['row'] and f', row {row["row"]}')
        key = *setting, float(row['data']), row['measure'], int(row['number'])
        values[key] = where, row['value']
    return values

def paper_value(values, columns, measure, n):
    """Where the paper has a measure of a run, and its value; both blank if it does not."""
    theirs = PAPER_MEASURE.get(measure) or PAPER_MEASURE.get(f'{columns["kind"]} {measure}')
    setting = [columns[key] for key in ('size', 'corpora', 'vocabulary', 'schedule', 'data')]
    return values.get((*setting, theirs, n), ('', ''))

def over_seeds(rows):
    """The rows of a long table that differ in the seed alone, as one: mean, lowest, highest."""
    keys = itemgetter('experiment', 'language', 'layer', 'measure', 'step')
    groups, grouped = defaultdict(list), []
    for row in sorted(rows, key=itemgetter('seed')):
        groups[keys(row)].append(row)
    for same in groups.values():
        values = [row['value'] for row in same]
        words = isinstance(values[0], str)
        mean = '; '.join(sorted({*values} - {''})) if words else float(np.mean(values))
        grouped.append(same[0] | {'value': mean, 'lowest': min(values), 'highest': max(values)})
    return grouped

def pivot(rows, table, cell):
    """Rows of the long table -> those of a wide one, {column: cell(row)}: a column for each
    measure or, if table's x is layer, each layer; the paper's figures beside or, of layers,
    below."""
    lines, by_layer, measures = {}, table['x'] == 'layer', tuple(table['panels'].split())
    for row in rows:
        if not row['measure'].startswith(measures) or by_layer != (row['layer'] > 0):
            continue
        index = {key: row[key] for key in (*BY_RUN, 'measure' if by_layer else 'language')}
        line = lines.setdefault(tuple(index.values()), dict(index))
        column = f'layer {row["layer"]}' if by_layer else row['measure']
        line[column] = cell(row)
        if row['paper'] and not by_layer:
            line |= {"paper's": row['paper'], f'its {column}': row['printed']}
        elif row['paper']:
            index['run'] = f"paper's {row['paper']}"
            lines.setdefault((*index.values(), line['run']), index)[column] = row['printed']
    return list(lines.values())
