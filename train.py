"""
Train a model on one or several languages, in the proportions of a schedule.

    python train.py config/quickstart.py                    # on a laptop
    python train.py config/cloned_90_10.py                  # on a GPU
    torchrun --standalone --nproc_per_node=8 train.py config/cloned_90_10.py    # on eight
    torchrun --nnodes=2 --node_rank=0 --nproc_per_node=8 \\
        --master_addr=HOST --master_port=1234 train.py config/cloned_90_10.py   # shared data/, out/

A missing dataset is prepared first. The same command continues an interrupted run from its last
checkpoint, and leaves a finished one alone. In out_dir:
config.json         settings
ckpt.pt             model, optimiser, step, sequences read per language; ckpt_previous.pt: the last
step_001000/, ...   with --keep_checkpoints: every checkpoint, as a folder that analyze.py takes
log.jsonl           losses, tokens seen: the same command writes the same bytes
speed.jsonl         tokens per second

SIGTERM, SIGINT (Ctrl-C) and SIGUSR1 (Slurm): finish the current step, save, exit with status 75.
"""
import sys

import config

if __name__ == '__main__':  # before torch is imported: --help and mistyped settings are instant
    cfg = config.run(lambda: config.load(sys.argv[1:], __doc__))

import contextlib
import json
import math
import os
import shutil
import signal
import subprocess
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from config import UserError
from config.tracking import check_tracker, open_tracker
from data_prep import DATA, Dataset, Sampler, atomic_write, check_languages, locked, marginals
from model import GPT, GPTConfig, Word2Vec

MEASURED = 'results.json', 'alignment.json', 'matching.json', 'glue.json'  # written by analyze.py

# ---- device and model --------------------------------------------------------

def choose_device(device, dtype):
    """The settings, with 'auto' resolved -> device, function that opens its autocast."""
    if device == 'auto':
        gpu = 'mps' if torch.backends.mps.is_available() else 'cpu'
        device = 'cuda' if torch.cuda.is_available() else gpu
    if dtype == 'auto':  # float32 on CPUs: with AVX512-BF16 a small model still gains only 1.1x
        fast = 'cuda' in str(device) and torch.cuda.is_bf16_supported(including_emulation=False)
        dtype = 'bfloat16' if fast else 'float32'
    if dtype not in ('bfloat16', 'float32'):
        raise UserError(f"dtype must be 'auto', 'bfloat16' or 'float32', not {dtype!r}")
    try:
        torch.empty(1, device=str(device))
    except (RuntimeError, AssertionError):
        raise UserError(f"device {device!r} is not available; 'auto' picks one that is") from None
    torch.set_float32_matmul_precision('high')  # TF32 where float32 remains on a GPU
    kind, bfloat16 = device.split(':')[0], dtype == 'bfloat16'
    return device, lambda: torch.autocast(kind, torch.bfloat16, enabled=bfloat16)

def new_model(cfg, vocab_size):
    """The model that the settings describe, freshly initialised from cfg.seed."""
    if cfg.model not in ('gpt', 'word2vec'):
        raise UserError(f"model must be 'gpt' or 'word2vec', not {cfg.model!r}")
    if min(cfg.n_layer, cfg.n_embd, cfg.n_head) < 1 or not cfg.head_dim and cfg.n_embd % cfg.n_head:
        raise UserError('n_layer, n_head: at least 1; n_embd: a multiple of n_head, or set head_dim')
    torch.manual_seed(cfg.seed)
    shape = GPTConfig(cfg.block_size, vocab_size, cfg.n_layer, cfg.n_embd, cfg.n_head,
                      cfg.head_dim)
    return GPT(shape) if cfg.model == 'gpt' else Word2Vec(shape, cfg.shared_layer)

# ---- learning rate -----------------------------------------------------------

def learning_rate(step, cfg):
    """Linear warm-up to learning_rate, then a cosine to min_lr at max_iters."""
    if step < cfg.warmup_iters:
        return cfg.learning_rate * (step + 1) / cfg.warmup_iters
    progress = (step - cfg.warmup_iters) / (cfg.max_iters - cfg.warmup_iters)
    return cfg.min_lr + 0.5 * (1 + math.cos(math.pi * progress)) * (cfg.learning_rate - cfg.min_lr)

# ---- checkpoint --------------------------------------------------------------

def load_checkpoint(out_dir, cfg):
    """The last checkpoint of a run, or None. Nothing in the file is executed."""
    last, previous = Path(out_dir, 'ckpt.pt'), Path(out_dir, 'ckpt_previous.pt')
    path = last if last.exists() else previous  # killed between two renames
    if not path.exists():
        return None
    with config.reading(path, f'`mv {previous} {last}` goes back to the checkpoint before, '
                        '--overwrite to the start'):
        with zipfile.ZipFile(path) as archive:  # torch's format, with a CRC-32 of every tensor
            if archive.testzip():
                raise ValueError('its checksum differs')
        checkpoint = torch.load(path, map_location='cpu', mmap=True, weights_only=True)
        if sum(checkpoint['sequences_read']) != checkpoint['step'] * cfg.batch_size:
            raise ValueError('it belongs to another run')
        return checkpoint

def save_checkpoint(out_dir, keep, **checkpoint):
    """Write ckpt.pt, whole or not at all; the one before becomes ckpt_previous.pt. With keep it is
    also step_N/ckpt.pt, complete before ckpt.pt is replaced."""
    def write(aside):
        torch.save(checkpoint, aside)
        if keep:
            kept = out_dir / f'step_{checkpoint["step"]:06}'
            shutil.rmtree(kept, ignore_errors=True)  # of a run killed right after this
            kept.mkdir()
            shutil.copyfile(out_dir / 'config.json', kept / 'config.json')
            try:
                os.link(aside, kept / 'ckpt.pt')
            except OSError:  # a file system without hard links
                shutil.copyfile(aside, kept / 'ckpt.pt')
    try:
        atomic_write(out_dir / 'ckpt.pt', write, out_dir / 'ckpt_previous.pt')
    except (OSError, RuntimeError) as e:  # torch's writer raises the latter
        why = getattr(e, 'strerror', None) or 'is the disk full?'
        raise UserError(f'step {checkpoint["step"]:,} could not be saved in {out_dir} ({why}); the last '
                        'checkpoint is intact: free space, then run the same command again') from None

def check_out_dir(cfg):
    """The checkpoint of this very run in out_dir; None for a new one. Another run is refused."""
    if cfg.overwrite:
        return None
    out_dir, remedy = Path(cfg.out_dir), 'choose another --out_dir, or --overwrite this one'
    saved = config.read_json(out_dir / 'config.json', remedy)
    if saved is None and any(out_dir.glob('ckpt*.pt')):
        raise UserError(f'{out_dir} holds a checkpoint without its config.json: {remedy}')
    if saved is not None and (change := config.first_change(saved, cfg, out_dir / 'config.json')):
        key, value = change
        raise UserError(f'{out_dir} holds a run with {key} = {value}, '
                        f'not {getattr(cfg, key)}: {remedy}')
    return load_checkpoint(out_dir, cfg)

def init_weights(model, dataset, cfg):
    """Copy the weights of the run cfg.init_from, if its ids and its shape are those of this run."""
    path = Path(cfg.init_from, 'config.json')
    with config.reading(path, 'init_from must be a run'):
        other = config.restored(json.loads(path.read_text()), path)
    weights = (load_checkpoint(cfg.init_from, other) or {}).get('model', {})
    there, here = (
        {'vocabulary': d.vocabulary(), 'n_head': c.n_head} | {k: [*w.shape] for k, w in ws.items()}
        for d, c, ws in ((Dataset(other, ()), other, weights), (dataset, cfg, model.state_dict())))
    for key in there | here:
        if there.get(key) != here.get(key):
            raise UserError(f'init_from: its {key} is {there.get(key)}, here {here.get(key)}')
    model.load_state_dict(weights)

def open_log(path, last):
    """A log opened for appending, its lines after the last checkpoint dropped."""
    with config.reading(path, 'repair or remove it, then run the same command again'):
        lines = path.read_text().splitlines(True) if last and path.exists() else []
        lines = [line for line in lines if line.endswith('\n') and json.loads(line)['step'] <= last]
    atomic_write(path, lambda aside: aside.write_text(''.join(lines)))
    return path.open('a')

# ---- evaluation --------------------------------------------------------------

@torch.no_grad()
def evaluate(model, dataset, cfg, device, autocast, micro_batch_size, rank=0, world=1):
    """Loss of each language, {name: nats per token}, over up to eval_iters x batch_size windows of
    its test text: the same ones each time, whatever the number of processes."""
    losses = {}
    for language, name in enumerate(dataset.names):
        starts = dataset.test_windows(language, cfg.eval_iters * cfg.batch_size)[rank::world]
        total = torch.zeros(2, dtype=torch.float64)  # loss, windows
        for i in range(0, len(starts), micro_batch_size):
            mine = starts[i:i + micro_batch_size]
            x, y = dataset.windows('test', mine, np.full(len(mine), language))
            with autocast():
                loss = model(torch.from_numpy(x).to(device), torch.from_numpy(y).to(device))
            total += torch.tensor([loss.item(), 1], dtype=torch.float64) * len(mine)
        if world > 1:
            dist.all_reduce(total)
        losses[name] = (total[0] / total[1]).item()
    return losses

# ---- signals -----------------------------------------------------------------

def catch_signals(alone):
    """From now on SIGTERM, SIGINT and SIGUSR1 are only added to the returned list, so that the
    current step can be finished and saved. A second Ctrl-C kills a process that runs alone; under
    torchrun, which signals every process twice, it is ignored: rank 0 must still say why it stopped."""
    caught = []

    def catch(number, _):
        caught.append(number)
        if alone:
            signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in signal.SIGTERM, signal.SIGINT, signal.SIGUSR1:
        signal.signal(number, catch)
    return caught

# ---- set-up ------------------------------------------------------------------

def prepare_dataset(cfg, master):
    """Prepare a missing dataset in a process of its own; the other ranks wait for it."""
    meta = DATA / cfg.dataset / 'meta.json'
    if master and not meta.parent.exists():
        program = Path(__file__).with_name('data_prep.py')
        settings = [f'--{k}={v}' for k, v in vars(cfg).items() if k != 'overwrite']
        if subprocess.run([sys.executable, program, *settings]).returncode:
            sys.exit(1)  # it printed why
    while not master and not meta.exists():
        time.sleep(1)

def train(cfg, held):
    # imported here: analyze.py needs none of them, and the first would keep a process group alive
    import torch.distributed.nn
    from torch.distributed.checkpoint import state_dict
    from torch.distributed.fsdp import fully_shard

    ddp = 'RANK' in os.environ  # set by torchrun
    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    master = rank == 0
    say = print if master else lambda *a, **k: None
    check_languages(cfg)
    check_tracker(cfg)
    if cfg.compile not in ('auto', True, False):
        raise UserError(f"compile must be 'auto', True or False, not {cfg.compile!r}")
    device, autocast = choose_device(cfg.device, cfg.dtype)
    kind = device.split(':')[0]
    if ddp and device == 'cuda':
        device = f'cuda:{os.environ["LOCAL_RANK"]}'
        torch.cuda.set_device(device)
    batch_size = cfg.batch_size // world  # of this process
    micro_batch_size = cfg.micro_batch_size or batch_size
    if batch_size < 1 or cfg.batch_size % world or batch_size % micro_batch_size:
        raise UserError(f'batch_size {cfg.batch_size} does not divide into {world} processes '
                        f'with micro-batches of {micro_batch_size}')
    for key in 'max_iters', 'eval_interval', 'eval_iters', 'checkpoint_interval', 'log_interval':
        if getattr(cfg, key) < 1:
            raise UserError(f'{key} must be at least 1')

    out_dir, remedy = Path(cfg.out_dir), 'choose another --out_dir, or wait'
    if master:
        held.enter_context(locked(out_dir / '.lock', f'{out_dir} is being trained', remedy))
    checkpoint = check_out_dir(cfg)
    start = checkpoint['step'] if checkpoint else 0
    if start == cfg.max_iters:
        return say(f'{out_dir}: this run is finished; --overwrite trains it again')
    prepare_dataset(cfg, master)
    dataset = Dataset(cfg, verify='*' if master else ())
    sampler = Sampler(dataset.pools, cfg.schedule, cfg.batch_size, cfg.max_iters, cfg.seed)
    for language, epochs in enumerate(sampler.epochs_of_run()):
        name, n = dataset.names[language], len(dataset.pools[language]) * cfg.block_size
        if epochs and not n or not len(dataset.test_windows(language, 1)):
            raise UserError(f'{dataset.path} has no sequence of {name} to train on, or none to test '
                            'on: use a larger corpus, share or test_frac')
        if epochs > 1:
            say(f'note: {name} has {n:,} tokens, which this run reads {epochs:.2f} times')

    if ddp:
        dist.init_process_group('cpu:gloo,cuda:nccl' if kind == 'cuda' else 'gloo')
    model = raw_model = new_model(cfg, dataset.meta['vocab_size'])
    if cfg.init_from and not checkpoint:
        init_weights(model, dataset, cfg)
    sharded = ddp and cfg.shard
    if sharded:  # a model too large for one GPU: every process holds a part of each block
        mesh = dist.device_mesh.init_device_mesh(kind, (world,))
        for part in [*getattr(model, 'h', []), model]:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    model.to(device)
    betas = cfg.beta1, cfg.beta2
    optimizer = torch.optim.Adam(model.parameters(), betas=betas, eps=1e-8, fused=kind != 'mps')
    whole = state_dict.StateDictOptions(full_state_dict=True, cpu_offload=True)
    if cfg.model == 'word2vec':
        model.set_frequency(dataset.frequency(marginals(cfg.schedule)))
    if checkpoint:
        say(f'{out_dir}: resumed after step {start:,}')
        with config.reading(out_dir / 'ckpt.pt', 'its shape differs, or its version is older; '
                            '--overwrite starts the run again'):
            if checkpoint['model'].keys() != model.state_dict().keys():
                raise ValueError('other parameters')
            state_dict.set_state_dict(model, optimizer, model_state_dict=checkpoint['model'],
                                      optim_state_dict=checkpoint['optimizer'], options=whole)
            optimizer.param_groups[0]['betas'] = betas  # loading made it a list
            sampler.read[:] = checkpoint['sequences_read']
    if cfg.compile is True or cfg.compile == 'auto' and kind == 'cuda':
        model = torch.compile(model)
    if ddp and not sharded:
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)

    tokens = cfg.max_iters * cfg.batch_size * cfg.block_size
    say(f'{raw_model.num_params():,} non-embedding parameters, {dataset.meta["vocab_size"]:,} model '
        f'ids; {cfg.max_iters:,} steps of {cfg.batch_size} x {cfg.block_size} tokens: {tokens:,} '
        f'tokens, {raw_model.flops_per_token() * tokens:.2g} FLOPs, on {world} x {device}')

    if master:
        for name in MEASURED if start else (*MEASURED, 'ckpt.pt', 'ckpt_previous.pt'):
            (out_dir / name).unlink(missing_ok=True)
        for kept in () if start else out_dir.glob('step_*'):
            shutil.rmtree(kept)
        settings = json.dumps(vars(cfg) | {'resume': False, 'overwrite': False}, indent=1) + '\n'
        atomic_write(out_dir / 'config.json', lambda aside: aside.write_text(settings))
        logs = {name: open_log(out_dir / f'{name}.jsonl', start) for name in ('log', 'speed')}
        track = open_tracker(cfg, dataset.names, start, held)

    def log(name, **figures):
        if master:
            print(json.dumps(figures), file=logs[name], flush=True)
            track(**figures)

    # ---- the loop ------------------------------------------------------------

    mine, scale = slice(rank * batch_size, (rank + 1) * batch_size), micro_batch_size / batch_size
    bar = tqdm(total=cfg.max_iters, initial=start, unit=' steps', disable=None if master else True)
    begun = logged = time.time()
    logged_step, epochs = start, sampler.epochs_begun()
    caught = catch_signals(alone=not ddp)
    for step in range(start, cfg.max_iters):
        optimizer.param_groups[0]['lr'] = lr = learning_rate(step, cfg)
        # a GPU only queues the work: the next batch is read while this one is computed
        sequences, languages = sampler.next(step)
        epochs, before = sampler.epochs_begun(), epochs
        for i in np.flatnonzero(epochs > np.maximum(1, before)):
            log('log', step=step + 1, language=dataset.names[i], epoch=int(epochs[i]))
        x, y = map(torch.from_numpy, dataset.batch(sequences[mine], languages[mine]))  # (B, T)
        if kind == 'cuda':
            x, y = x.pin_memory(), y.pin_memory()
        x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
        if cfg.model == 'word2vec':
            raw_model.draw_negatives([cfg.seed, step, 0, 1])  # 1: not the stream of languages
        loss = torch.zeros((), device=device)
        for i in range(0, batch_size, micro_batch_size):
            if ddp:  # exchange gradients once a step (fully_shard: every time)
                model.require_backward_grad_sync = i + micro_batch_size == batch_size
            with autocast():
                part = scale * model(x[i:i + micro_batch_size], y[i:i + micro_batch_size])
            part.backward()
            loss += part.detach()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        done, last = step + 1, step + 1 == cfg.max_iters
        bar.update()
        stop = torch.tensor(len(caught))  # on the CPU, so that no GPU has to wait
        if ddp:
            dist.all_reduce(stop)
        if done % cfg.log_interval == 0 or last:
            if ddp:
                dist.all_reduce(loss)
            loss = loss.item() / world
            if not math.isfinite(loss):
                raise UserError(f'the loss is {loss} at step {done:,}: try a lower learning_rate')
            now, p = time.time(), sampler.p(step).tolist()
            speed = (done - logged_step) * cfg.batch_size * cfg.block_size / (now - logged)
            tokens_seen = dict(zip(dataset.names, (sampler.read * cfg.block_size).tolist()))
            log('log', step=done, loss=loss, lr=lr, p_language=p, tokens_seen=tokens_seen)
            log('speed', step=done, tokens_per_second=round(speed), seconds=round(now - begun, 2))
            bar.set_postfix(loss=loss)
            if bar.disable:
                left = (cfg.max_iters - done) * (now - begun) / (done - start) / 60
                say(f'step {done:,}/{cfg.max_iters:,}: loss {loss:.3f}, {speed:,.0f} tokens/s, '
                    f'{left:.1f} min left', flush=True)
            logged, logged_step = now, done
        pause = time.time()
        if done % cfg.eval_interval == 0 or last:
            of = (0, 1) if sharded else (rank, world)  # sharded: every rank in every forward pass
            losses = evaluate(raw_model, dataset, cfg, device, autocast, micro_batch_size, *of)
            log('log', step=done, eval_loss=losses)
            if master:
                losses = ', '.join(f'{name} {value:.4f}' for name, value in losses.items())
                bar.write(f'step {done:,}: evaluation loss {losses}')
        if done % cfg.checkpoint_interval == 0 or last or stop:
            weights, moments = state_dict.get_state_dict(raw_model, optimizer, options=whole)
            if not all(weight.isfinite().all() for weight in weights.values()):
                raise UserError(f'a weight is not finite at step {done:,}: try a lower learning_rate')
            if master:
                os.fsync(logs['log'].fileno())  # no checkpoint without its lines
                save_checkpoint(out_dir, cfg.keep_checkpoints, step=done, model=weights,
                                optimizer=moments, sequences_read=sampler.read.tolist())
        if stop:
            break
        logged += time.time() - pause  # neither evaluation nor saving counts

    # ---- clean up ------------------------------------------------------------

    bar.close()
    if ddp:
        dist.all_reduce(stop)  # torchrun stops all ranks once one exits: wait until rank 0 has saved
        del model, part  # they hold the group, whose threads must not outlive it
        dist.destroy_process_group()
    if last:
        say(f'{out_dir}: {cfg.max_iters:,} steps in {time.time() - begun:.0f} s, tokens seen: '
            + ', '.join(f'{name} {n:,}' for name, n in tokens_seen.items()))
        say(f'next: python analyze.py {"ppl" if cfg.model == "gpt" else "alignment"} {out_dir}')
    else:
        say(f'stopped by a signal after step {done:,}, saved in {out_dir}; the same command continues')
    status = 0 if last else 75  # EX_TEMPFAIL: try again
    if sharded and __name__ == '__main__':  # DTensor's caches keep threads alive: exit now
        held.close()
        sys.stdout.flush()
        os._exit(status)
    if status:
        sys.exit(status)

def main(cfg):
    try:
        with contextlib.ExitStack() as held:  # the lock of out_dir
            train(cfg, held)
    except torch.OutOfMemoryError:
        raise UserError('out of GPU memory: a smaller --micro_batch_size gives the same result') from None
    except RuntimeError as e:
        if not (isinstance(e, dist.DistError) or 'gloo' in str(e)):
            raise
        sys.exit('another process of this run has died; the same command continues from the checkpoint')

if __name__ == '__main__':
    config.run(lambda: main(cfg))
