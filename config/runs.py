"""The table of runs, runs.csv: which commands a plan still needs, and running them side by side."""
import csv
import os
import shlex
import subprocess
from concurrent.futures import ThreadPoolExecutor

import config
from config import UserError

COLUMNS = 'run', 'config', 'overrides', 'measure', 'plans'

def commands(plan, options=''):
    """A shell command for each run of a plan, or of all whose name begins so (fig09), that is not
    finished and measured below out/. options: settings for all of them."""
    path, left = config.DEFAULT.with_name('runs.csv'), []
    with config.reading(path, f'its columns are {",".join(COLUMNS)}'):
        lines = csv.DictReader(path.read_text('utf-8').splitlines())
        runs = [[str(line[column]) for column in COLUMNS] for line in lines]
    names = {name for *_, plans in runs for name in plans.split()}
    wanted = {name for name in names if f'{name}_'.startswith(f'{plan}_')}
    if not wanted:
        raise UserError(f'--plan {plan}: the plans are {", ".join(sorted(names))}')
    for run, configs, overrides, measures, plans in runs:
        if not wanted.isdisjoint(plans.split()):
            settings = f'{overrides} {options}'.strip()
            cfg = config.load([*configs.split(), *shlex.split(settings)])
            parts = [f'python train.py {configs} --out_dir=out/{run} {settings}'.rstrip()]
            parts += missing_measures(f'out/{run}', cfg, measures.split(';'))
            if len(parts) > 1:
                left.append(' && '.join(parts))
    return left

def missing_measures(out_dir, cfg, measures):
    """The commands of the measures that the run of cfg lacks; all if it is not finished."""
    remedy = 'train.py --overwrite starts the run again'
    saved, results = (config.read_json(f'{out_dir}/{name}.json', remedy) or {}
                      for name in ('config', 'results'))
    finished = (saved and not config.first_change(saved, cfg, out_dir)
                and results.get('step', cfg.max_iters) == cfg.max_iters)
    for measure in measures:
        name, _, rest = measure.strip().partition(' ')
        if not finished or not os.path.exists(f'{out_dir}/{name.replace("ppl", "results")}.json'):
            yield f'python analyze.py {name} {out_dir} {rest}'.rstrip()

def side_by_side(commands, jobs):
    """Run shell commands, `jobs` at a time and on a core each: two threads that share a busy core
    wait for each other most of the time."""
    def run(command):
        print(f'{command}\n', end='', flush=True)  # one write: another thread prints too
        return subprocess.run(command, shell=True, capture_output=True, text=True, env=one_thread)
    one_thread = os.environ | {'OMP_NUM_THREADS': '1'}
    with ThreadPoolExecutor(jobs) as pool:
        for command, ended in zip(commands, pool.map(run, commands)):
            if ended.returncode:
                pool.shutdown(wait=False, cancel_futures=True)
                said = (ended.stderr.strip() or ended.stdout).splitlines()
                raise UserError(f'{command}: {said[-1] if said else ended.returncode}')
