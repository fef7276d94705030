"""
Measure trained runs.

    python analyze.py ppl OUT_DIR...                          # perplexity -> OUT_DIR/results.json
    python analyze.py teff OUT_DIR...                         # token efficiency
    python analyze.py teff --runs runs.csv --csv out.csv      # the same from a table of PPLs
    python analyze.py alignment OUT_DIR                       # embeddings, hidden states, gradients
    python analyze.py alignment OUT_DIR --parallel a.en a.fr  # two corpora need aligned lines
    python analyze.py matching OUT_DIR --parallel a.en a.fr   # the token pairs of one line
"""
import argparse
import sys

import config

# the columns that a table of runs must have, and those that teff adds
COLUMNS = 'run model corpus language tokens ppl role'.split()
# the first two are read, not computed
ADDED = ('exposure trigram_ppl mlpe mlte head_start teff teff_low teff_high teff_unique '
         'extrapolated tau step_ppl gain remark').split()

def parse(argv=None):
    """The command line -> its arguments."""
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add_parser = parser.add_subparsers(dest='command', required=True).add_parser
    ppl, teff, alignment, matching = map(add_parser, ('ppl', 'teff', 'alignment', 'matching'))
    for p, n in (ppl, '+'), (teff, '*'):
        p.add_argument('out_dirs', nargs=n, help='folders of trained runs')
        p.add_argument('--stride', type=int, help='tokens scored per window; default: a quarter')
        p.add_argument('--batch_size', type=int, default=32, help='windows at a time')
    teff.add_argument('--runs', help=f'a table of runs instead: {",".join(COLUMNS)}')
    teff.add_argument('--csv', help='write the table to this file')
    teff.add_argument('--plot', help='draw it in this file: .png, .pdf or .svg')
    for p in alignment, matching:
        p.add_argument('out_dir', help='folder of a trained run')
        p.add_argument('--languages', nargs=2, help='default: the first two')
        p.add_argument('--parallel', nargs='+', default=[], help='a file each, a sentence a line')
    alignment.add_argument('--sequences', type=int, default=500, help='at most')
    matching.add_argument('--line', type=int, default=1, help='line of the parallel text')
    for p in ppl, teff, alignment, matching:
        p.add_argument('--device', default='auto', help='cuda, mps, cpu; default: auto')
        p.add_argument('--dtype', default='float32', help='bfloat16, auto; default: float32')
    args = parser.parse_args(argv)
    for key, value in vars(args).items():
        if isinstance(value, int) and value < 1:
            sys.exit(f'--{key} must be at least 1, not {value}')
        if key == 'plot' and value and not value.endswith(('.png', '.pdf', '.svg')):
            sys.exit(f'--plot {value}: a figure must be .png, .pdf or .svg')
    return args

if __name__ == '__main__':  # before torch is imported: --help is instant
    config.run(parse)  # main parses again

import contextlib
import csv
import hashlib
import io
import itertools
import json
import math
import os
from collections import defaultdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

import train
from data_prep import Dataset, atomic_write, check_languages, documents_in, kind_of, load_tokenizer
from model import linear_cross_entropy

# ---- runs, and the files that measures read and write ------------------------

AGAIN = 'train.py --overwrite starts the run again'
progress = partial(tqdm, leave=False, disable=None)
normalize = partial(F.normalize, dim=-1)

@contextlib.contextmanager
def measured(out_dir, name, remedy=''):
    """The content of OUT_DIR/NAME.json, {} without the file: an error in `with` becomes a line."""
    path, command = Path(out_dir, f'{name}.json'), name.replace('results', 'ppl')
    remedy = remedy or f'python analyze.py {command} {out_dir} writes it again'
    with config.reading(path, remedy):
        yield config.read_json(path, remedy) or {}

def settings_of(out_dir):
    """The settings of a run: its config.json, or the copy in its results.json."""
    for name in 'config', 'results':
        with measured(out_dir, name, AGAIN) as saved:
            if saved:
                cfg = config.restored(saved.get('config', saved), f'{out_dir}/{name}.json')
                check_languages(cfg)
                return cfg
    sys.exit(f'{out_dir} is not a run: train.py CONFIG.py --out_dir={out_dir} makes one')

def load_run(out_dir, device='auto', dtype='float32', languages=None):
    """A trained run: cfg, dataset, weights, model (None if it is only word2vec's tables), step,
    tokens_seen, device, autocast, and the indices of these languages (default: all)."""
    cfg = settings_of(out_dir)
    checkpoint = train.load_checkpoint(out_dir, cfg)
    if not checkpoint:
        sys.exit(f'{out_dir} has no checkpoint yet: run train.py with its config')
    run = SimpleNamespace(out_dir=Path(out_dir), cfg=cfg, dataset=Dataset(cfg, verify=False),
                          weights=checkpoint['model'], model=None, step=checkpoint['step'])
    names, read = run.dataset.names, checkpoint['sequences_read']
    if unknown := set(languages or ()) - set(names):
        sys.exit(f'{out_dir} has no language {min(unknown)!r}; it has {", ".join(names)}')
    run.languages = [names.index(name) for name in languages or names]
    run.tokens_seen = {name: n * cfg.block_size for name, n in zip(names, read)}
    run.device, run.autocast = train.choose_device(device, dtype)
    if dtype == 'float32':
        torch.set_float32_matmul_precision('highest')  # no TF32, which training allows
    if 'ln_f.weight' in run.weights:
        run.model = train.new_model(cfg, run.dataset.vocab_size)
        with config.reading(f'{out_dir}/ckpt.pt', AGAIN):
            run.model.load_state_dict(run.weights)
        run.model.to(run.device).eval()
    return run

def write(path, content):
    """Write a text or, of anything else, its JSON."""
    text = content if isinstance(content, str) else json.dumps(content, indent=1) + '\n'
    atomic_write(Path(path), partial(Path.write_text, data=text, encoding='utf-8', newline=''))
    print(f'written: {path}', flush=True)

def number(value, low=-1e15, high=1e15):
    """A number from a file as a float; None becomes nan."""
    value = float('nan' if value is None else value)
    if value < low or value > high:
        raise ValueError(f'{value:g} is not between {low:g} and {high:g}')
    return value

def as_text(value):
    """A value of a table for people; nothing for nan."""
    if not isinstance(value, (int, float)):
        return str(value)
    digits = 0 if isinstance(value, int) or abs(value) >= 1000 else 1 if abs(value) >= 100 else 2
    return f'{value:,.{digits}f}' if value == value else ''

def markdown(rows, columns):
    """The lines of a Markdown table of rows {column: value}."""
    lines = [columns, *([as_text(row.get(column, '')) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ['-' * width for width in widths])
    return [f'| {" | ".join(map(str.ljust, line, widths))} |' for line in lines]

def save_figure(figure, path):
    kind = Path(path).suffix[1:]
    undated = {'pdf': {'CreationDate': None}, 'svg': {'Date': None}}.get(kind)  # reproducible bytes
    atomic_write(Path(path), partial(figure.savefig, dpi=200, format=kind, metadata=undated))
    print(f'figure: {os.path.relpath(path)}')

# ---- ppl: sliding-window perplexity (section 3, Evaluation) ------------------

NGRAM_TOKENS = 1 << 27  # n-grams of more tokens are not counted: their sorting takes gigabytes

def sliding_window(run, ids, stride, batch_size, name=''):
    """Score a text, ids (N,) int64, at the last `stride` positions of windows of block_size tokens:
    every token but the first context, and one, once -> their loss in nats, summed; their number."""
    window, nats, n = run.cfg.block_size, 0.0, 0
    context = window - stride
    starts = np.arange(0, max(0, len(ids) - 1 - context), stride)
    for i in progress(range(0, len(starts), batch_size), name):
        places = starts[i:i + batch_size, None] + np.arange(window + 1)  # (B, window + 1)
        real = torch.from_numpy(places[:, context + 1:] < len(ids)).to(run.device)  # (B, stride)
        # past the end any id will do: no scored position attends to it
        batch = torch.from_numpy(ids[np.minimum(places, len(ids) - 1)]).to(run.device)
        targets = batch[:, context + 1:][real]
        with torch.no_grad(), run.autocast():
            features = run.model.features(batch[:, :-1])[:, context:][real]
            loss = linear_cross_entropy(features, run.model.lm_head.weight, targets)
        nats += loss.item() * len(targets)
        n += len(targets)
    return nats, n

def starts_read(run, language):
    """Where the training sequences start that a run has read in a language, in their order."""
    sampler = train.Sampler(run.dataset.starts, run.cfg)
    steps = map(sampler.next, range(run.step))
    return np.concatenate([starts[languages == language] for starts, languages in steps])

def ngram_ppl(read, test, order, V):
    """PPL of a text, base ids (N,), but for its first order - 1 tokens, by n-gram counts of the
    sequences read (B, T), interpolated (Witten-Bell)."""
    read, test, p = read.astype(np.int64), test.astype(np.int64), 1 / V
    grams, wanted = read, test  # the n-grams, each as one number
    for n in range(1, order + 1):
        if n > 1:
            grams = grams[:, :-1] * V + read[:, n - 1:]
            wanted = wanted[:-1] * V + test[n - 1:]
        known, counts = np.unique(grams, return_counts=True)
        contexts, first = np.unique(known // V, return_index=True)
        total, types = np.add.reduceat(counts, first), np.diff([*first, len(known)])
        scored = wanted[order - n:]
        i = np.searchsorted(known, scored).clip(max=len(known) - 1)
        j = np.searchsorted(contexts, scored // V).clip(max=len(contexts) - 1)
        count = np.where(known[i] == scored, counts[i], 0)
        interpolated = (count + types[j] * p) / (total[j] + types[j])
        p = np.where(contexts[j] == scored // V, interpolated, p)
    return math.exp(-np.log(p).mean())

def score(run, language, stride, batch_size):
    """PPL of the test text in a language, and what it is compared with."""
    data, window, (name, corpus) = run.dataset, run.cfg.block_size, run.cfg.languages[language]
    meta, seen = data.corpora[language], run.tokens_seen[name]
    base = np.asarray(meta['test'])  # (N,)
    ids = data.vocab_map[language, base].astype(np.int64)
    nats, n = sliding_window(run, ids, stride, batch_size, f'{run.out_dir} {name}')
    if not n:
        sys.exit(f'{run.out_dir} {name}: all {len(ids)} test tokens are context')
    loss = nats / n
    result = {
        'corpus': corpus, 'test_text': hashlib.sha256(base.tobytes()).hexdigest()[:16],
        'ppl': math.exp(loss), 'loss': loss, 'scored_tokens': n,
        'exposure': seen / max(1, np.count_nonzero(meta['counts'])),  # per id that occurs
        'bigram_ppl': None, 'trigram_ppl': None,
        'bits_per_byte': loss / math.log(2) * meta['test_tokens'] / meta['test_bytes'],
        'epochs': seen / max(1, len(data.starts[language]) * window)}
    if 0 < seen <= NGRAM_TOKENS:
        read = np.lib.stride_tricks.sliding_window_view(meta['train'], window + 1)
        read = read[starts_read(run, language)]
        for order, kind in (2, 'bigram_ppl'), (3, 'trigram_ppl'):
            text = base[max(0, window - stride + 2 - order):]  # the same tokens are scored
            result[kind] = ngram_ppl(read, text, order, meta['vocab_size'])
    print(f'{run.out_dir} {name}: PPL {math.exp(loss):.2f}, {n:,} scored tokens; {seen:,} seen, '
          f'exposure {result["exposure"]:,.0f}; PPL of trigram counts '
          f'{result["trigram_ppl"] or math.nan:.2f}', flush=True)
    return result

def ppl(out_dir, args):
    """Score the test text in every language -> OUT_DIR/results.json."""
    run = load_run(out_dir, args.device, args.dtype)
    if not run.model:
        sys.exit(f'{out_dir} is word2vec, which has no perplexity; use alignment')
    window = run.cfg.block_size
    stride = args.stride or max(1, window // 4)
    if stride > window:
        sys.exit(f'--stride {stride} leaves tokens unscored: windows have {window}')
    scored = {name: score(run, language, stride, args.batch_size)
              for language, name in enumerate(run.dataset.names)}
    write(run.out_dir / 'results.json', {
        'config': vars(run.cfg), 'step': run.step, 'tokens_seen': run.tokens_seen, 'window': window,
        'stride': stride, 'non_embedding_parameters': run.model.num_params(), 'languages': scored})

# ---- teff: scaling law, token efficiency (section 3, appendix B) -------------

class ScalingLaw:
    """1/PPL = c - a * x^(-b), x = training tokens / those of the largest monolingual run, by least
    squares on 1/PPL. Fitted as top + slope * (1 - x^-b) / b: the same curves (a = slope / b,
    c = top + a), but smooth through the logarithm at b = 0."""

    def __init__(self, tokens, ppl, name='the law'):
        from scipy.optimize import least_squares
        tokens, y = np.asarray(tokens, float), 1 / np.asarray(ppl, float)
        if (n := len(set(tokens))) < 3:
            sys.exit(f'{name}: a law needs at least three token counts, not {n}')
        self.name, self.n, self.unit, self.shortest = name, len(y), max(tokens), min(tokens)
        log_x = np.log(tokens / self.unit)
        fits = [least_squares(self.inverse_ppl, [max(y), np.ptp(y), b], args=(log_x, y),
                              bounds=([-np.inf, -np.inf, -2], [np.inf, np.inf, 5]), jac='3-point',
                              x_scale=[max(y), max(y), 1], xtol=1e-15, ftol=1e-15, gtol=1e-15)
                for b in (-0.5, 0.1, 0.5, 1.5)]
        fit = min(fits, key=lambda fit: fit.cost)
        self.v = top, slope, self.b = fit.x
        if slope <= 0:
            sys.exit(f'{name}: the monolingual runs do not improve with more tokens')
        self.a, self.c = slope / self.b, top + slope / self.b
        self.covariance = 2 * fit.cost / max(1, self.n - 3) * np.linalg.pinv(fit.jac.T @ fit.jac)
        self.error = np.abs(self.ppl(tokens) * y - 1).max()  # relative, in PPL

    @staticmethod
    def inverse_ppl(v, log_x, y=0):
        top, slope, b = v
        return top - slope * np.expm1(-b * log_x) / b - y

    def ppl(self, tokens):
        """MLPE: the PPL of a monolingual model trained on these tokens."""
        inverse = self.inverse_ppl(self.v, np.log(np.asarray(tokens) / self.unit))
        return 1 / np.where(inverse > 0, inverse, np.nan)  # undefined for very few tokens

    def tokens(self, ppl, v=None):
        """MLTE: the tokens that a monolingual model needs for a PPL; inf if it never gets there."""
        top, slope, b = self.v if v is None else v
        rest = 1 - b * (1 / ppl - top) / slope
        log_x = -math.log(rest) / b if rest > 0 else math.copysign(math.inf, b)
        return self.unit * math.exp(log_x) if log_x < 100 else math.inf

    def interval(self, ppl):
        """The factor by which tokens(ppl) may be off (95%), from the scatter of the runs; nan for
        three, which fit exactly."""
        from scipy.stats import t
        steps = np.diag(1e-6 * np.abs(self.v))
        ends = [[self.tokens(ppl, self.v + s) for s in (step, -step)] for step in steps]
        with np.errstate(all='ignore'):  # infinite where the fit is undetermined
            slopes = np.subtract(*np.log(ends).T) / (2 * steps.max(0))
            deviation = np.sqrt(slopes @ self.covariance @ slopes)
            return float(np.exp(t.ppf(0.975, self.n - 3) * deviation))

    def __str__(self):
        error = f'off by at most {self.error:.2%}'
        if self.n == 3:
            error = 'an exact fit: a fourth run would give an interval'
        return (f'{self.name}: 1/PPL = {self.c:.5g} {-self.a:+.4g} * (tokens / {self.unit:,.0f})^'
                f'{-self.b:.4g}; {self.n} monolingual runs, {error}')

FURTHER = 'bits_per_byte exposure trigram_ppl epochs'.split()  # numbers of a row

def rows_of_csv(path):
    """The rows of a table of runs."""
    remedy = f'it must be a table with the columns {",".join(COLUMNS)}'
    with config.reading(path, remedy), open(path, newline='', encoding='utf-8-sig') as f:
        rows = list(csv.DictReader(f))
        if not rows or set(COLUMNS) - rows[0].keys():
            raise ValueError('a column is missing, or all rows')
        for line, row in enumerate(rows, 2):
            row['tokens'], row['ppl'] = int(number(row['tokens'], 1)), number(row['ppl'], 1, 1e30)
            row |= {key: number(row.get(key) or None, 0) for key in FURTHER}
            if row['role'] not in ('mono', 'repeat', 'multi', 'step') or math.isnan(row['ppl']):
                raise ValueError(f'line {line}: {row["ppl"]}, {row["role"]}')
        for row in rows:  # others: read in other languages; teff's own tables have the column
            total = sum(other['tokens'] for other in rows if other['run'] == row['run'])
            row['others'] = int(number(row.get('others') or total - row['tokens']))
    return rows

def rows_of_run(out_dir, args, finished=True):
    """A row for each language that a run has seen, scored first if necessary. role: 'mono', 'multi'
    or 'repeat' (alone, with own_tokens), by fit_laws also 'step'; tokens and others: read in the
    language and in all others; text: a hash of the test text."""
    if not os.path.lexists(f'{out_dir}/results.json'):
        ppl(out_dir, args)
    cfg, rows = settings_of(out_dir), []
    with measured(out_dir, 'results') as results:
        step, stride = results['step'], results.get('stride')
        if finished and step < cfg.max_iters:
            sys.exit(f'{out_dir} is at step {step} of {cfg.max_iters}: resume it with train.py')
        if args and args.stride not in (None, stride):
            sys.exit(f'{out_dir} was scored with --stride={stride}: analyze.py ppl {out_dir} '
                     f'--stride={args.stride} scores it again')
        seen = {name: int(number(n, 0)) for name, n in results['tokens_seen'].items()}
        for name, corpus in cfg.languages:
            scores, others = results['languages'].get(name), sum(seen.values()) - seen[name]
            if seen[name] and scores:
                rows.append({key: number(scores.get(key), 0) for key in FURTHER} | {
                    'run': str(out_dir), 'cfg': cfg, 'language': name, 'corpus': corpus,
                    'model': f'gpt-{cfg.n_layer}x{cfg.n_embd}', 'stride': stride,
                    'parameters': number(results['non_embedding_parameters'], 1),
                    'text': str(scores['test_text']), 'ppl': number(scores['ppl'], 1, 1e30),
                    'tokens': seen[name], 'others': others, 'steps': cfg.max_iters,
                    'role': 'multi' if others else 'repeat' if cfg.own_tokens else 'mono'})
    return rows

# settings in which runs of one law may differ: tokens, seeds, languages, and what is not learned
MAY_DIFFER = train.FREE | {'dataset', 'corpora', 'languages', 'schedule', 'vocab', 'anchor_frac',
                           'anchor_seed', 'codeswitch', 'own_tokens', 'max_tokens', 'max_iters',
                           'seed'}

def first_difference(row, other):
    """The first setting in which two runs differ in more than tokens, in words, or ''."""
    if 'cfg' not in row:
        return ''
    a, b = (vars(r['cfg']) | {'stride': r.get('stride')} for r in (row, other))
    n, m = a['max_iters'], b['max_iters']
    if abs(a['warmup_iters'] * m - b['warmup_iters'] * n) <= max(n, m):
        a['warmup_iters'] = b['warmup_iters']  # the same share of the steps, to a step, is enough
    for key in sorted(a.keys() - MAY_DIFFER):
        if a[key] != b[key]:
            again = f' (analyze.py ppl {row["run"]} --stride={b[key]} scores it again)'
            return (f'{row["run"]} has {key} {a[key]}, {other["run"]} {b[key]}'
                    + (again if key == 'stride' else ''))
    return ''

def fit_laws(rows):
    """{row['law']: law}, each of the largest group of monolingual runs that differ only in tokens;
    why others have none. Rows of other recipes get row['unlike']. Runs with as many steps as a
    multilingual one, in smaller batches, stand beside the law: role 'step'."""
    multi = [row['cfg'] for row in rows if row['role'] == 'multi' and 'cfg' in row]
    for row in rows:
        a = row.get('cfg')
        if row['role'] == 'mono' and a and any(
                (a.max_iters, a.block_size) == (b.max_iters, b.block_size)
                and a.batch_size < b.batch_size for b in multi):
            row['role'] = 'step'
    laws, reasons = {}, []
    for key in dict.fromkeys(row['law'] for row in rows):
        same = [row for row in rows if row['law'] == key and row['role'] != 'step']
        mono = [row for row in same if row['role'] == 'mono']
        alike = [sum(not first_difference(a, b) for b in mono) for a in mono]
        for row in same if mono else ():
            row['unlike'] = first_difference(row, mono[np.argmax(alike)])
        mono = [row for row in mono if not row['unlike']]
        try:
            laws[key] = ScalingLaw([row['tokens'] for row in mono], [row['ppl'] for row in mono],
                                   f'monolingual runs of {key[0]} on {key[1]}')
            laws[key].runs = mono
        except SystemExit as e:  # too few runs for a law, or no improvement
            reasons.append(str(e))
    return laws, reasons

def add_efficiency(row, law):
    """Add MLPE, MLTE, TEff, the head start in tokens, tau (what a foreign token is worth), and for
    people, in row['shown'], what bounds a TEff beyond the monolingual runs -> a remark. teff_unique
    is by the tokens that the language has, which it may repeat."""
    tokens, mlte, factor = row['tokens'], law.tokens(row['ppl']), law.interval(row['ppl'])
    # 1%: the law is not exact even for its own runs
    known, inside = (0.99 * law.shortest <= n <= 1.01 * law.unit for n in (tokens, mlte))
    if known:
        row['mlpe'] = float(law.ppl(tokens))
    if mlte < math.inf:
        teff, ahead = mlte / tokens, mlte - tokens
        row |= {'mlte': mlte, 'teff': teff, 'teff_low': teff / factor, 'teff_high': teff * factor,
                'head_start': ahead, 'tau': ahead / (row['others'] or math.nan)}
        if row.get('epochs', 0) > 1:
            row['teff_unique'] = teff * row['epochs']
    if inside:
        row |= {'extrapolated': 'no', 'shown': {'mlte': round(mlte), 'head_start': round(ahead)}}
        return ''
    bound = f'> {law.unit / tokens:.2f}' if mlte > law.unit else f'< {law.shortest / tokens:.2f}'
    blank = dict.fromkeys('mlte head_start teff_low teff_high teff_unique tau'.split(), '')
    row |= {'extrapolated': 'yes', 'shown': blank | {'teff': bound}}
    return 'extrapolated' if mlte < math.inf else f'below the limit of the law, {1 / law.c:.4g}'

def token_efficiency(rows):
    """Add the columns ADDED to every row -> laws, notes. law: which one it belongs to; unlike: why
    it is not compared; shown: the cells that people see instead."""
    for row in rows:
        row.update(dict.fromkeys(ADDED[2:], math.nan), extrapolated='', unlike='', shown={},
                   law=(row['model'], row['corpus'], row.get('text', '')))
    laws, notes = fit_laws(rows)
    for row in rows:
        remark = f'not compared: {row["unlike"]}' if row['unlike'] else ''
        if row['law'] in laws and not row['unlike']:
            remark = add_efficiency(row, laws[row['law']])
        # step-matched runs on as many tokens, within 5%; the mean of the seeds of the nearest
        steps = [(abs(step['tokens'] / row['tokens'] - 1), step['ppl']) for step in rows
                 if step['role'] == 'step' and step['law'] == row['law']
                 and step.get('steps') == row.get('steps')]
        nearest, _ = min(steps, default=(1, 0))
        if row['role'] == 'multi' and nearest < 0.05:
            row['step_ppl'] = float(np.mean([p for off, p in steps if off < nearest + 0.01]))
            row['gain'] = 1 - row['ppl'] / row['step_ppl']
        epochs = row.get('epochs', 0)
        remarks = {remark: remark, 'step-matched': row['role'] == 'step',
                   'worse than trigram counts': row['ppl'] > row.get('trigram_ppl', math.inf),
                   f'text read {epochs:.2f} times': epochs > 1}
        row['remark'] = '; '.join(words for words, applies in remarks.items() if applies)
    return laws, notes

def teff(args):
    folders = list(dict.fromkeys(os.path.relpath(path) for path in args.out_dirs
                                 if not os.path.isfile(path)))  # out/* also matches figures
    if bool(args.runs) == bool(folders):
        sys.exit('teff needs the folders of trained runs or --runs TABLE, not both')
    rows = rows_of_csv(args.runs) if args.runs else [
        row for folder in folders for row in rows_of_run(folder, args)]
    laws, notes = token_efficiency(rows)
    if unlike := next((row['unlike'] for row in rows if row['unlike']), ''):
        sys.exit(f'{unlike}: a law needs runs that differ only in tokens')
    if not laws:
        sys.exit(notes[0])
    for folder in folders:
        with measured(folder, 'alignment') as saved:
            if saved and (net := saved['hidden_states'].get('net')):  # a single sequence has none
                notes.append(f'{folder}: net cosine of hidden states: {np.mean(net):z.2f}')
    parent = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in folders or '.'])
    for row in rows if folders else ():
        row['run'] = os.path.relpath(row['run'], parent)
    shown = [row | row['shown'] for row in rows]
    columns = [name for name in ('run', 'language', 'tokens', 'ppl', *ADDED)
               if name != 'extrapolated' and any(as_text(row[name]) for row in shown)]
    print(*laws.values(), *markdown(shown, columns), *map('note: {}'.format, notes), sep='\n')
    if args.csv:
        columns = [*COLUMNS, *ADDED, 'others', 'steps', 'text', 'epochs']
        table = csv.DictWriter(text := io.StringIO(), columns, extrasaction='ignore',
                               lineterminator='\n')
        table.writeheader()
        table.writerows({key: x for key, x in row.items() if x == x} for row in rows)  # no nan
        write(args.csv, text.getvalue())
    if args.plot:
        plot_teff(laws, [row for row in rows if row['role'] != 'mono'], args.plot)

def plot_teff(laws, rows, path):
    """PPL by tokens: the laws and their runs, and an arrow from each row to its law, over MLTE."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator
    rows = [row for row in rows if row['teff'] > 0]
    height = max(4, 0.2 * (len(laws) + len(rows)))  # a line each in the legend
    figure = Figure(figsize=(8, height), layout='constrained')
    axes = figure.subplots()
    for i, law in enumerate(laws.values()):
        x = np.geomspace(law.shortest, law.unit, 200)
        axes.plot(x, law.ppl(x), color=f'C{i}', lw=1, label=law.name)
        for run in law.runs:
            axes.plot(run['tokens'], run['ppl'], 'o', color=f'C{i}', ms=4)
    for i, row in enumerate(rows, len(laws)):
        teff = row['shown'].get('teff', f'{row["teff"]:.2f}')  # a bound beyond the runs
        label = f'{row["run"]}, {row["language"]}: TEff {teff}'
        axes.plot(row['tokens'], row['ppl'], 's', color=f'C{i}', ms=4, label=label)
        if row['extrapolated'] == 'no':
            axes.annotate('', (row['mlte'], row['ppl']), (row['tokens'], row['ppl']),
                          arrowprops={'arrowstyle': '->', 'color': f'C{i}'})
    axes.set(xscale='log', xlabel='training tokens in the language', ylabel='PPL')
    axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(),
                   major_formatter=EngFormatter(sep=''))
    axes.legend(loc='upper left', bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
    save_figure(figure, path)

# ---- alignment and matching (sections 4.2, 5.2, appendices C, F, G) ----------

def load_pair(args):
    """A run, two of its languages (the first two by default), and whether they are clones: then
    every text is its own translation."""
    run = load_run(args.out_dir, args.device, args.dtype, args.languages)
    pair = run.languages[:2]
    if len(set(pair)) < 2:
        sys.exit(f'{run.out_dir}: --languages must name two different languages')
    return run, pair, len({run.cfg.languages[i][1] for i in pair}) == 1

def parallel_lines(run, pair, clones, files):
    """Aligned text -> for every line, in both languages, its pieces and its model ids, int64 (n,).
    Clones need one file, two corpora one each."""
    if len(files) < (1 if clones else 2):
        sys.exit('two corpora need two aligned files, clones one: --parallel a.en a.fr')
    sides = []
    for language, file in zip(pair, files[:1] * 2 if clones else files):
        with config.reading(file, 'it must be UTF-8, one sentence per line'), open(file, 'rb') as f:
            text, = documents_in(f, f'lines.txt{kind_of(file)[1]}', '')  # whatever it is called
        # only a line feed ends a line: str.splitlines() also splits within Europarl's lines
        lines = text.replace('\r\n', '\n').removesuffix('\n').split('\n')
        tokenizer = load_tokenizer(run.dataset.corpora[language]['tokenizer'])
        ids = map(tokenizer.encode, lines)
        sides.append([([tokenizer.pieces[i] for i in line],
                       run.dataset.vocab_map[language, line].astype(np.int64)) for line in ids])
    n, m = map(len, sides)
    if n != m:
        sys.exit(f'{", ".join(files)} are not aligned: {n} and {m} lines')
    return list(zip(*sides))

def joined_lines(lines, longest):
    """Join consecutive pairs of lines up to `longest` tokens -> pairs of ids, (S,) and (T,). Skips
    longer lines, and sequences with a side below a quarter of that: the paper's have 128 to 512."""
    joined, lengths = [], np.zeros(2, int)
    for line in itertools.chain(lines, [[range(longest)] * 2]):  # which closes the last sequence
        added = np.array([*map(len, line)])
        if max(added) > longest:
            continue
        if max(lengths + added) > longest:
            if min(lengths) >= max(2, longest // 4):
                yield tuple(map(np.concatenate, zip(*joined)))
            joined, lengths = [], np.zeros(2, int)
        joined.append(line)
        lengths += added

def parallel_sequences(run, pair, clones, files, n):
    """Up to n pairs of parallel sequences, model ids int64 (S,) and (T,): of the files or, for
    clones, of the test text."""
    block = run.cfg.block_size
    if not files and clones:
        starts = run.dataset.test_starts(pair[0], n)
        a, b = (run.dataset.windows('test', starts, np.full(len(starts), i))[0] for i in pair)
        return list(zip(a, b))
    lines = [(a, b) for (_, a), (_, b) in parallel_lines(run, pair, clones, files)]
    if long := sum(max(map(len, line)) > block for line in lines):
        print(f'note: {long:,} of {len(lines):,} lines exceed a block of {block} tokens: not used')
    return list(itertools.islice(joined_lines(lines, block), n))

def embedding_similarity(table, rows, frequency):
    """Cosine of equivalent subwords in an embedding table (vocabulary, C) of clones (appendix C).

    rows: model ids (2, V) in both languages, anchors are left out; frequency: (V,) of the rarer in
    training. 'all_pairs' controls for anisotropy; 'frequency_matched' for frequency: a seen subword
    with the clones of its five neighbours in order of frequency on either side."""
    apart, result = rows[0] != rows[1], {}
    if not apart.any():
        sys.exit('the clones share their whole vocabulary: no embeddings to compare')
    a, b = (normalize(table[row[apart]].cpu().double()) for row in rows)
    cosine, frequency = (a * b).sum(-1).numpy(), frequency[apart]
    for suffix, chosen in ('', frequency >= 0), ('_seen', frequency > 0):
        if n := int(chosen.sum()):
            all_pairs = a[chosen].sum(0) @ b[chosen].sum(0) / n ** 2  # without V x V products
            result |= {f'mean{suffix}': float(cosine[chosen].mean()),
                       f'all_pairs{suffix}': float(all_pairs), f'subwords{suffix}': n}
    order = np.argsort(frequency, kind='stable')[np.count_nonzero(frequency == 0):]
    near = [(x[order[k:]] * y[order[:-k]]).sum(-1)
            for k in range(1, 6) for x, y in ((a, b), (b, a))]
    if len(order) > 1:
        result['frequency_matched'] = float(torch.cat(near).mean())
    edges = [0, *(10 ** i for i in range(19))]  # the first bin never occurred
    bin_of = np.digitize(frequency, edges) - 1
    bins = [(edges[i], edges[i + 1], cosine[bin_of == i]) for i in np.unique(bin_of)]
    result['by_frequency'] = [{'from': low, 'below': high, 'subwords': len(values),
                               'mean': float(values.mean())} for low, high, values in bins]
    return result

def training_frequency(run, language):
    """How often training read each base id in a language, (V,)."""
    ids, V = (run.dataset.corpora[language][key] for key in ('train', 'vocab_size'))
    return sum((np.bincount(ids[start:start + run.cfg.block_size], minlength=V)
                for start in starts_read(run, language)), np.zeros(V, int))

def hidden_states(run, ids):
    """Every block's output for model ids (S,), scaled to length one, (n_layer, S, C)."""
    hidden = []
    with torch.no_grad(), run.autocast():
        run.model.features(torch.from_numpy(ids).to(run.device)[None], hidden)
    return normalize(torch.cat(hidden).float())

def match(cosine):
    """The maximum-weight full matching (appendix G) by cosine (S, T): two arrays (min(S, T),)."""
    from scipy.optimize import linear_sum_assignment  # networkx would build a graph of S x T edges
    return linear_sum_assignment(cosine, maximize=True)

def mean_cosine(a, b, by_position):
    """Mean cosine of tokens (n_layer, S, C) and (n_layer, T, C) that correspond, (n_layer,)."""
    if by_position:
        n = min(a.size(1), b.size(1))
        return (a[:, :n] * b[:, :n]).sum(-1).mean(1)
    cosine = a @ b.mT  # (n_layer, S, T)
    rows, columns = match(cosine.mean(0).cpu().numpy())
    return cosine[:, rows, columns].mean(1)

def retrieval(a, b):
    """The share of rows of a (n_layer, N, C) whose nearest row of b has the same index, by layer;
    chance, 1 / N."""
    nearest = [(x @ y.T).argmax(1).cpu().numpy() for x, y in zip(a, b)]
    share = [float((rows == np.arange(len(rows))).mean()) for rows in nearest]
    return {'share': share, 'chance': 1 / a.size(1)}

def hidden_similarity(states, clones, most=4096):
    """Cosine of corresponding tokens' hidden states by layer, mean over a sequence, then over the
    sequences. states: of parallel sequences, pairs (n_layer, S, C) and (n_layer, T, C), scaled.

    Tokens correspond by 'position' (clones) or 'matching'; controls compare a sequence with the
    translation of the next one. 'net' is 'position' of clones, else 'matching', minus its control,
    'net_error' its standard error. Retrieval is of sequences by their mean state and, for clones,
    of up to `most` tokens; states that know only their position choose one of the sequences."""
    values, means, tokens, n = defaultdict(list), [], [], 0
    raw, control = ('position', 'control') if clones else ('matching', 'control_matching')
    states = iter(states)
    first = this = next(states)
    for after in itertools.chain(states, [first]):  # the first comes after the last
        (a, b), (_, unrelated) = this, after
        cosines = {'position': mean_cosine(a, b, True)} if clones else {}
        cosines['matching'] = mean_cosine(a, b, False)
        if after is not this:
            cosines['control'] = mean_cosine(a, unrelated, True)
            cosines['control_matching'] = mean_cosine(a, unrelated, False)
            cosines['net'] = cosines[raw] - cosines[control]
        for kind, value in cosines.items():
            values[kind].append(value.cpu().double().numpy())
        means.append([side.mean(1) for side in this])
        n += a.size(1)
        if clones and (n <= most or not tokens):
            tokens.append(this)
        this = after
    similarity = {kind: (sum(parts) / len(parts)).tolist() for kind, parts in values.items()}
    if net := values.get('net'):  # a single sequence has none
        similarity['net_error'] = (np.std(net, 0, ddof=1) / math.sqrt(len(net))).tolist()
    retrieved = {'sequences': retrieval(*(normalize(torch.stack(side, 1)) for side in zip(*means)))}
    if clones:
        retrieved['tokens'] = retrieval(*(torch.cat(side, 1) for side in zip(*tokens)))
        retrieved['tokens']['chance_by_position'] = 1 / len(tokens)
    return similarity, retrieved

def gradients(run, ids):
    """Gradient of the mean loss over model ids (S,), flat, by parameter name; the fused query, key
    and value are split."""
    run.model.zero_grad()  # frees the last gradients, so that these need no copy
    ids = torch.from_numpy(ids).to(run.device)[None]
    with run.autocast():
        run.model(ids[:, :-1], ids[:, 1:]).backward()
    grads = {}
    for name, p in run.model.named_parameters():
        parts = zip('qkv', p.grad.chunk(3)) if 'c_attn' in name else [('', p.grad)]
        for part, grad in parts:
            grads[name.replace('c_attn', f'c_attn.{part}')] = grad.flatten()
    return grads

def gradient_similarity(run, sequences):
    """Cosine between the gradients of parallel sequences, mean over these (appendix F): {'blocks':
    {parameter type: [by layer]}, 'others': {parameter: cosine}, 'macro_average': of the blocks}.
    The keys' bias is left out: softmax ignores it, so its gradient is rounding error."""
    sums, blocks, others = defaultdict(float), defaultdict(list), {}
    for pair in progress(sequences, 'gradients'):
        a, b = (gradients(run, ids) for ids in pair)
        for name in a:
            cosine = F.cosine_similarity(a[name].cpu().double(), b[name].cpu().double(), dim=0)
            sums[name] += cosine.item() / len(sequences)
    for name, value in sums.items():
        if not name.startswith('h.'):
            others[name] = value
        elif not name.endswith('c_attn.k.bias'):
            blocks[name.split('.', 2)[2]].append(value)
    return {'blocks': blocks, 'others': others, 'macro_average': float(np.mean([*blocks.values()]))}

def alignment(args):
    run, pair, clones = load_pair(args)
    results = {'languages': [run.dataset.names[i] for i in pair]}
    if clones:
        rarer = np.minimum(*(training_frequency(run, i) for i in pair))
        rows = run.dataset.vocab_map[pair, :len(rarer)].astype(np.int64)
        results['embeddings'] = {
            name: embedding_similarity(run.weights[f'{table}.weight'], rows, rarer)
            for name, table in (('input', 'wte'), ('output', 'lm_head'))}
        for name, cosine in results['embeddings'].items():
            print(f'{name} embeddings: {cosine["mean"]:.3f}, all pairs {cosine["all_pairs"]:.3f}, '
                  f'of similar frequency {cosine.get("frequency_matched", math.nan):.3f}')
    elif not run.model:
        sys.exit(f'{args.out_dir} is word2vec: only clones have embeddings to compare')
    if run.model:
        sequences = parallel_sequences(run, pair, clones, args.parallel, args.sequences)
        if not sequences:
            sys.exit('the lines are too few or too long for a parallel sequence')
        if len(sequences) < args.sequences:
            print(f'note: {len(sequences)} parallel sequences, not {args.sequences}')
        bar = progress(sequences, 'hidden states')
        states = ([hidden_states(run, ids) for ids in both] for both in bar)
        similarity, retrieved = hidden_similarity(states, clones)
        results |= {'sequences': len(sequences), 'hidden_states': similarity,
                    'retrieval': retrieved, 'gradients': gradient_similarity(run, sequences)}
        for kind, by_layer in similarity.items():
            print(f'hidden states, {kind}:', ', '.join(f'{cosine:z.3f}' for cosine in by_layer))
        for kind, rates in retrieved.items():
            by_layer = ', '.join(f'{share:.1%}' for share in rates['share'])
            chance = rates.get('chance_by_position', rates['chance'])
            print(f'retrieval of {kind}: {by_layer} (chance: {chance:.1%})')
        print(f'gradients: {results["gradients"]["macro_average"]:z.3f}')
    write(run.out_dir / 'alignment.json', results)

def matching(args):
    run, pair, clones = load_pair(args)
    lines = parallel_lines(run, pair, clones, args.parallel)
    if args.line > len(lines):
        sys.exit(f'--line {args.line}: the parallel text has lines 1 to {len(lines)}')
    tokens, ids = zip(*lines[args.line - 1])
    n, m = map(len, tokens)
    if not 0 < min(n, m) <= max(n, m) <= run.cfg.block_size:
        sys.exit(f'line {args.line} has {n} and {m} tokens, not 1 to {run.cfg.block_size}: '
                 'another --line?')
    a, b = (hidden_states(run, side) for side in ids)
    cosine = (a @ b.mT).mean(0).cpu().numpy()
    pairs = [(int(i), int(j)) for i, j in zip(*match(cosine))]
    for i, j in pairs:
        print(f'{tokens[0][i]}\t{tokens[1][j]}\t{cosine[i, j]:.3f}')
    names = [run.dataset.names[i] for i in pair]
    write(run.out_dir / 'matching.json',
          {'languages': names, 'tokens': tokens, 'pairs': pairs, 'line': args.line})
    plot_matching(names, tokens, pairs, run.out_dir / f'matching_line_{args.line}.png')

def plot_matching(languages, tokens, pairs, path):
    """Two rows of tokens, lines between matched ones."""
    from matplotlib.figure import Figure
    widths = [np.array([0.11 * len(token) + 0.22 for token in side]) for side in tokens]  # inches
    places = [np.cumsum(width) - width / 2 for width in widths]  # the middle of each token
    right = max(xs[-1] for xs in places)
    figure = Figure(figsize=(right + 1.6, 2.4), layout='constrained')
    axes = figure.subplots()
    for y, language, side, xs in zip((1, 0), languages, tokens, places):
        axes.text(-0.3, y, language, ha='right', va='center', fontweight='bold')
        for x, token in zip(xs, side):
            axes.text(x, y, token, ha='center', va='center', family='monospace', fontsize=9,
                      parse_math=False)
    for i, j in pairs:
        axes.plot([places[0][i], places[1][j]], [0.86, 0.14], color='C0')
    axes.set(xlim=(-1.2, right + 0.3), ylim=(-0.25, 1.25))
    axes.axis('off')
    save_figure(figure, path)

# ---- command line ------------------------------------------------------------

def main(argv=None):
    args = parse(argv)
    if args.command == 'ppl':
        for out_dir in args.out_dirs:
            ppl(out_dir, args)
    else:
        {'teff': teff, 'alignment': alignment, 'matching': matching}[args.command](args)

if __name__ == '__main__':
    config.run(main)
