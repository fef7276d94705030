"""
The logs of a run in TensorBoard or Weights & Biases as well: the setting log_to.

    tensorboard --logdir out                                          # log_to = 'tensorboard'
    WANDB_MODE=offline python train.py CONFIG.py --log_to=wandb       # and wandb sync, later
"""
from pathlib import Path

from config import UserError
from data_prep import require

def tensorboard(cfg, start, held):
    from torch.utils.tensorboard import SummaryWriter
    # after a kill the steps since the checkpoint are drawn again: hide the first ones
    writer = SummaryWriter(Path(cfg.out_dir, 'tensorboard'), purge_step=start + 1)
    held.callback(writer.close)
    return lambda figures, step: [writer.add_scalar(*figure, step) for figure in figures.items()]

def wandb(cfg, start, held):
    package = require('wandb', 'log_to')
    last = Path(cfg.out_dir, 'wandb', 'latest-run')  # -> [offline-]run-DATE_TIME-ID
    run_id = last.resolve().name.rpartition('-')[2] if start and last.exists() else None
    try:
        run = package.init(dir=cfg.out_dir, name=cfg.out_dir, config=vars(cfg), id=run_id,
                           resume='allow')  # it ignores steps that it has
    except package.Error as e:
        raise UserError(f'log_to: {e}; WANDB_MODE=offline needs no account') from None
    held.callback(run.finish)
    return run.log

TRACKERS = {'tensorboard': tensorboard, 'wandb': wandb, '': lambda *_: lambda *_: None}

def check_tracker(cfg):
    """Refuse a tracker that does not exist or is not installed."""
    if cfg.log_to not in TRACKERS:
        raise UserError(f"log_to must be 'tensorboard', 'wandb' or '', not {cfg.log_to!r}")
    if cfg.log_to:
        require(cfg.log_to, f'log_to={cfg.log_to}', '.[log]')

def open_tracker(cfg, names, start, held):
    """A function that takes the values of a line of the log. Those of each language become
    value/LANGUAGE. held: an ExitStack that closes the tracker."""
    send = TRACKERS[cfg.log_to](cfg, start, held)

    def track(step, **figures):
        flat = {}
        for key, value in figures.items():
            if isinstance(value, list):
                value = dict(zip(names, value))
            by_name = value.items() if isinstance(value, dict) else [(None, value)]
            flat |= {f'{key}/{name}' if name else key: number for name, number in by_name}
        if 'language' in flat:  # a new epoch
            flat = {f'epoch/{flat["language"]}': flat['epoch']}
        send(flat, step)
    return track
