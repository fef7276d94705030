"""
Train a model on one or several languages, in the proportions of a schedule.

    python train.py config/cloned_90_10.py                                          # one GPU, or CPU
    torchrun --standalone --nproc_per_node=8 train.py config/cloned_90_10.py        # eight GPUs, same sequences, same result
    python train.py config/quickstart/cloned_90_10.py                               # a laptop: under two minutes

Several nodes (torchrun as on any cluster; all nodes need data/ and out/ on a shared file system):
    torchrun --nnodes=2 --node_rank=0 --nproc_per_node=8 --master_addr=HOST --master_port=1234 train.py CONFIG.py

A missing dataset is prepared first. In out_dir:
config.json   the settings that the result depends on
ckpt.pt       model, optimiser, step, sequences read per language; replaced at once, never half written
ckpt_previous.pt  the one before it
log.jsonl     every figure that the settings determine: the same run writes the same bytes
speed.jsonl   tokens per second and seconds: what the machine determines

SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 end a run behind its present step, with a checkpoint and exit status 75: --resume goes on.
"""
import sys

import config

if __name__ == '__main__':
    cfg = config.run(lambda: config.load(sys.argv[1:], __doc__))  # before torch is imported: --help and a mistyped setting answer at once

import contextlib
import json
import math
import os
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn  # now: once a group exists (DDP imports it then), its default arguments keep that group and its threads alive
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from config import UserError
from data_prep import DATA, Dataset, Sampler, check_languages, locked, marginals, write_aside
from model import GPT, GPTConfig, Word2Vec

MEASURED = 'results.json', 'alignment.json', 'matching.json', 'glue.json'  # by analyze.py, of a model that training leaves behind
REQUEUE = 75  # exit status, as sysexits.h has it: not finished, try again


def choose_device(device, dtype):
    """The settings device and dtype, with 'auto' resolved -> device name, and a function that opens its autocast."""
    if device == 'auto':
        device = 'cuda' if torch.cuda.is_available() else 'mps' if torch.backends.mps.is_available() else 'cpu'
    if dtype == 'auto':
        dtype = 'bfloat16' if device.startswith('cuda') and torch.cuda.is_bf16_supported(including_emulation=False) else 'float32'
    if dtype not in ('bfloat16', 'float32'):
        raise UserError(f"dtype must be 'auto', 'bfloat16' or 'float32', not {dtype!r}")
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError):
        raise UserError(f"device {device!r} is not there; 'auto' takes what is") from None
    torch.set_float32_matmul_precision('high')  # TF32 where float32 remains on a GPU; CPUs are not affected
    return device, lambda: torch.autocast(device.split(':')[0], torch.bfloat16, enabled=dtype == 'bfloat16')


def new_model(cfg, vocab_size):
    """The model that the settings describe, freshly initialised from cfg.seed. Raises UserError for a shape that is none."""
    if cfg.model not in ('gpt', 'word2vec'):
        raise UserError(f"model must be 'gpt' or 'word2vec', not {cfg.model!r}")
    if min(cfg.n_layer, cfg.n_embd, cfg.n_head) < 1 or (not cfg.head_dim and cfg.n_embd % cfg.n_head):
        raise UserError(f'n_layer, n_embd and n_head must be positive, and n_embd ({cfg.n_embd}) a multiple of n_head ({cfg.n_head}) '
                        'unless head_dim is set')
    torch.manual_seed(cfg.seed)
    shape = GPTConfig(cfg.block_size, vocab_size, cfg.n_layer, cfg.n_embd, cfg.n_head, cfg.head_dim)
    return GPT(shape) if cfg.model == 'gpt' else Word2Vec(shape, cfg.shared_layer)


def learning_rate(step, cfg):
    """Linear warm-up to learning_rate, then a cosine to min_lr at max_iters."""
    if step < cfg.warmup_iters:
        return cfg.learning_rate * (step + 1) / cfg.warmup_iters
    progress = (step - cfg.warmup_iters) / (cfg.max_iters - cfg.warmup_iters)
    return cfg.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (cfg.learning_rate - cfg.min_lr)


def shard(model, device, world):
    """Split the parameters of a model, block by block, between processes: for one too large for a GPU."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    mesh = init_device_mesh(device.split(':')[0], (world,))
    for part in [*getattr(model, 'h', []), model]:
        fully_shard(part, mesh=mesh, reshard_after_forward=True)


def state_of(model, optimizer, sharded):
    """The state of both, whole and on the CPU if it is split between processes: the same file from any number of them."""
    if not sharded:
        return {'model': model.state_dict(), 'optimizer': optimizer.state_dict()}
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
    of_model, of_optimizer = get_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if not of_model:  # the first process has it all, the others nothing
        return {}
    names = [name for name, _ in model.named_parameters()]
    of_optimizer = {'state': {i: of_optimizer['state'][name] for i, name in enumerate(names)},  # by number, as torch.optim has it
                    'param_groups': [group | {'params': list(range(len(names)))} for group in of_optimizer['param_groups']]}
    return {'model': of_model, 'optimizer': of_optimizer}


OTHER_SHAPE = RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError


def load_state(model, optimizer, checkpoint, sharded):
    """The inverse of state_of. Raises one of OTHER_SHAPE for the state of another shape."""
    if not sharded:
        model.load_state_dict(checkpoint['model'])
        optimizer.load_state_dict(checkpoint['optimizer'])
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict
    names = [name for name, _ in model.named_parameters()]
    of_optimizer = {'state': {names[i]: state for i, state in checkpoint['optimizer']['state'].items()},
                    'param_groups': [group | {'params': names} for group in checkpoint['optimizer']['param_groups']]}
    set_state_dict(model, optimizer, model_state_dict=checkpoint['model'], optim_state_dict=of_optimizer,
                   options=StateDictOptions(full_state_dict=True))


def read_checkpoint(path, cfg):
    """A checkpoint of the run that cfg describes. Raises UserError for a damaged file, or one of another run; executes nothing."""
    try:
        with zipfile.ZipFile(path) as archive:  # which keeps a CRC-32 of everything in it
            if any(member.compress_type for member in archive.infolist()):
                raise ValueError('it is packed, as torch packs none')
            if archive.testzip():
                raise ValueError('its checksum differs')
        checkpoint = torch.load(path, map_location='cpu', mmap=True, weights_only=True)
        step, read = checkpoint['step'], checkpoint['sequences_read']
        whole = isinstance(checkpoint['model'], dict) and isinstance(step, int) and 0 < step <= cfg.max_iters
        if not whole or len(read) != len(cfg.languages) or sum(read) != step * cfg.batch_size or min(read) < 0:
            raise ValueError('it is of another run')
        return checkpoint
    except Exception as e:  # torch.load has as many ways to fail as there are broken files
        raise UserError(f'{path} is not a whole checkpoint of this run ({(str(e) or type(e).__name__).splitlines()[0][:80]})') from None


def load_checkpoint(out_dir, cfg):
    """The last checkpoint of a run, or None. Raises UserError for a damaged one, and offers the one before it."""
    last, previous = Path(out_dir) / 'ckpt.pt', Path(out_dir) / 'ckpt_previous.pt'
    if not last.exists():  # nothing, or killed between two renames
        return read_checkpoint(previous, cfg) if previous.exists() else None
    try:
        return read_checkpoint(last, cfg)
    except UserError as e:
        try:
            step = read_checkpoint(previous, cfg)['step']
        except UserError:
            raise UserError(f'{e}, and there is none before it: --overwrite starts the run again') from None
        raise UserError(f'{e}; {previous}, of step {step:,}, is: mv {previous} {last}, then --resume') from None


def save_checkpoint(out_dir, state, at):
    """Write ckpt.pt, whole or not at all; what it was becomes ckpt_previous.pt. Raises UserError where that fails, and for
    weights that are not finite, in a message that says where training is (at)."""
    if not all(weight.isfinite().all() for weight in state['model'].values()):
        raise UserError(f'a weight is not finite {at}: stopped, nothing of it is saved; try a lower learning_rate')
    try:
        write_aside(out_dir / 'ckpt.pt', lambda path: torch.save(state, path), out_dir / 'ckpt_previous.pt')
    except (OSError, RuntimeError) as e:  # torch's writer has only the latter
        why = getattr(e, 'strerror', None) or 'it could not be written: is the disk full?'
        raise UserError(f'no checkpoint of step {state["step"]:,} in {out_dir} ({why}); what was there stays: make room, '
                        'then --resume') from None


def check_out_dir(cfg):
    """The checkpoint of this very run in out_dir, finished or to be resumed; None for a new run. Raises UserError where
    out_dir holds another run, where --resume finds nothing, or where there is something to resume but no --resume."""
    out_dir = Path(cfg.out_dir)
    if cfg.overwrite:
        return None
    there = config.read_json(out_dir / 'config.json', '--overwrite starts the run again')
    if there:
        for key, here in json.loads(json.dumps(vars(cfg))).items():
            if key not in config.FREE and there.get(key) != here:
                raise UserError(f'{out_dir} holds a run with {key} = {there.get(key)}, not {here}: choose another --out_dir, '
                                'or --overwrite that run')
    elif list(out_dir.glob('ckpt*.pt')):
        raise UserError(f'{out_dir} holds a checkpoint without its config.json: choose another --out_dir, or --overwrite it')
    checkpoint = load_checkpoint(out_dir, cfg)
    if checkpoint and not cfg.resume and checkpoint['step'] < cfg.max_iters:
        raise UserError(f'{out_dir} holds this run up to step {checkpoint["step"]:,}: --resume goes on from there, '
                        '--overwrite starts again')
    if cfg.resume and not checkpoint:
        raise UserError(f'--resume: there is no checkpoint in {out_dir}')
    return checkpoint


def wait_for_dataset(cfg, master):
    """Prepare a missing dataset in a process of its own; the other ranks wait for it."""
    meta = DATA / cfg.dataset / 'meta.json'
    if not meta.parent.exists() and master:
        program = Path(__file__).with_name('data_prep.py')
        settings = [f'--{k}={v}' for k, v in vars(cfg).items() if k not in ('resume', 'overwrite')]
        if subprocess.run([sys.executable, program, *settings]).returncode:
            sys.exit(1)  # it has said why
    while not meta.exists() and not master:
        time.sleep(1)


@torch.no_grad()
def evaluate(model, dataset, cfg, device, autocast, micro_batch_size, rank=0, world=1):
    """The loss in nats per token of each language, {name: loss}, over up to eval_iters x batch_size windows of its test
    text: the same ones each time, whatever the number of processes."""
    losses = {}
    for language, name in enumerate(dataset.names):
        starts = dataset.test_windows(language, cfg.eval_iters * cfg.batch_size)[rank::world]
        total = [0.0, 0.0]  # loss, windows
        for mine in np.split(starts, range(micro_batch_size, len(starts), micro_batch_size)):
            if len(mine):
                x, y = (torch.from_numpy(a).to(device) for a in dataset.windows('test', mine, np.full(len(mine), language)))
                with autocast():
                    total[0] += model(x, y).item() * len(mine)
                total[1] += len(mine)
        if world > 1:
            total = torch.tensor(total, dtype=torch.float64, device=device)
            dist.all_reduce(total)
        losses[name] = float(total[0] / total[1])
    return losses


@contextlib.contextmanager
def signals_noted(alone):
    """While the body runs, SIGTERM, SIGINT and SIGUSR1 (Slurm's) go into the list that it is given, and do nothing else. A
    second Ctrl-C ends a process that runs alone; torchrun sends every process a second one, and SIGTERM where
    another has died: there signals stay noted to the end, so that a process can still say why it ends."""
    noted = []

    def note(number, _):
        if noted and alone and number == signal.SIGINT:
            raise KeyboardInterrupt
        noted.append(number)
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT, getattr(signal, 'SIGUSR1', signal.SIGINT))}
    try:
        yield noted
    finally:
        for number, handler in before.items() if alone else ():
            signal.signal(number, handler)


def in_any(flag, ddp):
    """Whether a flag is set in any process. Asked on the CPU, a GPU does not wait for the answer."""
    flag = torch.tensor(bool(flag), dtype=torch.uint8)
    if ddp:
        dist.all_reduce(flag, dist.ReduceOp.MAX)
    return bool(flag)


def read_log(path, last):
    """The lines of a log up to a step, for a run that goes on from there. Raises UserError for a damaged one."""
    lines = path.read_text('utf-8', 'replace').splitlines(keepends=True) if path.exists() else []
    try:
        return ''.join(line for line in lines if line.endswith('\n') and json.loads(line)['step'] <= last)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f'{path} is damaged: mend or remove it, then --resume') from None


def main(cfg):
    with contextlib.ExitStack() as held:  # the lock, the logs, the signals: let go of however it ends
        train(cfg, held)


def train(cfg, held):
    # ---- processes, device, batch
    ddp = 'RANK' in os.environ  # set by torchrun
    rank, world, local_rank = (int(os.environ.get(k, d)) for k, d in (('RANK', 0), ('WORLD_SIZE', 1), ('LOCAL_RANK', 0)))
    master = rank == 0
    say = print if master else lambda *a, **k: None
    check_languages(cfg)
    device, autocast = choose_device(cfg.device, cfg.dtype)
    if ddp and device == 'cuda':
        device = f'cuda:{local_rank}'
        torch.cuda.set_device(device)
    batch_size = cfg.batch_size // world  # of this process
    micro_batch_size = cfg.micro_batch_size or batch_size
    if batch_size < 1 or cfg.batch_size % world or batch_size % micro_batch_size:
        raise UserError(f'batch_size {cfg.batch_size} does not divide into {world} processes with micro-batches of {micro_batch_size}')
    if min(cfg.max_iters, cfg.eval_interval, cfg.eval_iters, cfg.checkpoint_interval, cfg.log_interval) < 1:
        raise UserError('max_iters, eval_interval, eval_iters, checkpoint_interval and log_interval must be at least 1')

    # ---- output folder, data
    out_dir = Path(cfg.out_dir)
    lock = locked(out_dir / '.lock', f'{out_dir} is being trained', 'choose another --out_dir, or wait')
    if there := out_dir.exists() and master:
        held.enter_context(lock)
    checkpoint = check_out_dir(cfg)
    if checkpoint and checkpoint['step'] == cfg.max_iters:
        return say(f'{cfg.out_dir} holds this run, finished: nothing to do (--overwrite trains it again)')
    wait_for_dataset(cfg, master)
    dataset = Dataset(cfg, verify='*' if master else ())
    sampler = Sampler(dataset.pools, cfg.schedule, cfg.batch_size, cfg.max_iters, cfg.seed)
    if (n := sum(map(len, dataset.pools))) < cfg.batch_size:
        raise UserError(f'{dataset.path} has {n} sequences of {cfg.block_size} tokens, fewer than one batch of {cfg.batch_size}')
    for language, (name, pool, epochs) in enumerate(zip(dataset.names, dataset.pools, sampler.epochs_of_run())):
        if epochs and not len(pool):
            raise UserError(f'{dataset.path} has no sequence of {name}, which the schedule asks for: a larger corpus, or a larger share')
        if not len(dataset.test_windows(language, 1)):
            raise UserError(f'{dataset.path} has less than {cfg.block_size + 1} test tokens of {name}: raise test_frac, '
                            'or take a larger corpus')
        if epochs > 1:
            say(f'note: {name} has {len(pool) * cfg.block_size:,} tokens, which this run reads {epochs:.2f} times')

    # ---- model, optimiser
    if ddp:
        dist.init_process_group('cpu:gloo,cuda:nccl' if device.startswith('cuda') else 'gloo')
    sharded = ddp and cfg.shard
    model = raw_model = new_model(cfg, dataset.meta['vocab_size'])
    n_params, n_other = sum(p.numel() for p in model.parameters()), model.num_params()
    if sharded:
        shard(model, device, world)  # which moves to each device its part alone
    model.to(device)
    optimizer = torch.optim.Adam(model.parameters(), betas=(cfg.beta1, cfg.beta2), eps=1e-8, fused=device != 'mps')
    if cfg.model == 'word2vec':
        raw_model.set_frequency(dataset.frequency(marginals(cfg.schedule)))
    start = 0
    if checkpoint:
        try:
            load_state(model, optimizer, checkpoint, sharded)
        except OTHER_SHAPE:
            raise UserError(f'the checkpoint in {cfg.out_dir} is of another model shape: it cannot be resumed') from None
        sampler.read[:] = checkpoint['sequences_read']
        start = checkpoint['step']
    checkpoint = None  # free its memory
    if cfg.compile is True or cfg.compile == 'auto' and device.startswith('cuda'):
        model = torch.compile(model)
    if ddp and not sharded:
        model = DistributedDataParallel(model, gradient_as_bucket_view=True, broadcast_buffers=False)
    with autocast():
        flops, kept = raw_model.cost_per_token(torch.is_autocast_enabled(device.split(':')[0]))
    tokens = cfg.max_iters * cfg.batch_size * cfg.block_size
    memory = 16 * n_params / (world if sharded else 1) + kept * micro_batch_size * cfg.block_size  # 16: and gradients, Adam's moments
    say(f'{n_other:,} non-embedding parameters, {dataset.meta["vocab_size"]:,} model ids; '
        f'{cfg.max_iters:,} steps of {cfg.batch_size} x {cfg.block_size} tokens on {world} x {device}: {tokens / 1e6:,.1f}M tokens, '
        f'{flops * tokens:.2g} FLOPs, about {memory / 2 ** 30:.2g} GiB a device')

    # ---- logs: what lies behind the checkpoint is dropped, so that no step stands there twice
    logs = {}
    if master and not there:
        held.enter_context(lock)  # makes the folder
        if check_out_dir(cfg):
            raise UserError(f'{out_dir} has just been trained by another process')
    if master:
        lines = {name: read_log(out_dir / f'{name}.jsonl', start) if start else '' for name in ('log', 'speed')}
        for name in MEASURED if start else ('ckpt_previous.pt', 'ckpt.pt', 'log.jsonl', 'speed.jsonl', *MEASURED):
            (out_dir / name).unlink(missing_ok=True)
        settings = json.dumps(vars(cfg) | {'resume': False, 'overwrite': False}, indent=1) + '\n'
        write_aside(out_dir / 'config.json', lambda path: path.write_text(settings))
        for name in ('log', 'speed'):
            write_aside(out_dir / f'{name}.jsonl', lambda path: path.write_text(lines[name]))
            logs[name] = held.enter_context(open(out_dir / f'{name}.jsonl', 'a'))

    def log(name, **figures):
        if master:
            print(json.dumps(figures), file=logs[name], flush=True)

    # ---- the loop
    mine = slice(rank * batch_size, (rank + 1) * batch_size)
    bar = tqdm(total=cfg.max_iters, initial=start, unit=' steps', disable=None if master else True)
    begun = logged = time.time()
    logged_step, epochs = start, sampler.epochs_begun()
    noted = held.enter_context(signals_noted(alone=not ddp))
    for step in range(start, cfg.max_iters):
        lr = learning_rate(step, cfg)
        for group in optimizer.param_groups:
            group['lr'] = lr
        # the gradient of the batch, micro-batch by micro-batch; on a GPU this only queues work, so that the next batch is
        # read while this one is computed
        sequences, languages = sampler.next(step)
        epochs, before = sampler.epochs_begun(), epochs
        for language in np.flatnonzero(epochs > np.maximum(1, before)):
            log('log', step=step + 1, language=dataset.names[language], epoch=int(epochs[language]))
        x, y = (torch.from_numpy(a) for a in dataset.batch(sequences[mine], languages[mine]))  # (batch_size, block_size) each
        if device.startswith('cuda'):
            x, y = x.pin_memory(), y.pin_memory()
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        if cfg.model == 'word2vec':
            raw_model.draw_negatives([cfg.seed, step, 0, 1])  # 1: another stream than the languages'
        loss = torch.zeros((), device=device)
        for i in range(0, batch_size, micro_batch_size):
            if sharded:  # exchange gradients once a step, with the last micro-batch
                raw_model.set_requires_gradient_sync(i + micro_batch_size == batch_size)
            elif ddp:
                model.require_backward_grad_sync = i + micro_batch_size == batch_size
            with autocast():
                micro_loss = model(x[i:i + micro_batch_size], y[i:i + micro_batch_size]) * (micro_batch_size / batch_size)
            micro_loss.backward()
            loss += micro_loss.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        done, last = step + 1, step + 1 == cfg.max_iters
        bar.update()
        stop = in_any(noted, ddp)
        saves = done % cfg.checkpoint_interval == 0 or last or stop
        logs_now = done % cfg.log_interval == 0 or last
        if logs_now or saves:
            if ddp:
                dist.all_reduce(loss)
            loss = loss.item() / world
            p = sampler.p(step).tolist()
            mix = '/'.join(f'{100 * q:.3g}' for q in p)
            at = f'at step {done:,} ({"/".join(dataset.names)} {mix}, learning rate {lr:.2e})'
            if not math.isfinite(loss):
                raise UserError(f'the loss is {loss} {at}: stopped, nothing of it is saved; try a lower learning_rate')
        if logs_now:
            now = time.time()
            speed = (done - logged_step) * cfg.batch_size * cfg.block_size / (now - logged)
            tokens_seen = dict(zip(dataset.names, (sampler.read * cfg.block_size).tolist()))
            log('log', step=done, loss=loss, lr=lr, p_language=p, tokens_seen=tokens_seen)
            log('speed', step=done, tokens_per_second=round(speed), seconds=round(now - begun, 2))
            bar.set_postfix_str(f'loss {loss:.3f}, {speed:,.0f} tokens/s, p {mix}')
            if bar.disable:
                left = (cfg.max_iters - done) * (now - begun) / (done - start)
                say(f'step {done:,}/{cfg.max_iters:,}: loss {loss:.3f}, {speed:,.0f} tokens/s, p {mix}, {left / 60:.1f} min left',
                    flush=True)
            logged, logged_step = now, done
        if done == start + 5:
            warm = time.time()  # what is compiled has been
        if done == start + 20 and not last:
            a_step = (time.time() - warm) / 15
            left = (cfg.max_iters - done) * a_step
            say(f'at {cfg.batch_size * cfg.block_size / a_step:,.0f} tokens/s the rest takes about '
                + (f'{left / 3600:.1f} h' if left > 5400 else f'{left / 60:.1f} min'), flush=True)
        pause = time.time()
        if done % cfg.eval_interval == 0 or last:
            ranks = () if sharded else (rank, world)  # a split model runs on all at once: each evaluates everything
            losses = evaluate(raw_model, dataset, cfg, device, autocast, micro_batch_size, *ranks)
            log('log', step=done, eval_loss=losses)
            if not last and master:
                bar.write(f'step {done:,}: evaluation loss ' + ', '.join(f'{name} {value:.3f}' for name, value in losses.items()))
        if saves and (master or sharded):
            state = {'step': done, 'sequences_read': sampler.read.tolist(), **state_of(raw_model, optimizer, sharded)}
            if master:
                os.fsync(logs['log'].fileno())  # no checkpoint without its lines
                save_checkpoint(out_dir, state, at)
        if stop:
            in_any(False, ddp)  # nobody leaves before the checkpoint is there: torchrun ends all with the first
            break
        logged += time.time() - pause  # the speed is that of training
    bar.close()
    if ddp:
        del model, micro_loss  # first: destroying the group joins its threads only where nobody else keeps it, as a DDP does
        dist.destroy_process_group()

    if not last:
        say(f'{signal.Signals(noted[0]).name if noted else "a signal"}: stopped behind step {done:,}, which is saved in {out_dir}; '
            'the same command with --resume goes on', flush=True)
        sys.exit(REQUEUE)
    say(f'{out_dir}: {cfg.max_iters:,} steps in {time.time() - begun:.0f} s')
    for language, name in enumerate(dataset.names):
        say(f'  {name}: {sampler.read[language] * cfg.block_size:,} tokens seen, evaluation loss {losses[name]:.4f}')
    if cfg.model == 'gpt':
        say(f'measure its perplexity: python analyze.py ppl {out_dir}')
    else:
        say(f'measure its embeddings: python analyze.py alignment {out_dir}')


def main_in_one_line():
    try:
        main(cfg)
    except torch.OutOfMemoryError:
        raise UserError(f'out of GPU memory: choose a --micro_batch_size below {cfg.micro_batch_size or cfg.batch_size} '
                        '(the result stays the same)') from None
    except RuntimeError as e:
        if not (isinstance(e, dist.DistError) or 'gloo' in str(e)):
            raise
        sys.exit('another process of this run has ended: --resume goes on from the last checkpoint')


if __name__ == '__main__':
    config.run(main_in_one_line)
