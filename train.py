"""
Train a GPT on one or several languages, in the proportions of a schedule.

    python train.py config/quickstart.py                                        # on a laptop
    python train.py config/cloned_90_10.py                                      # on a GPU
    torchrun --standalone --nproc_per_node=8 train.py config/cloned_90_10.py    # on eight

A missing dataset is prepared first. The same command continues an interrupted run from its last
checkpoint, and leaves a finished one alone. In out_dir:

    config.json, log.jsonl        settings; losses and tokens seen, the same bytes every time
    ckpt.pt, ckpt_previous.pt     model, optimizer, step, sequences read of every language
    step_001000/, ...             with --keep_checkpoints: every checkpoint, as a run for analyze.py

SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 finish the current step, save, and exit with status 75.
"""
import sys

import config

if __name__ == '__main__':  # before torch is imported: --help and mistyped settings are instant
    cfg = config.load(sys.argv[1:], __doc__)

import contextlib
import fcntl
import json
import math
import os
import shutil
import signal
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
from tqdm import tqdm

import data_prep
from data_prep import Dataset, atomic_write
from model import GPT, GPTConfig

# settings that do not change what is learned: a run may be continued with other values of them
FREE = set('out_dir micro_batch_size eval_interval eval_iters checkpoint_interval keep_checkpoints '
           'log_interval log_to overwrite device dtype compile num_workers'.split())

# ---- the schedule: which sequences a step reads, in which languages ----------

def p_language(schedule, progress):
    """p(language), (n_languages,), after a fraction of training: that of the last stage begun."""
    begun = [p for start, p in schedule if progress >= start - 1e-9]
    return np.array(begun[-1], float)

class Sampler:
    """Which sequences a step reads, in which languages.

    It draws a language for every sequence of the global batch from p(language), then takes that
    language's next one in a random order, a new order every epoch. All of it depends on the seed
    alone, and the only state is `read`, the sequences read so far of every language: a resumed run,
    on any number of GPUs, reads what it would have read without a stop."""

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

# ---- helpers -----------------------------------------------------------------

def choose_device(device, dtype):
    """The settings, with 'auto' resolved -> device, and a function that opens its autocast."""
    if device == 'auto':
        mps = 'mps' if torch.backends.mps.is_available() else 'cpu'
        device = 'cuda' if torch.cuda.is_available() else mps
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
    return device, lambda: torch.autocast(kind, torch.bfloat16, enabled=dtype == 'bfloat16')

def new_model(cfg, vocab_size):
    """The model that the settings describe, freshly initialised from cfg.seed."""
    torch.manual_seed(cfg.seed)
    return GPT(GPTConfig(cfg.block_size, vocab_size, cfg.n_layer, cfg.n_embd, cfg.n_head,
                         cfg.head_dim))

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
        for i in range(0, len(starts), micro_batch_size):
            part = starts[i:i + micro_batch_size]
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
        with zipfile.ZipFile(path) as archive:  # torch's format, with a CRC-32 of every tensor
            if archive.testzip():
                raise ValueError('its checksum differs')
        checkpoint = torch.load(path, map_location='cpu', mmap=True, weights_only=True)
        if sum(checkpoint['sequences_read']) != checkpoint['step'] * cfg.batch_size:
            raise ValueError('it belongs to another run')
        return checkpoint

def save_checkpoint(cfg, checkpoint):
    """Replace ckpt.pt, or leave it as it is. A checkpoint that is kept is complete before that."""
    out_dir, step = Path(cfg.out_dir), checkpoint['step']

    def write(partial):
        torch.save(checkpoint, partial)
        if cfg.keep_checkpoints:
            kept = out_dir / f'step_{step:06}'
            shutil.rmtree(kept, ignore_errors=True)  # of a run that was killed right after this
            kept.mkdir()
            shutil.copyfile(out_dir / 'config.json', kept / 'config.json')
            shutil.copyfile(partial, kept / 'ckpt.pt')
    try:
        atomic_write(out_dir / 'ckpt.pt', write, previous=out_dir / 'ckpt_previous.pt')
    except (OSError, RuntimeError) as e:  # torch's writer raises the latter
        sys.exit(f'step {step:,} could not be saved in {out_dir} ({e!s:.80}); the last checkpoint '
                 'is intact: free space, then run the same command again')

def open_tracker(cfg, start):
    """A function of ({name: number}, step) that sends a line of the log to cfg.log_to."""
    if cfg.log_to == 'wandb':
        import wandb
        latest = Path(cfg.out_dir, 'wandb', 'latest-run')  # -> [offline-]run-DATE_TIME-ID
        run_id = latest.resolve().name.rpartition('-')[2] if start and latest.exists() else None
        run = wandb.init(dir=cfg.out_dir, name=cfg.out_dir, config=vars(cfg), id=run_id,
                         resume='allow')  # it ignores steps that it has
        return run.log
    from torch.utils.tensorboard import SummaryWriter
    # after a kill the steps since the checkpoint are drawn again: hide the first ones
    writer = SummaryWriter(Path(cfg.out_dir, 'tensorboard'), purge_step=start + 1)

    def send(numbers, step):
        for name, number in numbers.items():
            writer.add_scalar(name, number, step)
        writer.flush()
    return send

# ---- refusals, before any work -----------------------------------------------

def first_change(saved, cfg, where):
    """The first saved setting that makes cfg another run, or None if it is the same run."""
    before = vars(config.restored(saved, where))
    return next((key for key, value in vars(cfg).items()
                 if key not in FREE and json.dumps(value) != json.dumps(before[key])), None)

def check(cfg, world):
    """Refuse what cannot be trained -> the checkpoint of this very run in out_dir, or None."""
    data_prep.check_languages(cfg)
    rules = {f'{key} must be at least 1': getattr(cfg, key) >= 1 for key in (
        'n_layer', 'n_embd', 'n_head', 'batch_size', 'max_iters', 'eval_interval', 'eval_iters',
        'checkpoint_interval', 'log_interval')}
    rules |= {
        'n_embd must be a multiple of n_head, or head_dim be set':
            cfg.n_head < 1 or cfg.head_dim or cfg.n_embd % cfg.n_head == 0,
        f'batch_size must be a multiple of micro_batch_size times {world} processes':
            cfg.batch_size % (world * (cfg.micro_batch_size or 1)) == 0,
        "dtype must be 'auto', 'bfloat16' or 'float32'":
            cfg.dtype in ('auto', 'bfloat16', 'float32'),
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
    if saved is not None and (key := first_change(saved, cfg, path)):
        sys.exit(f'{cfg.out_dir} holds a run with {key} = {saved.get(key)}, not '
                 f'{getattr(cfg, key)}: {remedy}')
    checkpoint = None if cfg.overwrite else load_checkpoint(cfg.out_dir, cfg)
    if cfg.init_from and not checkpoint:
        path = Path(cfg.init_from, 'config.json')
        if not path.exists() or not any(path.parent.glob('ckpt*.pt')):
            sys.exit(f'init_from must be a run with a checkpoint, not {cfg.init_from!r}')
        other = vars(config.restored(config.read_json(path, ''), path))
        for key in 'block_size', 'n_layer', 'n_embd', 'n_head', 'head_dim':
            if other[key] != getattr(cfg, key):
                sys.exit(f'init_from: {path} has {key} = {other[key]}, not {getattr(cfg, key)}')
    return checkpoint

# ---- training ----------------------------------------------------------------

def train(cfg, held):
    """held: an ExitStack, for the files that are closed however this ends."""
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
        lock = held.enter_context(open(out_dir / '.lock', 'w'))
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it ends with this process
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
        waited += 1
        if waited == 60:
            print(f'rank {rank} waits for {path}: do all nodes share data/?', flush=True)
    dataset = Dataset(cfg, verify=master)
    sampler = Sampler(dataset.starts, cfg)
    drawn = sum(np.bincount(sampler.languages(step), minlength=len(dataset.names))
                for step in range(cfg.max_iters))
    for language, (name, starts) in enumerate(zip(dataset.names, dataset.starts)):
        if drawn[language] and not len(starts) or not len(dataset.test_starts(language, 1)):
            sys.exit(f'{path} has no sequence of {name} to train on, or none to test on: use a '
                     'larger corpus, share or test_frac')
        if drawn[language] > len(starts):
            print0(f'note: {name} has {len(starts) * cfg.block_size:,} tokens, which this run '
                   f'reads {drawn[language] / len(starts):.2f} times')

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
        if Dataset(other, verify=False).vocabulary() != dataset.vocabulary():
            sys.exit(f'init_from: the ids of {cfg.init_from} stand for other pieces')
        model.load_state_dict(load_checkpoint(cfg.init_from, other)['model'])
    if cfg.compile is True or cfg.compile == 'auto' and 'cuda' in device:
        model = torch.compile(model)
    if ddp:
        dist.init_process_group('cpu:gloo,cuda:nccl' if 'cuda' in device else 'gloo')
        states = [None] * world
        dist.all_gather_object(states, (start, dataset.checksum))
        if len(set(states)) > 1:
            sys.exit(f'nodes differ in their last step or their data, {states}: copy data/ and '
                     'out/ to all of them, or share both')
        model = DDP(model, gradient_as_bucket_view=True)
    tokens_per_step = cfg.batch_size * cfg.block_size
    tokens = cfg.max_iters * tokens_per_step
    flops = raw_model.flops_per_token() * tokens
    print0(f'{raw_model.num_params():,} non-embedding parameters, {dataset.vocab_size:,} model ids, '
           f'{tokens:,} tokens, {flops:.2g} FLOPs, on {world} x {device}')

    # log: its lines after the checkpoint are written again, measures of an older one are dropped
    if master:
        settings = json.dumps(vars(cfg) | {'overwrite': False}, indent=1) + '\n'
        atomic_write(out_dir / 'config.json', lambda partial: partial.write_text(settings))
        for path in out_dir.glob('*'):
            measured = path.suffix == '.json' and path.name != 'config.json'
            if measured or not start and path.name.startswith('ckpt'):
                path.unlink()
            elif not start and path.name.startswith('step_'):
                shutil.rmtree(path)
        log_path = out_dir / 'log.jsonl'
        with config.reading(log_path, 'repair or remove it, then run the same command again'):
            lines = log_path.read_text().splitlines(True) if start and log_path.exists() else []
            lines = [line for line in lines
                     if line.endswith('\n') and json.loads(line)['step'] <= start]
        atomic_write(log_path, lambda partial: partial.write_text(''.join(lines)))
        log_file = held.enter_context(open(log_path, 'a'))
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
    micro_batch_size = cfg.micro_batch_size or batch_size
    mine = slice(rank * batch_size, (rank + 1) * batch_size)
    bar = tqdm(total=cfg.max_iters, initial=start, unit=' steps', disable=None if master else True)
    t0, paused = time.time(), 0.0
    for step in range(start, cfg.max_iters):

        # learning rate
        lr = learning_rate(step, cfg)
        optimizer.param_groups[0]['lr'] = lr

        # batch: every process draws the global one and takes its own rows. A GPU only queues its
        # work: this goes on while it still computes the step before
        starts, languages = sampler.next(step)
        x, y = map(torch.from_numpy, dataset.windows('train', starts[mine], languages[mine]))
        if 'cuda' in device:
            x, y = x.pin_memory(), y.pin_memory()
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)  # (B, T)

        # forward and backward, in micro-batches; gradients are exchanged after the last one
        loss = torch.zeros((), device=device)
        for i in range(0, batch_size, micro_batch_size):
            if ddp:
                model.require_backward_grad_sync = i + micro_batch_size == batch_size
            with autocast():
                part = model(x[i:i + micro_batch_size], y[i:i + micro_batch_size])
                part = part * (micro_batch_size / batch_size)
            part.backward()
            loss += part.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        # has any process been told to stop?
        done, last = step + 1, step + 1 == cfg.max_iters
        stop = torch.tensor(len(signals))  # on the CPU, so that no GPU has to wait
        if ddp:
            dist.all_reduce(stop)

        # log
        bar.update()
        if done % cfg.log_interval == 0 or last:
            if ddp:
                dist.all_reduce(loss)
            loss = loss.item() / world
            if not math.isfinite(loss):
                sys.exit(f'the loss is {loss} at step {done:,}: try a lower learning_rate')
            p = p_language(cfg.schedule, step / cfg.max_iters).tolist()
            tokens_seen = dict(zip(dataset.names, (sampler.read * cfg.block_size).tolist()))
            if master:
                log(done, loss=loss, lr=lr, p_language=dict(zip(dataset.names, p)),
                    tokens_seen=tokens_seen)
            seconds = time.time() - t0 - paused  # neither evaluation nor saving counts
            speed = (done - start) * tokens_per_step / seconds
            left = (cfg.max_iters - done) * seconds / (done - start) / 60
            bar.set_postfix(loss=loss)
            if bar.disable:
                print0(f'step {done:,}/{cfg.max_iters:,}: loss {loss:.3f}, {speed:,.0f} tokens/s, '
                       f'{left:.1f} min left', flush=True)

        # evaluate
        pause = time.time()
        if master and (done % cfg.eval_interval == 0 or last):
            losses = evaluate(raw_model, dataset, cfg, device, autocast, micro_batch_size)
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
        paused += time.time() - pause
        if stop:
            break

    bar.close()
    if ddp:
        dist.all_reduce(stop)  # torchrun stops all once one exits: wait until rank 0 has saved
        del model, part  # they hold the group, whose threads must not outlive it
        dist.destroy_process_group()
    if not last:
        print0(f'stopped by a signal after step {done:,}, saved in {out_dir}; the same command '
               'continues')
        sys.exit(75)  # EX_TEMPFAIL: try again
    print0('tokens seen:', ', '.join(f'{name} {n:,}' for name, n in tokens_seen.items()))
    print0(f'next: python analyze.py ppl {out_dir}')

def main(cfg):
    try:
        with contextlib.ExitStack() as held:
            train(cfg, held)
    except torch.OutOfMemoryError:
        sys.exit('out of GPU memory: a smaller --micro_batch_size gives the same result')
    except RuntimeError as e:
        if not (isinstance(e, dist.DistError) or 'gloo' in str(e)):
            raise
        sys.exit('another process of this run has died; the same command continues')

if __name__ == '__main__':
    config.run(lambda: main(cfg))
