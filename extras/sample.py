"""
Text from a trained run, in any of its languages.

    python -m extras.sample out/cloned_90_10              # in all languages, one after the other
    python -m extras.sample out/cloned_90_10 --language EN2 --prompt 'It was' --samples 3

All languages continue the same prompt with the same random numbers. Only ids of the language are
drawn; how much of the model's probability lies on other ids is printed.
"""
import argparse
import math
import sys

import config

def parse(argv=None):
    parser = argparse.ArgumentParser(prog='python -m extras.sample', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('out_dir', help='folder of a trained run')
    add('--language', help='default: all, one after the other')
    add('--prompt', default='', help='default: none, the beginning of a document')
    add('--tokens', type=int, default=100, help='per sample, at most (100)')
    add('--samples', type=int, default=1, help='per language (1)')
    add('--temperature', type=float, default=0.8, help='0: always the likeliest token (0.8)')
    add('--top_k', type=int, default=0, help='draw from the k likeliest; 0: from all (0)')
    add('--seed', type=int, default=0, help='of the draws (0)')
    add('--device', default='auto', help='cuda, mps, cpu; auto: the first available')
    args = parser.parse_args(argv)
    lowest = {'tokens': 1, 'samples': 1, 'temperature': 0, 'top_k': 0, 'seed': 0}
    for key, low in lowest.items():
        if not low <= getattr(args, key) < math.inf:
            sys.exit(f'--{key} must be at least {low}, not {getattr(args, key)}')
    return args

if __name__ == '__main__':  # before torch is imported: --help is instant
    args = parse()

import numpy as np
import torch

import analyze
from data_prep import load_tokenizer

def draw(logits, row, temperature, top_k, rng):
    """Draw one of a language's ids, row (V,), by the model's logits, (vocab_size,) -> its base id,
    and the probability at temperature 1 of all ids outside the language."""
    logits = logits.float().cpu().double()
    outside = torch.ones_like(logits, dtype=torch.bool)
    outside[row] = False
    elsewhere = float(logits.softmax(-1)[outside].sum())
    logits = logits[row] - logits[row].max()
    if temperature == 0:
        return int(logits.argmax()), elsewhere
    if 0 < top_k < len(row):
        logits[logits < logits.topk(top_k).values[-1]] = -math.inf
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)
    place = rng.random() * cumulative[-1]
    return int(torch.searchsorted(cumulative, place, right=True)), elsewhere

@torch.no_grad()
def sample(run, language, args, number):
    """A sample -> its text, the prompt included, and for every token drawn the probability of ids
    outside the language."""
    corpus = run.dataset.corpora[language]
    tokenizer = load_tokenizer(corpus['tokenizer'])
    row = torch.from_numpy(run.dataset.vocab_map[language, :corpus['vocab_size']]).long()
    rng = np.random.default_rng([args.seed, number])
    prompt, ids, elsewhere = tokenizer.encode(args.prompt), [], []
    for _ in range(args.tokens):
        context = [*(prompt or [tokenizer.eod]), *ids][-run.cfg.block_size:]
        x = row[context].to(run.device)  # (T,)
        with run.autocast():
            logits = run.model.lm_head(run.model.features(x[None])[0, -1])
        base_id, outside = draw(logits, row, args.temperature, args.top_k, rng)
        elsewhere.append(outside)
        if base_id == tokenizer.eod:
            break
        ids.append(base_id)
    return tokenizer.decode([*prompt, *ids]), elsewhere

def main(args):
    names = [args.language] if args.language else None
    run = analyze.load_run(args.out_dir, args.device, languages=names)
    if not run.model:
        sys.exit(f'{args.out_dir} is word2vec, which writes no text: name a GPT')
    for language in run.languages:
        name, elsewhere = run.dataset.names[language], []
        for number in range(args.samples):
            text, outside = sample(run, language, args, number)
            elsewhere += outside
            print(f'--- {name}, sample {number + 1} of {args.samples}\n{text}\n', flush=True)
        print(f'{name}: {100 * np.mean(elsewhere):.2g}% of the probability (at most '
              f'{100 * max(elsewhere):.2g}% at one token) lay on ids of other languages, which are '
              'never drawn\n')

if __name__ == '__main__':
    config.run(lambda: main(args))
