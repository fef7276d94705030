"""
In which language does a model think? Its predictions after each block, and its states as a whole.

    python -m extras.lens OUT_DIR                        # -> OUT_DIR/lens.json, OUT_DIR/lens.png
    python -m extras.lens OUT_DIR --against OTHER_DIR    # and the states of a separate model

The logit lens (Wendler et al. 2024) reads the state after a block as if it were the last one: how
much probability lies on the ids of each language, how likely is the next token, and for clones its
twin, the same token in the other language. Layer 0 is what the first block reads.

CKA and retrieval after a rotation (Procrustes) do not see which axes a language uses. So they find
the clones of one model alike, but also two models that share nothing: only a value above that of
a separate model, --against, says that the two languages share more than their text.
"""
import argparse
import sys

import config

def parse(argv=None):
    parser = argparse.ArgumentParser(prog='python -m extras.lens', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('out_dir', help='folder of a trained run')
    add('--languages', nargs=2, help='default: the first two')
    add('--against', help='a run with the same test text: its first language is compared with ours')
    add('--tokens', type=int, default=8192, help='of the test text, at most (8192)')
    add('--device', default='auto', help='cuda, mps, cpu; auto: the first available')
    add('--dtype', default='float32', help='bfloat16, auto (float32)')
    args = parser.parse_args(argv)
    if args.tokens < 2:
        sys.exit(f'--tokens must be at least 2, not {args.tokens}')
    return args

if __name__ == '__main__':  # before torch is imported: --help is instant
    args = parse()

import math

import numpy as np
import torch

import analyze

@torch.no_grad()
def states_of(run, language, n):
    """States of up to n tokens of the test text, without the first quarter of a window, which has
    little context: what the blocks read and give, (1 + n_layer, N, C), and the base id (N,) of the
    token that follows each."""
    block, corpus = run.cfg.block_size, run.dataset.corpora[language]
    context = block // 4
    starts = run.dataset.test_starts(language, math.ceil(n / (block - context)))
    inputs, _ = run.dataset.windows('test', starts, np.full(len(starts), language))
    layers = []
    for ids in torch.from_numpy(inputs).to(run.device):
        position = run.model.wpe.weight[:block]
        hidden = [run.model.wte(ids)[None] * math.sqrt(run.cfg.n_embd) + position]
        with run.autocast():
            run.model.features(ids[None], hidden)
        layers.append(torch.cat(hidden)[:, context:].float())
    base_ids = [corpus['test'][start + context + 1:start + block + 1] for start in starts]
    return torch.cat(layers, 1)[:, :n], np.concatenate(base_ids)[:n].astype(np.int64)

@torch.no_grad()
def logit_lens(run, states, wanted):
    """Read states (layers, N, C) as if they were the last: the mean probability of the ids of every
    language, and of those that several share; the mean log2 probability of ids wanted,
    {name: (N,)}. Lists by layer."""
    dataset = run.dataset
    own = np.zeros((len(dataset.names), dataset.vocab_size), bool)
    for row, ids in zip(own, dataset.vocab_map):
        row[ids[ids >= 0]] = True
    several = own.sum(0) > 1
    groups = dict(zip([*dataset.names, 'shared'], [*(own & ~several), several]))
    groups = {name: torch.from_numpy(ids).to(run.device) for name, ids in groups.items()}
    mass = {name: [] for name in groups}
    log2_p = {name: [] for name in wanted}
    for layer in states:
        sums = dict.fromkeys([*mass, *log2_p], 0.0)
        for i in range(0, len(layer), 512):  # rows of logits held at a time
            p = run.model.lm_head(run.model.ln_f(layer[i:i + 512])).double().log_softmax(-1)
            for name, ids in wanted.items():
                target = torch.from_numpy(ids[i:i + 512, None]).to(run.device)
                sums[name] += float(p.gather(-1, target).sum()) / math.log(2)
            for name, chosen in groups.items():
                sums[name] += float(p[:, chosen].exp().sum())
        for table in mass, log2_p:
            for name, values in table.items():
                values.append(sums[name] / len(layer))
    return {'mass': mass, 'log2_p': log2_p}

def cka(a, b):
    """Linear CKA of states (N, C) and (N, D)."""
    a, b = a - a.mean(0), b - b.mean(0)
    return float((a.T @ b).norm() ** 2 / ((a.T @ a).norm() * (b.T @ b).norm()))

def rotated_retrieval(a, b):
    """The share of states a (N, C) whose nearest in b, by cosine, is their counterpart: in the
    second half, after the rotation that brings the first half of a closest to b."""
    half = len(a) // 2
    a, b = a - a[:half].mean(0), b - b[:half].mean(0)
    u, _, v = torch.linalg.svd(a[:half].T @ b[:half])
    a, b = analyze.normalize(a[half:] @ u @ v), analyze.normalize(b[half:])
    nearest = (a @ b.T).argmax(1).cpu()
    return float((nearest == torch.arange(len(a))).double().mean())

def likeness(a, b):
    """CKA and retrieval of states (layers, N, C), by layer from the first block's output on."""
    pairs = [(x.cpu().double(), y.cpu().double()) for x, y in zip(a[1:], b[1:])]
    return {'cka': [cka(*pair) for pair in pairs],
            'rotated_retrieval': [rotated_retrieval(*pair) for pair in pairs],
            'chance': 1 / (a.size(1) - a.size(1) // 2)}

def draw(results, path):
    """By layer: the probability of each language's ids, and of the next token and its twin."""
    from matplotlib.figure import Figure
    panels = [(f'text in {name}', lens) for name, lens in results['lens'].items()]
    figure = Figure(figsize=(4 * len(panels), 6), layout='constrained')
    grid = figure.subplots(2, len(panels), squeeze=False, sharex=True, sharey='row')
    for (title, lens), (upper, lower) in zip(panels, grid.T):
        for axes, kind in (upper, 'mass'), (lower, 'log2_p'):
            for name, values in lens[kind].items():
                if any(values):
                    axes.plot(values, 'o-', label=name)
            axes.legend(frameon=False)
        upper.set(title=title, ylabel='probability of the ids of')
        lower.set(xlabel='layer', ylabel='log2 p of', xticks=range(len(values)))
    analyze.save_figure(figure, path)

def main(args):
    run, pair, clones = analyze.load_pair(args)
    if not run.model:
        sys.exit(f'{args.out_dir} is word2vec, which has no layers: name a GPT')
    names = [run.dataset.names[i] for i in pair]
    results, states, base_ids = {'languages': names, 'lens': {}, 'likeness': {}}, [], []
    for language in pair:
        own, ids = states_of(run, language, args.tokens)
        states.append(own)
        base_ids.append(ids)
    if clones:
        results['likeness'][' and '.join(names)] = likeness(*states)
    if args.against:
        other = analyze.load_run(args.against, args.device, args.dtype)
        theirs, their_ids = states_of(other, 0, args.tokens)
        for name, own, ids in zip(names, states, base_ids):
            if np.array_equal(ids, their_ids):
                pair_name = f'{name} and {other.dataset.names[0]} of {args.against}'
                results['likeness'][pair_name] = likeness(own, theirs)
        if len(results['likeness']) == clones:
            sys.exit(f'{args.against} has another test text or block_size than {args.out_dir}')
    for name, language, twin, own, ids in zip(names, pair, pair[::-1], states, base_ids):
        wanted = {'next token': run.dataset.vocab_map[language, ids].astype(np.int64)}
        if clones:
            wanted['its twin'] = run.dataset.vocab_map[twin, ids].astype(np.int64)
        results['lens'][name] = logit_lens(run, own, wanted)
        for kind, table in results['lens'][name].items():
            for key, values in table.items():
                by_layer = ', '.join(f'{value:.3f}' for value in values)
                print(f'text in {name}, {kind} of {key}: {by_layer}')
    for key, values in results['likeness'].items():
        print(f'{key}: CKA', ', '.join(f'{x:.3f}' for x in values['cka']) + '; retrieval rotated',
              ', '.join(f'{x:.1%}' for x in values['rotated_retrieval']),
              f'(chance: {values["chance"]:.1%})')
    if clones and not args.against:
        print('note: CKA and rotated retrieval mean nothing without --against a separate model')
    analyze.write(run.out_dir / 'lens.json', results)
    draw(results, run.out_dir / 'lens.png')

if __name__ == '__main__':
    config.run(lambda: main(args))
