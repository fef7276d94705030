"""
Measure trained runs.

    python analyze.py ppl OUT_DIR...                          # perplexity
    python analyze.py teff OUT_DIR...                         # token efficiency, and its figure
    python analyze.py teff --runs ppl.csv --csv out.csv       # the same from a table of PPLs
    python analyze.py mix OUT_DIR... --tokens 1e9             # the best share of each language
    python analyze.py alignment OUT_DIR                       # embeddings, hidden states, gradients
    python analyze.py alignment OUT_DIR --parallel a.en a.fr  # two corpora need aligned lines
    python analyze.py matching OUT_DIR --parallel a.en a.fr   # the token pairs of one line
    python analyze.py glue OUT_DIR --data GLUE --tasks sst2   # fine-tune in L1, zero-shot in L2
    python analyze.py export OUT_DIR --language EN2           # as a Hugging Face GPT-2
    python analyze.py report OUT_DIR... --out report          # tables and figures
    python analyze.py report --plan table1                    # the commands of missing runs
"""
import argparse
import copy
import csv
import hashlib
import itertools
import json
import math
import os
from collections import defaultdict
from functools import partial
from operator import itemgetter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

import config
import train
from config import UserError, figures, huggingface, runs, tables
from data_prep import (
    Dataset,
    Sampler,
    atomic_write,
    check_languages,
    load_tokenizer,
    marginals,
    opened,
)
from model import linear_cross_entropy

# ---- runs --------------------------------------------------------------------

AGAIN = 'train.py --overwrite starts the run again'
progress = partial(tqdm, leave=False, disable=None)

def settings_of(out_dir):
    """The settings of a run: its config.json, or the copy in its results.json."""
    for name in ('config', 'results'):
        path = Path(out_dir, f'{name}.json')
        if saved := config.read_json(path, AGAIN):
            with config.reading(path, AGAIN):
                cfg = config.restored(saved.get('config', saved), path)
                check_languages(cfg)
                return cfg
    raise UserError(f'{out_dir} is not a run: train.py CONFIG.py --out_dir={out_dir} makes one')

def load_run(out_dir, device='auto', dtype='float32'):
    """A trained run: cfg, dataset, model, step, tokens_seen, device, autocast."""
    cfg = settings_of(out_dir)
    checkpoint = train.load_checkpoint(out_dir, cfg)
    if not checkpoint:
        raise UserError(f'{out_dir} has no checkpoint yet: run train.py with its config')
    dataset = Dataset(cfg, verify=('test.bin', 'vocab_map.npy'))
    device, autocast = train.choose_device(device, dtype)
    if dtype == 'float32':
        torch.set_float32_matmul_precision('highest')  # no TF32, which training allows
    model = train.new_model(cfg, dataset.meta['vocab_size'])
    with config.reading(f'{out_dir}/ckpt.pt', AGAIN):
        model.load_state_dict(checkpoint['model'])
    seen = [int(n) * cfg.block_size for n in checkpoint['sequences_read']]
    return SimpleNamespace(
        out_dir=Path(out_dir), cfg=cfg, dataset=dataset, device=device, autocast=autocast,
        model=model.to(device).eval(), step=checkpoint['step'],
        tokens_seen=dict(zip(dataset.names, seen)))

def language_indices(run, names):
    known = run.dataset.names
    for name in names:
        if name not in known:
            raise UserError(f'{run.out_dir} has no language {name!r}; it has {", ".join(known)}')
    return [known.index(name) for name in names]

def on_device(run, array):
    return torch.from_numpy(array).to(run.device)

def size_of(cfg):
    if cfg.model == 'word2vec':
        return f'word2vec-{cfg.n_embd}'
    return f'{cfg.n_layer}x{cfg.n_embd}'

def name_of(out_dir):
    return os.path.basename(os.path.normpath(out_dir))

def run_folders(out_dirs):
    """out_dirs, each once, files dropped: out/* also matches the figure next to the runs."""
    paths = [Path(path) for path in out_dirs]
    return list(dict.fromkeys(str(path) for path in paths if not path.is_file()))

def number(value, low=-1e15, high=1e15):
    """A number from a file as a float; None becomes nan."""
    value = float('nan' if value is None else value)
    if value < low or value > high:
        raise ValueError(f'{value:g} is not between {low:g} and {high:g}')
    return value

def read_measured(out_dir, name, convert):
    """convert(content of OUT_DIR/NAME.json), or None without the file."""
    path = Path(out_dir, f'{name}.json')
    command = name.replace('results', 'ppl')
    remedy = f'python analyze.py {command} {out_dir} writes it again'
    content = config.read_json(path, remedy)
    with config.reading(path, remedy):
        return None if content is None else convert(content)

def write_text(path, text):
    atomic_write(Path(path), lambda aside: aside.write_text(text, 'utf-8', newline=''))
    print(f'written: {path}', flush=True)

def write_json(path, content):
    write_text(path, json.dumps(content, indent=1) + '\n')

# ---- ppl: sliding-window perplexity (paper, section 3, Evaluation) -----------

def sliding_window(run, ids, stride, batch_size, name=''):
    """Score a text, ids (N,) int64 -> nats and scored tokens by batch, (2, batches).

    Windows of block_size tokens start every `stride` tokens. The last `stride`
    positions of a window are scored, the rest is context: every token after the
    first context is scored exactly once, ragged end included."""
    window, scores = run.cfg.block_size, []
    context = window - stride
    starts = np.arange(0, max(0, len(ids) - 1 - context), stride)
    for i in progress(range(0, len(starts), batch_size), name):
        # (B, window + 1)
        places = starts[i:i + batch_size, None] + np.arange(window + 1)
        # past the end any id will do: no scored position attends to it
        batch = on_device(run, ids[np.minimum(places, len(ids) - 1)])
        real = on_device(run, places[:, context + 1:] < len(ids))  # (B, stride)
        targets = batch[:, context + 1:][real]
        with torch.no_grad(), run.autocast():
            features = run.model.features(batch[:, :-1])[:, context:][real]
            loss = linear_cross_entropy(features, run.model.lm_head.weight, targets)
        scores.append((loss.item() * len(targets), len(targets)))
    return np.array(scores, float).reshape(-1, 2).T

def ppl_uncertainty(nats, scored):
    """Half-width of the 95% interval of PPL, relative to PPL, from the scatter
    between batches; None for a single batch."""
    n = len(scored)
    if n < 2:
        return None
    residuals = nats - nats.sum() / scored.sum() * scored
    deviation = math.sqrt((residuals ** 2).sum() * n / (n - 1))
    return math.expm1(1.96 * deviation / scored.sum())

def measure_language(run, language, stride, batch_size):
    """The entry of one language in results.json."""
    data, (name, corpus) = run.dataset, run.cfg.languages[language]
    title, seen = f'{run.out_dir} {name}', run.tokens_seen[name]
    meta = data.corpus_of[language]
    base = data.tokens['test'][slice(*meta['test'])]
    ids = data.vocab_map[language, base].astype(np.int64)
    nats, scored = sliding_window(run, ids, stride, batch_size, title)
    if not len(scored):
        raise UserError(f'{title}: all {len(ids)} test tokens are context')
    n = int(scored.sum())
    loss = float(nats.sum() / n)
    exposure = seen / max(1, data.ids_in_text(language))
    print(f'{title}: PPL {math.exp(loss):.2f}, {n:,} scored tokens; '
          f'{seen:,} tokens seen, exposure {exposure:,.0f}', flush=True)
    bits = loss / math.log(2)
    return {
        'corpus': corpus, 'test_text': hashlib.sha256(base.tobytes()).hexdigest()[:16],
        'ppl': math.exp(loss), 'loss': loss, 'scored_tokens': n, 'exposure': exposure,
        'bits_per_byte': bits * meta['test_tokens'] / meta['test_bytes'],
        'ppl_uncertainty': ppl_uncertainty(nats, scored),
        'epochs': seen / max(1, data.meta['languages'][language]['tokens'])}

def measure_ppl(out_dir, args):
    """Score the test text in every language asked for -> OUT_DIR/results.json."""
    run = load_run(out_dir, args.device, args.dtype)
    window, names = run.cfg.block_size, args.languages or run.dataset.names
    stride = args.stride or max(1, window // 4)
    if run.cfg.model == 'word2vec':
        raise UserError(f'{out_dir} is word2vec, which has no perplexity; use alignment')
    if stride > window:
        raise UserError(f'--stride {stride} leaves tokens unscored: windows have {window}')
    languages = {name: measure_language(run, i, stride, args.batch_size)
                 for name, i in zip(names, language_indices(run, names))}
    write_json(run.out_dir / 'results.json', {
        'config': vars(run.cfg), 'step': run.step, 'tokens_seen': run.tokens_seen,
        'non_embedding_parameters': run.model.num_params(),
        'window': window, 'stride': stride, 'languages': languages})

def ppl(args):
    """perplexity by language, with a sliding window"""
    if not args.out_dirs:
        raise UserError('ppl needs the folders of trained runs')
    for out_dir in run_folders(args.out_dirs):
        measure_ppl(out_dir, args)

ppl.options = SCORING = {
    'out_dirs': ([], 'folders of trained runs'),
    'languages': ([], 'to score; default: all'),
    'stride': (0, 'tokens scored per window; 0: a quarter of it, 128 of 512'),
    'batch_size': (32, 'windows at a time')}

# ---- teff: scaling law, token efficiency (paper, section 3, appendix B) ------

class ScalingLaw:
    """1/PPL = c - a * x^(-b), x = training tokens / those of the largest run,
    fitted by least squares on 1/PPL to monolingual runs with at least three
    token counts.

    Fitted as top + slope * (1 - x^-b) / b: the same curves (a = slope / b, c =
    top + a), but smooth through the logarithm at b = 0. Where 1/PPL is convex in
    log(tokens), b is negative."""

    def __init__(self, tokens, ppl, name='the law'):
        from scipy.optimize import least_squares
        tokens, y = np.asarray(tokens, float), 1 / np.asarray(ppl, float)
        if (n := len(set(tokens))) < 3:
            raise UserError(f'{name}: a law needs at least three token counts, not {n}')
        self.name, self.n = name, len(y)
        self.unit, self.shortest = max(tokens), min(tokens)
        log_x = np.log(tokens / self.unit)

        def residuals(v):
            return (self.inverse_ppl(log_x, v) - y) / y.max()

        def best_given(b):  # the curve is linear in top and slope
            design = np.stack([np.ones_like(y), -np.expm1(-b * log_x) / b], 1)
            v = *np.linalg.lstsq(design, y, rcond=None)[0], b
            return (residuals(v) ** 2).sum(), v
        grid = np.linspace(-1.995, 4.995, 700)  # without b = 0
        start = min(map(best_given, grid))[1]
        bounds = [-np.inf, -np.inf, -2], [np.inf, np.inf, 5]
        fit = least_squares(
            residuals, start, jac='3-point', x_scale=np.abs(start) + 1e-12, bounds=bounds,
            xtol=1e-15, ftol=1e-15, gtol=1e-15)
        self.v = top, slope, self.b = fit.x
        if slope <= 0:
            raise UserError(f'{name}: the monolingual runs do not improve with more tokens')
        self.a, self.c = slope / self.b, top + slope / self.b
        variance = 2 * fit.cost / max(1, self.n - 3)
        self.covariance = variance * np.linalg.pinv(fit.jac.T @ fit.jac)
        self.error = np.abs(self.ppl(tokens) * y - 1).max()  # relative, in PPL

    @staticmethod
    def inverse_ppl(log_x, v):
        top, slope, b = v
        return top - slope * np.expm1(-b * log_x) / b

    def log_x(self, ppl, v):
        """The inverse of inverse_ppl; +-inf for a PPL that it never reaches."""
        top, slope, b = v
        rest = 1 - b * (1 / ppl - top) / slope
        return -math.log(rest) / b if rest > 0 else math.copysign(math.inf, b)

    def ppl(self, tokens):
        """MLPE: the PPL of a monolingual model trained on these tokens."""
        inverse = self.inverse_ppl(np.log(np.asarray(tokens) / self.unit), self.v)
        return 1 / np.where(inverse > 0, inverse, np.nan)  # undefined for very few tokens

    def tokens(self, ppl):
        """MLTE: the tokens a monolingual model needs for a PPL; inf if it never gets there."""
        log_x = self.log_x(ppl, self.v)
        return self.unit * math.exp(log_x) if log_x < 100 else math.inf

    def interval(self, ppl):
        """The factor by which tokens(ppl) may be off (95%), from the scatter of
        the runs around the law; nan for three runs, which fit exactly."""
        from scipy.stats import t
        steps = np.diag(1e-6 * np.abs(self.v))
        change = [self.log_x(ppl, self.v + step) - self.log_x(ppl, self.v - step)
                  for step in steps]
        with np.errstate(all='ignore'):  # infinite where the fit is undetermined
            slopes = np.array(change) / (2 * steps.max(0))
            deviation = np.sqrt(slopes @ self.covariance @ slopes)
            return float(np.exp(t.ppf(0.975, self.n - 3) * deviation))

    def __str__(self):
        power = f'(tokens / {self.unit:,.0f})^{-self.b:.4g}'
        error = 'an exact fit: a fourth run would give an interval'
        if self.n > 3:
            error = f'off by at most {self.error:.2%}'
        return (f'{self.name}: 1/PPL = {self.c:.5g} {-self.a:+.4g} * {power}; '
                f'{self.n} monolingual runs, {error}')

COLUMNS = 'run model corpus language tokens ppl role'.split()
ADDED = ('exposure mlpe mlte teff teff_low teff_high extrapolated tau step_ppl gain '
         'remark').split()

def rows_of_csv(path):
    """The rows of a table of runs."""
    remedy = f'it must be a table with the columns {",".join(COLUMNS)}'
    with config.reading(path, remedy), open(path, newline='', encoding='utf-8') as f:
        rows, total = list(csv.DictReader(f)), defaultdict(int)
        for line, row in enumerate(rows, 2):
            row['tokens'] = int(number(row['tokens'], 1))
            row['ppl'] = number(row['ppl'], 1, 1e30)
            row['exposure'] = number(row.get('exposure') or None)
            if row['role'] not in ('mono', 'multi', 'step') or math.isnan(row['ppl']):
                raise ValueError(f'line {line}: {row["ppl"]}, {row["role"]}')
            total[row['run']] += row['tokens']
        if not rows or set(COLUMNS) - rows[0].keys():
            raise ValueError('a column is missing, or all rows')
    return [row | {'others': total[row['run']] - row['tokens']} for row in rows]

def rows_of_run(out_dir, args, finished=True):
    """A row for each language that a run has seen, scored first if necessary."""
    if not os.path.lexists(f'{out_dir}/results.json'):
        measure_ppl(out_dir, args)
    cfg, rows = settings_of(out_dir), []

    def convert(results):
        if finished and (step := results['step']) < cfg.max_iters:
            raise UserError(f'{out_dir} is at step {step} of {cfg.max_iters}, but TEff needs '
                            'finished runs: resume it with train.py')
        seen = {name: int(number(n, 0)) for name, n in results['tokens_seen'].items()}
        for name, corpus in cfg.languages:
            if not seen[name] or not (found := results['languages'].get(name)):
                continue
            others = sum(seen.values()) - seen[name]
            row = {key: number(found.get(key), 0)
                   for key in ('bits_per_byte', 'ppl_uncertainty', 'epochs', 'exposure')}
            rows.append(row | {
                'run': name_of(out_dir), 'cfg': cfg, 'language': name, 'corpus': corpus,
                'model': f'{cfg.model}-{size_of(cfg)}',
                'parameters': number(results['non_embedding_parameters'], 1),
                'text': str(found['test_text']), 'ppl': number(found['ppl'], 1, 1e30),
                'tokens': seen[name], 'others': others,
                'role': 'multi' if others else 'mono'})
        return rows
    return read_measured(out_dir, 'results', convert)

def law_of(row):
    """The key of a row's scaling law: model, corpus, test text."""
    return row['model'], row['corpus'], row.get('text', '')

def mark_step_matched(rows):
    """Set the role of step-matched baselines: monolingual runs with as many steps
    as a multilingual one, in smaller batches."""
    def shape(row):
        return row['cfg'].max_iters, row['cfg'].block_size, law_of(row)
    rows = [row for row in rows if 'cfg' in row]
    multi = [row for row in rows if row['role'] == 'multi']
    for row, other in itertools.product(rows, multi):
        smaller = row['cfg'].batch_size < other['cfg'].batch_size
        if row['role'] == 'mono' and smaller and shape(row) == shape(other):
            row['role'] = 'step'

def first_difference(row, other):
    """The first setting, other than tokens, in which two recipes differ, or ''."""
    a, b = row.get('cfg'), other.get('cfg')
    keys = ('batch_size learning_rate min_lr block_size beta1 beta2 warmup_iters '
            'init_from').split()
    for key in keys if a else ():
        x, y = getattr(a, key), getattr(b, key)
        if key == 'warmup_iters':  # the same fraction of the steps is enough
            share = abs(x / a.max_iters - y / b.max_iters)
            y = x if share * min(a.max_iters, b.max_iters) <= 1 else y
        if x != y:
            return f'{row["run"]} has {key} {x}, {other["run"]} {y}'
    return ''

def fit_laws(rows, mix_recipes=False):
    """The law for each model, corpus and test text, {law_of(row): law}, and the
    reasons why some have none.

    A law is fitted to the largest group of monolingual runs that differ only in
    tokens. Rows of other recipes get row['unlike'] and no TEff, unless
    mix_recipes."""
    laws, reasons = {}, []
    for key in dict.fromkeys(map(law_of, rows)):
        here = [row for row in rows if law_of(row) == key and row['role'] != 'step']
        mono = [row for row in here if row['role'] == 'mono']

        def alike(row):
            return sum(not first_difference(row, other) for other in mono)
        if mono and not mix_recipes:
            typical = max(mono, key=alike)
            for row in here:
                row['unlike'] = first_difference(row, typical)
        mono = [row for row in mono if not row['unlike']]
        try:
            tokens = [row['tokens'] for row in mono]
            ppls = [row['ppl'] for row in mono]
            name = f'monolingual runs of {key[0]} on {key[1]}'
            laws[key] = ScalingLaw(tokens, ppls, name)
            laws[key].runs = mono
        except UserError as e:
            reasons.append(str(e))
    return laws, reasons

def add_efficiency(row, law):
    """Add MLPE, MLTE, TEff, and tau: what a token of another language is worth."""
    def inside(tokens):  # 1%: the law is not exact even for its own runs
        return 0.99 * law.shortest <= tokens <= 1.01 * law.unit
    ppl, tokens, others = row['ppl'], row['tokens'], row['others']
    mlte, factor = law.tokens(ppl), law.interval(ppl)
    if inside(tokens):
        row['mlpe'] = float(law.ppl(tokens))
    if mlte == math.inf:
        row['extrapolated'] = 'beyond'
        row['remark'] = f'below the limit of the law, {1 / law.c:.4g}'
        return
    teff = mlte / tokens
    row |= {'mlte': mlte, 'teff': teff, 'extrapolated': 'no'}
    row |= {'teff_low': teff / factor, 'teff_high': teff * factor}
    if others:
        row['tau'] = (mlte - tokens) / others
    if not inside(mlte):
        row |= {'extrapolated': 'yes', 'remark': 'extrapolated'}

def add_step_matched(row, rows):
    """Add step_ppl, the PPL of step-matched runs on as many tokens within 5%, and
    gain, the relative reduction from it."""
    steps = [(abs(step['tokens'] / row['tokens'] - 1), step['ppl']) for step in rows
             if step['role'] == 'step' and law_of(step) == law_of(row)
             and ('cfg' not in row or step['cfg'].max_iters == row['cfg'].max_iters)]
    nearest, _ = min(steps, default=(1, 0))
    if row['role'] == 'multi' and nearest < 0.05:
        seeds = [ppl for off, ppl in steps if off < nearest + 0.01]
        row['step_ppl'] = float(np.mean(seeds))
        row['gain'] = 1 - row['ppl'] / row['step_ppl']

def token_efficiency(rows, mix_recipes=False):
    """Add the columns ADDED to every row -> the laws, and why some are missing."""
    for row in rows:
        row.update(dict.fromkeys(ADDED[1:], math.nan), extrapolated='', remark='', unlike='')
    mark_step_matched(rows)
    laws, reasons = fit_laws(rows, mix_recipes)
    for row in rows:
        add_step_matched(row, rows)
        if row['unlike']:
            row['remark'] = f'not compared: {row["unlike"]}'
        elif law_of(row) in laws:
            add_efficiency(row, laws[law_of(row)])
        remarks = [row['remark'], 'step-matched' * (row['role'] == 'step')]
        if (epochs := row.get('epochs', 0)) > 1:
            remarks.append(f'text read {epochs:.2f} times')
        row['remark'] = '; '.join(filter(None, remarks))
    worst = max((u for row in rows if (u := row.get('ppl_uncertainty', 0)) > 0), default=0)
    if worst > 0.01:
        reasons.append(f'PPL is uncertain by up to {worst:.1%} (95%) on so few scored tokens')
    return laws, reasons

def similarity_note(folder):
    """A sentence about the hidden states of a run, from its alignment.json."""
    def words(found):
        pair = ' and '.join(found['languages'])
        if net := found['hidden_states'].get('net'):  # not of a single sequence
            return f'{folder}: net cosine of hidden states of {pair}: {np.mean(net):z.2f}'
    return read_measured(folder, 'alignment', words)

def teff(args):
    """token efficiency, from the scaling law of monolingual runs"""
    folders = run_folders(args.out_dirs)
    if bool(args.runs) == bool(folders):
        raise UserError('teff needs the folders of trained runs or --runs TABLE, not both')
    rows = [row for folder in folders for row in rows_of_run(folder, args)]
    rows += rows_of_csv(args.runs) if args.runs else []
    laws, reasons = token_efficiency(rows, args.mix_recipes)
    if unlike := next((row['unlike'] for row in rows if row['unlike']), ''):
        raise UserError(f'{unlike}: a law needs runs that differ only in tokens '
                        '(or --mix_recipes)')
    if not laws:
        raise UserError(reasons[0])
    columns = [name for name in ADDED if name != 'extrapolated']
    shown = [name for name in ('run', 'language', 'tokens', 'ppl', *columns)
             if any(tables.as_text(row[name]) for row in rows)]
    notes = [f'note: {reason}' for reason in reasons]
    notes += filter(None, map(similarity_note, folders))
    print(*laws.values(), *tables.as_markdown(rows, shown), *notes, sep='\n')
    if args.csv:
        write_text(args.csv, tables.as_csv(rows, COLUMNS + ADDED))
    plot = args.plot
    if folders and not plot:
        parents = [os.path.dirname(os.path.abspath(folder)) for folder in folders]
        plot = os.path.join(os.path.commonpath(parents), 'teff.png')
    if plot:
        rows = [row for row in rows if row['role'] != 'mono' and row['teff'] > 0]
        figures.save(figures.teff(laws, rows), plot)

MIX = {'mix_recipes': (False, 'one law for any batch size, learning rate, warm-up and block size')}
teff.options = SCORING | MIX | {
    'runs': ('', f'a table of runs: {",".join(COLUMNS)}'),
    'csv': ('', 'write the table to this file'),
    'plot': ('', 'figure to write: .png, .pdf or .svg; default: teff.png next to the folders')}

# ---- mix: the best share of each language, and whether the runs can tell -----

def mixture_rows(args):
    """The rows of comparable runs, and their mixtures' languages, (name, corpus)."""
    rows = [columns_of(row['cfg']) | row for folder in run_folders(args.out_dirs)
            for row in rows_of_run(folder, args)]
    mark_step_matched(rows)
    rows = [row for row in rows if row['role'] != 'step']
    multi = [row for row in rows if row['others']]
    mixtures = {row['experiment'] for row in multi}
    kinds = {(str(row['cfg'].languages), row['vocabulary']) for row in multi}
    texts, corpora = set(map(law_of, rows)), {row['corpus'] for row in multi}
    if len(mixtures) < 3 or len(kinds) > 1 or len(texts) > len(corpora):
        raise UserError('mix needs at least three mixtures of the same languages and vocabulary, '
                        'and runs on their corpora, all with one model and test text')
    languages = multi[0]['cfg'].languages
    for row in rows:
        reason, scored = '', sum(other['cfg'] is row['cfg'] for other in multi)
        if scored not in (0, len(languages)):
            reason = f'{row["run"]} lacks the PPL of a language'
        elif len(row['cfg'].schedule) > 1:
            reason = f'{row["run"]} changes its shares'
        elif not args.mix_recipes:
            reason = first_difference(row, rows[0])
        if reason:
            raise UserError(f'{reason}: mix needs runs of one recipe (or --mix_recipes)')
    return rows, languages

def share_laws(rows):
    """Fit log PPL of a corpus in own and other tokens -> {mixture left out of the
    fit: law} ('': none), and log(predicted / measured) of each row where its own
    mixture is left out.

    log PPL = top + slope * (own^-b - 1) / b. 'transfer' adds tau * others to own,
    'cost' adds tau * the others' share to log PPL. Either is used only if it
    lowers the error by a tenth."""
    from scipy.optimize import least_squares
    keys = 'tokens', 'others', 'ppl', 'experiment'
    own, others, ppl, mixture = (np.array([row[key] for row in rows]) for key in keys)
    multi, unit, found = others > 0, max(own), []

    def law(v, term, own, others):
        (top, slope, b, tau), share = v, others / (own + others)
        log_x = np.log((own + tau * others * (term == 'transfer')) / unit)
        cost = tau * share * (term == 'cost')
        return top + slope * np.expm1(-b * log_x) / b + cost

    def errors(v, term, at):
        return law(v, term, own[at], others[at]) - np.log(ppl[at])
    ratio = min(own[multi] / others[multi])  # own + tau * others stays above 0
    for term, least in ('own', -1), ('transfer', -0.9 * ratio), ('cost', -1):
        laws, off = {}, np.zeros(len(rows))
        for left in {'', *mixture[multi]}:  # with all its seeds
            fit = least_squares(errors, [4, 0.3, 0.05, 0], args=[term, mixture != left],
                                bounds=([0, 0, 1e-3, least], [50, 50, 2, 1]))
            laws[left] = partial(law, fit.x, term)
            off[mixture == left] = errors(fit.x, term, mixture == left)
        found.append((np.sqrt(np.mean(off[multi] ** 2)), term, laws, off))
    best = min(found, key=lambda law: law[0] * (0.9 if law[1] == 'own' else 1))
    _, term, laws, off = best
    errs = ', '.join(f'{error:.1%} ({term})' for error, term, *_ in found)
    print(f'{rows[0]["corpus"]}: law of {term}, tau {laws[""].args[0][3]:.3f}; '
          f'held-out mixtures are off by {errs}')
    return laws, off

def mix(args):
    """the share of --tokens that each language should get, or which runs to add"""
    from scipy.stats import t
    rows, languages = mixture_rows(args)
    names, goal = [name for name, _ in languages], vars(args)['for']
    with config.reading('--own', 'it must be NAME=TOKENS, such as FR=5e7'):
        own = dict(text.split('=') for text in args.own)
        own = {name: number(n, 1) for name, n in own.items()}
    if unknown := {goal, *own} - {'mean', *names}:
        raise UserError(f'no language {min(unknown)!r}; the runs have {", ".join(names)}')
    totals = sorted({row['tokens'] + row['others'] for row in rows if row['others']})
    tokens, laws, off = args.tokens or totals[-1], [], []
    random = np.random.default_rng(0)
    shares = random.dirichlet([1] * len(names), 20_000)  # (S, languages)
    by_corpus = {corpus: [row for row in rows if row['corpus'] == corpus]
                 for _, corpus in languages}
    fits = {corpus: share_laws(here) for corpus, here in by_corpus.items()}
    for i, (name, corpus) in enumerate(languages):
        here, (by_mixture, errors) = by_corpus[corpus], fits[corpus]
        seen = [row['tokens'] / (row['tokens'] + row['others']) for row in here]
        most = min(max(seen), args.max_epochs * own.get(name, math.inf) / tokens)
        shares = shares[(shares[:, i] >= min(seen)) & (shares[:, i] <= most)]
        laws.append(by_mixture)
        off.append([error for row, error in zip(here, errors)
                    if row['others'] and row['language'] == name])
    if not len(shares):
        raise UserError(f'no share in the range of the runs keeps to {args.max_epochs:g} epochs')

    def log_ppl(left, total):  # (languages, S)
        return np.array([law[left](total * part, total * (1 - part))
                         for law, part in zip(laws, shares.T)])

    def words(i):
        return ', '.join(f'{name} {part:.1%}' for name, part in zip(names, shares[i]))
    counts = [goal in (name, 'mean') for name in names]
    log_ppls, off = log_ppl('', tokens), np.array(off)  # (languages, mixtures)
    loss = log_ppls[counts].mean(0)  # (S,)
    best, even = loss.argmin(), np.ptp(shares, axis=1).argmin()
    mixtures = sorted(laws[0].keys() - {''})
    factor = t.ppf(0.975, len(mixtures) - 1)
    gain = loss[even] - loss[best]  # a difference of two: twice the variance
    error = factor * math.sqrt(2 * np.mean(off[counts].mean(0) ** 2))
    at, verdict = (best, 'best') if gain > error else (even, 'no recommendation')
    widths = np.exp(factor * np.sqrt(np.mean(off ** 2, 1)))
    ppls = np.exp(log_ppls[:, at])
    for name, part, ppl, width in zip(names, shares[at], ppls, widths):
        n = part * tokens
        epochs = f'{n / own[name]:.2f} epochs, ' if name in own else ''
        print(f'{name}: {part:.1%}, {n:,.0f} tokens, {epochs}'
              f'PPL {ppl:.4g} ({ppl / width:.4g} to {ppl * width:.4g})')
    if not 0.99 * totals[0] < tokens < 1.01 * totals[-1]:
        print(f'extrapolated: errors are those at {totals[0]:,} to {totals[-1]:,} tokens')
    lower, unsure = -np.expm1([-gain, -error])
    print(f'{verdict}: {words(best)} lowers PPL by {lower:.1%} from {words(even)}, '
          f'error {unsure:.1%}')
    if gain <= error:
        far = [[log_ppl(left, n)[counts].mean(0) for left in mixtures] for n in totals]
        far = np.hstack(far) - np.hstack(far).mean(0)  # (refits, totals * S)
        for _ in range(2):  # the second where the refits still differ, given the first
            i = np.square(far).sum(0).argmax()
            far -= np.outer(far[:, i], far[:, i] @ far / np.square(far[:, i]).sum())
            total, share = divmod(i, len(shares))
            print(f'run next: {words(share)} of {totals[total]:,} tokens')

mix.options = SCORING | MIX | {
    'tokens': (0.0, 'training tokens of the planned run; 0: those of the largest run'),
    'own': ([], 'NAME=TOKENS available, read at most --max_epochs times'),
    'for': ('mean', 'the language to optimise; mean: the mean loss of all'),
    'max_epochs': (4.0, 'most epochs over the tokens of --own')}

# ---- alignment and matching (paper, sections 4.2, 5.2, appendices C, F, G) ---

def load_pair(args):
    """A run, two of its languages (the first two by default), and whether they
    are clones: then every text is its own translation."""
    run = load_run(args.out_dir, args.device, args.dtype)
    pair = language_indices(run, args.languages or run.dataset.names[:2])
    if len(pair) != 2 or pair[0] == pair[1]:
        raise UserError(f'{run.out_dir}: --languages must name two different languages')
    return run, pair, len({run.cfg.languages[i][1] for i in pair}) == 1

def read_lines(path):
    """The lines of a text file, or a compressed one. Only a line feed ends a line:
    str.splitlines() also splits within Europarl's lines, and the two sides would
    no longer align."""
    with opened(path) as f, config.reading(path, 'it must be UTF-8, one sentence per line'):
        return f.read().decode().replace('\r\n', '\n').removesuffix('\n').split('\n')

def tokenizer_of(run, language):
    return load_tokenizer(run.dataset.path / run.dataset.corpus_of[language]['tokenizer'])

def parallel_lines(run, pair, clones, files):
    """Aligned text -> pairs of lines, the function that turns a pair into model
    ids, int64 (n,) and (m,), and the two tokenizers. Clones need one file, two
    corpora one each."""
    if len(files) < 2 - clones:
        raise UserError('two corpora need two aligned files, clones one: --parallel a.en a.fr')
    sides = [read_lines(files[0 if clones else i]) for i in (0, 1)]
    n, m = map(len, sides)
    if n != m:
        raise UserError(f'{", ".join(files)} are not aligned: {n} and {m} lines')
    tokenizers = [tokenizer_of(run, i) for i in pair]

    def encode(line):
        return [run.dataset.vocab_map[i, tokenizer.encode(text)].astype(np.int64)
                for i, tokenizer, text in zip(pair, tokenizers, line)]
    return list(zip(*sides)), encode, tokenizers

def joined_lines(lines, longest, shortest=0):
    """Join consecutive pairs of lines while both sides fit in `longest` tokens ->
    pairs of ids, (S,) and (T,). Skips longer lines, and sequences with a side
    below `shortest` (default: a quarter of `longest`, at least 2; the paper's
    have 128 to 512 tokens)."""
    joined, lengths = [], np.zeros(2, int)
    for line in itertools.chain(lines, [None]):  # None closes the last sequence
        added = np.array([*map(len, line)] if line else [longest, longest])
        if max(added) > longest:
            continue
        if max(lengths + added) > longest:
            if min(lengths) >= (shortest or max(2, longest // 4)):
                yield tuple(map(np.concatenate, zip(*joined)))
            joined, lengths = [], np.zeros(2, int)
        joined.append(line)
        lengths += added

def parallel_sequences(run, pair, clones, files, n):
    """Up to n pairs of parallel sequences, model ids int64 (S,) and (T,): of the
    files or, for clones, of the test text."""
    if files or not clones:
        lines, encode, _ = parallel_lines(run, pair, clones, files)
        joined = joined_lines(map(encode, lines), run.cfg.block_size)
        return list(itertools.islice(joined, n))
    starts = run.dataset.test_windows(pair[0], n)
    a, b = (run.dataset.windows('test', starts, np.full(len(starts), i))[0]
            for i in pair)
    return list(zip(a, b))

def unit_rows(x):
    """Rows (..., C) scaled to length one."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)

def embedding_similarity(table, rows, frequency):
    """Cosine of equivalent subwords in an embedding table (vocabulary, C) of
    clones (appendix C).

    rows: model ids (2, V) of the subwords in both languages; frequency: (V,) of
    the rarer version in training. Anchors are left out. The mean and, to control
    for anisotropy, that over all pairs across languages; both over all subwords
    and over those that training saw in both languages; and the mean by frequency
    in powers of ten."""
    apart, found = rows[0] != rows[1], {}
    if not apart.any():
        raise UserError('the clones share their whole vocabulary: no embeddings to compare')
    a, b = (unit_rows(table[row[apart]].double()) for row in rows)
    cosine, frequency = (a * b).sum(-1).cpu().numpy(), frequency[apart]
    for suffix, chosen in ('', frequency >= 0), ('_seen', frequency > 0):
        if n := int(chosen.sum()):
            all_pairs = a[chosen].sum(0) @ b[chosen].sum(0) / n ** 2  # without V x V products
            found[f'mean{suffix}'] = float(cosine[chosen].mean())
            found[f'all_pairs{suffix}'] = float(all_pairs)
            found[f'subwords{suffix}'] = n
    edges = [0, *(10 ** i for i in range(19))]  # the first bin never occurred
    bin_of, found['by_frequency'] = np.digitize(frequency, edges) - 1, []
    for i in np.unique(bin_of):
        inside = bin_of == i
        found['by_frequency'].append({
            'from': edges[i], 'below': edges[i + 1], 'subwords': int(inside.sum()),
            'mean': float(cosine[inside].mean())})
    return found

def training_frequency(run, language):
    """How often training read each base id in a language, (V,)."""
    dataset, cfg = run.dataset, run.cfg
    sampler = Sampler(
        dataset.pools, cfg.schedule, cfg.batch_size, cfg.max_iters, cfg.seed)
    orders = (sampler.order(language, epoch) for epoch in itertools.count())
    read = run.tokens_seen[dataset.names[language]] // cfg.block_size
    sequences = itertools.islice(itertools.chain.from_iterable(orders), read)
    sequences = np.fromiter(sequences, int)
    counts = np.zeros(dataset.meta['vocab_size'], int)  # by model id
    for part in np.array_split(sequences, read // 4096 + 1):
        ids, _ = dataset.batch(part, np.full(len(part), language))
        counts += np.bincount(ids.ravel(), minlength=len(counts))
    V = dataset.corpus_of[language]['vocab_size']
    return counts[dataset.vocab_map[language, :V]]

def hidden_states(run, ids):
    """Every block's output for model ids (S,), before the final norm, scaled to
    length one: (n_layer, S, C)."""
    hidden = []
    with torch.no_grad(), run.autocast():
        run.model.features(on_device(run, ids)[None], hidden)
    return unit_rows(torch.cat(hidden).float())

def match(cosine):
    """The maximum-weight full matching of the tokens of two sequences (appendix
    G), by cosine (S, T) averaged over layers: two index arrays (min(S, T),)."""
    # networkx would build a graph of S x T edges
    from scipy.optimize import linear_sum_assignment
    return linear_sum_assignment(cosine, maximize=True)

def by_matching(a, b):
    """Mean cosine of matched tokens, (n_layer,)."""
    cosine = a @ b.mT  # (n_layer, S, T)
    rows, columns = match(cosine.mean(0).cpu().numpy())
    return cosine[:, rows, columns].mean(1)

def by_position(a, b):
    """Mean cosine of the tokens at equal positions, (n_layer,)."""
    n = min(a.size(1), b.size(1))
    return (a[:, :n] * b[:, :n]).sum(-1).mean(1)

def retrieval(a, b):
    """The share of rows of a (n_layer, N, C) whose nearest row of b by cosine is
    the same row, by layer, and the share expected by chance."""
    share = []
    for x, y in zip(a, b):
        nearest = (x @ y.T).argmax(1).cpu().numpy()
        share.append(float((nearest == np.arange(len(x))).mean()))
    return {'share': share, 'chance': 1 / a.size(1)}

def hidden_similarity(states, clones, most=4096):
    """Cosine of corresponding tokens' hidden states by layer, mean over a
    sequence, then over the sequences. states: of parallel sequences, pairs
    (n_layer, S, C) and (n_layer, T, C), scaled.

    Tokens correspond by 'position' (clones) or 'matching'. Their controls,
    'control' and 'control_matching', compare unrelated text: a sequence with the
    translation of the next one. 'net' is 'position' of clones, else 'matching', minus
    its control; a single sequence has none. Retrieval is of sequences by their
    mean state and, for clones, of up to `most` tokens."""
    sums, means, tokens, n = defaultdict(float), [], [], 0
    states = iter(states)
    first = this = next(states)
    for after in itertools.chain(states, [first]):  # the first comes after the last
        (a, b), (_, unrelated) = this, after
        found = {'position': by_position(a, b)} if clones else {}
        found['matching'] = by_matching(a, b)
        if after is not this:
            found['control'] = by_position(a, unrelated)
            found['control_matching'] = by_matching(a, unrelated)
            raw, control = 'matching', 'control_matching'
            if clones:
                raw, control = 'position', 'control'
            found['net'] = found[raw] - found[control]
        for kind, value in found.items():
            sums[kind] += value.double().cpu().numpy()
        means.append([side.mean(1) for side in this])
        n += a.size(1)
        if clones and (n <= most or not tokens):
            tokens.append(this)
        this = after
    a, b = (unit_rows(torch.stack(side, 1)) for side in zip(*means))
    found = {'sequences': retrieval(a, b)}
    if clones:
        found['tokens'] = retrieval(*(torch.cat(side, 1) for side in zip(*tokens)))
    return {kind: (total / len(means)).tolist() for kind, total in sums.items()}, found

def gradients(run, ids):
    """Gradient of the mean loss over model ids (S,), flat, by parameter name; the
    fused query, key and value are split."""
    run.model.zero_grad()  # frees the last gradients, so that these need no copy
    ids = on_device(run, ids)[None]
    with run.autocast():
        run.model(ids[:, :-1], ids[:, 1:]).backward()
    grads = {}
    for name, p in run.model.named_parameters():
        parts = zip('qkv', p.grad.chunk(3)) if 'c_attn' in name else [('', p.grad)]
        for part, grad in parts:
            grads[name.replace('c_attn', f'c_attn.{part}')] = grad.flatten()
    return grads

def gradient_similarity(run, sequences):
    """Cosine between the gradients of parallel sequences, mean over these
    (appendix F): {'blocks': {parameter type: [by layer]}, 'others': {parameter:
    cosine}, 'macro_average': of the blocks}. The keys' bias is left out: softmax
    ignores it, so its gradient is rounding error."""
    sums, blocks, others = defaultdict(float), defaultdict(list), {}
    for pair in progress(sequences, 'gradients'):
        a, b = (gradients(run, ids) for ids in pair)
        for name in a:
            cosine = F.cosine_similarity(a[name].double(), b[name].double(), dim=0)
            sums[name] += cosine.item() / len(sequences)
    for name, value in sums.items():
        if not name.startswith('h.'):
            others[name] = value
        elif not name.endswith('c_attn.k.bias'):
            blocks[name.split('.', 2)[2]].append(value)
    mean = float(np.mean(list(blocks.values())))
    return {'blocks': blocks, 'others': others, 'macro_average': mean}

def alignment(args):
    """similarity of two languages: embeddings, hidden states, gradients"""
    run, pair, clones = load_pair(args)
    results = {'languages': [run.dataset.names[i] for i in pair]}
    if clones:
        rarer = np.minimum(*(training_frequency(run, i) for i in pair))
        rows = run.dataset.vocab_map[pair, :len(rarer)].astype(np.int64)
        results['embeddings'] = {
            name: embedding_similarity(table.weight.detach(), rows, rarer)
            for name, table in (('input', run.model.wte), ('output', run.model.lm_head))}
    elif run.cfg.model != 'gpt':
        raise UserError(f'{args.out_dir} is word2vec: only clones have embeddings to compare')
    if run.cfg.model == 'gpt':
        sequences = parallel_sequences(run, pair, clones, args.parallel, args.sequences)
        if not sequences:
            raise UserError('the lines are too few or too long for a parallel sequence')
        results['sequences'] = n = len(sequences)
        if n < args.sequences:
            print(f'note: the text has {n} parallel sequences, not {args.sequences}')
        bar = progress(sequences, 'hidden states')
        states = ([hidden_states(run, ids) for ids in both] for both in bar)
        results['hidden_states'], results['retrieval'] = hidden_similarity(states, clones)
        results['gradients'] = gradient_similarity(run, sequences)
    for _, layer, measure, value in flattened(results):
        if not layer and 'blocks' not in measure:  # for layers, their mean
            print(f'{measure}: {value:.4g}')
    write_json(run.out_dir / 'alignment.json', results)

PAIR = {
    'out_dir': ('', 'folder of a trained run'),
    'languages': ([], 'two; default: the first two')}
PARALLEL = {
    'parallel': ([], 'one file per language, one sentence per line; also .gz, .xz, .zst')}
alignment.options = PAIR | PARALLEL | {'sequences': (500, 'parallel sequences, at most')}

def matching(args):
    """the matched tokens of two parallel lines, and their picture (figure 14)"""
    run, pair, clones = load_pair(args)
    lines, encode, tokenizers = parallel_lines(run, pair, clones, args.parallel)
    if args.line > len(lines):
        raise UserError(f'--line {args.line}: the parallel text has lines 1 to {len(lines)}')
    block, start = run.cfg.block_size, args.line - 1
    tokens = [[tokenizer.pieces[i] for i in tokenizer.encode(text)]
              for tokenizer, text in zip(tokenizers, lines[start])]
    n, m = map(len, tokens)
    if not 0 < min(n, m) <= max(n, m) <= block:
        raise UserError(f'line {args.line} has {n} and {m} tokens, not 1 to {block}')
    # the sequence that begins with this line
    ids = next(joined_lines(map(encode, lines[start:start + block]), block, shortest=1))
    a, b = (hidden_states(run, side) for side in ids)
    cosine = (a @ b.mT).mean(0).cpu().numpy()
    pairs = [(int(i), int(j)) for i, j in zip(*match(cosine)) if i < n or j < m]
    for i, j in pairs:
        first, second = ([*side, '...'][min(k, len(side))] for side, k in zip(tokens, (i, j)))
        print(f'{first}\t{second}\t{cosine[i, j]:.3f}')
    names = [run.dataset.names[i] for i in pair]
    results = {'languages': names, 'tokens': tokens, 'pairs': pairs}
    write_json(run.out_dir / 'matching.json', results | {'line': args.line})
    figures.save(figures.matching(**results), run.out_dir / f'matching_line_{args.line}.png')

matching.options = PAIR | PARALLEL | {'line': (1, 'line of the parallel text to show')}

# ---- glue: fine-tuned in one language, zero-shot in its clone (section 4.2) --

BINARY, ENTAILMENT = ['0', '1'], ['entailment', 'not_entailment']
GLUE = {  # task -> columns of its texts and of its label, classes, its own metric
    'cola': (['sentence'], 'label', BINARY, 'matthews'),
    'sst2': (['sentence'], 'label', BINARY, 'accuracy'),
    'mrpc': (['#1 String', '#2 String'], 'Quality', BINARY, 'f1'),
    'qqp': (['question1', 'question2'], 'is_duplicate', BINARY, 'f1'),
    'mnli': (['sentence1', 'sentence2'], 'gold_label',
             ['entailment', 'neutral', 'contradiction'], 'accuracy'),
    'qnli': (['question', 'sentence'], 'label', ENTAILMENT, 'accuracy'),
    'rte': (['sentence1', 'sentence2'], 'label', ENTAILMENT, 'accuracy')}

def read_task(path, task):
    """The examples of a task's .tsv file, [(texts, class)]."""
    texts, label, classes, _ = GLUE[task]
    with config.reading(path, f'it must hold {task} in the format of GLUE, tab-separated'):
        lines = path.read_text('utf-8-sig').replace('\r\n', '\n').split('\n')
        # no quoting; CoLA has no header
        rows = [line.split('\t') for line in lines]
        columns = 'source label star sentence'.split() if task == 'cola' else rows.pop(0)
        rows = [dict(zip(columns, row)) for row in rows if len(row) == len(columns)]
        if not rows:
            raise ValueError('no examples')
        return [([row[text] for text in texts], classes.index(row[label])) for row in rows]

def encode_examples(run, language, examples, longest):
    """Examples [(texts, class)] -> base ids [(n,)], by length, and classes (N,).
    Every text ends with the end-of-document token; an example of more than
    `longest` tokens loses the end of its longer text."""
    tokenizer, encoded = tokenizer_of(run, language), []
    for texts, label in examples:
        first, *rest = (tokenizer.encode(text) for text in texts)
        room = longest - len(texts)
        first = first[:max(room // len(texts), room - sum(map(len, rest)))]
        parts = [first, *(part[:room - len(first)] for part in rest)]
        encoded.append(([i for part in parts for i in (*part, tokenizer.eod)], label))
    ids, classes = zip(*sorted(encoded, key=lambda example: len(example[0])))
    return ids, np.array(classes)

def class_logits(run, head, ids, language):
    """Logits of the linear head, from the last token of every text after the final
    norm: (N, classes)."""
    longest = max(map(len, ids))
    # right-padded: causal attention keeps padding out of earlier positions
    batch = np.array([[*text, *[0] * (longest - len(text))] for text in ids])
    x = on_device(run, run.dataset.vocab_map[language, batch].astype(np.int64))
    with run.autocast():
        features = run.model.features(x)
        last = [row[len(text) - 1] for row, text in zip(features, ids)]
        return head(torch.stack(last)).float()

def predict(run, head, ids, language):
    """The class of every text, (N,)."""
    with torch.no_grad():
        logits = [class_logits(run, head, ids[i:i + 256], language)
                  for i in range(0, len(ids), 256)]
    return torch.cat(logits).argmax(-1).cpu().numpy()

def task_metrics(predicted, true, metric):
    """{'accuracy': ..., metric: ...}: 'f1' of class 1, 'matthews' the correlation."""
    scores = {'accuracy': float((predicted == true).mean())}
    both = predicted * true
    if metric == 'f1':
        scores[metric] = 2 * float(both.sum() / max(1, (predicted + true).sum()))
    if metric == 'matthews':
        covariance = both.mean() - predicted.mean() * true.mean()
        scores[metric] = float(covariance / max(1e-12, predicted.std() * true.std()))
    return scores

def shuffled_batches(lengths, batch_size, seed):
    """Batches of an epoch, index arrays: texts of similar length need little padding."""
    rng = np.random.default_rng(seed)
    order = np.argsort(lengths * rng.uniform(0.9, 1.1, len(lengths)))
    batches = np.split(order, range(batch_size, len(order), batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]

def fine_tune(run, train_set, dev_set, n_classes, metric, language, args, name):
    """Fine-tune run.model and a new linear head on train_set (ids, classes) in
    one language; both end as they were at the best evaluation on dev_set -> the
    head, and the steps made.

    Adam, with a learning rate that falls linearly to 0 and gradients clipped at
    1; an evaluation every eval_every steps and every epoch, until `patience` of
    them gain less than 0.001."""
    ids, classes = train_set
    lengths = np.array([len(text) for text in ids])
    torch.manual_seed(args.seed)
    head = torch.nn.Linear(run.cfg.n_embd, n_classes).to(run.device)
    modules = torch.nn.ModuleList([run.model, head])
    parameters = [p for key, p in modules.named_parameters() if 'lm_head' not in key]
    optimizer = torch.optim.Adam(parameters, lr=args.learning_rate)
    per_epoch = -(-len(ids) // args.batch_size)
    total, best, best_state, waited = args.epochs * per_epoch, -math.inf, None, 0
    for step in progress(range(total), name):
        epoch, i = divmod(step, per_epoch)
        if i == 0:
            batches = shuffled_batches(lengths, args.batch_size, [args.seed, epoch])
        optimizer.param_groups[0]['lr'] = args.learning_rate * (1 - step / total)
        logits = class_logits(run, head, [ids[n] for n in batches[i]], language)
        F.cross_entropy(logits, on_device(run, classes[batches[i]])).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (i + 1) % args.eval_every and i + 1 < per_epoch:
            continue
        predicted = predict(run, head, dev_set[0], language)
        score = task_metrics(predicted, dev_set[1], metric)[metric]
        waited += 1
        if score > best + 0.001:
            best, waited = score, 0
            best_state = copy.deepcopy(modules.state_dict())
        if waited == args.patience:
            break
    modules.load_state_dict(best_state)
    return head, step + 1

def glue(args):
    """fine-tune on GLUE tasks in the first language, measure both"""
    run, pair, clones = load_pair(args)
    if run.cfg.model != 'gpt' or not clones:
        raise UserError(f'{args.out_dir}: GLUE is English, and takes a GPT of two clones')
    with config.reading(args.data, '--data takes a folder with a folder per task'):
        folders = {path.name.lower().replace('-', ''): path
                   for path in Path(args.data).iterdir()}
    there = [task for task in GLUE if task in folders]
    tasks = args.tasks.split(',') if args.tasks else there
    if not tasks or set(tasks) - set(there):
        raise UserError(f'--data {args.data} has no folder {args.tasks or "of a task"}; '
                        f'the tasks are {", ".join(GLUE)}')
    files = {'mnli': ['train', 'dev_matched', 'dev_mismatched']}
    examples = {task: [read_task(folders[task] / f'{name}.tsv', task)
                       for name in files.get(task, ['train', 'dev'])] for task in tasks}
    names = [run.dataset.names[i] for i in pair]

    def summary(tasks):
        means = {}
        for name in names if tasks else ():
            accuracies = [number(task[name]['accuracy']) for task in tasks.values()]
            means[name] = float(np.mean(accuracies))
        return {'languages': names, 'tasks': tasks, 'mean_accuracy': means}
    earlier = read_measured(run.out_dir, 'glue', lambda saved: summary(
        saved['tasks'] if saved['languages'] == names else {}))
    found = earlier['tasks'] if earlier else {}
    pretrained = copy.deepcopy(run.model.state_dict())
    settings = {key: value for key, value in vars(args).items()
                if isinstance(value, (int, float))}
    for task in tasks:
        *_, classes, metric = GLUE[task]
        longest = min(args.max_tokens, run.cfg.block_size)
        train_set, *dev_sets = (encode_examples(run, pair[0], part, longest)
                                for part in examples[task])
        run.model.load_state_dict(pretrained)
        head, steps = fine_tune(run, train_set, dev_sets[0], len(classes), metric, pair[0],
                                args, f'{args.out_dir} {task}')
        for key, (ids, true) in zip((task, 'mnli-mm'), dev_sets):
            n, most = len(true), float(np.bincount(true).max())
            scores = found[key] = {
                'steps': steps, 'majority': most / n, 'examples': n, 'settings': settings}
            for name, language in zip(names, pair):
                predicted = predict(run, head, ids, language)
                scores[name] = task_metrics(predicted, true, metric)
                print(f'{args.out_dir} {key} {name}: {scores[name]}')
        write_json(run.out_dir / 'glue.json', summary(found))

glue.options = PAIR | {
    'data': ('', 'folder with SST-2/train.tsv, SST-2/dev.tsv, ...'),
    'tasks': ('', f'of {",".join(GLUE)}; default: those in the folder'),
    'learning_rate': (5e-5, 'initial'),
    'batch_size': (64, 'examples per step'),
    'max_tokens': (128, 'per example'),
    'epochs': (10, 'maximum'),
    'patience': (10, 'evaluations without improvement before it stops'),
    'eval_every': (200, 'steps between evaluations; every epoch ends with one'),
    'seed': (0, 'for the head and the order of examples'),
    'dtype': ('auto', 'float32, bfloat16; auto: bfloat16 on cuda')}

# ---- export: a run as a Hugging Face GPT-2 -----------------------------------

def export(args):
    """write a run in one of its languages as a GPT-2 for transformers"""
    huggingface.packages()  # report a missing one first
    run = load_run(args.out_dir, 'cpu')
    language, = language_indices(run, [args.language or run.dataset.names[0]])
    name, cfg = run.dataset.names[language], run.cfg
    scored = read_measured(run.out_dir, 'results', itemgetter('languages')) or {}
    rows = [scored.get(key, {}) | {'language': key, 'tokens': n}
            for key, n in run.tokens_seen.items()]
    card = [
        f'# {name_of(args.out_dir)}, {name}', '',
        f'A GPT-2 of {cfg.n_layer} x {cfg.n_embd}: step {run.step:,} of {cfg.max_iters:,}, '
        f'(start, p(language)) = `{cfg.schedule}`.', '',
        *tables.as_markdown(rows, ['language', 'tokens', 'ppl']), '',
        f'Made by `python analyze.py export {args.out_dir} --language {name}`. '
        'Its licence depends on the texts.\n']
    to = Path(args.to or run.out_dir / f'hf_{name}')
    huggingface.write_gpt2(run, language, tokenizer_of(run, language), '\n'.join(card), to)

export.options = {'out_dir': PAIR['out_dir'], 'language': ('', 'default: the first'),
                  'to': ('', 'folder to write; default: OUT_DIR/hf_LANGUAGE')}

# ---- report: one long table, with the paper's values -> tables and figures ---

def schedule_name(schedule):
    """[(0.0, (.9, .1)), (0.5, (.1, .9))] -> '90/10 then 10/90 from 50%'."""
    return ' then '.join(
        '/'.join(f'{100 * share:.3g}' for share in shares)
        + (f' from {100 * start:g}%' if start else '') for start, shares in schedule)

def total_tokens(cfg):
    return max(1, cfg.max_iters * cfg.batch_size * cfg.block_size)

def columns_of(cfg, all_data=None):
    """The columns that a run's measurements share; figures select runs by tags."""
    corpora, schedule = [corpus for _, corpus in cfg.languages], schedule_name(cfg.schedule)
    n, different, tokens = len(corpora), len(set(corpora)), total_tokens(cfg)
    data = tokens / (all_data or tokens)
    kind = {(n, n): 'real', (n, 1): 'cloned', (1, 1): 'mono'}.get((n, different), 'mixed')
    vocab = cfg.vocab if different > 1 else 'disjoint'
    if cfg.tokenizer == 'shared':
        vocab = 'shared'
    if cfg.anchor_frac and different < n:
        vocab = f'{cfg.anchor_frac:g} anchors'
    tags, steady = {kind, vocab, schedule}, n == 2 and len(cfg.schedule) == 1
    if steady:
        tags.add('steady')
    if n == 2 and math.isclose(marginals(cfg.schedule)[1], 0.5):
        tags.add('even')
    if 0.99 < data < 1.01:
        tags.add('whole')
    free = config.FREE - {'dtype'} | {'seed', 'dataset'}  # what the seeds of an experiment share
    settings = [(key, value) for key, value in sorted(vars(cfg).items())
                if key not in free]
    return {
        'kind': kind, 'pieces': cfg.vocab_size, 'dtype': cfg.dtype, 'size': size_of(cfg),
        'corpora': ' '.join(corpora), 'vocabulary': vocab, 'schedule': schedule,
        'seed': cfg.seed, 'tokens': tokens, 'experiment': repr(settings),
        'data': float(f'{data:.2g}') if all_data else f'{tokens:,} tokens',
        'share': 100 * cfg.schedule[0][1][1] if steady else None,
        'anchors': 100 * cfg.anchor_frac, 'tags': tags}

def flattened(content, names=(), path=(), layer=0):
    """Nested JSON -> (language, layer, measure, value) for every number. The
    measure is its path in the file; lists are by layer, with their mean; bins by
    power of ten."""
    if isinstance(content, dict) and 'below' in content:
        # from 0, 1, 10, ... -> 1, 2, 3, ...
        power = len(str(int(number(content['from'], 0)))) if content['from'] else 0
        yield from flattened(content['mean'], names, path, 1 + power)
    elif isinstance(content, dict):
        for key in content:
            if key not in ('languages', 'settings'):
                yield from flattened(content[key], names, (*path, key))
    elif isinstance(content, list):
        for i, value in enumerate(content, 1):
            yield from flattened(value, names, path, i)
        if content and not isinstance(content[0], dict):
            yield from flattened(float(np.mean(content)), names, (*path, 'mean'))
    elif not isinstance(content, str):
        language = next((key for key in path if key in names), '')
        measure = '.'.join(key for key in path if key != language)
        yield language, layer, measure, number(content)

def matched(found):
    """What figures.matching draws, from matching.json."""
    first, second = ([str(token) for token in side] for side in found['tokens'])
    pairs = [(int(number(i, 0)), int(number(j, 0))) for i, j in found['pairs']]
    return [str(name) for name in found['languages']], (first, second), pairs

def read_run(out_dir, args, finished=True):
    """A run: its settings, its rows of teff, and everything else measured on it."""
    cfg = settings_of(out_dir)
    names, found = [name for name, _ in cfg.languages], []
    for name in ('alignment', 'glue'):
        numbers = read_measured(out_dir, name, lambda saved: [*flattened(saved, names)])
        found += numbers or []
    return SimpleNamespace(
        out_dir=out_dir, name=name_of(out_dir), cfg=cfg, names=names, found=found,
        rows=rows_of_run(out_dir, args, finished) if cfg.model == 'gpt' else [],
        matching=read_measured(out_dir, 'matching', matched),
        tags=columns_of(cfg)['tags'])

def measurements(run, all_data, paper):
    """The rows of a run in the long table, one per number."""
    columns = columns_of(run.cfg, all_data)
    rows = {row['language']: row for row in run.rows}
    found = [(name, 0, key, row.get(key, math.nan)) for name, row in rows.items()
             for key in ('tokens', 'ppl', 'bits_per_byte', *ADDED)]
    for name, layer, measure, value in found + run.found:
        n = layer or (run.names.index(name) if name else 0) + 1
        where, printed = tables.paper_value(paper, columns, measure, n)
        # a measure without a language counts as the last one's
        row = rows.get(name or run.names[-1], {})
        if value == value:
            yield columns | {
                'run': run.name, 'language': name, 'layer': layer, 'measure': measure,
                'value': value, 'step': 0, 'paper': where, 'printed': printed,
                'tags': columns['tags'] | {'last' * (name in ('', run.names[-1]))},
                'seen': row.get('tokens'), 'exposure': row.get('exposure'),
                'parameters': row.get('parameters')}

def gather(out_dirs, args):
    """The long table of these runs (rows), the same over seeds (grouped) and of
    kept checkpoints (steps); the runs, their laws, and notes."""
    found = SimpleNamespace(notes=[])

    def read(folders, finished=True):
        for folder in folders:
            try:
                yield read_run(str(folder), args, finished)
            except UserError as e:
                found.notes.append(f'left out: {e}')
                print(f'note: {found.notes[-1]}')
    found.runs = list(read(out_dirs))
    if not found.runs:
        raise UserError('none of these folders is a run with results: '
                        'report needs runs, or --plan')
    rows = [row for run in found.runs for row in run.rows]
    found.laws, reasons = token_efficiency(rows, args.mix_recipes)
    totals = {total_tokens(run.cfg) for run in found.runs if len(run.cfg.languages) > 1}
    totals = sorted(totals or {max(total_tokens(run.cfg) for run in found.runs)})
    all_data = args.tokens or (totals[-1] if totals[-1] < 1.01 * totals[0] else None)
    found.notes += [*map(str, found.laws.values()), *reasons]
    if all_data:
        found.notes.append(f'all data: {all_data:,.0f} training tokens (the paper: 1.2B)')
    else:
        found.notes.append(
            f'multilingual runs read {" or ".join(f"{n:,}" for n in totals)} tokens: '
            '--tokens must say which counts as all data for a comparison with the paper')
    paper = tables.paper_values()
    found.rows = [row for run in found.runs
                  for row in measurements(run, all_data, paper)]
    steps = []
    for run in found.runs:
        kept = sorted(Path(run.out_dir).glob('step_*/results.json'))
        parts = read([path.parent for path in kept], finished=False)
        for part in [*parts, run] if kept else ():
            for row in measurements(part, all_data, {}):
                tags = row['tags'] | {'step'}
                steps.append(row | {'run': run.name, 'step': row['seen'], 'tags': tags})
    found.grouped, found.steps = map(tables.over_seeds, (found.rows, steps))
    return found

def report(args):
    """tables and figures of a set of runs, next to the paper's"""
    if args.plan:
        commands = runs.commands(args.plan, args.options)
        if args.jobs:
            return runs.side_by_side(commands, args.jobs)
        return print(''.join(f'{command}\n' for command in commands), end='')
    found, folder = gather(run_folders(args.out_dirs), args), Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    columns = 'corpora language layer measure value paper printed'.split()
    long = tables.as_csv(found.rows, tables.BY_RUN + columns)
    write_text(folder / 'measurements.csv', long)
    notes, missing = [f'- {note}' for note in found.notes], []
    page = [f'# Language imbalance: {len(found.runs)} runs', '', *notes]
    for shown in tables.read_table('figures.csv'):
        name, heading = shown['figure'], ['', f'## {shown["title"]}', '']
        if shown['draw'] == 'table':
            if rows := tables.pivot(found.rows, shown, itemgetter('value')):
                write_text(folder / f'{name}.csv', tables.as_csv(rows))
                means = tables.pivot(found.grouped, shown, tables.with_spread)
                page += [*heading, *tables.as_markdown(means), '', f'[{name}.csv]({name}.csv)']
        elif picture := figures.DRAW[shown['draw']](found, shown):
            for kind in ('png', 'pdf'):
                figures.save(picture, folder / f'{name}.{kind}')
            page += [*heading, f'![{name}]({name}.png)', '', f'[{name}.pdf]({name}.pdf)']
        else:
            missing.append(f'- {shown["title"]}: `python analyze.py report --plan {name}`')
    page += ['', '## Figures whose runs are missing', '', *(missing or ['None.'])]
    write_text(folder / 'report.md', '\n'.join(page) + '\n')

report.options = SCORING | MIX | {
    'out': ('report', 'folder to write'),
    'plan': ('', 'print the commands of missing runs: table1, fig09'),
    'jobs': (0, 'run the plan, this many commands at a time; 0: only print them'),
    'options': ('', 'settings for all runs of a plan'),
    'tokens': (0.0, 'tokens regarded as all data; the paper: 1.2B')}

# ---- command line ------------------------------------------------------------

DEVICE = {'device': ('auto', 'cuda, mps, cpu; auto: the first that is available'),
          'dtype': ('float32', 'float32, bfloat16; auto: bfloat16 on cuda')}

def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    for function in (ppl, teff, mix, alignment, matching, glue, export, report):
        command = commands.add_parser(
            function.__name__, help=function.__doc__, description=function.__doc__,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter)
        command.set_defaults(function=function)
        for name, (default, text) in (DEVICE | function.options).items():
            kinds = {bool: {'action': 'store_true'}, list: {'nargs': '*'}}
            kind = kinds.get(type(default), {'type': type(default)})
            flag = name if name.startswith('out_dir') else f'--{name}'
            command.add_argument(flag, default=default, help=text, **kind)
    args = parser.parse_args(argv)
    for key, value in vars(args).items():
        lowest = 0 if key in ('stride', 'seed', 'learning_rate', 'tokens', 'jobs') else 1
        if type(value) in (int, float) and not lowest <= value < math.inf:
            raise UserError(f'--{key} must be at least {lowest}, not {value}')
    if vars(args).get('plot') and Path(args.plot).suffix not in ('.png', '.pdf', '.svg'):
        raise UserError(f'--plot {args.plot}: a figure must be .png, .pdf or .svg')
    args.function(args)

if __name__ == '__main__':
    config.run(main)
