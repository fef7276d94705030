"""
GLUE (section 4.2): fine-tune a run of two clones in its first language, measure in both.

    python -m extras.glue OUT_DIR --data GLUE --tasks sst2,rte    # -> OUT_DIR/glue.json

The whole model learns, and a linear head on the last token's last hidden state; the second
language is measured zero-shot. Tasks that were measured before stay in glue.json.
"""
import argparse
import math
import sys

import config

def parse(argv=None):
    parser = argparse.ArgumentParser(prog='python -m extras.glue', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('out_dir', help='folder of a trained run')
    add('--data', required=True, help='folder with SST-2/train.tsv, SST-2/dev.tsv, ...')
    add('--tasks', default='', help=f'of {LIST}; default: those in the folder')
    add('--languages', nargs='+', help='two; default: the first two')
    add('--learning_rate', type=float, default=5e-5, help='initial (5e-5)')
    add('--batch_size', type=int, default=64, help='examples per step (64)')
    add('--max_tokens', type=int, default=128, help='per example (128)')
    add('--epochs', type=int, default=10, help='at most (10)')
    add('--patience', type=int, default=10, help='evaluations without gain before it stops (10)')
    add('--eval_every', type=int, default=200, help='steps between evaluations (200)')
    add('--seed', type=int, default=0, help='of the head and the order of examples (0)')
    add('--device', default='auto', help='cuda, mps, cpu; auto: the first available')
    add('--dtype', default='auto', help='float32, bfloat16; auto: bfloat16 on cuda')
    args = parser.parse_args(argv)
    args.settings = {key: value for key, value in vars(args).items() if type(value) in (int, float)}
    for key, value in args.settings.items():
        lowest = 0 if key in ('learning_rate', 'seed') else 1
        if not lowest <= value < math.inf:
            sys.exit(f'--{key} must be at least {lowest}, not {value}')
    return args

BINARY, ENTAILMENT = ['0', '1'], ['entailment', 'not_entailment']
GLUE = {  # task -> columns of its texts and of its label, classes, its own metric
    'cola': (['sentence'], 'label', BINARY, 'matthews'),
    'sst2': (['sentence'], 'label', BINARY, 'accuracy'),
    'mrpc': (['#1 String', '#2 String'], 'Quality', BINARY, 'f1'),
    'qqp': (['question1', 'question2'], 'is_duplicate', BINARY, 'f1'),
    'mnli': (['sentence1', 'sentence2'], 'gold_label',
             ['entailment', 'neutral', 'contradiction'], 'accuracy'),
    'qnli': (['question', 'sentence'], 'label', ENTAILMENT, 'accuracy'),
    'rte': (['sentence1', 'sentence2'], 'label', ENTAILMENT, 'accuracy')}
LIST = ', '.join(GLUE)

if __name__ == '__main__':  # before torch is imported: --help is instant
    args = parse()

import copy
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

import analyze
from data_prep import load_tokenizer

def read_task(path, task):
    """The examples of a task's .tsv file, [(texts, class)]."""
    texts, label, classes, _ = GLUE[task]
    with config.reading(path, f'it must hold {task} in the format of GLUE, tab-separated'):
        rows = [line.split('\t') for line in path.read_text('utf-8-sig').split('\n')]  # unquoted
        columns = 'source label star sentence'.split() if task == 'cola' else rows.pop(0)
        rows = [dict(zip(columns, row)) for row in rows if len(row) == len(columns)]
        if not rows:
            raise ValueError('no examples')
        return [([row[name] for name in texts], classes.index(row[label])) for row in rows]

def read_tasks(data, tasks):
    """{task: its examples in train and dev} of a folder; mnli has two dev sets."""
    with config.reading(data, '--data takes a folder with a folder per task'):
        folders = {path.name.lower().replace('-', ''): path for path in Path(data).iterdir()}
    present = [task for task in GLUE if task in folders]
    chosen = tasks.split(',') if tasks else present
    if not chosen or set(chosen) - set(present):
        sys.exit(f'--data {data} has no folder {tasks or "of a task"}; the tasks are {LIST}')
    parts = {'mnli': ['train', 'dev_matched', 'dev_mismatched']}
    return {task: [read_task(folders[task] / f'{part}.tsv', task)
                   for part in parts.get(task, ['train', 'dev'])] for task in chosen}

def encode_examples(tokenizer, examples, longest):
    """Examples [(texts, class)] -> base ids [(n,)], by length, and classes (N,). Every text ends
    with eod; an example of more than `longest` tokens loses the end of its longer text."""
    encoded = []
    for texts, label in examples:
        first, *rest = (tokenizer.encode(text) for text in texts)
        room = longest - len(texts)
        first = first[:max(room // len(texts), room - sum(map(len, rest)))]
        parts = [first, *(part[:room - len(first)] for part in rest)]
        encoded.append(([i for part in parts for i in (*part, tokenizer.eod)], label))
    ids, classes = zip(*sorted(encoded, key=lambda example: len(example[0])))
    return ids, np.array(classes)

def shuffled_batches(lengths, batch_size, seed):
    """Batches of an epoch, index arrays: texts of similar length need little padding."""
    rng = np.random.default_rng(seed)
    order = np.argsort(lengths * rng.uniform(0.9, 1.1, len(lengths)))
    batches = np.split(order, range(batch_size, len(order), batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]

def class_logits(run, head, ids, language):
    """Logits (N, classes) of the head, from the last token of every text after the final norm."""
    texts = [torch.from_numpy(run.dataset.vocab_map[language, text]).long() for text in ids]
    x = pad_sequence(texts, batch_first=True).to(run.device)  # right-padded: no text sees it
    with run.autocast():
        last = [row[len(text) - 1] for row, text in zip(run.model.features(x), ids)]
        return head(torch.stack(last)).float()

@torch.no_grad()
def predict(run, head, ids, language):
    """The class of every text, (N,)."""
    logits = [class_logits(run, head, ids[i:i + 256], language) for i in range(0, len(ids), 256)]
    return torch.cat(logits).argmax(-1).cpu().numpy()

def task_metrics(predicted, true, metric):
    """{'accuracy': ..., metric: ...}: 'f1' of class 1, 'matthews' the correlation."""
    scores = {'accuracy': float((predicted == true).mean())}
    if metric == 'f1':
        scores[metric] = 2 * float((predicted * true).sum() / max(1, (predicted + true).sum()))
    if metric == 'matthews':
        covariance = (predicted * true).mean() - predicted.mean() * true.mean()
        scores[metric] = float(covariance / max(1e-12, predicted.std() * true.std()))
    return scores

def fine_tune(run, train_set, dev_set, task, language, args):
    """Fine-tune run.model and a new head on train_set (ids, classes) in one language, until
    `patience` evaluations, after every eval_every steps and every epoch, gain less than 0.001. Both
    end as they were at the best evaluation on dev_set -> the head, and the steps made."""
    (ids, classes), (*_, labels, metric) = train_set, GLUE[task]
    lengths = np.array([len(text) for text in ids])
    torch.manual_seed(args.seed)
    head = torch.nn.Linear(run.cfg.n_embd, len(labels)).to(run.device)
    modules = torch.nn.ModuleList([run.model, head])
    parameters = [p for key, p in modules.named_parameters() if 'lm_head' not in key]
    optimizer = torch.optim.Adam(parameters, lr=args.learning_rate)
    per_epoch = -(-len(ids) // args.batch_size)
    total, best, best_state, waited = args.epochs * per_epoch, -math.inf, None, 0
    for step in analyze.progress(range(total), f'{args.out_dir} {task}'):
        epoch, i = divmod(step, per_epoch)
        if i == 0:
            batches = shuffled_batches(lengths, args.batch_size, [args.seed, epoch])
        optimizer.param_groups[0]['lr'] = args.learning_rate * (1 - step / total)
        logits = class_logits(run, head, [ids[n] for n in batches[i]], language)
        F.cross_entropy(logits, torch.from_numpy(classes[batches[i]]).to(run.device)).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (i + 1) % args.eval_every and i + 1 < per_epoch:
            continue
        score = task_metrics(predict(run, head, dev_set[0], language), dev_set[1], metric)[metric]
        waited += 1
        if score > best + 0.001:
            best, best_state, waited = score, copy.deepcopy(modules.state_dict()), 0
        if waited == args.patience:
            break
    modules.load_state_dict(best_state)
    return head, step + 1

def summary(names, tasks):
    """The content of glue.json; tasks: {task: {language: its scores, ...}}."""
    means = {}
    for name in names if tasks else ():
        accuracies = [analyze.number(task[name]['accuracy']) for task in tasks.values()]
        means[name] = float(np.mean(accuracies))
    return {'languages': names, 'tasks': tasks, 'mean_accuracy': means}

def main(args):
    run, pair, clones = analyze.load_pair(args)
    if not run.model or not clones:
        sys.exit(f'{args.out_dir}: GLUE is English, and takes a GPT of two clones')
    examples, names = read_tasks(args.data, args.tasks), [run.dataset.names[i] for i in pair]
    path, remedy, tasks = run.out_dir / 'glue.json', 'remove it, and measure its tasks again', {}
    with config.reading(path, remedy):
        if (saved := config.read_json(path, remedy)) and saved['languages'] == names:
            tasks = summary(names, saved['tasks'])['tasks']
    tokenizer = load_tokenizer(run.dataset.corpora[pair[0]]['tokenizer'])
    longest = min(args.max_tokens, run.cfg.block_size)
    for task, parts in examples.items():
        train_set, *dev_sets = (encode_examples(tokenizer, part, longest) for part in parts)
        run.model.load_state_dict(run.weights)  # as they were trained
        head, steps = fine_tune(run, train_set, dev_sets[0], task, pair[0], args)
        for key, (ids, true) in zip((task, 'mnli-mm'), dev_sets):
            scores = {'steps': steps, 'majority': float(np.bincount(true).max() / len(true)),
                      'examples': len(true), 'settings': args.settings}
            for name, language in zip(names, pair):
                scores[name] = task_metrics(predict(run, head, ids, language), true, GLUE[task][-1])
                print(f'{args.out_dir} {key} {name}: {scores[name]}')
            tasks[key] = scores
        analyze.write(path, summary(names, tasks))

if __name__ == '__main__':
    config.run(lambda: main(args))
