"""
The paper's control (appendices A and C): word2vec, in which words share no weights, on the very
sequences that the GPT of the same config reads.

    python -m extras.word2vec config/cloned_90_10.py --out_dir=out/word2vec [--shared_layer]
    python analyze.py alignment out/word2vec                  # its two tables of embeddings

--shared_layer adds a feed-forward layer that all words share. learning_rate is 2e-3 and min_lr 2e-5
unless the command line says otherwise; of the model's settings only n_embd counts. One process that
does not resume: a folder that holds a run is refused unless --overwrite.
"""
import sys

import config

RATES = ['--learning_rate=2e-3', '--min_lr=2e-5']  # whatever the GPT's config file says

def parse(argv):
    """The command line -> settings, and whether there is a shared layer."""
    files = [argument for argument in argv if not argument.startswith('-')]
    options = [argument for argument in argv if argument not in (*files, '--shared_layer')]
    return config.load([*files, *RATES, *options], __doc__), '--shared_layer' in argv

if __name__ == '__main__':  # before torch is imported: --help and mistyped settings are instant
    args = parse(sys.argv[1:])

import json
import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import data_prep
import train
from data_prep import Dataset, atomic_write
from model import MLP, GPTConfig

class Word2Vec(nn.Module):
    """Skip-gram with negative sampling (Mikolov et al., 2013), on whole batches of text.

    - lm_head(context) . wte(centre) is the logit of two words standing within WINDOW of each other
    - a pair at distance d has weight (WINDOW + 1 - d) / WINDOW, the share of word2vec's random
      window sizes that include it
    - negatives are drawn from frequency^0.75: POOL of them serve all pairs of a step, weighted
      NEGATIVES / POOL. The expectation is that of NEGATIVES per pair, with less variance
    - initialised like word2vec: wte uniform within 0.5 / n_embd, lm_head zero
    - words share no parameter, unless shared_layer adds a feed-forward layer after wte (appendix A)
    """
    WINDOW, NEGATIVES, POOL = 5, 20, 2048

    def __init__(self, vocab_size, n_embd, shared_layer=False):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, n_embd)
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.shared = MLP(GPTConfig(n_embd=n_embd)) if shared_layer else None
        nn.init.uniform_(self.wte.weight, -0.5 / n_embd, 0.5 / n_embd)
        nn.init.zeros_(self.lm_head.weight)
        negatives = torch.zeros(self.POOL, dtype=torch.int64)
        self.register_buffer('negatives', negatives, persistent=False)

    def set_frequency(self, frequency):
        """How often each id occurs in the training text, (vocab_size,), in any unit."""
        self.noise = np.cumsum(np.asarray(frequency, float) ** 0.75)

    def draw_negatives(self, seed):
        """Draw a step's negatives, one from each of POOL equal parts of the distribution. They
        depend on the seed (ints) alone."""
        places = (np.arange(self.POOL) + np.random.default_rng(seed).random(self.POOL)) / self.POOL
        ids = np.searchsorted(self.noise, places * self.noise[-1], 'right')
        ids = torch.from_numpy(ids.clip(max=len(self.noise) - 1))
        if self.negatives.is_cuda:
            ids = ids.pin_memory()  # so that the CPU need not wait
        self.negatives.copy_(ids, non_blocking=True)

    def forward(self, idx, targets):
        """Token ids (B, T), the ids that follow them (B, T) -> mean loss per pair, in nats."""
        text = torch.cat((idx, targets[:, -1:]), 1)  # (B, T + 1)
        centre = self.wte(text)
        if self.shared:
            centre = centre + self.shared(centre)
        place = torch.arange(text.size(1), device=text.device)
        distance = (place[:, None] - place).abs()
        weight = (self.WINDOW + 1 - distance).clamp(min=0) * (distance > 0) / self.WINDOW
        context = F.embedding(text, self.lm_head.weight)
        noise = F.embedding(self.negatives, self.lm_head.weight)
        positive = F.softplus(-(centre @ context.mT).float())  # (B, T + 1, T + 1)
        negative = F.softplus((centre @ noise.T).float())  # (B, T + 1, POOL)
        pairs = weight.sum(1)  # of each centre
        negative = (negative.mean(-1) * pairs).sum(1) * self.NEGATIVES
        loss = (positive * weight).sum((1, 2)) + negative
        return loss.mean() / pairs.sum()

def frequency(dataset, cfg):
    """The share of every model id, (vocab_size,), in text with the schedule's marginals."""
    share, marginals = np.zeros(dataset.vocab_size), data_prep.marginals(cfg.schedule)
    for row, corpus, p in zip(dataset.vocab_map, dataset.corpora, marginals):
        text, V = corpus['train'], corpus['vocab_size']
        counts = sum(np.bincount(text[i:i + (1 << 20)], minlength=V)
                     for i in range(0, len(text), 1 << 20))
        share[row[:V]] += p * counts / counts.sum()
    return share

def check(cfg):
    """Refuse what cannot be trained, or is in the way."""
    out_dir = Path(cfg.out_dir)
    if not cfg.overwrite and any([*out_dir.glob('config.json'), *out_dir.glob('ckpt*.pt')]):
        sys.exit(f'{out_dir} holds a run: choose another --out_dir, or --overwrite this one')
    for key in 'init_from', 'log_to', 'keep_checkpoints', 'codeswitch':
        if getattr(cfg, key):
            sys.exit(f'word2vec has no {key}: leave it out')
    train.check(cfg, 1)

def main(args):
    cfg, shared_layer = args
    check(cfg)
    device, autocast = train.choose_device(cfg.device, cfg.dtype)
    if not (data_prep.DATA / cfg.dataset).exists():
        data_prep.prepare(cfg)
    dataset, out_dir = Dataset(cfg), Path(cfg.out_dir)
    for name, starts, p in zip(dataset.names, dataset.starts, data_prep.marginals(cfg.schedule)):
        if p and not len(starts):
            sys.exit(f'{data_prep.DATA / cfg.dataset} has no sequence of {name} to train on: use a '
                     'larger corpus or share')
    torch.manual_seed(cfg.seed)
    model = Word2Vec(dataset.vocab_size, cfg.n_embd, shared_layer).to(device)
    model.set_frequency(frequency(dataset, cfg))
    optimizer = torch.optim.Adam(model.parameters(), betas=(cfg.beta1, cfg.beta2), fused=True)
    sampler = train.Sampler(dataset.starts, cfg)
    micro_batch_size = cfg.micro_batch_size or cfg.batch_size

    # what another run has left or measured no longer holds
    out_dir.mkdir(parents=True, exist_ok=True)
    for path in [*out_dir.glob('*.json'), *out_dir.glob('ckpt*.pt'), *out_dir.glob('step_*/*')]:
        path.unlink()
    settings = vars(cfg) | {'overwrite': False, 'model': 'word2vec', 'shared_layer': shared_layer}
    text = json.dumps(settings, indent=1) + '\n'
    atomic_write(out_dir / 'config.json', lambda partial: partial.write_text(text))
    log_file = open(out_dir / 'log.jsonl', 'w')

    for step in (bar := tqdm(range(cfg.max_iters), unit=' steps', disable=None)):
        lr = train.learning_rate(step, cfg)
        optimizer.param_groups[0]['lr'] = lr
        starts, languages = sampler.next(step)
        batch = map(torch.from_numpy, dataset.windows('train', starts, languages))
        x, y = (ids.to(device) for ids in batch)  # (B, T)
        model.draw_negatives([cfg.seed, step, 0, 1])  # 1: not the stream that draws languages
        loss = torch.zeros((), device=device)
        for i in range(0, cfg.batch_size, micro_batch_size):
            with autocast():
                part = model(x[i:i + micro_batch_size], y[i:i + micro_batch_size])
                part = part * (micro_batch_size / cfg.batch_size)
            part.backward()
            loss += part.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        if done % cfg.log_interval == 0 or done == cfg.max_iters:
            if not math.isfinite(loss):
                sys.exit(f'the loss is {loss} at step {done:,}: try a lower learning_rate')
            p = train.p_language(cfg.schedule, step / cfg.max_iters).tolist()
            seen = dict(zip(dataset.names, (sampler.read * cfg.block_size).tolist()))
            record = {'step': done, 'loss': loss.item(), 'lr': lr,
                      'p_language': dict(zip(dataset.names, p)), 'tokens_seen': seen}
            print(json.dumps(record), file=log_file, flush=True)
            bar.set_postfix(loss=record['loss'])
            if bar.disable:
                print(f'step {done:,}/{cfg.max_iters:,}: loss {record["loss"]:.3f}', flush=True)
    log_file.close()
    train.save_checkpoint(cfg, {'step': cfg.max_iters, 'model': model.state_dict(),
                                'sequences_read': sampler.read.tolist()})
    print(f'{out_dir}: loss {record["loss"]:.4f}; next: python analyze.py alignment {out_dir}')

if __name__ == '__main__':
    config.run(lambda: main(args))
