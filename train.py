"""
Train a GPT on one or several languages, in the proportions of a schedule.

    python train.py config/quickstart.py                                        # on a laptop
    python train.py config/cloned_90_10.py                                      # on a GPU
    torchrun --standalone --nproc_per_node=8 train.py config/cloned_90_10.py    # on eight

A missing dataset is prepared first; an interrupted run continues from its last checkpoint. SIGTERM,
SIGINT (Ctrl-C) and SIGUSR1 finish the step, save, and exit with status 75. In out_dir: config.json,
log.jsonl, ckpt.pt, ckpt_previous.pt; with --keep_checkpoints also step_001000/, ..., each a run.
"""
import sys

import config

if __name__ == '__main__':  # before torch is imported: --help and mistyped settings are instant
    cfg = config.load(sys.argv[1:], __doc__)

import fcntl
import json
import math
import os
import shutil
import signal
import time
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

import data_prep
from model import GPT, GPTConfig

# settings that do not change what is learned: a run may be continued with other values of them
FREE = set('out_dir micro_batch_size eval_interval eval_iters checkpoint_interval keep_checkpoints '
           'log_interval log_to overwrite device dtype compile num_workers'.split())
SHAPE = {'block_size', 'n_layer', 'n_embd', 'n_head', 'head_dim'}

# ---- the schedule: which sequences a step reads, in which languages ----------

def p_language(schedule, progress):
    """p(language), (n_languages,), after a fraction of training: that of the last stage begun."""
    return np.array([p for start, p in schedule if progress >= start - 1e-9][-1], float)

class Sampler:
    """A language for every sequence of the global batch, drawn from p(language), and its next
    sequence in a random order, a new one every epoch. With the seed, the counts in `read` determine
    all that is still to come: on any number of GPUs a resumed run reads what it would have read."""

    def __init__(self, starts, cfg):
        self.starts, self.cfg = starts, cfg
        self.read = np.zeros(len(starts), np.int64)
        self.orders = {}  # language -> where its sequences start, in the order of the present epoch

    def languages(self, step):
        """The languages (batch_size,) that a step draws."""
        cumulative = np.cumsum(p_language(self.cfg.schedule, step / self.cfg.max_iters))
        draws = np.random.default_rng([self.cfg.seed, step]).random(self.cfg.batch_size)
        return np.searchsorted(cumulative, draws * cumulative[-1], 'right')

    def next(self, step):
        """Where a step's sequences start, (batch_size,), and their languages; counted as read."""
        languages = self.languages(step)
        starts = np.empty_like(languages)
        for i, language in enumerate(languages):
            epoch, place = divmod(self.read[language], len(self.starts[language]))
            if place == 0 or language not in self.orders:  # a new epoch, or a resumed run
                rng = np.random.default_rng([self.cfg.seed, language, epoch])
                self.orders[language] = rng.permutation(self.starts[language])
            starts[i] = self.orders[language][place]
            self.read[language] += 1
        return starts, languages

    def input_languages(self, step, languages):
        """The language in which each input token is read, (batch_size, block_size): with
        probability codeswitch that of another clone, instead of the sequence's own."""
        inputs = np.repeat(languages[:, None], self.cfg.block_size, axis=1)
        rng = np.random.default_rng([self.cfg.seed, step, 0, 1])  # a stream of its own
        switched = rng.random(inputs.shape) < self.cfg.codeswitch
        corpora = [corpus for _, corpus in self.cfg.languages]
        for language, corpus in enumerate(corpora):
            clones = [i for i, c in enumerate(corpora) if c == corpus and i != language]
            if clones:
                chosen = switched & (languages[:, None] == language)
                inputs[chosen] = rng.choice(clones, np.count_nonzero(chosen))
        return inputs

# ---- helpers -----------------------------------------------------------------

def choose_device(device, dtype):
    """The settings, with 'auto' resolved -> device, and a function that opens its autocast."""
    if device == 'auto':
        device = str(torch.accelerator.current_accelerator(check_available=True) or 'cpu')
    try:
        if device == 'cuda' and 'LOCAL_RANK' in os.environ:  # set by torchrun
            device = f'cuda:{os.environ["LOCAL_RANK"]}'
            torch.cuda.set_device(device)  # before the first tensor, which would go to GPU 0
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        sys.exit(f"device {device!r} is not available; 'auto' picks one that is")
    kind = device.split(':')[0]
    if dtype == 'auto':  # float32 on CPUs: with AVX512-BF16 a small model still gains only 1.1x
        fast = kind == 'cuda' and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = 'bfloat16' if fast else 'float32'
    torch.set_float32_matmul_precision('high')  # TF32 where float32 remains on a GPU
    return device, partial(torch.autocast, kind, torch.bfloat16, enabled=dtype == 'bfloat16')

def new_model(cfg, vocab_size):
    """The model that the settings describe, freshly initialised from cfg.seed."""
    torch.manual_seed(cfg.seed)
    return GPT(GPTConfig(vocab_size=vocab_size, **{key: getattr(cfg, key) for key in SHAPE}))

def learning_rate(step, cfg):
    """Linear warm-up to cfg.learning_rate, then a cosine to cfg.min_lr at cfg.max_iters."""
    if step < cfg.warmup_iters:
        return cfg.learning_rate * (step + 1) / cfg.warmup_iters
    progress = (step - cfg.warmup_iters) / (cfg.max_iters - cfg.warmup_iters)
    return cfg.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (cfg.learning_rate - cfg.min_lr)

@torch.no_grad()
def evaluate(model, dataset, cfg, device, autocast, micro_batch_size):
    """{language: nats per token} over up to eval_iters x batch_size windows of its test text."""
    losses = {}
    for language, name in enumerate(dataset.names):
        starts, nats = dataset.test_starts(language, cfg.eval_iters * cfg.batch_size), 0.0
        for part in np.split(starts, range(micro_batch_size, len(starts), micro_batch_size)):
            x, y = dataset.windows('test', part, np.full(len(part), language))
            with autocast():
                loss = model(torch.from_numpy(x).to(device), torch.from_numpy(y).to(device))
            nats += loss.item() * len(part)
        losses[name] = nats / len(starts)
    return losses

def load_checkpoint(out_dir, cfg):
    """The last checkpoint of the run cfg, or None. Nothing in the file is executed."""
    last, previous = Path(out_dir, 'ckpt.pt'), Path(out_dir, 'ckpt_previous.pt')
    path = last if last.exists() else previous  # killed between two renames
    if not path.exists():
        return None
    with config.reading(path, f'`mv {previous} {last}` goes back to the checkpoint before, '
                        'train.py --overwrite to the start'):
        if zipfile.ZipFile(path).testzip():  # torch's format, with a CRC-32 of every tensor
            raise ValueError('its checksum differs')
        checkpoint = torch.load(path, map_location='cpu', mmap=True, weights_only=True)
        if sum(checkpoint['sequences_read']) != checkpoint['step'] * cfg.batch_size:
            raise ValueError('it belongs to another run')
        return checkpoint

def save_checkpoint(cfg, checkpoint):
    """Replace ckpt.pt, or leave it as it is. A checkpoint that is kept is complete before that."""
    out_dir, write = Path(cfg.out_dir), partial(torch.save, checkpoint)
    try:
        if cfg.keep_checkpoints:
            kept = out_dir / f'step_{checkpoint["step"]:06}'
            shutil.rmtree(kept, ignore_errors=True)  # of a run that was killed right after this
            kept.mkdir()
            shutil.copyfile(out_dir / 'config.json', kept / 'config.json')
            data_prep.atomic_write(kept / 'ckpt.pt', write)
        data_prep.atomic_write(out_dir / 'ckpt.pt', write, previous=out_dir / 'ckpt_previous.pt')
    except (OSError, RuntimeError) as e:  # torch's writer raises the latter
        sys.exit(f'step {checkpoint["step"]:,} could not be saved in {out_dir} ({e!s:.80}); the '
                 'checkpoint before is intact: free space, then run the same command again')

def open_tracker(cfg, start):
    """A function of ({name: number}, step) that sends a line of the log to cfg.log_to."""
    if cfg.log_to == 'wandb':
        import wandb
        latest = Path(cfg.out_dir, 'wandb', 'latest-run').resolve()  # [offline-]run-DATE_TIME-ID
        run_id = latest.name.rpartition('-')[2] if start and latest.exists() else None
        return wandb.init(dir=cfg.out_dir, name=cfg.out_dir, config=vars(cfg), id=run_id,
                          resume='allow').log  # it ignores steps that it has
    from torch.utils.tensorboard import SummaryWriter
    # after a kill the steps since the checkpoint are drawn again: hide the first ones
    writer = SummaryWriter(Path(cfg.out_dir, 'tensorboard'), purge_step=start + 1)

    def send(numbers, step):
        for name, number in numbers.items():
            writer.add_scalar(name, number, step)
        writer.flush()
    return send

# ---- refusals, before any work -----------------------------------------------

def first_change(saved, cfg, where, free=FREE):
    """'KEY = OLD, not NEW' of the first setting that differs from a saved one, else None."""
    before = vars(config.restored(saved, where))
    return next((f'{key} = {before[key]}, not {value}' for key, value in vars(cfg).items()
                 if key not in free and json.dumps(value) != json.dumps(before[key])), None)

def check(cfg, world):
    """Refuse what cannot be trained -> the checkpoint of this very run in out_dir, or None."""
    data_prep.check_languages(cfg)
    rules = {f'{key} must be at least 1': getattr(cfg, key) >= 1 for key in (
        'n_layer', 'n_embd', 'n_head', 'batch_size', 'max_iters', 'eval_interval', 'eval_iters',
        'checkpoint_interval', 'log_interval')}
    rules |= {
        'n_embd must be a multiple of n_head, or head_dim be set':
            cfg.head_dim or cfg.n_embd % max(1, cfg.n_head) == 0,
        f'batch_size must be a multiple of micro_batch_size times {world} processes':
            cfg.batch_size % (world * (cfg.micro_batch_size or 1)) == 0,
        'codeswitch must be 0 without clones, or where corpora share pieces':
            not cfg.codeswitch or len(cfg.languages) > len(cfg.corpora) and (
                len(cfg.corpora) == 1 or cfg.vocab == 'disjoint' and cfg.tokenizer != 'shared'),
        'codeswitch must be at most 1': cfg.codeswitch <= 1,
        'dtype must be auto, bfloat16 or float32': cfg.dtype in ('auto', 'bfloat16', 'float32'),
        "compile must be 'auto', True or False": cfg.compile in ('auto', True, False),
        "log_to must be 'tensorboard', 'wandb' or ''": cfg.log_to in ('tensorboard', 'wandb', '')}
    for rule, holds in rules.items():
        if not holds:
            sys.exit(f'{rule}, not {getattr(cfg, rule.split()[0])!r}')
    if cfg.log_to:
        data_prep.require(cfg.log_to, f'log_to={cfg.log_to}', '.[log]')
    path, remedy = Path(cfg.out_dir, 'config.json'), 'choose another --out_dir, or --overwrite it'
    saved = None if cfg.overwrite else config.read_json(path, remedy)
    if saved is None and not cfg.overwrite and any(path.parent.glob('ckpt*.pt')):
        sys.exit(f'{cfg.out_dir} holds a checkpoint without its config.json: {remedy}')
    if saved is not None and (change := first_change(saved, cfg, path)):
        sys.exit(f'{cfg.out_dir} holds a run with {change}: {remedy}')
    checkpoint = None if cfg.overwrite else load_checkpoint(cfg.out_dir, cfg)
    if cfg.init_from and not checkpoint:
        path = Path(cfg.init_from, 'config.json')
        saved = config.read_json(path, 'init_from must be a run')
        if not saved or not any(path.parent.glob('ckpt*.pt')):
            sys.exit(f'init_from must be a run with a checkpoint, not {cfg.init_from!r}')
        if change := first_change(saved, cfg, path, vars(cfg).keys() - SHAPE):
            sys.exit(f'init_from: {path} has {change}')
    return checkpoint

# ---- training ----------------------------------------------------------------

def main(cfg):
    # one process per GPU under torchrun, else a single one
    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    ddp, master = 'RANK' in os.environ, rank == 0
    print0 = print if master else lambda *args, **kwargs: None
    checkpoint = check(cfg, world)
    device, autocast = choose_device(cfg.device, cfg.dtype)
    out_dir, start = Path(cfg.out_dir), checkpoint['step'] if checkpoint else 0
    if start == cfg.max_iters:
        return print0(f'{out_dir}: this run is finished; --overwrite trains it again')
    if master:
        out_dir.mkdir(parents=True, exist_ok=True)
        lock = open(out_dir / '.lock', 'w')
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # of this process, and ends with it
        except BlockingIOError:
            sys.exit(f'another process trains in {out_dir}: choose another --out_dir, or wait')
        except OSError:
            pass  # a file system without locks

    # data: rank 0 prepares a missing dataset, the others wait
    path, waited = data_prep.DATA / cfg.dataset, 0
    if master and not path.exists():
        data_prep.prepare(cfg)
    while not path.exists():
        time.sleep(1)
        if (waited := waited + 1) == 60:
            print(f'rank {rank} waits for {path}: do all nodes share data/?', flush=True)
    dataset = data_prep.Dataset(cfg, verify=master)
    names, sampler = dataset.names, Sampler(dataset.starts, cfg)
    drawn = sum(np.bincount(sampler.languages(step), minlength=len(names))
                for step in range(cfg.max_iters))
    for language, (name, n) in enumerate(zip(names, map(len, dataset.starts))):
        if drawn[language] and not n or not len(dataset.test_starts(language, 1)):
            sys.exit(f'{path} has no sequence of {name} to train or test on: use a larger corpus')
        if drawn[language] > n:
            print0(f'note: {name} has {n * cfg.block_size:,} tokens, which this run reads '
                   f'{drawn[language] / n:.2f} times')

    # model and optimizer
    model = raw_model = new_model(cfg, dataset.vocab_size).to(device)
    optimizer = torch.optim.Adam(model.parameters(), betas=(cfg.beta1, cfg.beta2), fused=True)
    if checkpoint:
        with config.reading(out_dir / 'ckpt.pt', 'its shape differs, or its version is older; '
                            '--overwrite starts the run again'):
            model.load_state_dict(checkpoint['model'])
            optimizer.load_state_dict(checkpoint['optimizer'])
            sampler.read[:] = checkpoint['sequences_read']
        print0(f'{out_dir}: resumed after step {start:,}')
    elif cfg.init_from:
        other = config.restored(config.read_json(Path(cfg.init_from, 'config.json'), ''), '')
        if data_prep.Dataset(other, verify=False).vocabulary() != dataset.vocabulary():
            sys.exit(f'init_from: the ids of {cfg.init_from} stand for other pieces')
        with config.reading(cfg.init_from, 'init_from must be a GPT of this shape'):
            model.load_state_dict(load_checkpoint(cfg.init_from, other)['model'])
    if cfg.compile is True or cfg.compile == 'auto' and 'cuda' in device:
        model = torch.compile(model)
    if ddp:
        dist.init_process_group('cpu:gloo,cuda:nccl' if 'cuda' in device else 'gloo')
        states = [None] * world
        dist.all_gather_object(states, (start, dataset.checksum))
        if len(set(states)) > 1:
            sys.exit(f'nodes differ in their last step or data, {states}: share data/ and out/')
        model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    step_tokens = cfg.batch_size * cfg.block_size
    flops = raw_model.flops_per_token() * cfg.max_iters * step_tokens
    print0(f'{raw_model.num_params():,} non-embedding parameters, {dataset.vocab_size:,} model '
           f'ids, {cfg.max_iters * step_tokens:,} tokens, {flops:.2g} FLOPs, on {world} x {device}')

    # what an earlier run has left, measures of another step, and lines after the checkpoint go
    if master:
        for path in out_dir.glob('*'):
            measured = path.suffix == '.json' and path.name != 'config.json'
            if measured or not start and path.name.startswith(('ckpt', 'log.jsonl')):
                path.unlink()
            elif not start and path.name.startswith('step_'):
                shutil.rmtree(path)
        text = json.dumps(vars(cfg) | {'overwrite': False}, indent=1) + '\n'
        data_prep.atomic_write(out_dir / 'config.json', partial(Path.write_text, data=text))
        log_path = out_dir / 'log.jsonl'
        log_path.touch()
        with config.reading(log_path, 'repair or remove it, then run the same command again'):
            text = ''.join(line for line in open(log_path)
                           if line.endswith('\n') and json.loads(line)['step'] <= start)
        data_prep.atomic_write(log_path, partial(Path.write_text, data=text))
        log_file = open(log_path, 'a')
        track = open_tracker(cfg, start) if cfg.log_to else None

    def log(step, **figures):
        """A line of {key: number} and {key: {language: number}}."""
        print(json.dumps({'step': step, **figures}), file=log_file, flush=True)
        for key, value in figures.items() if track else ():
            by_name = value if isinstance(value, dict) else {'': value}
            track({f'{key}/{name}'.rstrip('/'): number for name, number in by_name.items()}, step)

    # signals only set a flag, so that the step is finished and saved. A second Ctrl-C kills a lone
    # process; torchrun signals every process twice, and rank 0 must still say why it stops
    signals = []

    def on_signal(number, frame):
        signals.append(number)
        if not ddp:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGUSR1:
        signal.signal(number, on_signal)

    batch_size = cfg.batch_size // world  # of this process
    micro = cfg.micro_batch_size or batch_size
    mine = slice(rank * batch_size, (rank + 1) * batch_size)
    bar = tqdm(range(start, cfg.max_iters), initial=start, total=cfg.max_iters, unit=' steps',
               disable=None if master else True)
    t0 = time.time()
    for step in bar:

        # learning rate
        lr = learning_rate(step, cfg)
        optimizer.param_groups[0]['lr'] = lr

        # batch: every process draws the global one and takes its rows, while a GPU is still busy
        starts, languages = sampler.next(step)
        inputs = sampler.input_languages(step, languages)[mine] if cfg.codeswitch else None
        batch = dataset.windows('train', starts[mine], languages[mine], inputs)
        x, y = map(torch.from_numpy, batch)
        if 'cuda' in device:
            x, y = x.pin_memory(), y.pin_memory()
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)  # (B, T)

        # forward and backward, in micro-batches; gradients are exchanged after the last one
        loss = torch.zeros((), device=device)
        for i in range(0, batch_size, micro):
            if ddp:
                model.require_backward_grad_sync = i + micro == batch_size
            with autocast():
                part = model(x[i:i + micro], y[i:i + micro]) * (micro / batch_size)
            part.backward()
            loss += part.detach()
        optimizer.step()
        optimizer.zero_grad()

        # stop? has any process been told to?
        done, last = step + 1, step + 1 == cfg.max_iters
        stop = torch.tensor(len(signals))  # on the CPU, so that no GPU has to wait
        if ddp:
            dist.all_reduce(stop)

        # log
        if done % cfg.log_interval == 0 or last:
            if ddp:
                dist.all_reduce(loss)
            loss = loss.item() / world
            if not math.isfinite(loss):
                sys.exit(f'the loss is {loss} at step {done:,}: try a lower learning_rate')
            p = dict(zip(names, p_language(cfg.schedule, step / cfg.max_iters).tolist()))
            seen = dict(zip(names, (sampler.read * cfg.block_size).tolist()))
            if master:
                log(done, loss=loss, lr=lr, p_language=p, tokens_seen=seen)
            bar.set_postfix(loss=loss)
            seconds = (time.time() - t0) / (done - start)  # a step, with all that it entails
            speed, left = step_tokens / seconds, (cfg.max_iters - done) * seconds / 60
            if bar.disable:
                print0(f'step {done:,}/{cfg.max_iters:,}: loss {loss:.3f}, {speed:,.0f} tokens/s, '
                       f'{left:.1f} min left', flush=True)

        # evaluate
        if master and (done % cfg.eval_interval == 0 or last):
            losses = evaluate(raw_model, dataset, cfg, device, autocast, micro)
            log(done, eval_loss=losses)
            losses = ', '.join(f'{name} {value:.4f}' for name, value in losses.items())
            bar.write(f'step {done:,}: evaluation loss {losses}')

        # save
        if master and (done % cfg.checkpoint_interval == 0 or last or stop):
            if not all(p.isfinite().all() for p in raw_model.parameters()):
                sys.exit(f'a weight is not finite at step {done:,}: try a lower learning_rate')
            os.fsync(log_file.fileno())  # no checkpoint without its lines
            save_checkpoint(cfg, {
                'step': done, 'model': raw_model.state_dict(), 'optimizer': optimizer.state_dict(),
                'sequences_read': sampler.read.tolist()})
        if stop:
            break

    if ddp:
        dist.all_reduce(stop)  # torchrun stops all once one exits: wait until rank 0 has saved
        del model, part  # they hold the group, whose threads must not outlive it
        dist.destroy_process_group()
    if not last:
        print0(f'stopped by a signal after step {done:,}, saved in {out_dir}; run it again')
        sys.exit(75)  # EX_TEMPFAIL: try again
    print0('tokens seen:', ', '.join(f'{name} {n:,}' for name, n in seen.items()))
    print0(f'next: python analyze.py ppl {out_dir}')

if __name__ == '__main__':
    try:
        config.run(lambda: main(cfg))
    except RuntimeError as e:
        if isinstance(e, torch.OutOfMemoryError):
            sys.exit('out of GPU memory: a smaller --micro_batch_size gives the same result')
        if isinstance(e, dist.DistError) or 'gloo' in str(e):
            sys.exit('another process of this run has died; the same command continues')
        raise
