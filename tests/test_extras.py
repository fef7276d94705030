"""extras/ (mix: test_mix.py) against brute force, closed forms and transformers."""
import contextlib
import itertools
import json
import lzma
import os
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from conftest import CLONES, ROOT, arguments, load, refused, run, same, trained, write_bpe
from tiktoken._educational import bpe_train
from tiktoken_ext.openai_public import r50k_pat_str
from torch.nn import functional as F

import analyze
import config
import data_prep
from extras import eltec, export, glue, sample, word2vec

os.environ['HF_HUB_OFFLINE'] = '1'

def call(module, *argv, **overrides):
    """Run a command; overrides: settings for word2vec, tiny ones by default."""
    options = arguments(**overrides | {'codeswitch': 0.0}) if module is word2vec else []
    module.main(module.parse([*options, *map(str, argv)]))

def write_sst2(folder):
    """SST-2's format, on a task that a look at one word solves."""
    words = 'module class value name object type function string number file'.split()
    rng = np.random.default_rng(0)
    folder.mkdir()
    for part, n in ('train', 600), ('dev', 200):
        lines = ['sentence\tlabel']
        for label in rng.integers(2, size=n):
            a, b, c = rng.choice(words, 3)
            lines.append(f'{a} {b} {("is not", "returns")[label]} {c}\t{label}')
        (folder / f'{part}.tsv').write_text('\n'.join(lines))

@pytest.fixture(scope='session')
def extra(runs, documents):
    """A folder with a copy of the cloned run in extra/, and runs of other kinds."""
    with contextlib.chdir(runs):
        write_sst2(Path('SST-2'))
        for name in 'parallel', 'short':
            shutil.copy(ROOT / f'corpora/{name}.fr', f'{name}.fr.txt')
        pairs = bpe_train(documents[-1][:20_000], 400, r50k_pat_str, visualise=None)
        write_bpe(Path('pairs.tiktoken'), pairs)
        sentencepiece.SentencePieceTrainer.train(  # begins a text with a blank
            input='text/39.txt', model_prefix='blank', vocab_size=400, model_type='bpe',
            byte_fallback=True, eos_id=1, bos_id=-1, minloglevel=2)
        shutil.copytree('out/cloned', 'extra/cloned')
        kinds = {
            'shared': CLONES | {'anchor_frac': 1.0, 'max_iters': 3},
            'anchored': {'corpora': {'en': 'text/*.txt', 'fr': '*.fr.txt'}, 'vocab': 'anchored',
                         'languages': [('EN', 'en'), ('FR', 'fr')], 'n_head': 3, 'head_dim': 8,
                         'schedule': CLONES['schedule']},
            'tiktoken': CLONES | {'tokenizer': 'tiktoken:pairs.tiktoken'},
            'blank': {'tokenizer': 'blank.model', 'max_iters': 1},
            'wide': {'head_dim': 32, 'max_iters': 1}}
        for name, settings in kinds.items():
            trained(**settings | {'dataset': f'x_{name}', 'out_dir': f'extra/{name}'})
        call(word2vec, **CLONES, max_iters=60, out_dir='extra/word2vec')
    return runs

@pytest.fixture
def in_extra(extra, monkeypatch):
    monkeypatch.chdir(extra)

@pytest.mark.parametrize('module, command, says', [
    (sample, 'extra/cloned --language FR', "no language 'FR'; it has EN1, EN2"),
    (sample, 'extra/cloned --temperature nan', '--temperature must be at least 0, not nan'),
    (sample, 'extra/word2vec', 'is word2vec, which writes no text'),
    (export, 'extra/word2vec', 'word2vec is not a GPT-2: word2vec'),
    (export, 'extra/wide', '2 heads of 32 in 32'),
    (export, 'extra/blank', 'tokenizer.model is not a BPE like'),
    (export, 'extra/cloned --to extra/wide', 'extra/wide already exists'),
    (glue, 'extra/anchored --data .', 'takes a GPT of two clones'),
    (glue, 'extra/cloned --data . --tasks=rte', '--data . has no folder rte; the tasks are cola'),
    (glue, 'extra/cloned --data . --patience=0', '--patience must be at least 1, not 0'),
    (word2vec, '--out_dir=extra/cloned', 'holds a run: choose another --out_dir, or --overwrite'),
    (word2vec, '--out_dir=x --init_from=extra/cloned', 'word2vec has no init_from'),
    (word2vec, '--out_dir=x --codeswitch=0.1', 'word2vec has no codeswitch'),
    (word2vec, '--out_dir=x --learning_rate=9e18', 'loss is .* at step .*lower learning_rate'),
    (eltec, f'eng --out={ROOT}/corpora/eltec-eng.tar.xz', 'eltec-eng.tar.xz already exists'),
    (eltec, 'english', "language 'english': ELTeC has cze, deu, eng")])
def test_a_mistake_is_refused_in_one_line_and_no_run_changes(module, command, says, in_extra):
    if module is export:
        pytest.importorskip('transformers')
    before = {path: path.stat().st_mtime_ns for path in Path('extra').glob('*/*')}
    refused(says, call, module, *command.split(), **CLONES)
    assert before == {path: path.stat().st_mtime_ns for path in Path('extra').glob('*/*')}
    assert not Path('x/ckpt.pt').exists()

@pytest.mark.parametrize('package', ['transformers', 'safetensors.torch'])
def test_export_names_the_packages_that_it_lacks(package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    refused(r'export needs a package: pip install \.\[export\]', call, export, 'no_run')

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
    p = logits.double().softmax(0)[row].numpy()
    assert elsewhere == pytest.approx([1 - p.sum()] * n)
    expected = p ** (1 / temperature)
    expected[expected.argsort()[:-top_k or 0]] = 0
    expected /= expected.sum()
    error = 4 * np.sqrt(expected * (1 - expected) / n)
    assert (np.abs(np.bincount(drawn, minlength=8) / n - expected) <= error).all()

@pytest.mark.parametrize('prompt', ['', 'The value of ', 'an attribute of the module ' * 20])
def test_the_likeliest_tokens_are_the_whole_models_until_a_document_ends(prompt, in_extra):
    ours = analyze.load_run('extra/cloned', 'cpu')
    tokenizer = data_prep.load_tokenizer(ours.dataset.corpora[1]['tokenizer'])
    args = sample.parse(['', f'--prompt={prompt}', '--temperature=0', '--tokens=40'])
    text, elsewhere = sample.sample(ours, 1, args, 0)
    ids = tokenizer.encode(prompt) or [tokenizer.eod]
    for outside in elsewhere:
        p = ours.model(torch.tensor([ids[-32:]]) + 400)[0, -1].softmax(-1).detach()
        assert outside == pytest.approx(float(p[:400].sum()), abs=1e-6)
        ids.append(int(p[400:].argmax()))
    assert len(elsewhere) == 40
    assert text == tokenizer.decode([i for i in ids if i != tokenizer.eod])
    ours.model.lm_head = torch.nn.Linear(32, 800)
    ours.model.lm_head.bias.data[400 + tokenizer.eod] = 1000
    text, elsewhere = sample.sample(ours, 1, args, 0)
    assert text == prompt and len(elsewhere) == 1

def test_clones_that_share_their_ids_continue_a_prompt_alike(in_extra, capsys):
    def shown(seed):
        call(sample, 'extra/shared', '--prompt=A module ', '--samples=2', f'--seed={seed}')
        return capsys.readouterr().out
    first = shown(0)
    middle = len(first) // 2
    assert first[:middle].replace('EN1', 'EN2') == first[middle:]
    assert first == shown(0) != shown(1)
    assert '--- EN2, sample 2 of 2\nA module ' in first
    assert 'EN2: 0% of the probability (at most 0% at one token) lay on ids of other' in first

HARD = ['', ' ', '  two  blanks ', '\ttabs\t', 'a\r\nb\n\n\nc', '\U0001f600 日本語 Ünï', '.' * 33,
        '-' * 17, 'x' * 40, '</s><unk><0x41><|endoftext|>', "it's we'LL 1234 \u00a0 \u3000"]

@pytest.mark.parametrize('command, language, corpus', [
    ('extra/cloned', 'EN1', 'en'), ('extra/cloned --language=EN2', 'EN2', 'en'),
    ('extra/anchored --language=FR', 'FR', 'fr'), ('extra/tiktoken --language=EN2', 'EN2', 'en')])
def test_an_exported_language_has_the_runs_ids_and_logits_and_generates_its_own_ids_alone(
        command, language, corpus, in_extra):
    transformers = pytest.importorskip('transformers')
    ours = analyze.load_run(command.split()[0], 'cpu')
    folder = ours.out_dir / f'hf_{language}'
    result = run(sys.executable, '-m', 'extras.export', *command.split())
    assert result.out == f'written: {folder}\n', result.err
    names = 'README config generation_config model tokenizer tokenizer_config'.split()
    assert sorted(path.stem for path in folder.iterdir()) == names
    card = (folder / 'README.md').read_text()
    facts = [f'# {ours.out_dir.name}, {language}\n', f'step {ours.step} of {ours.cfg.max_iters}',
             f'extras.export {ours.out_dir} --language {language}`']
    facts += [f'{n:,}' for n in ours.tokens_seen.values()]
    assert all(fact in card for fact in facts), card

    i = ours.dataset.names.index(language)
    row = ours.dataset.vocab_map[i]
    own = data_prep.load_tokenizer(ours.dataset.corpora[i]['tokenizer'])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    lines = (ROOT / f'corpora/parallel.{corpus}').read_text('utf-8').split('\n')
    novel = next(data_prep.documents(f'corpora/eltec-{corpus}*.tar.xz'))  # eng, fra
    for text in (*HARD, *lines, *novel.split('\n')[:200], novel[:20_000]):
        ids = own.encode(text)
        assert tokenizer(text).input_ids == row[ids].tolist(), text
        assert tokenizer.decode(row[ids]) == own.decode(ids) == text
    assert len(tokenizer) == ours.dataset.vocab_size
    assert tokenizer.eos_token_id == model.config.eos_token_id == row[own.eod]
    starts = ours.dataset.test_starts(i, 16)
    x = torch.from_numpy(ours.dataset.windows('test', starts, np.full(len(starts), i))[0])
    torch.testing.assert_close(model(x).logits, ours.model(x), rtol=1e-5, atol=1e-5)
    inputs = tokenizer('The ', return_tensors='pt')
    assert inputs.keys() == {'input_ids', 'attention_mask'}
    ids = model.generate(**inputs, do_sample=True, temperature=9.0)[0]
    assert set(ids.tolist()) <= set(row.tolist())  # hot, yet no other id
    assert tokenizer.decode(ids).startswith('The ')

@pytest.mark.parametrize('task, classes, text', [
    ('cola', (1, 0), 'gj04|1||A "b \ngj04|0|*|C.\n'),
    ('sst2', (1, 0), 'sentence|label\nA "b |1\nC.|0\n'),
    ('mrpc', (1, 0), '\ufeffQuality|#1 ID|#1 String|#2 String\r\n1|7|A "b |B.\r\n0|9|C.|D.\r\n'),
    ('qqp', (0, 1), 'id|question1|question2|is_duplicate\n0|A "b |B.|0\n5|lost\n1|C.|D.|1\n'),
    ('mnli', (1, 2), 'index|sentence1|sentence2|label1|gold_label\n'
                     '0|A "b |B.|neutral|neutral\n1|C.|D.|neutral|contradiction\n'),
    ('qnli', (0, 1), 'index|question|sentence|label\n'
                     '0|A "b |B.|entailment\n1|C.|D.|not_entailment\n'),
    ('rte', (1, 0), 'index|sentence1|sentence2|label\n'
                    '0|A "b |B.|not_entailment\n1|C.|D.|entailment\n')])
def test_glues_own_files_are_read(task, classes, text, tmp_path):
    (tmp_path / 'train.tsv').write_text(text.replace('|', '\t'), 'utf-8', newline='')
    texts = [['A "b '], ['C.']] if task in ('cola', 'sst2') else [['A "b ', 'B.'], ['C.', 'D.']]
    assert glue.read_task(tmp_path / 'train.tsv', task) == list(zip(texts, classes))

def test_other_files_are_refused(in_extra, tmp_path):
    (tmp_path / 'SST-2').mkdir()
    for text, says in (('words\tlabel\na\t1\n', "train.tsv cannot be read .*KeyError: 'sentence'"),
                       ('sentence\tlabel\na\t7\n', "'7' is not in list"),
                       ('sentence\tlabel\na\t1\n', 'dev.tsv cannot be read'),
                       ('', 'must hold sst2')):
        (tmp_path / 'SST-2/train.tsv').write_text(text)
        refused(says, call, glue, 'extra/cloned', '--data', tmp_path)

def test_metrics_are_their_definitions():
    rng = np.random.default_rng(0)
    for predicted, true in rng.integers(2, size=(20, 2, 50)):
        precision, recall = true[predicted == 1].mean(), predicted[true == 1].mean()
        f1 = {'accuracy': (predicted == true).mean(), 'f1': 2 / (1 / precision + 1 / recall)}
        assert glue.task_metrics(predicted, true, 'f1') == pytest.approx(f1)
        matthews = glue.task_metrics(predicted, true, 'matthews')['matthews']
        assert matthews == pytest.approx(np.corrcoef(predicted, true)[0, 1])
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
    assert classes.tolist() == [0, 1, 2, 3, 4]
    head = torch.nn.Linear(32, 2)
    one_by_one = torch.cat([glue.class_logits(ours, head, [text], 1) for text in ids])
    torch.testing.assert_close(glue.class_logits(ours, head, ids, 1), one_by_one)

def fine_tuned(out_dir, *options):
    call(glue, out_dir, '--data=.', '--epochs=8', '--learning_rate=5e-3', *options)
    return config.read_json(f'{out_dir}/glue.json', '')

def test_glue_learns_in_l1_and_reports_both(in_extra):
    first = fine_tuned('extra/cloned')
    scores = first['tasks']['sst2']
    assert scores['EN1']['accuracy'] > 0.9 and 0.2 < scores['EN2']['accuracy'] < 1
    assert scores['majority'] < 0.6 and scores['steps'] <= 8 * 10
    Path('extra/cloned/glue.json').write_text(json.dumps(first | {'tasks': {'rte': scores}}))
    again = fine_tuned('extra/cloned')['tasks']  # seeded; other tasks are kept
    assert again == {'rte': scores, 'sst2': scores}
    shared = fine_tuned('extra/shared')  # clones of one vocabulary agree exactly
    assert shared['tasks']['sst2']['EN1'] == shared['tasks']['sst2']['EN2']
    assert shared['mean_accuracy']['EN1'] > 0.6

@pytest.mark.parametrize('patience', [2, 3])  # among worse, among equal scores
def test_the_best_evaluation_counts(patience, in_extra, monkeypatch):
    scores, metrics = [], glue.task_metrics
    def recorded(*args):
        scores.append(metrics(*args)['accuracy'])
        return metrics(*args)
    monkeypatch.setattr(glue, 'task_metrics', recorded)
    options = f'--patience={patience}', '--eval_every=4', '--seed=1'
    steps = fine_tuned('extra/cloned', *options)['tasks']['sst2']['steps']
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

@pytest.mark.parametrize('length, shared_layer', [(3, False), (6, True), (20, False)])
def test_word2vec_loss_is_the_sum_over_pairs_and_negatives_and_no_other_word_learns(
        length, shared_layer):
    model, text = new_word2vec(shared_layer), torch.randint(60, (4, length + 1))
    centre, context, total, pairs = model.wte.weight, model.lm_head.weight, 0.0, 0.0
    if shared_layer:
        centre = centre + model.shared(centre)
    negative = F.logsigmoid(-centre @ context[model.negatives].T).mean(1)
    for words in text.tolist():
        for (i, w), (j, c) in itertools.permutations(enumerate(words), 2):
            # the share of word2vec's window sizes that hold both
            share = sum(abs(i - j) <= size for size in (1, 2, 3, 4, 5)) / 5
            total -= share * (F.logsigmoid(centre[w] @ context[c]) + 20 * negative[w])
            pairs += share
    loss = model(text[:, :-1], text[:, 1:])
    torch.testing.assert_close(loss, total / pairs)
    loss.backward()
    torch.testing.assert_close(model.wte.weight.grad.any(1).nonzero()[:, 0], text.unique())
    learning = sum(p.numel() for p in model.parameters() if p.grad.any())
    assert learning == 2 * 60 * 8 + (2 * 8 * 32 + 8 + 32) * shared_layer

def test_negatives_follow_the_frequency_to_the_three_quarters_and_the_seed_alone():
    model, other, drawn = new_word2vec(), new_word2vec(), np.zeros(60)
    for seed in range(200):
        model.draw_negatives([seed, 1])
        drawn += np.bincount(model.negatives, minlength=60) / model.POOL / 200
    expected = np.arange(60) ** 0.75
    np.testing.assert_allclose(drawn, expected / expected.sum(), atol=1e-4)
    assert drawn[0] == 0
    other.draw_negatives([199, 1])
    assert same(other.negatives, model.negatives)

def test_word_frequency_is_that_of_the_text_in_each_language_by_its_share(in_extra):
    ours = analyze.load_run('extra/anchored', 'cpu')
    ours.cfg.schedule = [(0.0, (0.9, 0.1)), (0.25, (0.5, 0.5))]
    expected = np.zeros(ours.dataset.vocab_size)
    for row, corpus, p in zip(ours.dataset.vocab_map, ours.dataset.corpora, (0.6, 0.4)):
        np.add.at(expected, row[corpus['train']], p / len(corpus['train']))
    np.testing.assert_allclose(word2vec.frequency(ours.dataset, ours.cfg), expected)

def test_word2vec_reads_what_the_gpt_reads_begins_at_chance_and_learns(in_extra):
    trained(**CLONES, max_iters=60, out_dir='extra/beside')
    files = [Path(f'extra/{name}/log.jsonl').open() for name in ('word2vec', 'beside')]
    log, gpt = ([json.loads(line) for line in file if 'lr' in line] for file in files)
    assert [record['tokens_seen'] for record in log] == [record['tokens_seen'] for record in gpt]
    # its output table begins at zero: each of 1 + 20 scores is 0, and costs log(2)
    assert log[0]['loss'] == pytest.approx(21 * np.log(2))
    assert log[-1]['loss'] < 0.9 * log[0]['loss']
    analyze.main(['alignment', 'extra/word2vec', '--device=cpu'])
    measured = config.read_json('extra/word2vec/alignment.json', '')
    assert measured.keys() == {'languages', 'embeddings'}

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
    assert same(one, two)
    assert Path('extra/a/log.jsonl').read_text() == Path('extra/b/log.jsonl').read_text()
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
    refused('x cannot be read .*must be a TEI document', eltec.tei_text, '<TEI/>', 'x')

def test_an_eltec_release_becomes_a_corpus_if_it_holds_the_novels_that_git_has(alone, monkeypatch):
    novels = {'a.xml': NOVEL.replace('CHAPTER', 'PART'), 'b.xml': NOVEL}
    with zipfile.ZipFile('v1.zip', 'w') as archive:  # laid out as GitHub does
        for name in 'level1/b.xml', 'level1/a.xml', 'level0/c.xml', 'README.md':
            archive.writestr(f'ELTeC-xyz-1/{name}', novels.get(name[7:], 'not a novel'))
    blobs = [run('git', 'hash-object', '--stdin', input=xml).out[:-1] for xml in novels.values()]
    monkeypatch.setitem(eltec.ELTEC, 'xyz', f'v1 {data_prep.short_hash(blobs)[:8]}')
    monkeypatch.setattr(eltec, 'URL', Path('site.zip').absolute().as_uri())
    refused('site.zip cannot be read .URLError.* name the file with --zip', call, eltec, 'xyz')
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
    monkeypatch.setitem(eltec.ELTEC, 'xyz', 'v1 00000000')
    refused('v1.zip cannot be read .*novels have checksum', call, eltec, 'xyz', '--out=x.tar.xz')

def test_a_corpus_is_laid_out_like_the_bundled_ones():
    path = ROOT / 'corpora/eltec-eng.tar.xz'
    with tarfile.open(path) as tar:
        files = {m.name: tar.extractfile(m).read().decode() for m in (tar.next(), tar.next())}
    packed, bundled = eltec.tar_xz(dict(reversed(files.items()))), path.read_bytes()
    assert lzma.decompress(bundled).startswith(lzma.decompress(packed).rstrip(b'\0'))
    assert packed[:24] == bundled[:24]  # what xz was told
