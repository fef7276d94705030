"""
Train a GPT on one or several languages, in the proportions of a schedule.

    python train.py config/quickstart.py                                        # on a laptop
    torchrun --standalone --nproc_per_node=8 train.py config/cloned_90_10.py    # on eight GPUs

A missing dataset is prepared first; an interrupted run continues from its last checkpoint. SIGTERM,
SIGINT (Ctrl-C) and SIGUSR1 finish the step, save, and exit with status 75. torchrun passes SIGUSR1
on only with --signals-to-handle=SIGTERM,SIGINT,SIGUSR1, kills after 30 s, and exits with status 1.
In out_dir: config.json, log.jsonl, ckpt.pt, ckpt_previous.pt; with --keep_checkpoints also
step_001000/, ..., each a run.
"""
import sys

import config

if __name__ == '__main__':  # before torch is imported: --help and mistyped settings are instant
    cfg = config.load(sys.argv[1:], __doc__)

import atexit
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

import data_prep
from model import GPT, GPTConfig

# settings that do not change what is learned: a run may be continued with other values of them
FREE = set('out_dir micro_batch_size eval_interval eval_iters checkpoint_interval keep_checkpoints '
           'log_interval log_to overwrite device dtype compile num_workers'.split())
SHAPE = {'block_size', 'n_layer', 'n_embd', 'n_head', 'head_dim'}
# what was measured on a run: further training makes it void
MEASURES = {f'{name}.json' for name in ('results', 'alignment', 'matching', 'glue', 'lens')}

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
        self.read = np.zeros(len(starts), np.int64)  # sequences of every language, so far
        self.orders = {}  # language -> where its sequences start, in the order of the present epoch

    def next(self, step):
        """Where a step's sequences start, (batch_size,), and their languages; counted as read."""
        cumulative = np.cumsum(p_language(self.cfg.schedule, step / self.cfg.max_iters))
        draws = np.random.default_rng([self.cfg.seed, step]).random(self.cfg.batch_size)
        languages = np.searchsorted(cumulative, draws * cumulative[-1], 'right')
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
        # numpy pads seeds with zeros: [seed, step] would be the stream of the draws above
        rng = np.random.default_rng([self.cfg.seed, step, 0, 1])
        switched = rng.random(inputs.shape) < self.cfg.codeswitch
        corpora = [corpus for _, corpus in self.cfg.languages]
        for language, corpus in enumerate(corpora):
            clones = [i for i, other in enumerate(corpora) if other == corpus and i != language]
            if clones:
                chosen = switched & (languages[:, None] == language)
                inputs[chosen] = rng.choice(clones, chosen.sum())
        return inputs

# ---- model, device, evaluation -----------------------------------------------

def choose_device(device, dtype):
    """The settings, with 'auto' resolved -> device, and a function that opens its autocast. Also
    sets the GPU of the process, and the precision of its products."""
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
    return device, lambda: torch.autocast(kind, torch.bfloat16, enabled=dtype == 'bfloat16')

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
    """{language: nats per token} over up to eval_iters x batch_size windows of its test text. There
    is no dropout, so no eval()."""
    losses = {}
    for language, name in enumerate(dataset.names):
        starts = dataset.test_starts(language, cfg.eval_iters * cfg.batch_size)
        batches = []  # their losses are read at the end, so that a GPU need not wait
        for some in np.split(starts, range(micro_batch_size, len(starts), micro_batch_size)):
            x, y = dataset.windows('test', some, np.full(len(some), language))
            with autocast():
                loss = model(torch.from_numpy(x).to(device), torch.from_numpy(y).to(device))
            batches.append((loss, len(some)))
        losses[name] = sum(loss.item() * n for loss, n in batches) / len(starts)
    return losses

# ---- the folder of a run -----------------------------------------------------

def save_checkpoint(cfg, checkpoint):
    """Replace ckpt.pt, or leave it as it is. A checkpoint that is kept is complete before that."""
    out_dir, kept = Path(cfg.out_dir), Path(cfg.out_dir, f'step_{checkpoint["step"]:06}')
    write = lambda path: torch.save(checkpoint, path)
    try:
        if cfg.keep_checkpoints:
            shutil.rmtree(kept, ignore_errors=True)  # of a run that was killed right after this
            kept.mkdir()
            shutil.copyfile(out_dir / 'config.json', kept / 'config.json')
            data_prep.atomic_write(kept / 'ckpt.pt', write)
        data_prep.atomic_write(out_dir / 'ckpt.pt', write, previous=out_dir / 'ckpt_previous.pt')
    except (OSError, RuntimeError) as e:  # torch's writer raises the latter
        sys.exit(f'step {checkpoint["step"]:,} could not be saved in {out_dir} ({e!s:.80}): free '
                 'space and run the same command again, the checkpoint before is intact')

def load_checkpoint(out_dir, cfg):
    """The last checkpoint of the run cfg, or None. Nothing in the file is executed."""
    last, previous = Path(out_dir, 'ckpt.pt'), Path(out_dir, 'ckpt_previous.pt')
    path = last if last.exists() else previous  # killed between two renames
    if not path.exists():
        return None
    with config.reading(path, f'`mv {previous} {last}` goes back, --overwrite to the start'):
        if zipfile.ZipFile(path).testzip():  # torch's format, with a CRC-32 of every tensor
            raise ValueError('its checksum differs')
        checkpoint = torch.load(path, map_location='cpu', mmap=True, weights_only=True)
        if sum(checkpoint['sequences_read']) != checkpoint['step'] * cfg.batch_size:
            raise ValueError('it belongs to another run')
        return checkpoint

def open_tracker(cfg, start):
    """A function of (name, number, step) that draws a number in cfg.log_to."""
    if cfg.log_to == 'wandb':
        import wandb
        latest = Path(cfg.out_dir, 'wandb', 'latest-run').resolve()  # [offline-]run-DATE_TIME-ID
        run_id = latest.name.rpartition('-')[2] if start and latest.exists() else None
        wandb.init(dir=cfg.out_dir, name=cfg.out_dir, config=vars(cfg), id=run_id, resume='allow')
        return lambda name, number, step: wandb.log({name: number}, step)
    from torch.utils.tensorboard import SummaryWriter
    writer = SummaryWriter(f'{cfg.out_dir}/tensorboard', purge_step=start + 1, flush_secs=1)
    atexit.register(writer.close)
    return writer.add_scalar

# ---- refusals, before any work -----------------------------------------------

def earlier_run(out_dir, cfg, free, remedy):
    """The last checkpoint of a run, or None. Settings that are not free must be as in cfg."""
    path = Path(out_dir, 'config.json')
    saved = config.read_json(path, remedy)
    if saved is None:
        if any(path.parent.glob('ckpt*.pt')):
            sys.exit(f'{out_dir} holds a checkpoint without its config.json: {remedy}')
        return None
    before = config.restored(saved, path)
    for key, value in vars(cfg).items():
        if key not in free and json.dumps(value) != json.dumps(getattr(before, key)):
            sys.exit(f'{path} has {key} = {getattr(before, key)}, not {value}: {remedy}')
    return load_checkpoint(out_dir, before)

def check(cfg, world):
    """Refuse what cannot be trained -> the checkpoint of this very run in out_dir, or None."""
    data_prep.check_languages(cfg)
    folder, data = Path(cfg.out_dir).resolve(), data_prep.DATA.resolve()
    counts = ('n_layer', 'n_embd', 'n_head', 'batch_size', 'max_iters', 'eval_interval',
              'eval_iters', 'checkpoint_interval', 'log_interval')
    shared = len(cfg.corpora) > 1 and (cfg.vocab != 'disjoint' or cfg.tokenizer == 'shared')
    # the first word of a rule is the setting that the refusal shows
    rules = {f'{key} must be at least 1': getattr(cfg, key) >= 1 for key in counts} | {
        'n_embd must be a multiple of n_head': cfg.head_dim or cfg.n_embd % max(1, cfg.n_head) == 0,
        f'batch_size must be a multiple of {world} processes': cfg.batch_size % world == 0,
        'codeswitch must be 0 without clones, or where corpora share pieces':
            cfg.codeswitch == 0 or len(cfg.languages) > len(cfg.corpora) and not shared,
        'codeswitch must be at most 1': cfg.codeswitch <= 1,
        'beta1 must be below 1': cfg.beta1 < 1,
        'beta2 must be below 1': cfg.beta2 < 1,
        'out_dir must be a folder of its own, not in data/':
            folder != Path.cwd() and not folder.is_relative_to(data),
        'dtype must be auto, bfloat16 or float32': cfg.dtype in ('auto', 'bfloat16', 'float32'),
        "compile must be 'auto', True or False": cfg.compile in ('auto', True, False),
        "log_to must be 'tensorboard', 'wandb' or ''": cfg.log_to in ('tensorboard', 'wandb', '')}
    for rule, holds in rules.items():
        if not holds:
            sys.exit(f'{rule}, not {getattr(cfg, rule.split()[0])!r}')
    if cfg.log_to:
        data_prep.require(cfg.log_to, f'log_to={cfg.log_to}', '.[log]')
    remedy = 'choose another --out_dir, or --overwrite it'
    checkpoint = None if cfg.overwrite else earlier_run(cfg.out_dir, cfg, FREE, remedy)
    if cfg.init_from and not checkpoint:
        remedy = 'init_from must be a run of the same shape'
        if not earlier_run(cfg.init_from, cfg, vars(cfg).keys() - SHAPE, remedy):
            sys.exit(f'init_from must be a run with a checkpoint, not {cfg.init_from!r}')
    return checkpoint

# ---- training ----------------------------------------------------------------

def main(cfg):
    # one process per GPU under torchrun, else a single one
    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    ddp, master = world > 1, rank == 0
    print0 = print if master else lambda *args, **kwargs: None
    all_reduce = dist.all_reduce if ddp else lambda tensor: None  # the sum over all processes
    checkpoint = check(cfg, world)
    device, autocast = choose_device(cfg.device, cfg.dtype)
    out_dir, start = Path(cfg.out_dir), checkpoint['step'] if checkpoint else 0
    if start == cfg.max_iters:
        return print0(f'{out_dir}: this run is finished; --overwrite trains it again')
    if master:
        out_dir.mkdir(parents=True, exist_ok=True)
        lock = open(out_dir / '.lock', 'w')
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until this process ends
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
    dataset = data_prep.Dataset(cfg, verify=master)
    names, sampler = dataset.names, Sampler(dataset.starts, cfg)
    # sequences to be read of each language, in expectation, (n_languages,)
    drawn = data_prep.marginals(cfg.schedule) * cfg.max_iters * cfg.batch_size
    for language, (name, n, starts) in enumerate(zip(names, drawn, dataset.starts)):
        if (n and not len(starts)) or not len(dataset.test_starts(language, 1)):
            sys.exit(f'{path}: no text to train or test {name} on, use a larger corpus')
        if n > len(starts):
            print0(f'note: {name} has {len(starts) * cfg.block_size:,} tokens, which this run '
                   f'reads {n / len(starts):.1f} times')
        if 0 < n < 3:
            print0(f'note: only {n:.1f} sequences of {name} are to be expected, perhaps none')
    first_steps = np.ceil([(begin - 1e-9) * cfg.max_iters for begin, _ in cfg.schedule])
    if skipped := np.count_nonzero(np.diff([*first_steps, cfg.max_iters]) <= 0):
        print0(f'note: no step reaches {skipped:,} of {len(cfg.schedule):,} stages of the schedule')
    if cfg.warmup_iters >= cfg.max_iters:
        print0(f'note: the run ends within its warm-up of {cfg.warmup_iters:,} steps')

    # model and optimizer
    model = raw_model = new_model(cfg, dataset.vocab_size).to(device)
    groups = [{'params': [p for p in model.parameters() if p.dim() > 1]},
              {'params': [p for p in model.parameters() if p.dim() == 1], 'weight_decay': 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(cfg.beta1, cfg.beta2), fused=True,
                                  weight_decay=cfg.weight_decay)  # 0 makes it Adam
    if checkpoint:
        with config.reading(out_dir, 'its shape differs, or its version is older; --overwrite it'):
            model.load_state_dict(checkpoint['model'])
            optimizer.load_state_dict(checkpoint['optimizer'])
            sampler.read[:] = checkpoint['sequences_read']
        print0(f'{out_dir}: resumed after step {start:,}')
    elif cfg.init_from:
        other = config.restored(config.read_json(Path(cfg.init_from, 'config.json'), ''), '')
        before = data_prep.Dataset(other, verify=False)
        pieces = [[data_prep.load_tokenizer(corpus['tokenizer']).pieces for corpus in data.corpora]
                  for data in (before, dataset)]
        if pieces[0] != pieces[1] or not np.array_equal(before.vocab_map, dataset.vocab_map):
            sys.exit(f'init_from: the ids of {cfg.init_from} stand for other pieces')
        with config.reading(cfg.init_from, 'init_from must be a GPT of this shape'):
            model.load_state_dict(load_checkpoint(cfg.init_from, other)['model'])
    if cfg.compile is True or cfg.compile == 'auto' and 'cuda' in device:
        model.compile()
    if ddp:
        dist.init_process_group('cpu:gloo,cuda:nccl' if 'cuda' in device else 'gloo')
        states = [None] * world
        dist.all_gather_object(states, (start, dataset.checksum))
        if len(set(states)) > 1:
            sys.exit(f'nodes differ in their last step or data, {states}: share data/ and out/')
        model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    tokens = cfg.max_iters * cfg.batch_size * cfg.block_size
    flops = raw_model.flops_per_token() * tokens
    print0(f'{raw_model.num_params():,} non-embedding parameters, {dataset.vocab_size:,} model '
           f'ids, {tokens:,} tokens, {flops:.2g} FLOPs, on {world} x {device}')

    # what no longer holds goes: measures, lines after the checkpoint, at a new start all of the run
    if master:
        for path in out_dir.glob('*'):
            begun = path.name in ('ckpt.pt', 'ckpt_previous.pt', 'log.jsonl')
            if path.name in MEASURES or start == 0 and begun:
                path.unlink()
            elif start == 0 and path.match('step_??????') and (path / 'config.json').exists():
                shutil.rmtree(path)
        settings = json.dumps(vars(cfg) | {'overwrite': False}, indent=1) + '\n'
        data_prep.atomic_write(out_dir / 'config.json', lambda path: path.write_text(settings))
        log_file = open(out_dir / 'log.jsonl', 'a+')
        log_file.seek(0)
        with config.reading(log_file.name, 'repair or remove it, then run the same command again'):
            lines = [line for line in log_file
                     if line.endswith('\n') and json.loads(line)['step'] <= start]
        log_file.truncate(len(''.join(lines)))
        track = open_tracker(cfg, start) if cfg.log_to else None

    def log(step, **figures):
        """Write a line of {key: number} and {key: {language: number}}, and draw its numbers."""
        print(json.dumps({'step': step, **figures}), file=log_file, flush=True)
        for key, value in figures.items() if track else ():
            by_name = value if isinstance(value, dict) else {'': value}
            for name, number in by_name.items():
                track(f'{key}/{name}'.rstrip('/'), number, step)

    # signals only set a flag, so that the step is finished and saved
    signals = []
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGUSR1:
        signal.signal(number, lambda number, frame: signals.append(number))

    batch_size = cfg.batch_size // world  # of this process
    most = min(cfg.micro_batch_size or batch_size, batch_size)
    micro = next(n for n in range(most, 0, -1) if batch_size % n == 0)
    mine = slice(rank * batch_size, (rank + 1) * batch_size)
    t0 = time.time()
    for step in range(start, cfg.max_iters):

        # learning rate
        lr = learning_rate(step, cfg)
        for group in optimizer.param_groups:
            group['lr'] = lr

        # batch: every process draws the global one and takes its rows, while a GPU is still busy
        starts, languages = sampler.next(step)
        inputs = sampler.input_languages(step, languages)[mine] if cfg.codeswitch else None
        x, y = dataset.windows('train', starts[mine], languages[mine], inputs)
        x, y = torch.from_numpy(x), torch.from_numpy(y)  # (B, T)
        if 'cuda' in device:
            x, y = x.pin_memory(), y.pin_memory()
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)

        # forward and backward, in micro-batches; gradients are exchanged after the last one
        loss = torch.zeros((), device=device)
        for i in range(0, batch_size, micro):
            model.require_backward_grad_sync = i + micro == batch_size  # of DistributedDataParallel
            with autocast():
                part = model(x[i:i + micro], y[i:i + micro]) * (micro / batch_size)
            part.backward()
            loss += part.detach()
        if cfg.grad_clip:
            grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad()

        # stop: has any process been told to?
        done, last = step + 1, step + 1 == cfg.max_iters
        stop = torch.tensor(len(signals))  # on the CPU, so that no GPU has to wait
        all_reduce(stop)

        # log
        if done % cfg.log_interval == 0 or last:
            all_reduce(loss)
            loss = loss.item() / world
            if not math.isfinite(loss):
                sys.exit(f'the loss is {loss} at step {done:,}: try a lower learning_rate')
            p = dict(zip(names, p_language(cfg.schedule, step / cfg.max_iters).tolist()))
            seen = dict(zip(names, (sampler.read * cfg.block_size).tolist()))
            norm = {'grad_norm': grad_norm.item()} if cfg.grad_clip else {}
            if master:
                log(done, loss=loss, lr=lr, p_language=p, tokens_seen=seen, **norm)
            seconds = (time.time() - t0) / (done - start)  # a step, with all that it entails
            print0(f'step {done:,}/{cfg.max_iters:,}: loss {loss:.3f}, '
                   f'{cfg.batch_size * cfg.block_size / seconds:,.0f} tokens/s, '
                   f'{(cfg.max_iters - done) * seconds / 60:.1f} min left', flush=True)

        # evaluate
        if master and (done % cfg.eval_interval == 0 or last):
            losses = evaluate(raw_model, dataset, cfg, device, autocast, micro)
            log(done, eval_loss=losses)
            text = ', '.join(f'{name} {nats:.4f}' for name, nats in losses.items())
            print(f'step {done:,}: evaluation loss {text}', flush=True)

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

    all_reduce(stop)  # torchrun stops all once one exits: wait until rank 0 has saved
    if ddp:
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
    except torch.OutOfMemoryError:
        sys.exit('out of GPU memory: a smaller --micro_batch_size gives the same result')
    except RuntimeError as e:
        if any(name in type(e).__module__ for name in ('_dynamo', '_inductor')):
            sys.exit(f'torch.compile failed ({" ".join(str(e).split()):.99}): it needs a C '
                     'compiler and Python.h; --compile=False does without')
        if isinstance(e, dist.DistError) or 'gloo' in str(e):
            sys.exit('another process of this run has died; the same command continues')
        raise
