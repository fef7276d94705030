"""
The share of the training tokens that each language should get, and whether the runs can tell.

    python -m extras.mix OUT_DIR... --tokens 1e9              # for the mean loss of all languages
    python -m extras.mix OUT_DIR... --target FR --own FR=5e7  # for French: 50M tokens, four epochs

Takes three or more mixtures of the same languages (unlike in shares or tokens, in any number of
seeds), and runs on one language. A law of own and other tokens is fitted to every corpus; its error
is that on mixtures left out of the fit. A gain within the error is no recommendation: the two runs
from which the laws would learn most are named instead.
"""
import argparse
import math
import sys

import config

def parse(argv=None):
    parser = argparse.ArgumentParser(prog='python -m extras.mix', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('out_dirs', nargs='+', metavar='out_dir', help='folder of a trained run')
    add('--tokens', type=float, help='of the planned run; default: those of the largest run')
    add('--target', default='mean', help='language to optimise; mean: the mean loss of all (mean)')
    add('--own', nargs='+', default=[], help='NAME=TOKENS that a language has, for any of them')
    add('--max_epochs', type=float, default=4, help='most epochs over the tokens of --own (4)')
    add('--stride', type=int, help='tokens scored per window; default: a quarter of it')
    add('--batch_size', type=int, default=32, help='windows at a time (32)')
    add('--device', default='auto', help='cuda, mps, cpu; auto: the first available')
    add('--dtype', default='float32', help='float32, bfloat16; auto: bfloat16 on cuda (float32)')
    args = parser.parse_args(argv)
    with config.reading('--own', 'it must be NAME=TOKENS, such as FR=5e7'):
        args.own = {name: float(n) for name, n in (text.split('=') for text in args.own)}
    values = {key: getattr(args, key) for key in ('tokens', 'max_epochs', 'stride', 'batch_size')}
    for key, value in (values | {f'own {name}': n for name, n in args.own.items()}).items():
        if value is not None and not 1 <= value < math.inf:
            sys.exit(f'--{key} must be at least 1, not {value}')
    return args

if __name__ == '__main__':  # before torch is imported: --help is instant
    args = parse()

import os

import numpy as np

import analyze

def comparable_rows(args):
    """The rows of all runs but step-matched ones, each with its 'mixture': the tokens and shares
    that its seeds have in common; and the mixtures' languages, (name, corpus)."""
    folders = dict.fromkeys(os.path.normpath(path) for path in args.out_dirs
                            if not os.path.isfile(path))  # out/* also matches figures
    listed = [analyze.settings_of(folder).languages for folder in folders]
    languages = max(listed, key=len, default=[])
    names, rows = [name for name, _ in languages], []
    if unknown := {args.target, *args.own} - {'mean', *names}:
        sys.exit(f'no language {min(unknown)!r}: the mixtures have {", ".join(names)}')
    for folder in folders:
        for row in analyze.rows_of_run(folder, args):
            mixture = row['tokens'] + row['others'], tuple(row['cfg'].schedule[0][1])
            rows.append(row | {'mixture': mixture, 'unlike': ''})
    analyze.token_efficiency(rows)  # gives step-matched runs their role
    rows = [row for row in rows if row['role'] != 'step']
    mixed = [row for row in rows if row['others']]
    if (n := len({row['mixture'] for row in mixed})) < 3:
        sys.exit(f'mix needs at least three mixtures of languages, not {n}')
    firsts = {row['corpus']: row for row in reversed(mixed)}
    for row in rows:
        cfg, run, first = row['cfg'], row['run'], firsts.get(row['corpus'], row)
        difference = analyze.first_difference(row, rows[0])
        unscored = len(cfg.languages) - sum(run == other['run'] for other in mixed)
        ids, usual = ((c.languages, c.vocab, c.anchor_frac, c.anchor_seed, c.codeswitch,
                       c.own_tokens) for c in (cfg, mixed[0]['cfg']))
        refusals = {
            f'{difference}: mix needs runs of one recipe': difference,
            f'{run} changes its shares: leave it out': len(cfg.schedule) > 1,
            f'{run} has no text of the mixtures: leave it out': row['corpus'] not in firsts,
            f'{run} and {first["run"]} differ in model or test text: leave one out':
                row['law'] != first['law'],
            f'{run} and {mixed[0]["run"]} differ in languages or vocabulary: leave one out':
                row['others'] and ids != usual,
            f'{run} lacks the PPL of a language: analyze.py ppl {run}': row['others'] and unscored}
        for refusal, applies in refusals.items():
            if applies:
                sys.exit(refusal)
    return rows, languages

class ShareLaw:
    """log PPL of a corpus = top + slope * (x^-b - 1) / b, where x = own tokens / unit. 'transfer'
    adds tau * other tokens to the own ones; 'cost' adds tau * the others' share to log PPL."""

    def __init__(self, term, rows, unit, lowest_tau):
        from scipy.optimize import least_squares
        own, others, ppl = np.array([(row['tokens'], row['others'], row['ppl']) for row in rows]).T
        self.term, self.unit = term, unit
        bounds = [0, 0, 1e-3, lowest_tau], [50, 50, 2, 1]
        self.v = least_squares(lambda v: self.log_ppl(own, others, v) - np.log(ppl),
                               [4, 0.3, 0.05, 0], bounds=bounds).x

    def log_ppl(self, own, others, v=None):
        top, slope, b, tau = self.v if v is None else v
        transfer = tau * others if self.term == 'transfer' else 0
        cost = tau * others / (own + others) if self.term == 'cost' else 0
        return top + slope * np.expm1(-b * np.log((own + transfer) / self.unit)) / b + cost

def fit_corpus(rows):
    """The laws of a corpus, {mixture left out of the fit: law}, the one with all under None, and
    their errors, {(run, language): log(predicted / measured PPL)}, the run's mixture left out.
    A law with a tau must lower the error by a tenth."""
    mixed = [row for row in rows if row['others']]
    unit = max(row['tokens'] for row in rows)
    positive = -0.9 * min(row['tokens'] / row['others'] for row in mixed)  # own + tau * others
    laws, errors, rms = {}, {}, {}
    for term, lowest_tau in ('own', -1), ('transfer', positive), ('cost', -1):
        laws[term], errors[term] = {}, {}
        for mixture in {None, *(row['mixture'] for row in mixed)}:
            kept = [row for row in rows if row['mixture'] != mixture]
            laws[term][mixture] = ShareLaw(term, kept, unit, lowest_tau)
        for row in mixed:
            predicted = laws[term][row['mixture']].log_ppl(row['tokens'], row['others'])
            errors[term][row['run'], row['language']] = predicted - math.log(row['ppl'])
        rms[term] = math.sqrt(np.mean(np.square([*errors[term].values()])))
    best = min(rms, key=lambda term: rms[term] * (0.9 if term == 'own' else 1))
    listed = ', '.join(f'{error:.1%} ({term})' for term, error in rms.items())
    print(f'{rows[0]["corpus"]}: law of {best}, tau {laws[best][None].v[-1]:.3f}; '
          f'held-out mixtures are off by {listed}')
    return laws[best], errors[best]

def possible_shares(rows, languages, tokens, args):
    """Shares (S, languages) within those of the runs and the epochs of --own, drawn evenly."""
    shares = np.random.default_rng(0).dirichlet([1] * len(languages), 20_000)
    for i, (name, corpus) in enumerate(languages):
        seen = [row['tokens'] / row['mixture'][0] for row in rows if row['corpus'] == corpus]
        most = min(max(seen), args.max_epochs * args.own.get(name, math.inf) / tokens)
        shares = shares[(shares[:, i] >= min(seen)) & (shares[:, i] <= most)]
    if not len(shares):
        sys.exit(f'no share in the range of the runs keeps to {args.max_epochs:g} epochs of --own: '
                 'lower --tokens or raise --max_epochs')
    return shares

def most_telling(losses):
    """The columns of losses (refits, S) where the refits differ most, and then, given that one."""
    apart = losses - losses.mean(0)
    for _ in range(2):
        i = np.square(apart).sum(0).argmax()
        yield i
        apart = apart - np.outer(apart[:, i], apart[:, i] @ apart / np.square(apart[:, i]).sum())

def print_plan(names, shares, tokens, ppls, widths, own):
    """A line for every language: its share, tokens, epochs, and PPL with its 95% interval."""
    for name, share, ppl, width in zip(names, shares, ppls, widths):
        n = share * tokens
        epochs = f'{n / own[name]:.2f} epochs, ' if name in own else ''
        print(f'{name}: {share:.1%}, {n:,.0f} tokens, {epochs}'
              f'PPL {ppl:.4g} ({ppl / width:.4g} to {ppl * width:.4g})')

def main(args):
    from scipy.stats import t
    rows, languages = comparable_rows(args)
    names, corpora = zip(*languages)
    mixed = [row for row in rows if row['others']]
    mixtures, runs = (sorted({row[key] for row in mixed}) for key in ('mixture', 'run'))
    totals = sorted({total for total, _ in mixtures})
    tokens = args.tokens or totals[-1]
    shares, laws, errors = possible_shares(rows, languages, tokens, args), {}, {}
    for corpus in dict.fromkeys(corpora):
        laws[corpus], new = fit_corpus([row for row in rows if row['corpus'] == corpus])
        errors |= new
    goal = [args.target in (name, 'mean') for name in names]
    off = np.array([[errors[run, name] for run in runs] for name in names])

    def log_ppl(total, left_out=None):  # (languages, S)
        return np.array([laws[corpus][left_out].log_ppl(total * part, total * (1 - part))
                         for corpus, part in zip(corpora, shares.T)])

    def words(i):
        return ', '.join(f'{name} {part:.1%}' for name, part in zip(names, shares[i]))
    predicted = log_ppl(tokens)
    loss = predicted[goal].mean(0)  # (S,)
    best, even = loss.argmin(), np.ptp(shares, axis=1).argmin()
    factor = t.ppf(0.975, len(mixtures) - 1)
    gain = loss[even] - loss[best]  # a difference of two: twice the variance
    error = factor * math.sqrt(2 * np.mean(off[goal].mean(0) ** 2))
    advised, verdict = (best, 'best') if gain > error else (even, 'no recommendation')
    widths = np.exp(factor * np.sqrt(np.mean(off ** 2, 1)))
    print_plan(names, shares[advised], tokens, np.exp(predicted[:, advised]), widths, args.own)
    if not 0.99 * totals[0] < tokens < 1.01 * totals[-1]:
        print(f'extrapolated: errors are those at {totals[0]:,} to {totals[-1]:,} tokens')
    print(f'{verdict}: {words(best)} lowers PPL by {-math.expm1(-gain):.1%} from {words(even)}, '
          f'error {-math.expm1(-error):.1%}')
    if gain <= error:
        losses = [[log_ppl(n, mixture)[goal].mean(0) for mixture in mixtures] for n in totals]
        for i in most_telling(np.hstack(losses)):  # (mixtures, totals * S)
            total, share = divmod(i, len(shares))
            print(f'run next: {words(share)} of {totals[total]:,} tokens')

if __name__ == '__main__':
    config.run(lambda: main(args))
