"""
Measure trained runs.

    python analyze.py ppl OUT_DIR...                       # perplexity per language -> OUT_DIR/results.json
    python analyze.py teff OUT_DIR...                      # token efficiency, and its figure; measures perplexity first
    python analyze.py teff --runs runs.csv --csv out.csv   # the same from a table of runs
    python analyze.py alignment OUT_DIR                    # embeddings, hidden states, gradients -> OUT_DIR/alignment.json
    python analyze.py alignment OUT_DIR --parallel a.en a.fr    # on aligned lines: two corpora need them
    python analyze.py matching OUT_DIR --parallel a.en a.fr     # the token pairs of one line, and their picture
    python analyze.py glue OUT_DIR --data GLUE_DIR --tasks sst2 # fine-tune in L1, zero-shot in L2 -> OUT_DIR/glue.json
    python analyze.py report OUT_DIR... --out report            # all of it together, beside the paper's: tables and figures
    python analyze.py report --plan table1                      # the commands of a table's runs that are not there yet
"""
import argparse
import csv
import hashlib
import itertools
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

import config
from config import UserError
from data_prep import Dataset, Sampler, check_languages, load_tokenizer, marginals, opened, write_aside

# -----------------------------------------------------------------------------
# Runs


def load_run(out_dir, device='auto', dtype='float32'):
    """A trained run: its cfg, dataset, model (in evaluation mode), step, tokens_seen per language, device and autocast.
    Raises UserError where out_dir holds none."""
    import train  # and with it torch, which --help and teff from a table do without
    out_dir = Path(out_dir)
    saved = config.read_json(out_dir / 'config.json', 'it names the settings of the run; train.py --overwrite makes both anew')
    if saved is None:
        raise UserError(f'{out_dir} is not a run: it has no config.json')
    cfg = config.restored(saved, out_dir / 'config.json')
    check_languages(cfg)
    checkpoint = train.load_checkpoint(out_dir, cfg)
    if not checkpoint:
        raise UserError(f'{out_dir} has no checkpoint yet: python train.py with its config makes one')
    dataset = Dataset(cfg, verify=('test.bin', 'vocab_map.npy'))
    device, autocast = train.choose_device(device, dtype)
    model = train.new_model(cfg, dataset.meta['vocab_size'])
    try:
        model.load_state_dict(checkpoint['model'])
    except train.OTHER_SHAPE:
        raise UserError(f'{out_dir}: ckpt.pt and config.json are of different model shapes') from None
    tokens_seen = {name: n * cfg.block_size for name, n in zip(dataset.names, checkpoint['sequences_read'])}
    return SimpleNamespace(out_dir=out_dir, cfg=cfg, dataset=dataset, model=model.to(device).eval(), step=checkpoint['step'],
                           tokens_seen=tokens_seen, device=device, autocast=autocast)


def language_numbers(run, names):
    """The numbers of languages of a run. Raises UserError for a name that it does not have."""
    known = run.dataset.names
    for name in names:
        if name not in known:
            raise UserError(f'{run.out_dir} has no language {name!r}; it has {", ".join(known)}')
    return tuple(known.index(name) for name in names)


def run_folders(out_dirs):
    """The folders among out_dirs: a glob such as out/quickstart/* also matches the figures that lie beside the runs."""
    return [d for d in out_dirs if not os.path.isfile(d)]


# what the commands here write beside a run, and read again
MEASURED = {
    'results': {'config': dict, 'step': int, 'tokens_seen': {str: int}, 'non_embedding_parameters': int,
                'languages': {str: {'corpus': str, 'test_text': str, 'ppl': float, 'scored_tokens': int, 'epochs?': float,
                                    'bits_per_byte?': float, 'ppl_uncertainty?': (float, type(None))}}},
    'alignment': {'languages': [str], 'hidden_states?': {str: [float]},
                  'gradients?': {'blocks': {str: [float]}, 'macro_average': float,
                                 'others': {'wte.weight': float, 'wpe.weight': float, 'lm_head.weight': float}},
                  'embeddings?': dict.fromkeys(('input', 'output'), {'mean': float, 'all_pairs': float,
                                                                     'by_frequency': [{'from': int, 'mean': float}]})},
    'glue': {'languages': [str], 'mean_accuracy': {str: float}, 'tasks': {str: {'majority': float, 'steps': int}}},
    'matching': {'languages': [str], 'line': int, 'tokens': [[str]], 'pairs': [[int]]}}


def consistent(name, found):
    """Whether what one of these files holds goes together, beyond its shape."""
    if name == 'glue':
        metrics = [task.get(language) for task in found['tasks'].values() for language in found['languages']]
        return (len(found['languages']) == 2 and found['mean_accuracy'].keys() == set(found['languages']) and bool(found['tasks'])
                and all(config.fits(metric, {str: float}) and 'accuracy' in metric for metric in metrics))
    if name == 'alignment':
        layers = {len(values) for values in found.get('gradients', {}).get('blocks', {}).values()}
        return len(layers) <= 1 and 0 not in layers and all(table['by_frequency'] for table in found.get('embeddings', {}).values())
    if name == 'matching':
        within = [len(pair) == 2 and min(pair) >= 0 for pair in found['pairs']]
        return all(within) and len(found['tokens']) == len(found['languages']) == 2
    return True


def read_measured(out_dir, name):
    """OUT_DIR/NAME.json, one of MEASURED; None where there is none. Raises UserError for a damaged one."""
    path, remedy = Path(out_dir) / f'{name}.json', f'python analyze.py {"ppl" if name == "results" else name} {out_dir} writes it anew'
    found = config.read_json(path, remedy, MEASURED[name])
    if found and not consistent(name, found):
        raise UserError(f'{path} is not what this program writes there: {remedy}')
    return found


def write_json(path, content_of):
    """content_of() as JSON; what it reads, no other process writes in the meantime."""
    write_aside(path, lambda aside: aside.write_text(json.dumps(content_of(), indent=1) + '\n'))
    print(f'written: {path}', flush=True)


def write_csv(path, columns, rows):
    def write(aside):
        with open(aside, 'w', newline='', encoding='utf-8') as f:
            table = csv.DictWriter(f, columns, extrasaction='ignore')
            table.writeheader()
            table.writerows({key: '' if value != value else value for key, value in row.items()} for row in rows)  # nan: unknown
    write_aside(Path(path), write)


def save_figure(figure, path, dpi=150):
    kind = Path(path).suffix[1:]
    metadata = {'pdf': {'CreationDate': None}, 'svg': {'Date': None}}.get(kind)  # the same figure is the same bytes
    write_aside(Path(path), lambda aside: figure.savefig(aside, dpi=dpi, format=kind, metadata=metadata))


COLOURS = ['#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#F0E442', '#000000']  # Okabe and Ito's
LANGUAGE_COLOURS = {'EN': COLOURS[0], 'EN1': COLOURS[0], 'EN2': COLOURS[1], 'FR': COLOURS[2]}


def colour_of(language):
    return LANGUAGE_COLOURS.setdefault(language, COLOURS[len(LANGUAGE_COLOURS) % len(COLOURS)])


def shades(n):
    """n colours in an order that the eye sees, for lines by a share."""
    return pyplot().cm.viridis(np.linspace(0, 0.85, n))


def pyplot():
    """matplotlib.pyplot without a screen, set for figures of a column's width."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    plt.rcParams.update({'font.size': 8, 'axes.spines.top': False, 'axes.spines.right': False, 'legend.frameon': False,
                         'legend.fontsize': 7, 'lines.markersize': 4, 'lines.linewidth': 1.2, 'pdf.fonttype': 42})
    return plt


def plain_log(axis, engineering=False):
    """A logarithmic axis that is labelled in plain numbers, whatever it spans."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator
    low, high = sorted(axis.get_view_interval())
    subs = (1, 2, 5) if high > (8 if engineering else 30) * low else (1, 1.5, 2, 3, 5, 7)
    axis.set_major_locator(MaxNLocator(5) if high < 3 * low else LogLocator(subs=subs))
    axis.set_major_formatter(EngFormatter(sep='') if engineering else '{x:g}')
    axis.set_minor_locator(NullLocator())


# -----------------------------------------------------------------------------
# ppl: sliding-window perplexity (paper, section 3, Evaluation)


def sliding_window(run, ids, stride, batch_size, progress=None):
    """Nats and number of the scored tokens of a text, ids (N,) int64: two arrays, a sum a batch of windows.

    Windows of block_size tokens start every `stride` tokens. Of each, the last `stride` positions are scored and those
    before are context, so that after the first context every token, the ragged end included, is scored exactly once."""
    import torch

    from model import linear_cross_entropy
    window = run.cfg.block_size
    context = window - stride
    nats, scored = [], []
    starts = np.arange(0, max(0, len(ids) - 1 - context), stride)
    for i in range(0, len(starts), batch_size):
        places = starts[i:i + batch_size, None] + np.arange(window + 1)  # (B, window + 1)
        # beyond the end of the text any id will do: nothing that is scored attends to it
        batch = torch.from_numpy(ids[np.minimum(places, len(ids) - 1)]).to(run.device)
        real = torch.from_numpy(places[:, context + 1:] < len(ids)).to(run.device)  # (B, stride)
        with torch.no_grad(), run.autocast():
            features = run.model.features(batch[:, :-1])[:, context:]
            loss = linear_cross_entropy(features[real], run.model.lm_head.weight, batch[:, context + 1:][real])
        scored.append(int(real.sum()))
        nats.append(loss.item() * scored[-1])
        if progress:
            progress(scored[-1])
    return np.array(nats), np.array(scored, int)


def ppl_uncertainty(nats, scored):
    """How far off PPL may be for so many tokens, at 95%, as a share of it: by the scatter between batches of windows, stretches
    of the text. None for one batch."""
    if len(scored) < 2:
        return None
    rest = nats - nats.sum() / scored.sum() * scored
    return math.expm1(1.96 * math.sqrt((rest ** 2).sum() * len(rest) / (len(rest) - 1)) / scored.sum())


def measure_ppl(out_dir, args):
    """Score the test text in each language of a run and write OUT_DIR/results.json; returns its content."""
    run = load_run(out_dir, args.device, args.dtype)
    if run.cfg.model == 'word2vec':
        raise UserError(f'{out_dir} is of word2vec, which predicts no text and has no perplexity; alignment measures its embeddings')
    stride = args.stride or max(1, run.cfg.block_size // 4)
    if stride > run.cfg.block_size:
        raise UserError(f'--stride {stride} leaves tokens unscored: {out_dir} has windows of {run.cfg.block_size}')
    results = {'config': vars(run.cfg), 'step': run.step, 'non_embedding_parameters': run.model.num_params(),
               'tokens_seen': run.tokens_seen, 'window': run.cfg.block_size, 'stride': stride, 'languages': {}}
    for language in language_numbers(run, args.languages or run.dataset.names):
        name, corpus = run.cfg.languages[language]
        of_corpus = run.dataset.corpus_of[language]
        base = run.dataset.tokens['test'][slice(*of_corpus['test'])]
        ids = run.dataset.vocab_map[language, base].astype(np.int64)
        with tqdm(desc=f'{out_dir} {name}', total=len(ids), unit=' tokens', unit_scale=True, leave=False, disable=None) as bar:
            nats, scored = sliding_window(run, ids, stride, args.batch_size, bar.update)
        if not len(scored):
            raise UserError(f'{out_dir}: the test text of {name} has {len(ids)} tokens, no more than the context of the first window')
        n, uncertainty = int(scored.sum()), ppl_uncertainty(nats, scored)
        loss = float(nats.sum() / n)
        available = run.dataset.meta['languages'][language]['tokens']
        results['languages'][name] = {
            'corpus': corpus, 'test_text': hashlib.sha256(base.tobytes()).hexdigest()[:16], 'ppl': math.exp(loss), 'loss': loss,
            'bits_per_byte': loss / math.log(2) * of_corpus['test_tokens'] / of_corpus['test_bytes'], 'scored_tokens': n,
            'ppl_uncertainty': uncertainty, 'epochs': run.tokens_seen[name] / max(1, available)}
        print(f'{out_dir} {name}: PPL {math.exp(loss):.2f}, {results["languages"][name]["bits_per_byte"]:.3f} bits per byte, '
              f'{n:,} scored tokens; {run.tokens_seen[name]:,} tokens seen', flush=True)
        if uncertainty is None or uncertainty > 0.01:
            print(f'note: {out_dir} {name}: {n:,} scored tokens leave PPL uncertain'
                  + (f' by {100 * uncertainty:.1f}% (95%): 1% needs about {n * (100 * uncertainty) ** 2:,.0f}' if uncertainty else ''))
    write_json(run.out_dir / 'results.json', lambda: results)
    return results


# -----------------------------------------------------------------------------
# teff: scaling law and token efficiency (paper, section 3, Evaluation, and appendix B)


class ScalingLaw:
    """1/PPL = c - a * x^(-b), x = training tokens / those of the largest run, by least squares on 1/PPL.

    tokens, ppl: of monolingual runs of one model size on one corpus, on three or more amounts of tokens. Raises UserError
    where they are fewer, or where PPL does not fall with tokens. Fitted as 1/PPL = top + slope * (1 - x^-b) / b, the same
    curves, which pass through the logarithm at b = 0 without a seam (a = slope / b, c = top + a): runs so short that
    1/PPL still speeds up in log(tokens) have a negative b."""

    def __init__(self, tokens, ppl, name='the law'):
        from scipy.optimize import least_squares
        tokens, y = np.asarray(tokens, float), 1 / np.asarray(ppl, float)
        self.name, self.n, self.unit, self.shortest = name, len(y), tokens.max(), tokens.min()
        if len(set(tokens)) < 3:
            raise UserError(f'{name}: a law needs monolingual runs on at least three amounts of tokens, not {len(set(tokens))}')
        log_x = np.log(tokens / self.unit)

        def best_given(b):  # given b, the curve is linear in top and slope
            design = np.stack([np.ones_like(y), -np.expm1(-b * log_x) / b], 1)
            (top, slope), *_ = np.linalg.lstsq(design, y, rcond=None)
            return ((design @ [top, slope] - y) ** 2).sum(), top, slope, b
        _, *start = min(map(best_given, np.linspace(-1.995, 4.995, 700)))  # a grid that leaves out b = 0
        fit = least_squares(lambda v: (self.inverse_ppl(log_x, v) - y) / y.max(), start, jac='3-point', x_scale=np.abs(start) + 1e-12,
                            bounds=([-np.inf, -np.inf, -2], [np.inf, np.inf, 5]), xtol=1e-15, ftol=1e-15, gtol=1e-15)
        if fit.x[1] <= 0:
            raise UserError(f'{name}: the monolingual runs do not get better with more tokens, so that no law can be fitted')
        self.v = fit.x
        self.b = self.v[2]
        self.a = self.v[1] / self.b
        self.c = self.v[0] + self.a
        # the covariance of the parameters is known only where there are more runs than parameters
        self.covariance = 2 * fit.cost / (self.n - 3) * np.linalg.pinv(fit.jac.T @ fit.jac) if self.n > 3 else None
        self.error = np.abs(self.ppl(tokens) * y - 1).max()  # largest relative error in PPL

    @staticmethod
    def inverse_ppl(log_x, v):
        top, slope, b = v
        return top - slope * np.expm1(-b * log_x) / b

    def log_x(self, ppl, v):
        """The inverse of inverse_ppl; infinite where the curve never gets there."""
        top, slope, b = v
        rest = 1 - b * (1 / ppl - top) / slope
        return -math.log(rest) / b if rest > 0 else math.inf

    def ppl(self, tokens):
        """The PPL of a monolingual model trained on so many tokens (MLPE)."""
        inverse = self.inverse_ppl(np.log(np.asarray(tokens) / self.unit), self.v)
        return 1 / np.where(inverse > 0, inverse, np.nan)  # so few tokens that the law says nothing

    def tokens(self, ppl):
        """The tokens that a monolingual model would need for a PPL (MLTE); infinite where the law never gets there."""
        log_x = self.log_x(ppl, self.v)
        return self.unit * math.exp(log_x) if log_x < 100 else math.inf

    def interval(self, ppl):
        """The factor by which tokens(ppl) may be off either way, at 95%, from the scatter of the monolingual runs about
        the law; nan for three runs, which it meets exactly."""
        if self.covariance is None:
            return math.nan
        from scipy.stats import t
        steps = np.diag(1e-6 * np.abs(self.v))
        gradient = np.array([self.log_x(ppl, self.v + step) - self.log_x(ppl, self.v - step) for step in steps]) / (2 * steps.max(0))
        with np.errstate(all='ignore'):  # infinite where the fit says nothing
            return float(np.exp(t.ppf(0.975, self.n - 3) * np.sqrt(gradient @ self.covariance @ gradient)))

    def __str__(self):
        sign = '-' if self.a > 0 else '+'
        return (f'{self.name}: 1/PPL = {self.c:.5g} {sign} {abs(self.a):.4g} * (tokens / {self.unit:,.0f})^{-self.b:.4g}; '
                f'{self.n} monolingual runs, off by at most {100 * self.error:.2f}% in PPL')


COLUMNS = ['run', 'model', 'corpus', 'language', 'tokens', 'ppl', 'role']
MEASURES = ['mlpe', 'mlte', 'teff', 'teff_low', 'teff_high', 'extrapolated']


def rows_of_csv(path):
    """The rows of a table of runs. Raises UserError for a missing file or column, or a value that is none."""
    try:
        with open(path, newline='', encoding='utf-8') as f:
            rows = list(csv.DictReader(f))
    except (OSError, UnicodeDecodeError, csv.Error) as e:
        raise UserError(f'{path} cannot be read: {e}') from None
    if not rows:
        raise UserError(f'{path} has no rows')
    for column in COLUMNS:
        if column not in rows[0]:
            raise UserError(f'{path} has no column {column!r}: it needs a header line with {",".join(COLUMNS)}')
    for number, row in enumerate(rows, 2):
        try:
            row['tokens'], row['ppl'] = int(float(row['tokens'])), float(row['ppl'])
            if not (0 < row['tokens'] and 1 < row['ppl'] < math.inf and row['role'] in ('mono', 'multi')):
                raise ValueError
        except (ValueError, TypeError, OverflowError):
            raise UserError(f'{path}, line {number}: tokens must be a positive number, ppl a number above 1, role mono or multi: '
                            f'{row["tokens"]}, {row["ppl"]}, {row["role"]}') from None
    return rows


def results_of(out_dir, args):
    """The content of OUT_DIR/results.json, measured first where it is missing. Raises UserError for an unfinished run."""
    results = read_measured(out_dir, 'results') or measure_ppl(out_dir, args)
    max_iters = config.restored(results['config'], f'{out_dir}/results.json').max_iters
    if results['step'] < max_iters:
        raise UserError(f'{out_dir} is at step {results["step"]:,} of {max_iters:,}, and TEff compares whole runs: '
                        'train.py --resume finishes it')
    return results


def rows_of_results(all_results):
    """{out_dir: results} -> a row for every language that a run has seen."""
    rows, texts = [], {}
    for out_dir, results in all_results.items():
        cfg = config.restored(results['config'], f'{out_dir}/results.json')
        seen = {name: n for name, n in results['tokens_seen'].items() if n and name in results['languages']}
        for name, n in seen.items():
            measured = results['languages'][name]
            corpus = measured['corpus']
            text, other = texts.setdefault(corpus, (measured['test_text'], out_dir))
            if text != measured['test_text']:
                raise UserError(f'{out_dir} and {other} both call their corpus {corpus!r}, but have different test texts '
                                'or tokenizers: they cannot be compared')
            rows.append({'out_dir': out_dir, 'run': os.path.basename(os.path.normpath(out_dir)),
                         'model': f'{cfg.model}-{cfg.n_layer}x{cfg.n_embd}', 'corpus': corpus, 'language': name, 'tokens': n,
                         'ppl': measured['ppl'], 'role': 'multi' if len(seen) > 1 else 'mono',
                         'bits_per_byte': measured.get('bits_per_byte', math.nan),
                         **{key: measured.get(key) for key in ('scored_tokens', 'ppl_uncertainty', 'epochs')}})
    return rows


def fit_law(rows, model, corpus):
    """The law of a model size on a corpus, from the monolingual runs among rows. Raises UserError where none can be fitted."""
    mono = [row for row in rows if (row['model'], row['corpus'], row['role']) == (model, corpus, 'mono')]
    if not mono:
        raise UserError(f'{model} on {corpus}: there is no monolingual run to fit its law to; three are needed')
    return ScalingLaw([row['tokens'] for row in mono], [row['ppl'] for row in mono], f'{model} on {corpus}')


def add_efficiency(row, law):
    """Add mlpe, mlte, teff, teff_low, teff_high and extrapolated to a row. Raises UserError where the law cannot reach its PPL."""
    mlte = law.tokens(row['ppl'])
    if mlte == math.inf:
        raise UserError(f'run {row["run"]}, {row["language"]}: the law of {law.name} never reaches a PPL of {row["ppl"]:.4g} '
                        f'(its limit is {1 / law.c:.4g}): it needs monolingual runs on more tokens')
    factor = law.interval(row['ppl'])
    teff = mlte / row['tokens']
    row |= {'mlpe': float(law.ppl(row['tokens'])), 'mlte': mlte, 'teff': teff, 'teff_low': teff / factor, 'teff_high': teff * factor,
            'extrapolated': 'no' if 0.99 * law.shortest <= mlte <= 1.01 * law.unit else 'yes'}  # 1%: a law misses its own runs a little


def token_efficiency(rows):
    """Add every row's efficiency; returns the laws, {(model, corpus): law}. Raises UserError as fit_law and add_efficiency do."""
    laws = {}
    for row in rows:
        key = row['model'], row['corpus']
        laws[key] = laws.get(key) or fit_law(rows, *key)
        add_efficiency(row, laws[key])
    return laws


def weaknesses(rows, laws):
    """What makes these figures weaker than they look, a line each."""
    found = [f'{law.name}: the law of three runs meets each of them exactly and has no interval: four or more'
             for law in laws.values() if law.n < 4]
    for row in rows:
        if (row.get('epochs') or 0) > 1:
            found.append(f'{row["run"]} has read {row["language"]} {row["epochs"]:.2f} times: TEff counts a token each time')
    if few := [row for row in rows if (row.get('ppl_uncertainty') or 0) > 0.01]:
        worst = max(few, key=lambda row: row['ppl_uncertainty'])
        found.append(f'{worst["scored_tokens"]:,} scored tokens leave PPL uncertain by up to {100 * worst["ppl_uncertainty"]:.1f}% (95%, '
                     f'{worst["run"]}, {worst["language"]}); differences on the same text are surer')
    return found


def print_table(rows):
    header = ['run', 'language', 'tokens seen', 'PPL', 'MLPE', 'MLTE', 'TEff', '95% of the fit']
    cells = [[row['run'], row['language'], f'{row["tokens"]:,.0f}', f'{row["ppl"]:.2f}',
              '' if math.isnan(row['mlpe']) else f'{row["mlpe"]:.2f}', f'{row["mlte"]:,.0f}',
              f'{row["teff"]:.2f}' + ('*' if row['extrapolated'] == 'yes' else ' '),
              '' if math.isnan(row['teff_low']) else f'{row["teff_low"]:.2f} to {row["teff_high"]:.2f}'] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells)]
    for line in [header, *cells]:
        print('  '.join(cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths))).rstrip())
    if any(row['extrapolated'] == 'yes' for row in rows):
        print('* extrapolated: MLTE lies outside the range of the monolingual runs')


def draw_teff(rows, laws):
    """Left: PPL by tokens, with the laws; the arrow from a point to its law spans MLTE. Right: TEff."""
    multi = [row for row in rows if row['role'] == 'multi']
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(9, max(3.2, 0.3 * len(multi) + 1.3)), layout='constrained')
    for i, (key, law) in enumerate(laws.items()):
        mono = [row for row in rows if row['role'] == 'mono' and (row['model'], row['corpus']) == key]
        span = [f(row[k] for row in rows if (row['model'], row['corpus']) == key for k in ('tokens', 'mlte')) for f in (min, max)]
        x = np.geomspace(*span, 200)
        left.plot(x, law.ppl(x), color=f'C{i}', lw=1.2, label=f'law of {law.name}')
        left.plot([row['tokens'] for row in mono], [row['ppl'] for row in mono], 'o', color=f'C{i}', ms=5, label='monolingual runs')
    markers = dict(zip(dict.fromkeys(row['run'] for row in multi), 'sD^vP*X<>' * len(multi)))
    colours = {run: f'C{(i + len(laws)) % 10}' for i, run in enumerate(markers)}
    for row in multi:
        left.plot(row['tokens'], row['ppl'], markers[row['run']], color=colours[row['run']], ms=6)
        left.annotate('', (row['mlte'], row['ppl']), (row['tokens'], row['ppl']),
                      arrowprops={'arrowstyle': '->', 'color': colours[row['run']]})
    for run, marker in markers.items():
        left.plot([], [], marker, color=colours[run], label=run)
    left.set(xscale='log', yscale='log', xlabel='training tokens in the language', ylabel='PPL')
    plain_log(left.xaxis, engineering=True)
    plain_log(left.yaxis)
    left.legend()
    names = [f'{row["run"]}, {row["language"]}' for row in multi]
    right.barh(range(len(multi)), [row['teff'] for row in multi], height=0.6, color=[colours[row['run']] for row in multi])
    for i, row in enumerate(multi):
        if not math.isnan(row['teff_low']):
            right.plot([row['teff_low'], row['teff_high']], [i, i], color='black', lw=1, marker='|', ms=6)
        label = f'{row["teff"]:.2f}' + '*' * (row['extrapolated'] == 'yes')
        right.text(0.02, i, label, va='center', color='white', fontweight='bold')
    right.axvline(1, color='black', lw=0.8, ls=':')
    right.set(yticks=range(len(multi)), yticklabels=names, xlabel='TEff (1: as a monolingual model)')
    right.invert_yaxis()
    return figure


def teff(args):
    if args.runs and args.out_dirs:
        raise UserError('teff takes the folders of runs or --runs, not both')
    folders = run_folders(args.out_dirs)
    if not args.runs and not folders:
        raise UserError('teff needs the folders of trained runs, or --runs with a table of them')
    rows = rows_of_csv(args.runs) if args.runs else rows_of_results({out_dir: results_of(out_dir, args) for out_dir in folders})
    laws = token_efficiency(rows)
    for law in laws.values():
        print(law)
    print_table(rows)
    for weakness in weaknesses(rows, laws):
        print(f'note: {weakness}')
    if args.csv:
        write_csv(args.csv, COLUMNS + MEASURES, rows)
    plot = args.plot
    if not plot and not args.runs:
        plot = Path(os.path.commonpath([os.path.dirname(os.path.abspath(d)) for d in folders])) / 'teff.png'
    if plot:
        save_figure(draw_teff(rows, laws), plot)
        print(f'figure: {os.path.relpath(plot)}')


# -----------------------------------------------------------------------------
# Parallel sequences (paper, section 3, Data)


def language_pair(run, names):
    """The numbers of two languages of a run, by name; by default its first two. Raises UserError where there are not two."""
    pair = language_numbers(run, names or run.dataset.names[:2])
    if len(set(pair)) < 2:
        raise UserError(f'{run.out_dir}: two different languages are needed to compare, not {" and ".join(names or run.dataset.names)}')
    return pair


def are_clones(run, pair):
    """Whether two languages of a run are of one corpus: then every text is its own translation."""
    return run.cfg.languages[pair[0]][1] == run.cfg.languages[pair[1]][1]


def read_lines(path):
    """The lines of a text file, plain, .gz, .xz or .zst. Only a line feed ends one: str.splitlines() also splits at the odd separators
    that Europarl has within lines, and the two sides would no longer be aligned."""
    with opened(path) as f:
        try:
            return f.read().decode().replace('\r\n', '\n').removesuffix('\n').split('\n')
        except UnicodeDecodeError as e:
            raise UserError(f'{path}: not UTF-8 at byte {e.start}; convert the file first') from None


def parallel_lines(run, pair, files):
    """Aligned text -> the number of its lines, and an iterator over their model ids in both languages, int64 arrays (n,) and
    (m,). Clones need one file, two corpora a file each. Raises UserError where the files do not fit."""
    if are_clones(run, pair):
        files = [files[0], files[0]]
    if len(files) < 2:
        raise UserError('two corpora need two aligned files: --parallel a.en a.fr')
    lines = [read_lines(path) for path in files]
    if len(lines[0]) != len(lines[1]):
        raise UserError(f'{files[0]} and {files[1]} have {len(lines[0])} and {len(lines[1])} lines: not aligned')
    tokenizers = [load_tokenizer(run.dataset.path / run.dataset.corpus_of[language]['tokenizer']) for language in pair]

    def model_ids(texts):
        return [run.dataset.vocab_map[language, tokenizer.encode(text)].astype(np.int64)
                for language, tokenizer, text in zip(pair, tokenizers, texts)]
    return len(lines[0]), map(model_ids, zip(*lines))


def joined_lines(lines, longest):
    """Join consecutive pairs of lines while both sides have at most `longest` tokens; yields pairs of ids, (S,) and (T,).
    Lines beyond that are skipped, and so are sequences with a side below a quarter of it: 128 to 512 tokens in the paper."""
    sides = ([], [])

    def whole():
        return min(sum(map(len, side)) for side in sides) >= max(2, longest // 4)

    for line in lines:
        if max(map(len, line)) > longest:
            continue
        if any(sum(map(len, side)) + len(ids) > longest for side, ids in zip(sides, line)):
            if whole():
                yield tuple(map(np.concatenate, sides))
            sides = ([], [])
        for side, ids in zip(sides, line):
            side.append(ids)
    if whole():
        yield tuple(map(np.concatenate, sides))


def parallel_sequences(run, pair, files, n):
    """Up to n pairs of parallel sequences, model ids int64 (S,) and (T,); without files, of the test text for clones."""
    if files:
        return list(itertools.islice(joined_lines(parallel_lines(run, pair, files)[1], run.cfg.block_size), n))
    if not are_clones(run, pair):
        raise UserError('languages of two corpora need parallel text: --parallel a.en a.fr')
    starts = run.dataset.test_windows(pair[0], n)
    sides = [run.dataset.windows('test', starts, np.full(len(starts), language))[0] for language in pair]
    return list(zip(*sides))


# -----------------------------------------------------------------------------
# alignment: embeddings, hidden states, gradients (paper, sections 4.2 and 5.2, appendices C, F, G)


def unit_rows(x):
    """Rows (..., C) scaled to length one."""
    return x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12)


def embedding_similarity(table, rows, frequency):
    """Cosine of equivalent subwords in an embedding table (vocabulary, C), for clones (appendix C).

    rows: model ids (2, V) of the subwords in both languages, frequency: (V,) of the rarer version in training. Subwords that
    the clones share (anchors) are left out. Returns the mean; the mean over all pairs of different languages, the control for
    anisotropy, exact without V x V products; and the mean by frequency in powers of ten."""
    apart = rows[0] != rows[1]
    a, b = (unit_rows(table[row[apart]].double()) for row in rows)
    cosine = (a * b).sum(-1).cpu().numpy()
    if not len(cosine):
        raise UserError('the clones share their whole vocabulary: there are no two embeddings of a subword to compare')
    edges = np.array([0, *10 ** np.arange(19)])  # 0, 1, 10, 100, ...: the first bin never occurred
    bin_of = np.searchsorted(edges, frequency[apart], 'right') - 1
    bins = [{'from': int(edges[i]), 'below': int(edges[i + 1]), 'subwords': int((bin_of == i).sum()),
             'mean': float(cosine[bin_of == i].mean())} for i in np.unique(bin_of)]
    all_pairs = float(a.sum(0) @ b.sum(0) / len(a) ** 2)
    return {'mean': float(cosine.mean()), 'all_pairs': all_pairs, 'subwords': len(a), 'by_frequency': bins}


def training_frequency(run, language):
    """How often training read each base id in a language, (V,)."""
    dataset, V = run.dataset, run.dataset.corpus_of[language]['vocab_size']
    sampler = Sampler(dataset.pools, run.cfg.schedule, run.cfg.batch_size, run.cfg.max_iters, run.cfg.seed)
    left, counts, epoch = run.tokens_seen[dataset.names[language]] // dataset.block_size, np.zeros(V, np.int64), 0
    while left:
        sequences = sampler.order(language, epoch)[:left]
        for part in np.array_split(sequences, len(sequences) // 4096 + 1):
            starts = dataset.origin[language] + part * dataset.block_size
            tokens = dataset.tokens['train'][starts[:, None] + np.arange(dataset.block_size)]
            if len(tokens) and tokens.max() >= V:
                raise UserError(f'{dataset.path}/train.bin has a token id beyond the {V:,} of its corpus: make it anew with data_prep.py')
            counts += np.bincount(tokens.ravel(), minlength=V)
        left, epoch = left - len(sequences), epoch + 1
    return counts


def hidden_states(run, ids):
    """Every block's output for one sequence of model ids (S,), before the final norm, scaled to length one: (n_layer, S, C)."""
    import torch
    hidden = []
    with torch.no_grad(), run.autocast():
        run.model.features(torch.from_numpy(ids)[None].to(run.device), hidden)
    return unit_rows(torch.cat(hidden).float())


def match(cosine):
    """The maximum-weight full matching of the tokens of two sequences (appendix G), by cosine (S, T) averaged over layers:
    two index arrays (min(S, T),). The assignment solver of scipy; networkx would build a graph of S x T edges first."""
    from scipy.optimize import linear_sum_assignment
    return linear_sum_assignment(cosine, maximize=True)


def hidden_similarity(run, sequences, clones):
    """Cosine of corresponding tokens' hidden states per layer, mean over a sequence, then over sequences, (n_layer,) each:
    'matching' by the maximum-weight matching, and for clones 'position' by position."""
    sums = {}
    for a, b in tqdm(sequences, 'hidden states', leave=False, disable=None):
        a, b = hidden_states(run, a), hidden_states(run, b)
        cosine = a @ b.mT  # (n_layer, S, T)
        rows, columns = match(cosine.mean(0).cpu().numpy())
        of_sequence = {'matching': cosine[:, rows, columns].mean(1)}
        if clones:
            of_sequence['position'] = (a * b).sum(-1).mean(1)
        for kind, value in of_sequence.items():
            sums[kind] = sums.get(kind, 0) + value.double().cpu().numpy()
    return {kind: (value / len(sequences)).tolist() for kind, value in sums.items()}


def gradients(run, ids):
    """Gradient of the mean loss over one sequence of model ids (S,), by parameter name, flat; the fused query, key and value
    apart."""
    import torch
    run.model.zero_grad()  # lets go of the last gradients and does not overwrite them, so that they need no copy
    ids = torch.from_numpy(ids)[None].to(run.device)
    with run.autocast():
        run.model(ids[:, :-1], ids[:, 1:]).backward()
    grads = {}
    for name, p in run.model.named_parameters():
        if 'c_attn' in name:
            grads |= {name.replace('c_attn', f'c_attn.{part}'): g.flatten() for part, g in zip('qkv', p.grad.chunk(3))}
        else:
            grads[name] = p.grad.flatten()
    return grads


def gradient_similarity(run, sequences):
    """Cosine between the gradients of a sequence and of its parallel, per parameter, mean over sequences (appendix F).

    Returns {'blocks': {parameter type: [per layer]}, 'others': {parameter: cosine}, 'macro_average': over types and layers}.
    The bias of the keys counts for nothing: softmax does not see it, its gradient is rounding."""
    import torch
    sums = {}
    for a, b in tqdm(sequences, 'gradients', leave=False, disable=None):
        a, b = gradients(run, a), gradients(run, b)
        for name in a:
            sums[name] = sums.get(name, 0.0) + torch.nn.functional.cosine_similarity(a[name].double(), b[name].double(), dim=0).item()
    run.model.zero_grad()
    blocks, others = {}, {}
    for name, value in sums.items():
        if name.startswith('h.'):
            blocks.setdefault(name.split('.', 2)[2], []).append(value / len(sequences))
        else:
            others[name] = value / len(sequences)
    blocks.pop('attn.c_attn.k.bias', None)
    return {'blocks': blocks, 'others': others, 'macro_average': float(np.mean(list(blocks.values())))}


def alignment(args):
    """Measure how alike a run's two languages are inside the model; writes OUT_DIR/alignment.json."""
    run = load_run(args.out_dir, args.device, args.dtype)
    pair = language_pair(run, args.languages)
    names, clones = [run.dataset.names[i] for i in pair], are_clones(run, pair)
    results = {'languages': names}
    if run.cfg.model == 'gpt':
        sequences = parallel_sequences(run, pair, args.parallel, args.sequences)
        if not sequences:
            raise UserError(f'the parallel text gives no sequence of {run.cfg.block_size // 4} to {run.cfg.block_size} tokens')
        if len(sequences) < args.sequences:
            print(f'note: the parallel text gives {len(sequences)} sequences, fewer than the {args.sequences} asked for')
        results['sequences'] = len(sequences)
    elif not clones:
        raise UserError(f'{args.out_dir} is of word2vec, and only clones have embeddings that can be compared one by one')
    if clones:
        V = run.dataset.corpus_of[pair[0]]['vocab_size']
        rarer = np.minimum(*(training_frequency(run, language) for language in pair))
        rows = run.dataset.vocab_map[list(pair), :V].astype(np.int64)
        tables = {'input': run.model.wte.weight.detach(), 'output': run.model.lm_head.weight.detach()}
        results['embeddings'] = {name: embedding_similarity(table, rows, rarer) for name, table in tables.items()}
        for name, found in results['embeddings'].items():
            bins = ', '.join(f'{b["from"]:,}+: {b["mean"]:.3f}' for b in found['by_frequency'])
            print(f'{name} embeddings: {found["mean"]:.3f}, all pairs {found["all_pairs"]:.3f}; by frequency {bins}')
    if run.cfg.model == 'gpt':
        results['hidden_states'] = hidden_similarity(run, sequences, clones)
        for kind, layers in results['hidden_states'].items():
            print(f'hidden states by {kind}, layers 1 to {len(layers)}: ' + ' '.join(f'{value:.2f}' for value in layers))
        results['gradients'] = found = gradient_similarity(run, sequences)
        print(f'gradients: macro-average {found["macro_average"]:.3f}; ' + ', '.join(f'{k} {v:.3f}' for k, v in found['others'].items()))
        print(f'{" and ".join(names)}, {len(sequences)} parallel sequences')
    write_json(run.out_dir / 'alignment.json', lambda: results)


# -----------------------------------------------------------------------------
# matching: the token pairs of one sentence (paper, appendix G, figure 14)


def matching(args):
    """Match the tokens of the sequence that holds line args.line, print the pairs of that line and draw them."""
    run = load_run(args.out_dir, args.device, args.dtype)
    pair = language_pair(run, args.languages)
    n, lines = parallel_lines(run, pair, args.parallel)
    if not 1 <= args.line <= n:
        raise UserError(f'--line {args.line}: the parallel text has lines 1 to {n}')
    lines = list(itertools.islice(lines, args.line - 1, args.line - 1 + run.cfg.block_size))
    if not 0 < min(map(len, lines[0])) <= max(map(len, lines[0])) <= run.cfg.block_size:
        raise UserError(f'line {args.line} has {len(lines[0][0])} and {len(lines[0][1])} tokens, not 1 to {run.cfg.block_size}')
    ids = next(joined_lines(lines, run.cfg.block_size), lines[0])  # the sequence that begins with this line
    shown = [len(side) for side in lines[0]]
    a, b = (hidden_states(run, side) for side in ids)
    cosine = (a @ b.mT).mean(0).cpu().numpy()
    pairs = [(int(i), int(j)) for i, j in zip(*match(cosine)) if i < shown[0] or j < shown[1]]
    texts = []
    for language, side in zip(pair, ids):
        corpus = run.dataset.corpus_of[language]
        pieces = load_tokenizer(run.dataset.path / corpus['tokenizer']).pieces
        base = {int(model_id): i for i, model_id in enumerate(run.dataset.vocab_map[language]) if model_id >= 0}
        texts.append([pieces[base[int(i)]] for i in side])
    for i, j in pairs:
        print(f'{texts[0][i] if i < shown[0] else "..."}\t{texts[1][j] if j < shown[1] else "..."}\t{cosine[i, j]:.3f}')
    results = {'languages': [run.dataset.names[i] for i in pair], 'line': args.line,
               'tokens': [text[:n] for text, n in zip(texts, shown)], 'pairs': pairs}
    write_json(run.out_dir / 'matching.json', lambda: results)
    plot = args.plot or run.out_dir / f'matching_line_{args.line}.png'
    save_figure(draw_matching(**results), plot)
    print(f'figure: {os.path.relpath(plot)}')


def draw_matching(languages, line, tokens, pairs):
    """Two rows of tokens with lines between matched ones; a match beyond the row's end points at '...'."""
    plt = pyplot()
    rows = [[*text, '...'] for text in tokens]
    places = []  # the middle of every token; a character is 0.11 inch wide
    for row in rows:
        widths = np.array([0.11 * len(token) + 0.22 for token in row])
        places.append(np.cumsum(widths) - widths / 2)
    figure, axes = plt.subplots(figsize=(max(p[-1] for p in places) + 1.6, 2.4), layout='constrained')
    for y, (row, x, name) in enumerate(zip(rows, places, languages)):
        axes.text(-0.3, 1 - y, name, ha='right', va='center', fontweight='bold')
        for token, at in zip(row, x):
            axes.text(at, 1 - y, token, ha='center', va='center', family='monospace', fontsize=9)
    for i, j in pairs:
        ends = [min(k, len(row) - 1) for k, row in zip((i, j), rows)]
        colour, style = ('C0', '-') if i < len(tokens[0]) and j < len(tokens[1]) else ('grey', ':')
        axes.plot([places[0][ends[0]], places[1][ends[1]]], [0.86, 0.14], color=colour, lw=0.9, ls=style)
    axes.set(xlim=(-1.2, max(p[-1] for p in places) + 0.3), ylim=(-0.25, 1.25))
    axes.axis('off')
    return figure


# -----------------------------------------------------------------------------
# glue: fine-tuned in one language, zero-shot in its clone (paper, section 4.2, figure 1)

# the names that a class goes by: in GLUE's own files, and in JSON lines
YES_NO, TWO_WAY = (('0', 'false'), ('1', 'true')), (('entailment', '0'), ('not_entailment', '1'))
THREE_WAY = (('entailment', '0'), ('neutral', '1'), ('contradiction', '2'))
# task -> folder; the fields of its texts and of its label, each with the names it goes by; classes; the task's own metric
GLUE = {'cola': ('CoLA', ['sentence'], 'label', YES_NO, 'matthews'),
        'sst2': ('SST-2', ['sentence'], 'label', YES_NO, 'accuracy'),
        'mrpc': ('MRPC', ['#1 String|sentence1', '#2 String|sentence2'], 'Quality|label', YES_NO, 'f1'),
        'qqp': ('QQP', ['question1', 'question2'], 'is_duplicate|label', YES_NO, 'f1'),
        'mnli': ('MNLI', ['sentence1|premise', 'sentence2|hypothesis'], 'gold_label|label', THREE_WAY, 'accuracy'),
        'qnli': ('QNLI', ['question', 'sentence'], 'label', TWO_WAY, 'accuracy'),
        'rte': ('RTE', ['sentence1|premise', 'sentence2|hypothesis'], 'label', TWO_WAY, 'accuracy'),
        'boolq': ('BoolQ', ['question', 'passage'], 'label', YES_NO, 'accuracy'),
        'multirc': ('MultiRC', ['question', 'answer', 'paragraph'], 'label', YES_NO, 'f1'),
        'wsc': ('WSC', ['span2_text', 'span1_text', 'text'], 'label', YES_NO, 'accuracy')}
COLA_COLUMNS = ['source', 'label', 'star', 'sentence']  # GLUE's one file without a header line
SETS = {'train': ['train'], 'dev': ['dev', 'val', 'validation'], 'matched': ['dev_matched', 'validation_matched'],
        'mismatched': ['dev_mismatched', 'validation_mismatched']}  # names of a set's file


def task_folders(data):
    """The folders of tasks in a folder, {task: path}, whatever their case and hyphens: SST-2, sst2, SST_2."""
    def plain(name):
        return name.lower().replace('-', '').replace('_', '')
    try:
        there = {plain(path.name): path for path in sorted(Path(data).iterdir()) if path.is_dir()}
    except OSError as e:
        raise UserError(f'--data {data} cannot be read: {e.strerror}') from None
    return {task: there[plain(name)] for task, (name, *_) in GLUE.items() if plain(name) in there}


def tsv_records(text, columns=None):
    """The records of a TSV file, with their line numbers. GLUE's know no quotes, and a few of QQP's lines lack fields:
    None for these."""
    for number, line in enumerate(text.split('\n'), 1):
        fields = line.rstrip('\r').split('\t')
        if columns is None:
            columns = fields
        elif line.strip():
            yield number, dict(zip(columns, fields)) if len(fields) == len(columns) else None


def json_records(text):
    """The records of JSON lines, with their line numbers; MultiRC's nested questions and WSC's target are laid flat."""
    for number, line in enumerate(text.split('\n'), 1):
        if line.strip():
            record = json.loads(line)
            if isinstance(record.get('passage'), dict):
                for question in record['passage']['questions']:
                    for answer in question['answers']:
                        yield number, {'paragraph': record['passage']['text'], 'question': question['question'],
                                       'answer': answer['text'], 'label': answer['label']}
            else:
                yield number, record | record.get('target', {})


def read_task(folder, task, which):
    """The examples of a task's set, [(texts, class)]. Raises UserError for a missing file or field, or an unknown label."""
    files = [folder / f'{name}.{kind}' for name in SETS[which] for kind in ('tsv', 'jsonl', 'json')]
    path = next((file for file in files if file.is_file()), None)
    if not path:
        raise UserError(f'{folder} has no {which} set of {task}: it needs {files[0].name} or {files[1].name}')
    _, fields, label, classes, _ = GLUE[task]
    class_of = {name: i for i, names in enumerate(classes) for name in names}
    examples, skipped, number = [], 0, 0
    try:
        text = path.read_text('utf-8-sig')
        columns = COLA_COLUMNS if task == 'cola' else None
        for number, record in tsv_records(text, columns) if path.suffix == '.tsv' else json_records(text):
            if record is None:
                skipped += 1
                continue
            names = [next((name for name in field.split('|') if name in record), None) for field in [*fields, label]]
            if None in names:
                missing = [*fields, label][names.index(None)].replace('|', ' or ')
                raise UserError(f'{path}, line {number}: no field {missing}; it has {", ".join(record)[:80]}')
            *texts, found = (str(record[name]) for name in names)
            if found.lower() not in class_of:
                raise UserError(f'{path}, line {number}: unknown label {found[:20]!r}; {task} has {", ".join(c for c, *_ in classes)}')
            if len(texts) == 3:  # MultiRC's question with its answer, WSC's pronoun with the noun: one text
                texts = [f'{texts[0]} {texts[1]}', texts[2]]
            examples.append((texts, class_of[found.lower()]))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as e:  # UnicodeDecodeError is a ValueError
        raise UserError(f'{path}, after line {number}: not a record of {task} ({type(e).__name__}: {str(e)[:60]})') from None
    if skipped:
        print(f'note: {path}: skipped {skipped} lines with a wrong number of fields')
    if not examples:
        raise UserError(f'{path} has no examples of {task}')
    return examples


def encode_examples(run, language, examples, longest):
    """Examples [(texts, class)] -> base ids [(n,)] and classes (N,). The end-of-document token ends every text; of more than
    `longest` tokens, the end of the longer text is cut."""
    corpus = run.dataset.corpus_of[language]
    tokenizer = load_tokenizer(run.dataset.path / corpus['tokenizer'])
    ids = []
    for texts, _ in examples:
        first, *rest = (tokenizer.encode(text) for text in texts)
        room = longest - len(texts)
        first = first[:max(room // len(texts), room - sum(map(len, rest)))]
        ids.append(np.array(sum(([*part, tokenizer.eod] for part in [first, *(part[:room - len(first)] for part in rest)]), [])))
    return ids, np.array([label for _, label in examples])


def class_logits(run, head, ids, language):
    """The linear head on what stands at the last token of every text, after the final norm: (N, classes)."""
    import torch
    batch = np.zeros((len(ids), max(map(len, ids))), np.int64)  # padded on the right, which causality hides
    for row, text in zip(batch, ids):
        row[:len(text)] = text
    last = torch.tensor([len(text) - 1 for text in ids], device=run.device)
    with run.autocast():
        features = run.model.features(torch.from_numpy(run.dataset.vocab_map[language, batch].astype(np.int64)).to(run.device))
        return head(features[torch.arange(len(ids), device=run.device), last]).float()


def predict(run, head, ids, language):
    """The class of every text, (N,)."""
    import torch
    by_length, classes = np.argsort([len(text) for text in ids], kind='stable'), np.empty(len(ids), np.int64)
    with torch.no_grad():
        for part in np.array_split(by_length, len(ids) // 256 + 1):
            classes[part] = class_logits(run, head, [ids[i] for i in part], language).argmax(-1).cpu().numpy()
    return classes


def task_metrics(predicted, true, own):
    """{'accuracy': share that is right, own: the task's own metric}: 'f1' of class 1, or 'matthews', the correlation."""
    metrics = {'accuracy': float((predicted == true).mean())}
    tp, fp, fn, tn = (int(((predicted == p) & (true == t)).sum()) for p, t in ((1, 1), (1, 0), (0, 1), (0, 0)))
    if own == 'f1':
        metrics['f1'] = 2 * tp / max(1, 2 * tp + fp + fn)
    if own == 'matthews':
        metrics['matthews'] = (tp * tn - fp * fn) / math.sqrt(max(1, (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    return metrics


def shuffled_batches(lengths, batch_size, seed):
    """An epoch's batches, index arrays, of texts of about one length each: sorted within every 32 batches, little is padding."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(lengths))
    groups = np.split(order, range(32 * batch_size, len(order), 32 * batch_size))
    order = np.concatenate([group[np.argsort(lengths[group], kind='stable')] for group in groups])
    batches = np.split(order, range(batch_size, len(order), batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def fine_tune(run, train_set, dev_set, n_classes, own, language, args, name):
    """Fine-tune run.model and a new linear head on train_set (ids, classes) in one language; both end as they were where
    the task's own metric on dev_set was best. Adam, the learning rate falling to 0 in a straight line, gradients clipped at
    1; an evaluation every args.eval_every steps and after every epoch, until args.patience of them have not been better by
    0.001. Returns the head and the steps made."""
    import torch
    ids, classes = train_set
    torch.manual_seed(args.seed)
    head = torch.nn.Linear(run.cfg.n_embd, n_classes).to(run.device)
    modules = torch.nn.ModuleList([run.model, head])
    parameters = [p for key, p in modules.named_parameters() if 'lm_head' not in key]  # which a classifier does without
    optimizer = torch.optim.Adam(parameters, lr=args.learning_rate)
    total = args.epochs * -(-len(ids) // args.batch_size)
    best, best_state, waited = -math.inf, None, 0
    bar = tqdm(desc=name, total=total, unit=' steps', leave=False, disable=None)
    for epoch in range(args.epochs):
        batches = shuffled_batches(np.array([len(text) for text in ids]), args.batch_size, [args.seed, epoch])
        for i, batch in enumerate(batches, 1):
            step = epoch * len(batches) + i
            optimizer.param_groups[0]['lr'] = args.learning_rate * (1 - (step - 1) / total)
            target = torch.from_numpy(classes[batch]).to(run.device)
            torch.nn.functional.cross_entropy(class_logits(run, head, [ids[i] for i in batch], language), target).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            bar.update()
            if i % args.eval_every and i < len(batches):
                continue
            score = task_metrics(predict(run, head, dev_set[0], language), dev_set[1], own)[own]
            bar.set_postfix_str(f'{own} {score:.3f}')
            waited += 1
            if score > best + 0.001:
                best, waited = score, 0
                best_state = {key: value.clone() for key, value in modules.state_dict().items()}
            if waited == args.patience or step == total:
                bar.close()
                modules.load_state_dict(best_state)
                return head, step


def glue(args):
    """Fine-tune a run on GLUE tasks in its first language and measure both; writes OUT_DIR/glue.json."""
    run = load_run(args.out_dir, args.device, args.dtype)
    if run.cfg.model != 'gpt':
        raise UserError(f'{args.out_dir} is of {run.cfg.model}, which reads no sentences: glue needs a GPT')
    pair = language_pair(run, args.languages)
    if not are_clones(run, pair):
        raise UserError('GLUE is in English only: glue compares clones, and these are languages of two corpora')
    folders = task_folders(args.data)
    tasks = args.tasks.split(',') if args.tasks else list(folders)
    for task in tasks:
        if task not in GLUE:
            raise UserError(f'--tasks {task}: the tasks are {", ".join(GLUE)}')
        if task not in folders:
            raise UserError(f'{args.data} has no folder {GLUE[task][0]} for {task}')
    if not tasks:
        raise UserError(f'{args.data} has no folder of a task: {", ".join(name for name, *_ in GLUE.values())}')
    sets = {task: {which: read_task(folders[task], task, which)
                   for which in (['train', 'matched', 'mismatched'] if task == 'mnli' else ['train', 'dev'])} for task in tasks}
    names = [run.dataset.names[language] for language in pair]
    settings = {key: value for key, value in vars(args).items() if isinstance(value, (int, float))}
    read_measured(run.out_dir, 'glue')  # a damaged one is refused before the work, not after it
    pretrained = {key: value.clone() for key, value in run.model.state_dict().items()}
    for task in tasks:
        _, _, _, classes, own = GLUE[task]
        encoded = {which: encode_examples(run, pair[0], examples, min(args.max_tokens, run.cfg.block_size))
                   for which, examples in sets[task].items()}
        train_set, *dev_sets = encoded.values()
        run.model.load_state_dict(pretrained)
        head, steps = fine_tune(run, train_set, dev_sets[0], len(classes), own, pair[0], args, f'{args.out_dir} {task}')
        measured = {}
        for key, (ids, true) in zip((task, 'mnli-mm'), dev_sets):
            measured[key] = found = {
                'steps': steps, 'train_examples': len(train_set[0]), 'dev_examples': len(ids), 'own_metric': own,
                'majority': float(np.bincount(true).max() / len(true)), 'settings': settings,
                **{name: task_metrics(predict(run, head, ids, language), true, own) for name, language in zip(names, pair)}}
            print(f'{args.out_dir} {key}: ' + '; '.join(
                f'{language} ' + ', '.join(f'{metric} {value:.3f}' for metric, value in found[language].items()) for language in names)
                + f'; majority {found["majority"]:.3f}, {steps:,} steps', flush=True)

        def with_measured():  # beside the tasks that are there, perhaps from another process a moment ago
            before = read_measured(run.out_dir, 'glue')
            tasks = (before['tasks'] if before and before['languages'] == names else {}) | measured
            return {'languages': names, 'tasks': tasks, 'mean_accuracy': {
                language: float(np.mean([found[language]['accuracy'] for found in tasks.values()])) for language in names}}
        write_json(run.out_dir / 'glue.json', with_measured)
    results = read_measured(run.out_dir, 'glue')
    print(f'{args.out_dir}, mean accuracy over {len(results["tasks"])}: '
          + ', '.join(f'{name} {value:.3f}' for name, value in results['mean_accuracy'].items()))


# -----------------------------------------------------------------------------
# report: a set of runs as tables and figures, beside the paper's


def schedule_name(schedule):
    """[(0.0, (.9, .1)), (0.5, (.1, .9))] -> '90/10 then 10/90 from 50%'."""
    stages = [('/'.join(f'{100 * p:.3g}' for p in ps), start) for start, ps in schedule]
    return ' then '.join(ps + (f' from {100 * start:g}%' if start else '') for ps, start in stages)


def run_of_report(out_dir, args):
    """A run's settings and all that was measured on it; perplexity is measured now where it was not. None of it needs the
    checkpoint, once it is measured."""
    folder = Path(out_dir)
    saved = config.read_json(folder / 'config.json', 'train.py with its config and --overwrite makes the run anew')
    if saved is None:
        saved = (read_measured(out_dir, 'results') or {}).get('config')
    if not isinstance(saved, dict):
        raise UserError(f'{out_dir} is not a run (it has no config.json): python train.py CONFIG.py --out_dir={out_dir} makes one')
    cfg = config.restored(saved, folder / 'config.json')
    check_languages(cfg)
    names, corpora = zip(*cfg.languages)
    run = SimpleNamespace(out_dir=out_dir, name=os.path.basename(os.path.normpath(out_dir)), cfg=cfg, names=names, rows=[])
    run.kind = 'mono' if len(names) == 1 else 'cloned' if len(set(corpora)) == 1 else 'real' if len(set(corpora)) == len(names) else 'mixed'
    run.size = f'{cfg.n_layer}x{cfg.n_embd}' if cfg.model == 'gpt' else f'word2vec-{cfg.n_embd}'
    # of two languages in one proportion throughout: the share of the second
    run.share = cfg.schedule[0][1][1] if len(names) == 2 and len(cfg.schedule) == 1 else None
    run.results = results_of(out_dir, args) if cfg.model == 'gpt' else None
    for measure in ('alignment', 'glue', 'matching'):
        setattr(run, measure, read_measured(out_dir, measure))
    if any(len(layers) != cfg.n_layer for layers in (run.alignment or {}).get('hidden_states', {}).values()):
        raise UserError(f'{out_dir}/alignment.json is of a model that has not the {cfg.n_layer} layers of this run: '
                        f'python analyze.py alignment {out_dir} writes it anew')
    return run


def total_tokens(cfg):
    return cfg.max_iters * cfg.batch_size * cfg.block_size


def setting_of(cfg, all_data):
    """What a run has in common with a row of the paper's tables: corpora of its languages, vocabulary, share of all data (the
    paper's 1.2B tokens), schedule."""
    corpora = [corpus for _, corpus in cfg.languages]
    data = total_tokens(cfg) / all_data
    data = next((printed for printed in (0.1, 0.5, 1, 2, 3) if abs(data / printed - 1) < 0.05), round(data, 2))  # of a table's rows
    clones = len(set(corpora)) < len(corpora)
    between = 'disjoint' if len(set(corpora)) == 1 else 'shared' if cfg.tokenizer == 'shared' else cfg.vocab
    vocab = f'{cfg.anchor_frac:g} anchors' if clones and cfg.anchor_frac else between
    return ' '.join(corpora), vocab, data, schedule_name(cfg.schedule)


def papers_figures():
    """config/paper.csv: {(corpora, vocab, data, schedule, measure): {number of the language or layer: (where, value as printed)}}."""
    found = {}
    with open(config.DEFAULT.with_name('paper.csv'), newline='', encoding='utf-8') as f:
        for row in csv.DictReader(f):
            key = row['corpora'], row['vocab'], float(row['data']), row['schedule'], row['measure']
            where = row['source'] + (f', row {row["row"]}' if row['row'] else '')
            found.setdefault(key, {})[int(row['number'])] = where, row['value']
    return found


def training_seconds(run):
    """How long a run trained, evaluations and interruptions left out, by its speed.jsonl; 0 where it has none."""
    path, seconds, before = Path(run.out_dir) / 'speed.jsonl', 0.0, 0
    try:
        for line in path.read_text('utf-8').splitlines() if path.exists() else ():
            logged = json.loads(line)
            if not config.fits(logged, {'step': int, 'tokens_per_second': int}):
                raise ValueError
            seconds += (logged['step'] - before) * run.cfg.batch_size * run.cfg.block_size / max(1, logged['tokens_per_second'])
            before = logged['step']
    except (ValueError, RecursionError, OverflowError, OSError):
        raise UserError(f'{path} is damaged: remove it, and the report does without') from None
    return seconds


class Report:
    """Runs and what can be said of all of them together: laws, efficiencies, the paper's figures for the same setting."""

    def __init__(self, out_dirs, args):
        self.notes, self.paper = [], papers_figures()
        self.runs = [run for out_dir in out_dirs if (run := self.attempt('left out', run_of_report, out_dir, args))]
        if not self.runs:
            raise UserError('none of these folders is a run with results: python train.py CONFIG.py makes one, with its name as out_dir')
        names = [run.name for run in self.runs]
        for run in self.runs:
            run.name = run.name if names.count(run.name) == 1 else os.path.normpath(run.out_dir)
            run.seconds = self.attempt('no training time', training_seconds, run)
        of_out_dir = {run.out_dir: run for run in self.runs}
        self.rows = rows_of_results({run.out_dir: run.results for run in self.runs if run.results})
        keys = dict.fromkeys((row['model'], row['corpus']) for row in self.rows)
        self.laws = {key: law for key in keys if (law := self.attempt('no TEff', fit_law, self.rows, *key))}
        for row in self.rows:
            of_out_dir[row['out_dir']].rows.append(row)
            if law := self.laws.get((row['model'], row['corpus'])):
                self.attempt('no TEff', add_efficiency, row, law)
        self.notes += weaknesses(self.rows, self.laws)
        if guesses := [f'{row["run"]} {row["language"]}' for row in self.rows if row.get('extrapolated') == 'yes']:
            self.notes.append(f'TEff by extrapolation, beyond the monolingual runs, of {", ".join(guesses)}')
        # all data, the paper's 1.2B tokens: what most runs of several languages are trained on
        totals = [total_tokens(run.cfg) for run in self.runs if run.kind != 'mono'] or [max(total_tokens(run.cfg) for run in self.runs)]
        self.all_data = args.tokens or min(set(totals), key=lambda total: (-totals.count(total), total))
        for run in self.runs:
            run.setting = run.corpora, run.vocab, run.data, run.schedule = setting_of(run.cfg, self.all_data)
        sizes = [run.size for run in self.runs if run.results]
        self.main_size = max(sizes, key=sizes.count, default=None)  # shown where a figure has room for one
        seeds, beside = {}, config.FREE | {'seed', 'dataset'}  # in which runs of one experiment may differ
        for run in sorted(self.runs, key=lambda run: run.cfg.seed):
            run.seeds = seeds.setdefault(repr([item for item in vars(run.cfg).items() if item[0] not in beside]), [])
            run.seeds.append(run)
        self.experiments = [run for run in self.runs if run is run.seeds[0]]  # a run each, of the lowest seed

    def attempt(self, otherwise, function, *arguments):
        """function(*arguments); where that is refused, None, and the reason becomes a note of the report."""
        try:
            return function(*arguments)
        except UserError as e:
            self.notes.append(f'{otherwise}: {e}')
            print(f'note: {self.notes[-1]}', flush=True)

    def scaling(self, kind, vocab):
        """Runs of two languages, 50/50 or 90/10, of any size on any amount of data."""
        return [run for run in self.experiments
                if run.rows and (run.kind, run.vocab) == (kind, vocab) and run.schedule in ('50/50', '90/10')]

    def papers(self, run, *measures, number=1):
        """The columns of a table that hold the paper's figures for the setting of a run: where, and each measure as printed."""
        found = [self.paper.get((*run.setting, measure), {}).get(number, ('', '')) for measure in measures]
        return {"paper's": found[0][0]} | {f'its {measure}': value for measure, (_, value) in zip(measures, found)}

    def ratios(self, kind, vocab='disjoint', model='gpt'):
        """Runs of two languages that differ in their proportion alone, by rising share of the second."""
        chosen = [run for run in self.experiments if (run.kind, run.vocab, run.data, run.cfg.model) == (kind, vocab, 1, model)
                  and run.share is not None and (model != 'gpt' or run.size == self.main_size)]
        return sorted(chosen, key=lambda run: run.share)


# Every figure is a function of the report: it returns a matplotlib figure, or None where its runs are missing.


def panels(rows, columns, height=2.4):
    """A figure of panels, each a column wide (3.3 inches), and its axes (rows, columns)."""
    return pyplot().subplots(rows, columns, figsize=(3.3 * columns, height * rows), layout='constrained', squeeze=False)


def of_language(number, key):
    """What reads a column of a run's row for its language of that number; nan where it has none."""
    return lambda run: next((row.get(key, math.nan) for row in run.rows if row['language'] == run.names[number]), math.nan)


def over_seeds(run, value_of):
    """value_of of every seed of an experiment that has one."""
    return [value for seed in run.seeds if (value := value_of(seed)) == value]


def draw_line(axes, runs, x_of, value_of, style, **look):
    """A line through experiments, each the mean over its seeds, with a bar from the lowest to the highest of several."""
    found = [(x_of(run), values) for run in runs if (values := over_seeds(run, value_of))]
    axes.plot([x for x, _ in found], [np.mean(values) for _, values in found], style, **look)
    for x, values in found:
        if len(values) > 1:
            axes.plot([x, x], [min(values), max(values)], '-', color=look['color'], lw=4, alpha=0.35)


def percent(run):
    """The share of the second language in training."""
    return 100 * run.share


def tokens_of(run):
    return total_tokens(run.cfg)


def parameters(run):
    return run.results['non_embedding_parameters']


def figure_ratio(report, kind, vocabularies=('disjoint',)):
    """PPL with the MLPE curve, and TEff, by the second language's share."""
    shown = {vocab: runs for vocab in vocabularies if len(runs := report.ratios(kind, vocab)) > 1}
    if not shown:
        return None
    figure, ((left, right),) = panels(1, 2)
    for (vocab, runs), style in zip(shown.items(), ('-o', '--s')):
        for number, name in enumerate(runs[0].names):
            label = name if len(shown) == 1 else f'{name}, {vocab}'
            for axes, key in ((left, 'ppl'), (right, 'teff')):
                draw_line(axes, runs, percent, of_language(number, key), style, color=colour_of(name), label=label)
    for number, (name, corpus) in enumerate(runs[0].cfg.languages):
        if law := report.laws.get((runs[0].rows[0]['model'], corpus)):
            share = np.linspace(runs[0].share, runs[-1].share, 100)
            tokens = (share if number else 1 - share) * report.all_data
            mlpe = np.where(tokens > 0.99 * law.shortest, law.ppl(tokens), math.nan)  # below its shortest run a law is a guess
            left.plot(100 * share, mlpe, ':', color=colour_of(name), label=f'{name}, MLPE')
    for axes, label in ((left, 'PPL'), (right, 'TEff')):
        axes.set(xlabel=f'share of {runs[0].names[1]} in training (%)', ylabel=label)
        axes.legend()
    left.set_yscale('log')
    plain_log(left.yaxis)
    right.axhline(1, color='grey', lw=0.8, ls=':')
    return figure


def figure_glue(report):
    """Mean accuracy over tasks, by the second language's share."""
    runs = [run for run in report.ratios('cloned') if run.glue]
    if len(runs) < 2:
        return None
    tasks = runs[0].glue['tasks']
    figure, ((axes,),) = panels(1, 1)
    for name in runs[0].glue['languages']:
        draw_line(axes, runs, percent, lambda run: 100 * run.glue['mean_accuracy'][name] if run.glue else math.nan,
                  '-o', color=colour_of(name), label=name)
    axes.axhline(100 * np.mean([task['majority'] for task in tasks.values()]), color='grey', lw=0.8, ls=':', label='majority class')
    what = next(iter(tasks)) if len(tasks) == 1 else f'mean of {len(tasks)} tasks'
    axes.set(xlabel=f'share of {runs[0].names[1]} in training (%)', ylabel=f'accuracy (%), {what}')
    axes.legend()
    return figure


def draw_scaling(column, runs, x_of, xlabel):
    """PPL above, TEff below, by tokens or parameters: 50/50 dashed, 90/10 solid, each language in its colour."""
    for schedule, style in (('50/50', '--o'), ('90/10', '-s')):
        if chosen := sorted((run for run in runs if run.schedule == schedule), key=x_of):
            for number, name in enumerate(chosen[0].names):
                for axes, key in zip(column, ('ppl', 'teff')):
                    draw_line(axes, chosen, x_of, of_language(number, key), style, color=colour_of(name), label=f'{name}, {schedule}')
    for axes, label in zip(column, ('PPL', 'TEff')):
        axes.set(xscale='log', xlabel=xlabel, ylabel=label)
        plain_log(axes.xaxis, engineering=True)
    column[1].axhline(1, color='grey', lw=0.8, ls=':')


def figure_scaling(report, kind, vocab):
    """By data at the main size, and by size on all data."""
    runs = report.scaling(kind, vocab)
    views = [([run for run in runs if run.size == report.main_size], tokens_of, f'training tokens, {report.main_size}'),
             ([run for run in runs if run.data == 1], parameters, 'non-embedding parameters')]
    views = [(chosen, x_of, label) for chosen, x_of, label in views if len(set(map(x_of, chosen))) > 1]
    if not views:
        return None
    figure, axes = panels(2, len(views), 2)
    for column, view in zip(axes.T, views):
        draw_scaling(column, *view)
    axes[0, 0].legend()
    return figure


def figure_scaling_all(report, kind, vocab):
    """By data, a column a size."""
    runs = sorted(report.scaling(kind, vocab), key=parameters)
    sizes = [size for size in dict.fromkeys(run.size for run in runs) if len({run.data for run in runs if run.size == size}) > 1]
    if len(sizes) < 2:
        return None
    figure, axes = panels(2, len(sizes), 2)
    for column, size in zip(axes.T, sizes):
        draw_scaling(column, [run for run in runs if run.size == size], tokens_of, 'training tokens')
        column[0].set_title(size)
    axes[0, 0].legend()
    return figure


def figure_laws(report):
    """Every law, with the monolingual runs that it is fitted to."""
    if not report.laws:
        return None
    figure, ((axes,),) = panels(1, 1, 2.8)
    models = list(dict.fromkeys(model for model, _ in report.laws))
    for (model, corpus), law in report.laws.items():
        mono = [row for row in report.rows if (row['model'], row['corpus'], row['role']) == (model, corpus, 'mono')]
        x = np.geomspace(law.shortest, law.unit, 200)
        colour, marker = colour_of(mono[0]['language']), 'osD^v'[models.index(model) % 5]
        axes.plot(x, law.ppl(x), color=colour, lw=1)
        axes.plot([row['tokens'] for row in mono], [row['ppl'] for row in mono], marker, color=colour, label=law.name)
    axes.set(xscale='log', yscale='log', xlabel='training tokens', ylabel='PPL')
    plain_log(axes.xaxis, engineering=True)
    plain_log(axes.yaxis)
    axes.legend()
    return figure


def within(run, *keys):
    """What a run's alignment has under these keys; nan where it was not measured."""
    found = run.alignment or {}
    for key in keys:
        found = found.get(key, {})
    return found if found != {} else math.nan


def papers_pairing(run):
    """How the paper pairs the tokens of such a run to compare their hidden states."""
    return 'position' if run.kind == 'cloned' else 'matching'


def hidden_states_of(run):
    """The similarity of a run's hidden states that the paper prints, a number a layer."""
    return within(run, 'hidden_states', papers_pairing(run))


def figure_embeddings(report):
    """Cosine of equivalent subwords and of all pairs, by the second language's share: GPT beside word2vec."""
    by_model = {title: [run for run in report.ratios('cloned', model=model) if run.alignment and 'embeddings' in run.alignment]
                for title, model in (('GPT', 'gpt'), ('word2vec', 'word2vec'))}
    by_model = {title: runs for title, runs in by_model.items() if len(runs) > 1}
    if not by_model:
        return None
    figure, (row,) = panels(1, len(by_model))
    for axes, (title, runs) in zip(row, by_model.items()):
        for colour, table in zip(COLOURS[3:], ('input', 'output')):
            for style, key, label in (('-o', 'mean', 'same subword'), (':x', 'all_pairs', 'all pairs')):
                draw_line(axes, runs, percent, lambda run: within(run, 'embeddings', table, key), style, color=colour,
                          label=f'{table}, {label}')
        axes.set(title=title, xlabel=f'share of {runs[0].names[1]} in training (%)', ylabel='cosine', ylim=(-0.25, 1.05))
    row[0].legend()
    return figure


def figure_frequency(report):
    """Cosine of equivalent subwords by how often training met the rarer version."""
    runs = [run for run in report.ratios('cloned') if run.alignment and 'embeddings' in run.alignment]
    if not runs:
        return None
    figure, (row,) = panels(1, 2)
    ticks = ['0', '1+', '10+', '100+', '1k+', '10k+', '100k+', '1M+', '10M+', '100M+']
    for axes, table in zip(row, ('input', 'output')):
        last = 0
        for colour, marker, run in zip(shades(len(runs)), itertools.cycle('osD^v'), runs):
            bins = run.alignment['embeddings'][table]['by_frequency']
            places = [len(str(b['from'])) if b['from'] else 0 for b in bins]
            axes.plot(places, [b['mean'] for b in bins], '-' + marker, color=colour, label=run.schedule)
            last = max(last, *places)
        axes.set(title=f'{table} embeddings', xlabel='occurrences of the rarer version', ylabel='cosine, same subword', ylim=(-0.25, 1.05),
                 xticks=range(last + 1), xticklabels=ticks[:last + 1])
    row[0].legend()
    return figure


def figure_anchors(report):
    """PPL by the share of the vocabulary that two clones share."""
    runs = [run for run in report.experiments if run.kind == 'cloned' and run.rows and (run.data, run.size) == (1, report.main_size)
            and run.share is not None]
    schedules = [schedule for schedule in dict.fromkeys(run.schedule for run in runs)
                 if len({run.cfg.anchor_frac for run in runs if run.schedule == schedule}) > 1]
    if not schedules:
        return None
    figure, ((axes,),) = panels(1, 1)
    for schedule, style in zip(schedules, itertools.cycle(('-o', '--s', ':D', '-.^'))):
        chosen = sorted((run for run in runs if run.schedule == schedule), key=lambda run: run.cfg.anchor_frac)
        for number, name in enumerate(chosen[0].names):
            draw_line(axes, chosen, lambda run: 100 * run.cfg.anchor_frac, of_language(number, 'ppl'), style, color=colour_of(name),
                      label=f'{name}, {schedule}')
    axes.set(xlabel='anchors (% of the vocabulary)', ylabel='PPL')
    axes.legend()
    return figure


def figure_hidden_states(report):
    """Cosine of corresponding tokens' hidden states by layer, a line a proportion; a panel a kind of languages."""
    shown = {kind: [run for run in report.ratios(*kind) if run.alignment and 'hidden_states' in run.alignment]
             for kind in (('cloned', 'disjoint'), ('real', 'disjoint'), ('real', 'anchored'))}
    shown = {kind: runs for kind, runs in shown.items() if runs}
    if not shown:
        return None
    figure, (row,) = panels(1, len(shown))
    for axes, ((kind, vocab), runs) in zip(row, shown.items()):
        for colour, marker, run in zip(shades(len(runs)), itertools.cycle('osD^v'), runs):
            layers, places = np.array(over_seeds(run, hidden_states_of)), range(1, run.cfg.n_layer + 1)
            axes.plot(places, layers.mean(0), '-' + marker, color=colour, label=run.schedule)
            axes.fill_between(places, layers.min(0), layers.max(0), color=colour, alpha=0.25, lw=0)
        title = 'clones, position by position' if kind == 'cloned' else f'{" and ".join(runs[0].names)}, {vocab}, matched tokens'
        axes.set(title=title, xlabel='layer', ylabel='cosine of hidden states', ylim=(-0.45, 1.05), xticks=places)
        axes.legend(ncols=2)
    return figure


def figure_schedules(report):
    """PPL and TEff of runs that have read as much of one language as of the other, in different orders; a row a kind."""
    even = [run for run in report.experiments if len(run.names) == 2 and run.rows and (run.data, run.size) == (1, report.main_size)
            and abs(marginals(run.cfg.schedule)[1] - 0.5) < 1e-9 and not run.cfg.anchor_frac]
    shown = {kind: runs for kind in dict.fromkeys((run.kind, run.vocab) for run in even)
             if len(runs := [run for run in even if (run.kind, run.vocab) == kind]) > 1}
    if not shown:
        return None
    figure, rows = panels(len(shown), 2)
    for (left, right), (kind, runs) in zip(rows, shown.items()):
        runs.sort(key=lambda run: (len(run.cfg.schedule), run.schedule))
        for axes, key, label in ((left, 'ppl', 'PPL'), (right, 'teff', 'TEff')):
            for number, marker in enumerate('os'):
                name = runs[0].names[number]
                draw_line(axes, runs, runs.index, of_language(number, key), marker, color=colour_of(name), label=name)
            axes.set(ylabel=label, xticks=range(len(runs)), xlim=(-0.5, len(runs) - 0.5),
                     xticklabels=[run.schedule.replace(' then ', '\nthen ').replace(' from ', '\nfrom ') for run in runs])
        left.set_yscale('log')
        plain_log(left.yaxis)
        left.set_title(f'{" and ".join(runs[0].names)}, {kind[1]}')
        right.axhline(1, color='grey', lw=0.8, ls=':')
        left.legend()
    return figure


def figure_gradients(report, kind, vocab):
    """Cosine of the gradients of parallel sequences, parameter type by layer, a heat map a run."""
    runs = [run for run in report.ratios(kind, vocab) if run.alignment and 'gradients' in run.alignment][::-1]
    if not runs:
        return None
    types = list(runs[0].alignment['gradients']['blocks'])
    width = 0.5 + 0.14 * runs[0].cfg.n_layer
    figure, (row,) = pyplot().subplots(1, len(runs), figsize=(2.2 + width * len(runs), 0.6 + 0.17 * len(types)), layout='constrained',
                                       squeeze=False, sharey=True)
    for axes, run in zip(row, runs):
        values = np.array([run.alignment['gradients']['blocks'][name] for name in types])
        image = axes.imshow(values, cmap='PuOr', vmin=-1, vmax=1, aspect='auto')
        axes.set(title=f'{run.schedule}\nmean {values.mean():z.2f}', xlabel='layer', xticks=range(values.shape[1]),
                 xticklabels=range(1, values.shape[1] + 1), yticks=range(len(types)), yticklabels=types)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    figure.colorbar(image, ax=row, label='cosine of gradients', fraction=0.05)
    return figure


def figure_matching(report):
    """The matched tokens of one line: of an anchored 50/50 run on real languages, as in the paper, where there is one."""
    runs = sorted((run for run in report.runs if run.matching),
                  key=lambda run: (run.kind != 'real', run.vocab != 'anchored', run.schedule != '50/50'))
    return draw_matching(**{key: runs[0].matching[key] for key in MEASURED['matching']}) if runs else None


def train_loop(names, measure='', options=''):
    """The shell line that trains the runs of configs, and measures each."""
    command, _, rest = measure.partition(' ')
    measure = f' && python analyze.py {command} out/$c {rest}'.rstrip() if measure else ''
    return f'for c in {names}; do python train.py config/$c.py{options}{measure}; done'


CLONED = 'cloned_50_50 cloned_90_10'
REAL = 'en_fr_50_50 en_fr_90_10 en_fr_10_90'
ANCHORED = 'en_fr_50_50_anchored en_fr_90_10_anchored en_fr_10_90_anchored'
MONO = 'mono_en_100 mono_en_50 mono_en_10'
RATIOS = ('for p in 05 20 30 40; do python train.py config/cloned_50_50.py --dataset=cloned_$p --out_dir=out/cloned_$p '
          '--schedule="[(0.0, (0.$((100 - 10#$p)), 0.$p))]"; done')
ANCHORS = ('for a in 0.05 0.1 0.25 0.5 1.0; do python train.py config/cloned_50_50.py --dataset=anchors_$a --out_dir=out/anchors_$a '
           '--anchor_frac=$a; done')
SHAPE = ' --n_layer=4 --n_embd=512 --n_head=8 --head_dim=32'
MINI = ' --out_dir=out/${c}_mini' + SHAPE
TWICE = ' --dataset=${c}_2x --out_dir=out/${c}_2x --max_iters=36530'
MINI_TWICE = ' --dataset=${c}_2x --out_dir=out/${c}_2x_mini --max_iters=36530' + SHAPE
PARALLEL = 'alignment --parallel a.en a.fr'
# file, title, function, what makes its runs
FIGURES = [
    ('fig01_ratio', 'Fig. 1 left: PPL and TEff by imbalance, clones',
     lambda report: figure_ratio(report, 'cloned'), [train_loop(f'{MONO} {CLONED}'), RATIOS]),
    ('fig01_glue', 'Fig. 1 right: GLUE by imbalance, fine-tuned in the first language',
     figure_glue, [train_loop(CLONED, 'glue --data GLUE_DIR')]),
    ('fig02_scaling', 'Fig. 2: more data, larger models, clones',
     lambda report: figure_scaling(report, 'cloned', 'disjoint'), [train_loop(CLONED, options=o) for o in ('', TWICE, MINI)]),
    ('fig03_ratio_real', 'Fig. 3: PPL and TEff by imbalance, two real languages',
     lambda report: figure_ratio(report, 'real', ('disjoint', 'anchored')),
     [train_loop(f'{MONO} {MONO.replace("en", "fr")} {REAL} {ANCHORED}')]),
    ('fig04_scaling_real', 'Fig. 4: more data, larger models, two real languages, anchored',
     lambda report: figure_scaling(report, 'real', 'anchored'), [train_loop(ANCHORED, options=o) for o in ('', TWICE, MINI)]),
    ('fig05_laws', 'Fig. 5: scaling laws of monolingual models',
     figure_laws, [train_loop(f'{MONO} {MONO.replace("en", "fr")}')]),
    ('fig06_embeddings', 'Fig. 6: similarity of embeddings by imbalance, clones',
     figure_embeddings, [train_loop(f'{CLONED} {CLONED.replace("cloned", "word2vec")}', 'alignment')]),
    ('fig07_frequency', 'Fig. 7: similarity of embeddings by frequency, clones',
     figure_frequency, [train_loop(CLONED, 'alignment')]),
    ('hidden_states', 'Tables 2 and 4: similarity of hidden states by layer',
     figure_hidden_states, [train_loop(CLONED, 'alignment'), train_loop(f'{REAL} {ANCHORED}', PARALLEL)]),
    ('schedules', 'Tables 1 and 3: one half of the tokens each, in different orders',
     figure_schedules, [train_loop('cloned_50_50 cloned_100_0_then_0_100 cloned_90_10_then_10_90')]),
    ('fig08_anchors', 'Fig. 8: PPL by share of anchors, clones',
     figure_anchors, [train_loop('cloned_50_50'), ANCHORS]),
    ('fig09_scaling_all', 'Fig. 9: every size on every amount of data, clones',
     lambda report: figure_scaling_all(report, 'cloned', 'disjoint'),
     [train_loop(CLONED, options=o) for o in ('', TWICE, MINI, MINI_TWICE)]),
    ('fig10_scaling_all_real', 'Fig. 10: every size on every amount of data, two real languages, anchored',
     lambda report: figure_scaling_all(report, 'real', 'anchored'),
     [train_loop(ANCHORED, options=o) for o in ('', TWICE, MINI, MINI_TWICE)]),
    ('fig11_gradients', 'Fig. 11: similarity of gradients, clones',
     lambda report: figure_gradients(report, 'cloned', 'disjoint'), [train_loop(CLONED, 'alignment')]),
    ('fig12_gradients_anchored', 'Fig. 12: similarity of gradients, two real languages, anchored',
     lambda report: figure_gradients(report, 'real', 'anchored'), [train_loop(ANCHORED, PARALLEL)]),
    ('fig13_gradients_disjoint', 'Fig. 13: similarity of gradients, two real languages, disjoint',
     lambda report: figure_gradients(report, 'real', 'disjoint'), [train_loop(REAL, PARALLEL)]),
    ('fig14_matching', 'Fig. 14: matched tokens of one sentence',
     figure_matching, [train_loop('en_fr_50_50_anchored', 'matching --parallel a.en a.fr')])]


# Every table is a function of the report: {column: format}, and rows {column: value}.


def columns_of(run):
    return {'run': run.name, 'seed': run.cfg.seed, 'size': run.size, 'schedule': run.schedule, 'vocabulary': run.vocab}


def runs_of_table(report, kind, runs):
    """The runs of a kind, and the monolingual ones on the same corpora."""
    corpora = {corpus for run in report.runs if run.kind == kind and run.rows for _, corpus in run.cfg.languages}
    return [run for run in runs if run.rows and (run.kind == kind or run.corpora in corpora)]


def table_ppl(report, kind):
    """PPL and TEff of the runs of a kind, and of the monolingual ones on the same corpora."""
    measures = {'PPL': 'ppl', 'bits per byte': 'bits_per_byte', 'MLPE': 'mlpe', 'TEff': 'teff', 'low': 'teff_low', 'high': 'teff_high',
                'extrapolated': 'extrapolated'}
    return [columns_of(run) | {'data': run.data, 'language': row['language'], 'tokens seen': row['tokens']}
            | {column: row.get(key, '') for column, key in measures.items()}
            | report.papers(run, 'PPL', 'TEff', number=run.names.index(row['language']) + 1)
            for run in runs_of_table(report, kind, report.runs) for row in run.rows]


def in_short(values, digits):
    """The mean of several seeds' values with the lowest and the highest, as text."""
    if not values:
        return '-'
    mean, low, high = (f'{value:,.{digits if value < 1000 else 0}f}' for value in (np.mean(values), min(values), max(values)))
    return mean if len(values) == 1 else f'{mean} ({low} to {high})'


def shown_ppl(report, kind):
    """The same, a row an experiment, for a page: its first two languages, mean and range over seeds."""
    rows, columns = [], {'PPL': ('ppl', 1), 'TEff': ('teff', 2)} | ({} if kind == 'cloned' else {'bits per byte': ('bits_per_byte', 3)})
    for run in sorted(runs_of_table(report, kind, report.experiments), key=lambda run: (
            run.kind == kind, parameters(run), run.corpora, len(run.names), len(run.cfg.schedule), run.vocab, run.data, run.share or 0)):
        pair = range(len(run.names[:2]))
        row = {'run': run.name, 'size': run.size, 'data': f'{run.data:g}'}
        stars = ['*' * any(of_language(i, 'extrapolated')(seed) == 'yes' for seed in run.seeds) for i in pair]
        row |= {column: ' / '.join(in_short(over_seeds(run, of_language(i, key)), digits) + stars[i] * (key == 'teff') for i in pair)
                for column, (key, digits) in columns.items()}
        papers = [report.papers(run, 'PPL', 'TEff', number=i + 1) for i in pair]
        row |= {"paper's": papers[0]["paper's"]}
        rows.append(row | {column: ' / '.join(filter(None, (paper[column] for paper in papers))) for column in ('its PPL', 'its TEff')})
    return rows


def inner_measures(run):
    """What alignment says of a run, in a number each: hidden states averaged over layers, gradients, embeddings."""
    return {'hidden states': float(np.mean(hidden_states_of(run))), 'gradients': within(run, 'gradients', 'macro_average'),
            **{f'{table} embeddings': within(run, 'embeddings', table, 'mean') for table in ('input', 'output')}}


def table_seeds(report):
    """Mean and range of every measure of what was run with several seeds."""
    rows = []
    for run in (run for run in report.experiments if len(run.seeds) > 1):
        measures = {f'{label} {name}': of_language(number, key) for number, name in enumerate(run.names)
                    for label, key in (('PPL', 'ppl'), ('TEff', 'teff'))}
        measures |= {name: lambda run, name=name: inner_measures(run)[name] for name in inner_measures(run)}
        for name, value_of in measures.items():
            if values := over_seeds(run, value_of):
                rows.append({'run': run.name, 'size': run.size, 'schedule': run.schedule, 'vocabulary': run.vocab, 'data': run.data,
                             'measure': name, 'seeds': len(values), 'mean': np.mean(values), 'lowest': min(values), 'highest': max(values)})
    return rows


def table_hidden_states(report):
    """Cosine of corresponding tokens' hidden states, a column a layer, ours above the paper's."""
    runs = [run for run in report.runs if run.alignment and 'hidden_states' in run.alignment]
    layers, rows = [f'layer {i}' for i in range(1, 1 + max([12, *(run.cfg.n_layer for run in runs)]))], []
    for run in runs:
        for how, values in run.alignment['hidden_states'].items():
            rows.append(columns_of(run) | {'tokens paired by': how} | dict.fromkeys(layers, '') | dict(zip(layers, values)))
            if paper := papers_hidden_states(report, run, how):
                rows.append(rows[-1] | {'run': f"paper's {paper[1][0]}", 'size': '12x768'}
                            | dict(zip(layers, [float(value) for _, value in paper.values()])))
    return rows


def papers_hidden_states(report, run, how):
    """{layer: (where, value)} for the setting of a run, where the paper pairs tokens in this way."""
    return report.paper.get((*run.setting, 'hidden states'), {}) if how == papers_pairing(run) else {}


def shown_hidden_states(report):
    """The same, a row an experiment, for a page: layers side by side, means over seeds."""
    rows = []
    for run in report.experiments:
        for how in (run.alignment or {}).get('hidden_states', ()):
            layers = over_seeds(run, lambda run: within(run, 'hidden_states', how))
            paper = papers_hidden_states(report, run, how)
            rows.append({'run': run.name, 'size': run.size, 'seeds': str(len(layers)), 'tokens paired by': how,
                         'layers, first to last': ' '.join(f'{value:.2f}' for value in np.mean(layers, 0)),
                         "paper's": paper[1][0] if paper else '', 'its 12 layers': ' '.join(value for _, value in paper.values())})
    return rows


def table_gradients(report):
    """Mean cosine of gradients over parameter types and layers, and that of the embedding tables."""
    tables = 'wte', 'wpe', 'lm_head'
    return [columns_of(run) | {'mean': found['macro_average']} | {table: found['others'][f'{table}.weight'] for table in tables}
            | report.papers(run, 'gradients') for run in report.runs if run.alignment and (found := run.alignment.get('gradients'))]


def table_embeddings(report):
    """Mean cosine of equivalent subwords, and of all pairs."""
    rows = []
    for run in report.runs:
        for table, found in (run.alignment or {}).get('embeddings', {}).items():
            papers = report.papers(run, 'embeddings' if (run.cfg.model, table) == ('gpt', 'input') else '')
            rows.append(columns_of(run) | {'table': table, 'same subword': found['mean'], 'all pairs': found['all_pairs']}
                        | dict(zip(("paper's", 'its embeddings'), papers.values())))
    return rows


def table_glue(report):
    """Every metric of every task, in the language of fine-tuning and in the other."""
    rows = []
    for run in report.runs:
        for task, found in run.glue['tasks'].items() if run.glue else ():
            first, second = (found[language] for language in run.glue['languages'])
            rows += [columns_of(run) | {'task': task, 'metric': metric, 'first language': first[metric], 'second': second[metric],
                                        'majority class': found['majority'], 'steps': found['steps']} for metric in first]
    return rows


def table_time(report):
    """How long each run trained, and all of them together."""
    rows = [columns_of(run) | {'tokens': tokens_of(run), 'minutes': seconds / 60, 'tokens per second': round(tokens_of(run) / seconds)}
            for run in report.runs if (seconds := run.seconds)]
    total = dict.fromkeys(rows[0], '') | {key: sum(row[key] for row in rows) for key in ('tokens', 'minutes')} if rows else {}
    return rows and [*rows, total | {'run': f'all {len(rows)}'}]


# file, title, function; what a page shows of it, where that is not all
TABLES = [
    ('table1_cloned', 'Table 1: cloned languages', lambda report: table_ppl(report, 'cloned'), lambda report: shown_ppl(report, 'cloned')),
    ('table3_real', 'Table 3: real languages', lambda report: table_ppl(report, 'real'), lambda report: shown_ppl(report, 'real')),
    ('clones_and_real', 'Clones and real languages together', lambda report: table_ppl(report, 'mixed'),
     lambda report: shown_ppl(report, 'mixed')),
    ('table2_4_hidden_states', 'Tables 2 and 4: similarity of hidden states', table_hidden_states, shown_hidden_states),
    ('gradients', 'Similarity of gradients', table_gradients, None),
    ('embeddings', 'Similarity of the embeddings of equivalent subwords', table_embeddings, None),
    ('glue', 'GLUE: fine-tuned in the first language, zero-shot in the second', table_glue, None),
    ('seeds', 'Mean and range of what was run with several seeds', table_seeds, None),
    ('time', 'Training time', table_time, None)]


def rounded(rows):
    """To six digits, as many as any machine agrees on."""
    return [{key: float(f'{value:.6g}') if isinstance(value, float) else value for key, value in row.items()} for row in rows]


def cells_of(rows):
    """The rows of a table as text: whole numbers with commas, others to three digits behind the point, nan as nothing."""
    def text(value):
        kind = {int: ',', float: '.3f'}.get(type(value), '')
        return '' if value != value else format(value, kind)
    return [list(map(text, row.values())) for row in rows]


STYLE = '''body { font: 15px/1.5 system-ui, sans-serif; max-width: 1200px; margin: 2em auto; padding: 0 1em; color: #222 }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
th, td { padding: 2px 7px; text-align: left; white-space: nowrap }
th { border-bottom: 1px solid #222 } tr:nth-child(even) td { background: #f4f4f4 } img { max-width: 100% }
pre { background: #f4f4f4; padding: 8px; overflow-x: auto; font-size: 12px } h2 { margin-top: 2em }'''


def as_markdown(blocks):
    lines = []
    for kind, text, *rest in blocks:
        if kind == 'table':
            file, header, rows = rest
            lines += [f'## {text}', '', *('| ' + ' | '.join(cell.replace('|', '\\|') for cell in row) + ' |'
                                          for row in [header, ['---'] * len(header), *rows]), '', f'[{file}.csv]({file}.csv)']
        elif kind == 'figure':
            lines += [f'## {text}', '', f'![{text}]({rest[0]}.png)', '', f'[{rest[0]}.pdf]({rest[0]}.pdf)']
        else:
            lines += {'h1': [f'# {text}'], 'h2': [f'## {text}'], 'p': [text], 'li': [f'- {text}'], 'pre': ['```', text, '```']}[kind]
        lines += [] if kind == 'li' else ['']
    return '\n'.join(lines)


def as_html(blocks, folder):
    """One page that needs no other file: the pictures are within."""
    import base64
    from html import escape
    html = ['<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>Language imbalance: report</title>'
            f'<style>{STYLE}</style></head><body>']
    for kind, text, *rest in blocks:
        text = escape(text)
        if kind == 'table':
            file, header, rows = rest
            html += [f'<h2>{text}</h2><table>', *('<tr>' + ''.join(f'<{cell}>{escape(value)}</{cell}>' for value in row) + '</tr>'
                                                  for cell, row in [('th', header), *(('td', row) for row in rows)]), '</table>']
        elif kind == 'figure':
            file, inches = rest
            picture = base64.b64encode((folder / f'{file}.png').read_bytes()).decode()
            html += [f'<h2>{text}</h2><img width="{110 * inches:.0f}" alt="{text}" src="data:image/png;base64,{picture}">']
        else:
            html += [f'<{kind}>{text}</{kind}>']
    return '\n'.join([*html, '</body></html>', ''])


def plan(args):
    """Print a shell line for every run that a table of the paper needs and that its out_dir does not hold yet, finished and
    measured: for a shell, GNU parallel, or a Slurm array."""
    folder = config.DEFAULT.parent
    row = f'Table {args.plan[-1]}, row '
    for path in sorted(path for path in folder.glob('*.py') if row in path.read_text().split('\n')[0]):
        cfg = config.load([str(path)])
        out_dir, steps = Path(cfg.out_dir), max(1, round(args.scale * cfg.max_iters))
        results = read_measured(out_dir, 'results')
        if results and results['step'] == results['config'].get('max_iters'):
            continue
        checkpoint = ' --resume' if list(out_dir.glob('ckpt*.pt')) else ''
        scaled = f' --max_iters={steps} --warmup_iters={round(args.scale * cfg.warmup_iters)}' if args.scale != 1 else ''
        options = args.options and f' {args.options}'
        print(f'python train.py {os.path.relpath(path)}{scaled}{options}{checkpoint} && python analyze.py ppl {out_dir}')


def report(args):
    """Put runs together: tables (md, html and csv) and every figure that they allow (PNG and PDF), in one folder."""
    if args.plan:
        return plan(args)
    if not args.out_dirs:
        raise UserError('report needs the folders of trained runs, or --plan for what makes them')
    found = Report(run_folders(args.out_dirs), args)
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    blocks = [('h1', 'Language imbalance: report'), ('p', (
        f'{len(found.runs)} runs. All data, the unit of the column "data", are {found.all_data:,} training tokens; in the paper 1.2B. '
        "The paper's figures beside ours are of 12x768. TEff: tokens that a monolingual model would need for that PPL / tokens seen; low "
        f'and high: 95% by the fit of its law. Figures with room for one model size show {found.main_size}.'))]
    blocks += [('li', f'{law}') for law in found.laws.values()] + [('li', note) for note in found.notes] + [('p', '')]
    for name, title, table, shown in TABLES:
        if rows := table(found):
            write_csv(folder / f'{name}.csv', list(rows[0]), rounded(rows))
            on_page = shown(found) if shown else rows
            blocks += [('table', title, name, list(on_page[0]), cells_of(on_page))]
    missing = []
    for name, title, draw, commands in FIGURES:
        figure = draw(found)
        if not figure:
            missing += [('p', title), ('pre', '\n'.join(commands))]
            continue
        blocks += [('figure', title, name, figure.get_figwidth())]
        for kind in ('pdf', 'png'):
            save_figure(figure, folder / f'{name}.{kind}', dpi=200)
        pyplot().close(figure)
    if missing:
        blocks += [('h2', 'Figures whose runs are missing, and what makes them'), *missing]
    for name, text in (('report.md', as_markdown(blocks)), ('report.html', as_html(blocks, folder))):
        write_aside(folder / name, lambda aside: aside.write_text(text, 'utf-8'))
    print(f'{folder}/report.html: {len(FIGURES) - len(missing) // 2} of {len(FIGURES)} figures')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    formats = {'formatter_class': argparse.ArgumentDefaultsHelpFormatter}
    for name, text in (('ppl', 'perplexity per language, by sliding window'), ('teff', 'token efficiency'),
                       ('alignment', 'how alike two languages are inside: embeddings, hidden states, gradients'),
                       ('matching', 'the matched tokens of one pair of parallel lines, and their picture'),
                       ('glue', 'fine-tune on GLUE tasks in the first language, measure both'),
                       ('report', 'tables and every figure that a set of runs allows, beside the paper\'s')):
        command = commands.add_parser(name, help=text, description=text, **formats)
        if name in ('ppl', 'teff', 'report'):
            command.add_argument('out_dirs', metavar='OUT_DIR', nargs='+' if name == 'ppl' else '*', help='folders of trained runs')
            command.add_argument('--stride', type=int, default=0, help='tokens scored per window; 0: a quarter of block_size, 128 of 512')
            command.add_argument('--batch_size', type=int, default=32, help='windows at a time')
            command.add_argument('--languages', nargs='+', metavar='NAME', help='the ones whose perplexity is measured; default: all')
        else:
            command.add_argument('out_dir', metavar='OUT_DIR', help='folder of a trained run')
            command.add_argument('--languages', nargs=2, metavar='NAME', help='the two to compare; default: the first two of the run')
        if name in ('alignment', 'matching'):
            command.add_argument('--parallel', nargs='+', metavar='FILE', required=name == 'matching',
                                 help='aligned text, a line a sentence, plain, .gz, .xz or .zst, a file per language (clones: one)')
        command.add_argument('--device', default='auto', help='cuda, mps, cpu; auto: the first that is there')
        command.add_argument('--dtype', default='auto' if name == 'glue' else 'float32', help='float32, bfloat16; auto: bfloat16 on cuda')
        if name == 'teff':
            command.add_argument('--runs', metavar='CSV', help=f'a table of runs instead of folders: {",".join(COLUMNS)}')
            command.add_argument('--csv', help='write the table here')
            command.add_argument('--plot', help='write the figure here (.png, .pdf, .svg); for folders default: teff.png beside them')
        if name == 'alignment':
            command.add_argument('--sequences', type=int, default=500, help='parallel sequences to average over')
        if name == 'matching':
            command.add_argument('--line', type=int, default=1, help='line of the parallel text to show')
            command.add_argument('--plot', help='write the picture here; default: matching_line_N.png in OUT_DIR')
        if name == 'report':
            command.add_argument('--out', default='report', metavar='DIR', help='folder to write')
            command.add_argument('--plan', choices=['table1', 'table3'],
                                 help="instead, print the commands of the table's runs that are not there yet, one line a run")
            command.add_argument('--scale', type=float, default=1.0, help='of a plan: share of the steps that every run makes, warm-up too')
            command.add_argument('--options', default='', help='of a plan: settings for all its runs, as "--n_layer=4 --n_embd=512"')
            command.add_argument('--tokens', type=float, default=0, help='training tokens that count as all data (1.2B in the paper); '
                                 '0: those of most runs of several languages')
        if name == 'glue':
            command.add_argument('--data', required=True, metavar='DIR', help='folder with a folder a task: SST-2/train.tsv, ...')
            command.add_argument('--tasks', help=f'of {",".join(GLUE)}; default: those that DIR has')
            command.add_argument('--learning_rate', type=float, default=5e-5, help='its start')
            command.add_argument('--batch_size', type=int, default=64, help='examples a step')
            command.add_argument('--max_tokens', type=int, default=128, help='tokens an example, at most')
            command.add_argument('--epochs', type=int, default=10, help='epochs, at most')
            command.add_argument('--patience', type=int, default=10, help='evaluations without improvement before it stops')
            command.add_argument('--eval_every', type=int, default=200, help='steps between evaluations; every epoch ends with one')
            command.add_argument('--seed', type=int, default=0, help='of the head and the order of the examples')
    args = parser.parse_args()
    for key, value in vars(args).items():
        lowest = int(key not in ('stride', 'seed', 'learning_rate', 'tokens', 'scale'))
        if isinstance(value, (int, float)) and not lowest <= value < math.inf:
            raise UserError(f'--{key} must be at least {lowest}, not {value}')
    if getattr(args, 'plot', None) and not args.plot.endswith(('.png', '.pdf', '.svg')):
        raise UserError(f'--plot {args.plot}: a figure is a .png, .pdf or .svg')
    if args.command == 'ppl':
        for out_dir in run_folders(args.out_dirs):
            measure_ppl(out_dir, args)
    else:
        {'teff': teff, 'alignment': alignment, 'matching': matching, 'glue': glue, 'report': report}[args.command](args)


if __name__ == '__main__':
    config.run(main)
