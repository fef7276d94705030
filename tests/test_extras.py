"""extras/ (mix: test_mix.py) against brute force, closed forms and transformers."""
import contextlib
import json
import lzma
import os
import shutil
import sys
import tarfile
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLONES, ROOT, arguments, load, run, same, trained, write_bpe, write_text
from torch.nn import functional as F

import analyze
import config
import data_prep
from extras import eltec, export, glue, sample, word2vec

os.environ['HF_HUB_OFFLINE'] = '1'

def call(module, *argv, **overrides):
    """Run a command; overrides: settings for word2vec, tiny ones by default."""
    options = arguments(**overrides) if module is word2vec else []
    module.main(module.parse([*options, *map(str, argv)]))

def refused(says, module, *argv, **overrides):
    with pytest.raises(SystemExit, match=says) as error:
        call(module, *argv, **overrides)
    assert '\n' not in str(error.value)

@pytest.fixture(scope='session')
def extra(runs):
    """Beside a copy of the cloned run: clones of one vocabulary, two corpora, word2vec."""
    two = {'dataset': 'x_two', 'corpora': {'en': 'text/*.txt', 'up': 'text/0*.txt'},
           'languages': [('A', 'en'), ('B', 'up')], 'schedule': [(0.0, (0.5, 0.5))]}
    with contextlib.chdir(runs):
        shutil.copytree('out/cloned', 'extra/cloned')
        trained(**two, max_iters=3, vocab_size=350, out_dir='extra/two')
        trained(**CLONES | {'dataset': 'x_shared'}, anchor_frac=1.0, max_iters=3, out_dir='extra/shared')
        call(word2vec, **CLONES, max_iters=60, out_dir='extra/word2vec')
    return runs

@pytest.fixture
def in_extra(extra, monkeypatch):
    monkeypatch.chdir(extra)

@pytest.mark.parametrize('module, command, says', [
    (sample, 'extra/cloned --language FR', "no language 'FR'; it has EN1, EN2"),
    (sample, 'extra/word2vec', 'is word2vec, which writes no text'),
    (sample, 'extra/cloned --temperature nan', '--temperature must be at least 0, not nan'),
    (glue, 'extra/two --data .', 'takes a GPT of two clones'),
    (glue, 'extra/cloned --data . --tasks=rte', '--data . has no folder rte; the tasks are cola'),
    (glue, 'extra/cloned --data . --patience=0', '--patience must be at least 1, not 0'),
    (word2vec, '--out_dir=extra/cloned', 'holds a run: choose another --out_dir, or --overwrite'),
    (word2vec, '--out_dir=x --init_from=extra/cloned', 'word2vec has no init_from'),
    (word2vec, '--out_dir=x --learning_rate=9e18', 'loss is .* at step .*lower learning_rate'),
    (eltec, 'english', "language 'english': ELTeC has cze, deu, eng")])
def test_a_mistake_is_refused_in_one_line(module, command, says, in_extra):
    refused(says, module, *command.split(), **CLONES)
    assert not Path('x/ckpt.pt').exists() and len(load('extra/cloned/ckpt.pt')['model']) > 20

def test_help_names_the_command_and_imports_no_torch(tmp_path):
    (tmp_path / 'torch.py').write_text('raise SystemExit("torch was imported")')
    path = {'PYTHONPATH': f'{tmp_path}:{ROOT}'}
    for name in 'sample', 'export', 'glue', 'word2vec', 'eltec':
        shown = run(sys.executable, '-m', f'extras.{name}', '--help', env=os.environ | path).out
        assert f'python -m extras.{name} ' in shown

@pytest.mark.parametrize('temperature, top_k', [(1.0, 0), (0.5, 0), (1.0, 4)])
def test_draws_follow_the_models_probabilities_among_the_languages_ids(temperature, top_k):
    logits = torch.randn(30, generator=torch.Generator().manual_seed(0))
    row, rng, n = torch.tensor([3, 7, 1, 20, 15, 9, 4, 28]), np.random.default_rng(0), 4000
    drawn, elsewhere = zip(*(sample.draw(logits, row, temperature, top_k, rng) for _ in range(n)))
    p = logits.double().exp() / logits.double().exp().sum()
    assert elsewhere == pytest.approx([1 - float(p[row].sum())] * n)
    expected = (p[row] ** (1 / temperature)).numpy()
    expected[expected.argsort()[:-top_k or 0]] = 0
    expected /= expected.sum()
    error = 4 * np.sqrt(expected * (1 - expected) / n)
    assert (np.abs(np.bincount(drawn, minlength=8) / n - expected) <= error).all()

@pytest.mark.parametrize('prompt', ['', 'The value of ', 'an attribute of the module ' * 20])
def test_the_likeliest_tokens_are_those_of_the_whole_model_on_the_last_block(prompt, in_extra):
    ours = analyze.load_run('extra/cloned', 'cpu')
    tokenizer = data_prep.load_tokenizer(ours.dataset.corpora[1]['tokenizer'])
    args = sample.parse(['', f'--prompt={prompt}', '--temperature=0', '--tokens=40'])
    text, elsewhere = sample.sample(ours, 1, args, 0)
    ids = tokenizer.encode(prompt) or [tokenizer.eod]
    for outside in elsewhere:
        p = ours.model(torch.tensor([ids[-32:]]) + 400)[0, -1].softmax(-1).detach()
        assert outside == pytest.approx(float(p[:400].sum()), abs=1e-6)
        ids.append(int(p[400:].argmax()))
    assert len(elsewhere) == 40 and text == tokenizer.decode([i for i in ids if i != tokenizer.eod])

def test_clones_that_share_their_ids_continue_a_prompt_alike(in_extra, capsys):
    shown = []
    for seed in (0, 0, 1):
        call(sample, 'extra/shared', '--prompt=A module ', '--samples=2', f'--seed={seed}')
        shown.append(capsys.readouterr().out)
    middle = len(shown[0]) // 2
    assert shown[0][:middle].replace('EN1', 'EN2') == shown[0][middle:] and shown[0] != shown[2]
    assert shown[0] == shown[1] and '--- EN2, sample 2 of 2\nA module ' in shown[0]
    assert 'EN2: 0% of the probability (at most 0% at one token) lay on ids of other' in shown[0]

def test_a_sample_ends_with_its_document(in_extra):
    shutil.copytree('extra/cloned', 'extra/ends')
    state = load('extra/ends/ckpt.pt')
    state['model'] |= {'ln_f.weight': torch.zeros(32), 'ln_f.bias': torch.ones(32)}
    state['model']['lm_head.weight'] = torch.eye(800)[401, :, None].expand(800, 32)  # EN2's eod
    torch.save(state, 'extra/ends/ckpt.pt')
    args = sample.parse(['', '--prompt=The end', '--temperature=0'])
    text, elsewhere = sample.sample(analyze.load_run('extra/ends', 'cpu'), 1, args, 0)
    assert (text, len(elsewhere)) == ('The end', 1)

HARD = ['', ' ', '  two  blanks ', '\ttabs\t', 'a\r\nb\n\n\nc', '\U0001f600 日本語 Ünï', 'x' * 40,
        '</s><unk><0x41><|endoftext|>', '.' * 33 + '-' * 17, "it's we'LL 1234 \u00a0 \u3000"]

def same_ids_and_logits(out_dir, language, corpus='en'):
    """Export a run, compare it -> the run, and its tokenizer and model in transformers."""
    transformers = pytest.importorskip('transformers')
    call(export, out_dir, '--language', language, '--to', folder := Path('hf', out_dir, language))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    ours = analyze.load_run(out_dir, 'cpu')
    i = ours.dataset.names.index(language)
    row = ours.dataset.vocab_map[i]
    own = data_prep.load_tokenizer(ours.dataset.corpora[i]['tokenizer'])
    lines = (ROOT / f'corpora/parallel.{corpus}').read_text('utf-8').split('\n')
    novel = next(data_prep.documents(f'corpora/eltec-{corpus}*.tar.xz'))  # eng, fra
    for text in (*HARD, *lines, *novel.split('\n')[:200], novel[:20_000]):
        ids = own.encode(text)
        assert tokenizer(text).input_ids == row[ids].tolist(), text
        assert tokenizer.decode(row[ids]) == own.decode(ids) == text
    assert tokenizer.eos_token_id == model.config.eos_token_id == row[own.eod]
    starts = ours.dataset.test_starts(i, 16)
    x = torch.from_numpy(ours.dataset.windows('test', starts, np.full(len(starts), i))[0])
    torch.testing.assert_close(model(x).logits, ours.model(x), rtol=1e-5, atol=1e-5)
    return ours, tokenizer, model

def test_an_exported_clone_has_the_runs_logits_and_generates_its_own_ids_alone(in_extra):
    for language, lowest in ('EN1', 0), ('EN2', 400):
        ours, tokenizer, model = same_ids_and_logits('extra/cloned', language)
        assert len(tokenizer) == 800 and min(tokenizer('Any text').input_ids) >= lowest
    inputs = tokenizer('The ', return_tensors='pt')
    ids = model.generate(**inputs, do_sample=True, temperature=9.0)[0]
    assert set(ids.tolist()) <= set(ours.dataset.vocab_map[1].tolist())  # hot, yet no other id
    assert tokenizer.decode(ids).startswith('The ')
    assert inputs.keys() == {'input_ids', 'attention_mask'}

@pytest.mark.parametrize('case', ['narrow heads', 'anchored', 'tiktoken'])
def test_other_shapes_vocabularies_and_tokenizers_are_exported(case, alone, documents):
    own, language = CLONES, 'EN2'
    if case == 'narrow heads':
        own = own | {'n_head': 3, 'head_dim': 8}
    elif case == 'tiktoken':
        educational = pytest.importorskip('tiktoken._educational')
        from tiktoken_ext.openai_public import r50k_pat_str
        ranks = educational.bpe_train(documents[-1][:20_000], 400, r50k_pat_str, visualise=None)
        write_bpe(alone / 'pairs.tiktoken', ranks)
        own = own | {'tokenizer': 'tiktoken:pairs.tiktoken'}
    else:
        language, french = 'FR', (ROOT / 'corpora/parallel.fr').read_text('utf-8').split('\n')
        write_text(alone / 'fr', ['\n'.join(french[i:i + 40]) for i in range(0, 400, 40)])
        own = {'corpora': {'en': 'text/*.txt', 'fr': 'fr/*.txt'}, 'vocab': 'anchored',
               'languages': [('EN', 'en'), ('FR', 'fr')], 'schedule': CLONES['schedule']}
    trained(**own, out_dir='out/a')
    ours, _, model = same_ids_and_logits('out/a', language, 'fr' if language == 'FR' else 'en')
    assert model.config.n_head == (4 if case == 'narrow heads' else 2)
    assert bool(len(np.intersect1d(*ours.dataset.vocab_map))) == (case == 'anchored')

def test_an_exported_folder_is_whole_and_says_what_it_is(in_extra):
    pytest.importorskip('transformers')
    result = run(sys.executable, '-m', 'extras.export', 'out/mono_20', '--to', 'hf/whole')
    assert result.out == 'written: hf/whole\n', result.err
    whole = 'config generation_config tokenizer tokenizer_config README model'.split()
    assert sorted(path.stem for path in Path('hf/whole').iterdir()) == sorted(whole)
    card = Path('hf/whole/README.md').read_text()
    assert '# mono_20, EN\n' in card and 'extras.export out/mono_20 --language EN`' in card
    assert '10,240' in card and 'step 40 of 40' in card
    refused('hf/whole already exists', export, 'out/mono_20', '--to', 'hf/whole')

def test_what_cannot_be_exported_is_refused(alone, documents, monkeypatch):
    pytest.importorskip('transformers')
    import sentencepiece
    sentencepiece.SentencePieceTrainer.train(  # begins a text with a blank
        sentence_iterator=iter(documents[-1].split('\n')), model_prefix='blank', vocab_size=400,
        model_type='bpe', byte_fallback=True, eos_id=1, bos_id=-1, minloglevel=2)
    trained(head_dim=32, dataset='wide', max_iters=1, out_dir='wide')
    trained(tokenizer='blank.model', dataset='blank', max_iters=1, out_dir='blank')
    call(word2vec, dataset='words', max_iters=1, out_dir='words')
    for name, says in (('words', 'words is not a GPT-2: word2vec'), ('wide', '2 heads of 32 in 32'),
                       ('blank', 'tokenizer.model is not a BPE like')):
        refused(says, export, name)
        assert not list(Path(name).glob('*hf*'))
    for package in 'safetensors.torch', 'transformers':
        monkeypatch.setitem(sys.modules, package, None)
        refused(r'export needs a package: pip install \.\[export\]', export, 'no_run')

@pytest.mark.parametrize('task, classes, text', [
    ('cola', (1, 0), 'gj04|1||A "b \ngj04|0|*|C.\n'),
    ('sst2', (1, 0), 'sentence|label\nA "b |1\nC.|0\n'),
    ('mrpc', (1, 0), '\ufeffQuality|#1 ID|#1 String|#2 String\r\n1|7|A "b |B.\r\n0|9|C.|D.\r\n'),
    ('qqp', (0, 1), 'id|question1|question2|is_duplicate\n0|A "b |B.|0\n5|lost\n1|C.|D.|1\n'),
    ('mnli', (1, 2), 'index|sentence1|sentence2|label1|gold_label\n'
                     '0|A "b |B.|neutral|neutral\n1|C.|D.|neutral|contradiction\n'),
    ('qnli', (0, 1), 'index|question|sentence|label\n0|A "b |B.|entailment\n1|C.|D.|not_entailment\n'),
    ('rte', (1, 0), 'index|sentence1|sentence2|label\n0|A "b |B.|not_entailment\n1|C.|D.|entailment\n')])
def test_glues_own_files_are_read(task, classes, text, tmp_path):
    (tmp_path / 'train.tsv').write_text(text.replace('|', '\t'), 'utf-8', newline='')
    texts = [['A "b '], ['C.']] if task in ('cola', 'sst2') else [['A "b ', 'B.'], ['C.', 'D.']]
    assert glue.read_task(tmp_path / 'train.tsv', task) == list(zip(texts, classes))

def test_other_files_are_refused(in_extra, tmp_path):
    (tmp_path / 'SST-2').mkdir()
    for text, says in (('sentence\tlabel\na\t7\n', "train.tsv cannot be read .*'7' is not in list"),
                       ('words\tlabel\na\t1\n', "KeyError: 'sentence'"), ('', 'must hold sst2'),
                       ('sentence\tlabel\na\t1\n', 'dev.tsv cannot be read')):
        (tmp_path / 'SST-2' / 'train.tsv').write_text(text)
        refused(says, glue, 'extra/cloned', '--data', tmp_path)

def test_metrics_are_their_definitions():
    rng = np.random.default_rng(0)
    for predicted, true in rng.integers(2, size=(20, 2, 50)):
        precision, recall = true[predicted == 1].mean(), predicted[true == 1].mean()
        f1 = {'accuracy': (predicted == true).mean(), 'f1': 2 / (1 / precision + 1 / recall)}
        assert glue.task_metrics(predicted, true, 'f1') == pytest.approx(f1)
        correlation = np.corrcoef(predicted, true)[0, 1]
        assert glue.task_metrics(predicted, true, 'matthews')['matthews'] == pytest.approx(correlation)
    assert glue.task_metrics(np.zeros(4), np.array([0, 1, 1, 0]), 'matthews')['matthews'] == 0

def test_batches_hold_every_example_once_and_little_padding():
    lengths = np.random.default_rng(0).integers(1, 60, size=1000)
    batches = glue.shuffled_batches(lengths, 8, [0, 0])
    assert sorted(np.concatenate(batches)) == list(range(1000))
    assert sum(lengths[batch].max() * len(batch) for batch in batches) < 1.2 * lengths.sum()

def test_a_long_example_loses_the_end_of_its_longer_text_and_padding_is_unseen(in_extra):
    ours = analyze.load_run('extra/cloned', 'cpu')
    tokenizer = data_prep.load_tokenizer(ours.dataset.corpora[0]['tokenizer'])
    short, long = 'is it', 'the name of a module and the value of an attribute ' * 3
    (a, b), eod = map(tokenizer.encode, (short, long)), [tokenizer.eod]
    examples = [[short, short], [short, long], [long, short], [long], [long, long]]
    ids, classes = glue.encode_examples(tokenizer, list(zip(examples, range(5))), 32)
    rest = b[:30 - len(a)]
    assert ids == (a + eod + a + eod, a + eod + rest + eod, rest + eod + a + eod, b[:31] + eod,
                   b[:15] + eod + b[:15] + eod)  # by length
    logits = partial(glue.class_logits, ours, torch.nn.Linear(32, 2))
    torch.testing.assert_close(logits(ids, 1), torch.cat([logits([text], 1) for text in ids]))
    assert classes.tolist() == [0, 1, 2, 3, 4]

@pytest.fixture(scope='session')
def glue_data(tmp_path_factory):
    """SST-2's format, on a task that a look at one word solves."""
    folder, rng = tmp_path_factory.mktemp('glue'), np.random.default_rng(0)
    words = 'module class value name object type function string number file'.split()
    (folder / 'SST-2').mkdir()
    for part, n in ('train', 600), ('dev', 200):
        rows = [(*rng.choice(words, 3), label) for label in rng.integers(2, size=n)]
        lines = [f'{a} {b} {("is not", "returns")[label]} {c}\t{label}' for a, b, c, label in rows]
        (folder / 'SST-2' / f'{part}.tsv').write_text('\n'.join(['sentence\tlabel', *lines]))
    return folder

def fine_tuned(out_dir, data, *options):
    call(glue, out_dir, f'--data={data}', '--epochs=8', '--learning_rate=5e-3', *options)
    return config.read_json(f'{out_dir}/glue.json', '')

def test_glue_learns_in_l1_and_reports_both(in_extra, glue_data):
    first = fine_tuned('extra/cloned', glue_data)
    scores = first['tasks']['sst2']
    assert scores['EN1']['accuracy'] > 0.9 and 0.2 < scores['EN2']['accuracy'] < 1
    assert scores['majority'] < 0.6 and scores['steps'] <= 8 * 10
    Path('extra/cloned/glue.json').write_text(json.dumps(first | {'tasks': {'rte': scores}}))
    again = fine_tuned('extra/cloned', glue_data)['tasks']  # seeded; other tasks are kept
    assert again == {'rte': scores, 'sst2': scores}
    shared = fine_tuned('extra/shared', glue_data)  # clones of one vocabulary agree exactly
    assert shared['tasks']['sst2']['EN1'] == shared['tasks']['sst2']['EN2']
    assert shared['mean_accuracy']['EN1'] > 0.6

@pytest.mark.parametrize('patience', [2, 3])  # among worse, among equal scores
def test_the_best_evaluation_counts(patience, in_extra, glue_data, monkeypatch):
    scores, metrics = [], glue.task_metrics
    monkeypatch.setattr(glue, 'task_metrics', lambda *args: scores.append(
        metrics(*args)['accuracy']) or metrics(*args))
    options = f'--patience={patience}', '--eval_every=4', '--seed=1'
    steps = fine_tuned('extra/cloned', glue_data, *options)['tasks']['sst2']['steps']
    *tried, reported, _ = scores
    assert reported == max(tried) and tried.index(reported) == len(tried) - 1 - patience
    assert steps == [10 * epoch + step for epoch in range(8) for step in (4, 8, 10)][len(tried) - 1]

def new_word2vec(shared_layer=False):
    torch.manual_seed(0)
    model = word2vec.Word2Vec(60, 8, shared_layer)
    for p in model.parameters():
        p.data.normal_(std=0.5)
    model.set_frequency(np.arange(60))
    model.draw_negatives([1, 2])
    return model

@pytest.mark.parametrize('length', [3, 6, 20])
def test_word2vec_loss_is_the_sum_over_pairs_and_negatives(length):
    model, text = new_word2vec(), torch.randint(60, (4, length + 1))
    centre, context, total, pairs = model.wte.weight, model.lm_head.weight, 0.0, 0.0
    negative = F.logsigmoid(-centre @ context[model.negatives].T).mean(1)
    for words in text.tolist():
        for i, w in enumerate(words):
            for j, c in enumerate(words):
                if 0 < abs(i - j) <= 5:  # its share of word2vec's window sizes:
                    share = sum(abs(i - j) <= size for size in (1, 2, 3, 4, 5)) / 5
                    total -= share * (F.logsigmoid(centre[w] @ context[c]) + 20 * negative[w])
                    pairs += share
    torch.testing.assert_close(model(text[:, :-1], text[:, 1:]), total / pairs)

def test_negatives_follow_the_frequency_to_the_three_quarters_and_the_seed_alone():
    model, other, drawn = new_word2vec(), new_word2vec(), np.zeros(60)
    for seed in range(200):
        model.draw_negatives([seed, 1])
        drawn += np.bincount(model.negatives, minlength=60) / model.POOL / 200
    expected = np.arange(60) ** 0.75
    np.testing.assert_allclose(drawn, expected / expected.sum(), atol=1e-4)
    assert drawn[0] == 0 and (other.negatives != model.negatives).any()
    other.draw_negatives([199, 1])
    assert (other.negatives == model.negatives).all()

def test_word2vec_shares_no_parameter_between_words_but_in_its_shared_layer():
    text = torch.randint(20, (4, 17))
    for shared_layer in (False, True):
        model = new_word2vec(shared_layer)
        model(text[:, :-1], text[:, 1:]).backward()
        rows = model.wte.weight.grad.any(1).nonzero()[:, 0]
        torch.testing.assert_close(rows, text.unique())
        learning = {name: p.numel() for name, p in model.named_parameters() if p.grad.any()}
        assert learning.pop('wte.weight') == learning.pop('lm_head.weight') == 60 * 8
        assert sum(learning.values()) == (2 * 8 * 32 + 8 + 32) * shared_layer

def test_word_frequency_is_that_of_the_text_in_each_language_by_its_share(here):
    cfg, _ = word2vec.parse(arguments(
        corpora={'en': 'text/*.txt', 'up': 'text/0*.txt'}, dataset='x_three', max_tokens=20_000,
        languages=[('A', 'en'), ('B', 'up'), ('C', 'en')],
        schedule=[(0.0, (0.8, 0.1, 0.1)), (0.5, (0.2, 0.5, 0.3))]))
    data_prep.prepare(cfg)
    dataset, expected = data_prep.Dataset(cfg), np.zeros(1200)
    for row, corpus, p in zip(dataset.vocab_map, dataset.corpora, (0.5, 0.3, 0.2)):
        np.add.at(expected, row[corpus['train']], p / len(corpus['train']))
    np.testing.assert_allclose(word2vec.frequency(dataset, cfg), expected)

def test_word2vec_reads_what_the_gpt_reads_begins_at_chance_and_learns(in_extra):
    trained(**CLONES, max_iters=60, out_dir='extra/beside')
    log, gpt = ([json.loads(line) for line in Path(f'extra/{name}/log.jsonl').open() if 'lr' in line]
                for name in ('word2vec', 'beside'))
    assert [record['tokens_seen'] for record in log] == [record['tokens_seen'] for record in gpt]
    # its output table begins at zero: each of 1 + 20 scores is 0, and costs log(2)
    assert log[0]['loss'] == pytest.approx(21 * np.log(2)) and log[-1]['loss'] < 0.9 * log[0]['loss']
    analyze.main(['alignment', 'extra/word2vec', '--device=cpu'])
    assert config.read_json('extra/word2vec/alignment.json', '').keys() == {'languages', 'embeddings'}

def test_word2vecs_first_step_is_adams_at_the_rate_of_its_own_config_or_command(alone):
    Path('c.py').write_text('learning_rate, min_lr, seed = 1e-3, 1e-5, 4')
    for argv, rates in ([], (2e-3, 2e-5)), (['--min_lr=1e-6'], (2e-3, 1e-6)):
        cfg, shared_layer = word2vec.parse([*argv, 'c.py'])
        assert (cfg.learning_rate, cfg.min_lr) == rates and cfg.seed == 4 and not shared_layer
    call(word2vec, max_iters=1, warmup_iters=4, learning_rate=8e-3, out_dir='out/a')
    centre, context = (table.abs() for table in load('out/a/ckpt.pt')['model'].values())
    assert 0.99 * 0.5 / 32 < centre.max() <= 0.5 / 32  # no gradient yet
    assert context[context > 0].median() == pytest.approx(2e-3, rel=1e-3) == context.max()

def test_word2vec_twice_is_the_same_and_micro_batches_change_only_the_rounding(in_extra):
    for name, micro in ('a', 0), ('b', 0), ('micro', 2):
        call(word2vec, '--shared_layer', **CLONES, micro_batch_size=micro, out_dir=f'extra/{name}')
    one, two, micro = (load(f'extra/{name}/ckpt.pt') for name in ('a', 'b', 'micro'))
    assert same(one, two) and len({Path(f'extra/{name}/log.jsonl').read_text() for name in 'ab'}) == 1
    assert sum('shared.' in name for name in one['model']) == 4
    torch.testing.assert_close(micro['model'], one['model'], atol=1e-4, rtol=1e-3)

NOVEL = """<?xml version="1.0"?><TEI xmlns="http://www.tei-c.org/ns/1.0">
<teiHeader><p>not text</p></teiHeader><text><front><p>nor this</p></front><body><div><head>CHAPTER
 I</head><quote><l>A line </l><l> of verse</l><p>by <hi>me</hi>.</p></quote>
<p>Para&amp;graph  <pb n="2"/>one.</p><p><l>inner</l> verse</p><p/></div></body>
<back><p>nor that</p></back></text></TEI>"""

def test_tei_is_its_bodys_paragraphs_headings_and_verse():
    lines = ['CHAPTER I', 'A line', 'of verse', 'by me.', 'Para&graph one.', 'inner verse']
    assert eltec.tei_text(NOVEL, 'x').split('\n') == lines
    with pytest.raises(SystemExit, match='x cannot be read .*must be a TEI document'):
        eltec.tei_text('<TEI/>', 'x')

def test_an_eltec_release_becomes_a_corpus_if_it_holds_the_novels_that_git_has(alone, monkeypatch):
    novels = {'a.xml': NOVEL.replace('CHAPTER', 'PART'), 'b.xml': NOVEL}
    with zipfile.ZipFile('v1.zip', 'w') as archive:  # laid out as GitHub does
        for name in 'level1/b.xml', 'level1/a.xml', 'level0/c.xml', 'README.md':
            archive.writestr(f'ELTeC-xyz-1/{name}', novels.get(name[7:], 'not a novel'))
    blobs = [run('git', 'hash-object', '--stdin', input=xml).out[:-1] for xml in novels.values()]
    monkeypatch.setitem(eltec.ELTEC, 'xyz', f'v1 {data_prep.short_hash(blobs)[:8]}')
    monkeypatch.setattr(eltec, 'URL', Path('site.zip').absolute().as_uri())
    refused('site.zip cannot be read .URLError.* name the file with --zip', eltec, 'xyz')
    assert not list(Path('data').iterdir()) and not Path('corpora').exists()
    call(eltec, 'xyz', '--zip=v1.zip', '--out=by_hand.tar.xz')
    os.rename('v1.zip', 'site.zip')
    call(eltec, 'xyz')
    os.remove('site.zip')  # the download is kept
    call(eltec, 'xyz', '--out=again.tar.xz')
    texts = [eltec.tei_text(xml, name) for name, xml in novels.items()]
    assert list(data_prep.documents('again.tar.xz')) == texts
    paths = 'by_hand.tar.xz', 'again.tar.xz', 'corpora/eltec-xyz.tar.xz'
    assert len({Path(path).read_bytes() for path in paths}) == 1
    refused('corpora/eltec-xyz.tar.xz already exists', eltec, 'xyz')
    monkeypatch.setitem(eltec.ELTEC, 'xyz', 'v1 00000000')
    refused('v1.zip cannot be read .*its novels have checksum', eltec, 'xyz', '--out=other.tar.xz')

def test_a_corpus_is_laid_out_like_the_bundled_ones():
    path = ROOT / 'corpora/eltec-eng.tar.xz'
    with tarfile.open(path) as tar:
        files = {m.name: tar.extractfile(m).read().decode() for m in (tar.next(), tar.next())}
    packed, bundled = eltec.tar_xz(dict(reversed(files.items()))), path.read_bytes()
    assert lzma.decompress(bundled).startswith(lzma.decompress(packed).rstrip(b'\0'))
    assert packed[:24] == bundled[:24]  # what xz was told
