"""The plans of runs.csv: the commands of runs that are missing, and running them side by side."""
import contextlib
import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import config

STUDY = Path(__file__).resolve().parent
ROOT = STUDY.parent
# train.FREE, whose import takes seconds
FREE = set('out_dir micro_batch_size eval_interval eval_iters checkpoint_interval keep_checkpoints '
           'log_interval log_to overwrite device dtype compile num_workers'.split())

def read_table(name):
    """The rows of study/NAME.csv."""
    path = STUDY / f'{name}.csv'
    with config.reading(path, 'git checkout restores it'):
        return list(csv.DictReader(path.read_text('utf-8').splitlines()))

def script(name):
    """The words that start train.py, 'ppl' of analyze.py or extras.glue, in any directory."""
    python, root = shlex.quote(sys.executable), shlex.quote(str(ROOT))
    if name.startswith('extras.'):
        return f'PYTHONPATH={root} {python} -m {name}'
    return f'{python} {root}/{name}' if name == 'train.py' else f'{python} {root}/analyze.py {name}'

def trainer_of(row, options=''):
    """What trains the run of a row of runs.csv: a script, its config files, all settings."""
    files = row['config'].split()
    trainer = files.pop(0) if files[0].startswith('extras.') else 'train.py'
    files = [str(ROOT / file) for file in files]
    return trainer, files, config.load([*files, *shlex.split(f'{row["overrides"]} {options}')])

def missing_commands(row, options):
    """The commands that train and measure the run of a row, as far as out/ lacks it."""
    trainer, files, cfg = trainer_of(row, options)
    out_dir, remedy, measures = f'out/{row["run"]}', 'train.py --overwrite starts the run again', []
    saved = config.read_json(f'{out_dir}/config.json', remedy) or {}
    results = config.read_json(f'{out_dir}/results.json', remedy) or {}
    before = vars(config.restored(saved, out_dir))
    same = saved and all(json.dumps(before[key]) == json.dumps(value)
                         for key, value in vars(cfg).items() if key not in FREE)
    finished = same and results.get('step', cfg.max_iters) == cfg.max_iters
    for measure in row['measure'].split(';'):
        name, _, rest = measure.strip().partition(' ')
        file, folders = name.removeprefix('extras.').replace('ppl', 'results'), [out_dir]
        if cfg.keep_checkpoints and name in ('ppl', 'alignment'):
            kept = range(cfg.checkpoint_interval, cfg.max_iters, cfg.checkpoint_interval)
            folders += [f'{out_dir}/step_{step:06}' for step in kept]
        measures += [f'{script(name)} {folder} {rest}'.rstrip() for folder in folders
                     if not finished or not os.path.exists(f'{folder}/{file}.json')]
    train = [script(trainer), *map(shlex.quote, files), f'--out_dir={out_dir}', row['overrides'],
             options]
    if same and trainer != 'train.py':  # word2vec does not resume
        if os.path.exists(f'{out_dir}/ckpt.pt'):
            return measures
        train.append('--overwrite')
    return [' '.join(filter(None, train)), *measures] if measures else []

def missing_runs(plan, options=''):
    """{run: shell command} of the runs of a plan, or of all whose name begins so (fig09), that are
    not finished and measured. options: settings for all of them."""
    rows, runs = read_table('runs'), {}
    plans = {name for row in rows for name in row['plans'].split()}
    wanted = {name for name in plans if f'{name}_'.startswith(f'{plan}_')}
    if not wanted:
        sys.exit(f'--plan {plan}: the plans are {", ".join(sorted(plans))}')
    for row in rows:
        if wanted & set(row['plans'].split()) and (commands := missing_commands(row, options)):
            runs[row['run']] = ' && '.join(commands)
    return runs

class Job:
    """A shell command in a process group of its own, and the last line that it has written."""

    def __init__(self, command):
        self.line, self.process = '', subprocess.Popen(
            command, shell=True, start_new_session=True, text=True, errors='replace',
            env=os.environ | {'OMP_NUM_THREADS': '1', 'PYTHONUNBUFFERED': '1'},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.line = line.strip() or self.line

def side_by_side(runs, jobs):
    """Run {run: shell command}, `jobs` at a time and on a core each: two threads that share a busy
    core wait for each other most of the time. The last line of each says how far it is. If one
    fails, the others are told to save and stop."""
    stops = []  # signals only leave a note, so that no job is lost sight of
    for number in signal.SIGINT, signal.SIGTERM, signal.SIGHUP:
        if signal.getsignal(number) != signal.SIG_IGN:  # as nohup sets it
            signal.signal(number, lambda number, frame: stops.append(number))
    waiting, running, drawn, shown = list(runs), {}, 0, time.monotonic()
    try:
        while waiting or running:
            lines = []
            for run in [run for run, job in running.items() if not job.reader.is_alive()]:
                job = running.pop(run)
                if status := job.process.wait():
                    sys.exit(f'{run} failed: {job.line or f"status {status}"}')
                lines.append(f'{run}: done; {len(running) + len(waiting)} to go')
            while waiting and len(running) < jobs:
                run = waiting.pop(0)
                running[run] = Job(runs[run])
                lines.append(f'{run}: {runs[run]}')
            status = [f'{run}: {job.line}' for run, job in running.items()]
            if sys.stdout.isatty():  # draw the last lines again, below the new ones
                print(f'\x1b[{drawn}F\x1b[J' if drawn else '', end='')
                lines += [line[:shutil.get_terminal_size().columns - 1] for line in status]
                drawn = len(status)
            elif time.monotonic() > shown + 30:
                lines, shown = lines + status, time.monotonic()
            print(''.join(f'{line}\n' for line in lines), end='', flush=True)
            time.sleep(0.2)
            if stops:
                sys.exit(128 + stops[0])
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait
        while any(job.reader.is_alive() for job in running.values()):
            for job in running.values():
                with contextlib.suppress(OSError):  # it has just ended
                    os.killpg(job.process.pid, signal.SIGTERM)
            time.sleep(0.5)
        for run, job in running.items():
            print(f'{run} stopped: {job.line}', flush=True)

def plan(name, options='', jobs=0):
    """Print the commands that a plan lacks, or run them."""
    runs = missing_runs(name, options)
    if jobs:
        side_by_side(runs, jobs)
    else:
        print(''.join(f'{command}\n' for command in runs.values()), end='')
