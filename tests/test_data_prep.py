"""data_prep.py: sources, tokenizers, a corpus, languages, the vocabulary map, the dataset."""
import gzip
import json
import lzma
import math
import os
import resource
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from conftest import CLONES, arguments, begin, kill, plain, refused, script, settings, write_text
from conftest import write_bpe
from faults import tar
from hypothesis import given
from hypothesis import strategies as st

import data_prep
from data_prep import Dataset, load_tokenizer, prepare

BYTES = [bytes([i]) for i in range(256)]
ZSTD = 'compression.zstd' if sys.version_info >= (3, 14) else 'backports.zstd'

def split(source, **overrides):
    """(part, document) for every document of a source."""
    return list(data_prep.split_documents(source, settings(**{'min_chars': 1} | overrides)))

def read(source):
    return [text for _, text in split(source)]

def prepared(**overrides):
    cfg = settings(**overrides)
    prepare(cfg, cfg.overwrite)
    return Dataset(cfg)

@pytest.fixture
def bytewise(alone):
    """A tokenizer that need not be trained."""
    write_bpe(alone / 'bytes.tiktoken', BYTES)
    return {'tokenizer': 'tiktoken:bytes.tiktoken'}

@given(st.text('a. \n\t\r\u00a0\u2003\u3000\x1c', max_size=40))
def test_white_space_is_normalised_as_line_by_line_and_word_by_word(here, text):
    Path('space.txt').write_bytes(('\ufeff' + text).encode())
    assert read('space.txt') == [plain(text)]

@pytest.mark.parametrize('kind', ['', '.gz', '.xz', '.zst'])
def test_files_lines_and_archives_hold_equal_documents_packed_or_not(
        kind, alone, documents, capsys):
    pack = {'': bytes, '.gz': gzip.compress, '.xz': lzma.compress}.get(kind)
    pack = pack or pytest.importorskip(ZSTD).compress
    texts = [text.encode() for text in documents[:5]]
    records = [{'id': 1, 'raw-content': text, 'meta': {'text': text}} for text in documents[:5]]
    lines = [json.dumps(record).encode() for record in records]
    archive = {'../0.TXT': texts[0], f'{alone}/1.txt.gz': gzip.compress(texts[1]), 'link.txt': None,
               'a/2.jsonl': b'\n'.join(lines[2:]), '.no.txt': b'hidden', 'a.py': b'', 'b.xml': b''}
    files = {f'{i}.txt{kind}': text for i, text in enumerate(texts)}
    files |= {f'all.jsonl{kind}': b'\n'.join(lines), f'all.tar{kind}': tar(archive)}
    Path('in').mkdir()
    for name, content in files.items():
        Path('in', name).write_bytes(pack(content))
    for source in (f'in/*.txt{kind}', f'**/[0-4].txt{kind}', f'in/all.jsonl{kind}:raw-content',
                   f'in/all.jsonl{kind}:meta.text', f'in/all.tar{kind}:raw-content'):
        assert read(source) == documents[:5], source
    assert not Path('../0.TXT').exists() and not Path('1.txt.gz').exists()  # nothing is unpacked
    note = f'all.tar{kind} has 2 files that are neither .txt nor .jsonl: not read'
    assert note in capsys.readouterr().out
    for n in range(1, len(pack(texts[0])) if kind else 0, 97):
        Path(f'half.txt{kind}').write_bytes(pack(texts[0])[:n])
        refused(f'half.txt{kind} cannot be read .*must be complete', read, f'half.txt{kind}')

def test_rows_of_a_parquet_table_are_documents(alone, documents):
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet
    table = pyarrow.table({'n': [1, 2, 3], 'story': [documents[1], None, documents[2]]})
    parquet.write_table(table, 'a.parquet')
    assert read('a.parquet:story') == [documents[1], '', documents[2]]
    refused("fields are n, story.*text in its field 'text'", read, 'a.parquet')

def test_short_documents_are_dropped_and_a_user_who_loses_many_is_told(alone, bytewise, capsys):
    write_text(alone / 'short', ['', 'x' * 199, ' \n ', 'y' * 200, '  ' + 'w' * 199 + '\n\n'])
    kept = [text for part, text in split('short/*.txt', min_chars=200) if part != 'dropped']
    assert kept == ['y' * 200]
    note = 'note: 4 documents of en have fewer than min_chars = 200 characters'
    for source, told in ('*/*.txt', False), ('*t/0?.txt', True):  # of 45 documents, of 15
        prepared(**bytewise, corpora={'en': source}, dataset=f'told_{told}')
        assert (note in capsys.readouterr().out) == told
    cfg = settings(**bytewise, min_chars=99999)
    refused('0 documents of at least min_chars = 99999 characters', prepare, cfg)

def test_a_hub_data_set_is_read_as_far_as_training_needs(alone, documents, monkeypatch):
    pytest.importorskip('datasets').disable_progress_bars()
    monkeypatch.setattr(data_prep, 'HUB_TEST_BYTES', 20_000)
    Path('hub').mkdir()  # the package reads a folder like a data set of the hub
    books = [f'Book {i}. {documents[i % 40][:400]}' for i in range(2000)]
    for name, texts in ('train', books), ('validation', documents[:1]):
        lines = [json.dumps({'text': text}) + '\n' for text in texts]
        Path(f'hub/{name}.jsonl').write_text(''.join(lines))
    assert read('hf:hub:text::validation') == documents[:1]
    less, more, again = (prepared(corpora={'en': 'hf:hub'}, max_iters=n, dataset=f'{n}').corpora[0]
                         for n in (50, 500, 60))
    assert more['train_documents'] + more['test_documents'] < 2000
    for corpus, steps in (less, 50), (more, 500), (again, 60):
        n = math.ceil(1.02 * steps * 8 * 32)
        assert corpus['train'].tolist() == more['train'][:n].tolist()
        assert corpus['test'].tolist() == more['test'].tolist()
        assert 20_000 <= corpus['test_bytes'] < 21_000
    assert again['tokenizer'] == more['tokenizer'] != less['tokenizer']  # what is there is enough
    refused('hf:no/such_data cannot be read .*are you online', read, 'hf:no/such_data')

@pytest.mark.parametrize('source, content, says', [
    ('latin.txt', 'café'.encode('latin-1'), 'bad/latin.txt cannot be read .UnicodeDecodeError'),
    ('wide.txt', 'wide'.encode('utf-16-le'), 'NUL characters'), ('a.html', b'', 'must be .txt'),
    ('a.jsonl', b'{"text": "a"}\n{"text": ', 'a.jsonl, line 2 cannot be read'),
    ('a.jsonl', b'{"story": "a", "n": 1}', 'its fields are story, n'),
    ('a.jsonl:n', b'{"n": 1}', "it must be an object with text in its field 'n'"),
    ('a.jsonl:meta.text', b'{"meta": {"url": ""}}', 'its fields are url'),
    ('empty.txt', b'', r'0 documents of at least .* \(1 are shorter\), two are needed'),
    ('one.txt', b'One document. ' * 3000, '1 documents of at least')])
def test_a_bad_source_is_refused_and_leaves_nothing_half_made(source, content, says, bytewise):
    Path('bad').mkdir()
    Path('bad', source.partition(':')[0]).write_bytes(content)
    refused(says, prepare, settings(**bytewise, corpora={'en': f'bad/{source}'}))
    assert not list(Path('data').glob('*'))

@pytest.mark.parametrize('tokenizer', ['one.model', 'tiktoken:one.tiktoken'])
def test_a_tokenizer_that_exists_is_lossless_and_taken_as_it_is(tokenizer, alone, documents):
    shutil.copyfile(data_prep.tokenizer_file('en', settings(vocab_size=500)), 'one.model')
    write_bpe(alone / 'one.tiktoken', [*BYTES, b'th', b' th', b' the'])
    file = tokenizer.removeprefix('tiktoken:')
    bpe, dataset = load_tokenizer(file), prepared(tokenizer=tokenizer)
    text = 'Ünïcödé, 日本語 \U0001f600\nline two\r\n  indented \n\nno-blank-at-all\n\n\ttabs\t'
    for text in (documents[0], text, ' leading, trailing '):
        assert bpe.decode(bpe.encode(text)) == text
    assert bpe.encode_batch(documents[:3], num_threads=2) == [*map(bpe.encode, documents[:3])]
    assert bpe.eod not in bpe.encode('</s>' + documents[0])
    assert dataset.corpora[0]['tokenizer'].read_bytes() == Path(file).read_bytes()
    assert dataset.vocab_size == len(bpe.pieces) == (500 if file == 'one.model' else 260)
    if file == 'one.tiktoken':
        assert bpe.encode('the the') == [256, ord('e'), 258]
        assert (bpe.eod, bpe.pieces[257]) == (259, ' th')

def test_a_tokenizer_that_alters_text_or_lacks_pieces_is_noted(alone, documents, capsys):
    write_text(alone / 'snow', [f'\u2603 {text}' for text in documents])
    with open('lossy.model', 'wb') as model:  # SentencePiece's defaults
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for text in documents for line in text.split('\n')),
            model_writer=model, vocab_size=400, character_coverage=1.0, minloglevel=2)
    prepared(tokenizer='lossy.model', corpora={'en': 'snow/*.txt'})
    assert ('no piece for 4 of the test tokens, and decoding alters 4 of the test documents'
            in capsys.readouterr().out)
    prepared(dataset='lossless')
    assert 'no piece' not in capsys.readouterr().out

def test_a_share_of_the_documents_is_held_out_of_two_documents_one(alone):
    Path('many.jsonl').write_text(''.join(f'{{"text": "{i}"}}\n' for i in range(4000)))
    Path('two.jsonl').write_text('{"text": "a"}\n{"text": "b"}\n')
    one, other = ([part for part, _ in split('many.jsonl', test_frac=0.05, data_seed=seed)]
                  for seed in (3, 4))
    assert one.count('test') == 200 and one != other
    for seed in range(20):
        assert {part for part, _ in split('two.jsonl', data_seed=seed)} == {'train', 'test'}

def test_a_corpus_holds_every_document_once_in_its_part_and_counts_its_ids(here, documents):
    corpus, parts = prepared().corpora[0], split('text/*.txt')
    decode, eod = load_tokenizer(corpus['tokenizer']).decode, corpus['eod']
    assert [text for _, text in parts] == documents
    for name in ('train', 'test'):
        *ends, last = np.flatnonzero(corpus[name] == eod)
        assert last == len(corpus[name]) - 1
        texts = [decode(ids.tolist()) for ids in np.split(corpus[name][:-1], np.add(ends, 1))]
        assert texts == [text for part, text in parts if part == name]
        assert corpus[f'{name}_bytes'] == sum(len(text.encode()) for text in texts)
    assert (corpus['counts'] == np.bincount(corpus['train'], minlength=400)).all()

def test_a_second_draw_of_anchors_reads_the_same_tokens(here, capsys):
    first, second = (prepared(**CLONES | {'dataset': f'{i}', 'anchor_frac': 0.1, 'anchor_seed': i})
                     for i in (0, 1))
    out = capsys.readouterr().out
    assert out.count('training a BPE') <= 1 and out.count('train_tokens') <= 1
    assert second.corpora[0]['tokenizer'] == first.corpora[0]['tokenizer']
    assert all((a == b).all() for a, b in zip(first.starts, second.starts))
    anchors = [data.vocab_map[0] == data.vocab_map[1] for data in (first, second)]
    assert {*np.flatnonzero(anchors[0])} == {*np.random.default_rng(0).permutation(400)[:40]}
    assert anchors[1].sum() == 40 and (anchors[1] != anchors[0]).any()
    assert (second.vocab_map[1, ~anchors[1]] == 400 + np.arange(360)).all()  # the rest is cloned
    counts = first.corpora[0]['counts']
    share = f'{counts[anchors[1]].sum() / counts.sum():.2%}'
    assert f'EN2 shares 40 of 400 pieces with EN1: {share} of its training tokens' in out

def test_the_box_prepares_to_the_same_data_on_every_machine(alone, monkeypatch):
    monkeypatch.setattr(data_prep, 'TOKENIZER_BYTES', 500_000)
    box = {'corpora': {'en': 'corpora/eltec-eng.tar.xz'}, 'max_tokens': 100_000}
    for threads in (1, 3):
        dataset = prepared(**box, num_workers=threads)
        assert len(dataset.corpora[0]['train']) == 100_000
        assert dataset.checksum == '8f92abee8c2d640a'
        shutil.rmtree('data')

def test_a_disk_that_fills_up_leaves_nothing_half_made(alone):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    result = script('data_prep.py', *arguments(), preexec_fn=limit)  # no file beyond 100 kB
    assert result.status == 1 and 'File too large' in result.err
    assert [path.name for path in Path('data').rglob('*.*')] == ['bpe.model']

def test_of_two_preparations_at_once_one_good_copy_remains_and_nothing_of_a_killed_one(alone):
    first = begin(*arguments(), name='data_prep.py', until='data/.*')
    first.send_signal(signal.SIGSTOP)
    second = script('data_prep.py', *arguments())
    before = os.stat('data/tiny/meta.json')
    first.send_signal(signal.SIGCONT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == second.status == 0, err + second.err
    assert os.path.samestat(os.stat('data/tiny/meta.json'), before)
    assert len(Dataset(settings()).starts[0]) > 1000
    kill(begin(*arguments(vocab_size=410, dataset='b'), name='data_prep.py', until='data/.*'))
    assert list(Path('data').glob('.*'))
    Path(f'data/.b.{os.uname().nodename}.{os.getpid()}').mkdir()  # in a container all have number 1
    prepared(vocab_size=410, dataset='b')
    assert len(list(Path('data').iterdir())) == 6  # tokenizers, corpora, datasets

@pytest.mark.parametrize('changes, says', [
    ({'schedule': [0.5]}, 'must be a list'), ({'languages': []}, 'must be a list'),
    ({'own_tokens': {'FR': 1e6}}, 'own_tokens must'), ({'own_tokens': {'EN1': 9}}, 'own_tokens'),
    ({'languages': [('EN', 'en')], 'schedule': [(0.0, (1.0,))], 'anchor_frac': 0.1},
     'anchor_frac must be 0 without clones'), ({'vocab': 'no/file'}, 'or a file'),
    ({'languages': [(f'EN{i}', 'en') for i in range(257)]}, 'different names, at most 256'),
    ({'languages': 2 * [('EN1', 'en')]}, 'different names'), ({'anchor_frac': 1.5}, 'anchor_frac'),
    ({'languages': [('EN1', 'en'), ('FR', 'fr')]}, 'every corpus and no others'),
    ({'corpora': {'en': 'x', 'fr': 'x'}}, 'every corpus and no others'),
    ({'corpora': {'../en': 'x'}, 'languages': [('EN', '../en')]}, 'plain names'),
    ({'corpora': {'en': 1}}, 'strings as sources'), ({'vocab': 'merged'}, 'vocab must be'),
    ({'corpora': {'en': 'hf:'}}, 'hf:DATASET|pip install'), ({'test_frac': 0.0}, 'test_frac must'),
    ({'corpora': {'en': 'no/*.txt'}}, 'no such file; must be'), ({'block_size': 0}, 'block_size'),
    ({'dataset': '../outside'}, 'dataset must be'), ({'dataset': '.cache'}, 'dataset must be'),
    ({'tokenizer': 'text/00.txt'}, 'tokenizer must'), ({'tokenizer': 'no.model'}, 'must be a Sent'),
    ({'tokenizer': 'tiktoken:text/00.txt'}, 'must be lines of base64'),
    ({'tokenizer': 'tiktoken:no_such_encoding'}, 'name a file of ranks'),
    ({'vocab_size': 60000}, 'vocab_size 60000 does not fit the text: .*<= ')])
def test_settings_that_make_no_sense_are_refused(changes, says, alone):
    refused(says, prepare, settings(**CLONES | changes))
    assert not list(Path('data').glob('*'))

@given(st.data(), st.sampled_from(['disjoint', 'anchored']), st.floats(0, 1), st.integers(0, 9))
def test_any_vocabulary_map_is_compact_and_shares_what_it_should_and_nothing_else(
        data, vocab, anchor_frac, seed):
    words = st.lists(st.sampled_from('abcdefghijklmnop'), min_size=1, unique=True)
    pieces = data.draw(st.dictionaries(st.sampled_from(['en', 'fr', 'de']), words, min_size=1))
    corpora = [*pieces, *data.draw(st.lists(st.sampled_from(list(pieces)), max_size=3))]  # clones
    cfg = settings(vocab=vocab, anchor_frac=anchor_frac, anchor_seed=seed,
                   languages=[(f'L{i}', corpus) for i, corpus in enumerate(corpora)])
    vocab_map = data_prep.vocabulary_map(cfg.languages, pieces, cfg)
    assert set(vocab_map.flat) - {-1} == set(range(vocab_map.max() + 1))
    for number, (row, corpus) in enumerate(zip(vocab_map, corpora)):
        V, anchors = len(pieces[corpus]), round(anchor_frac * len(pieces[corpus]))
        assert len(set(row[:V].tolist())) == V and (row[:V] >= 0).all() and (row[V:] == -1).all()
        for other, its_corpus in zip(vocab_map[:number], corpora):
            places = [(i, j) for i in range(V) for j in range(len(pieces[its_corpus]))]
            pairs = {(i, j) for i, j in places if row[i] == other[j]}
            if its_corpus == corpus:  # a clone shares its anchors, each with itself
                assert all(i == j for i, j in pairs) and len(pairs) == anchors
            elif number < len(pieces):  # two corpora: equal pieces or none
                equal = {(i, j) for i, j in places if pieces[corpus][i] == pieces[its_corpus][j]}
                assert pairs == (equal if vocab == 'anchored' else set())

def test_a_file_lists_the_pieces_that_corpora_and_clones_share(alone):
    Path('pieces').write_text('b\nc\nz\n')
    cfg = settings(vocab='pieces', languages=[('L0', 'en'), ('L1', 'fr'), ('L2', 'en')])
    pieces = {'en': ['a', 'b', 'c'], 'fr': ['c', 'a', 'b', 'd']}
    vocab_map = data_prep.vocabulary_map(cfg.languages, pieces, cfg)
    assert vocab_map.tolist() == [[0, 1, 2, -1], [2, 3, 1, 4], [5, 1, 2, -1]]

def test_a_language_repeats_the_tokens_it_has_and_a_text_that_has_changed_is_noted(
        alone, documents, capsys):
    write_text(alone / 'own', documents[:20])
    clones = CLONES | {'corpora': {'en': 'own/*.txt'}}
    whole = prepared(**clones)
    few = Dataset(settings(**clones, own_tokens={'EN2': 640}))
    assert np.array_equal(few.starts[0], whole.starts[0])
    assert np.array_equal(few.starts[1], whole.starts[1][:20])
    assert 'has changed' not in capsys.readouterr().out
    Path('own/03.txt').write_text(documents[3] + '!')
    Dataset(settings(**clones))
    assert 'own/*.txt has changed since data/clones was made' in capsys.readouterr().out
    shutil.rmtree('own')
    Dataset(settings(**clones))
    assert capsys.readouterr().out == ''

def test_languages_over_two_corpora_share_ids_but_each_reads_its_own_text(alone, documents):
    write_text(alone / 'up', map(str.upper, documents[:20]))
    dataset = prepared(corpora={'en': 'text/*.txt', 'up': 'up/*.txt'}, tokenizer='shared',
                       schedule=[(0.0, (0.8, 0.1, 0.1)), (0.5, (0.2, 0.5, 0.3))],  # 0.5, 0.3, 0.2
                       languages=[('EN1', 'en'), ('UP', 'up'), ('EN2', 'en')], vocab_size=500)
    assert (dataset.vocab_map == np.arange(500) + [[0], [0], [500]]).all()
    tokenizers = [corpus['tokenizer'] for corpus in dataset.corpora[:2]]
    assert len({path.read_bytes() for path in tokenizers}) == 1 < len({*tokenizers})
    encode = load_tokenizer(tokenizers[1]).encode
    assert len(encode(documents[25].upper())) < 1.6 * len(encode(documents[25]))  # knows both
    en, up = ((len(corpus['train']) - 1) // 32 for corpus in dataset.corpora[:2])
    first = round(en * 5 / 7)
    assert [len(starts) for starts in dataset.starts] == [first, up, en - first]
    assert sorted([*dataset.starts[0], *dataset.starts[2]]) == [*range(0, 32 * en, 32)]
    assert 0.4 < (dataset.starts[2] < 32 * en / 2).mean() < 0.6  # spread over the text
    for language, (starts, corpus) in enumerate(zip(dataset.starts, dataset.corpora)):
        x, y = dataset.windows('train', starts[:3], [language] * 3)
        for start, inputs, targets in zip(starts, x, y):
            ids = dataset.vocab_map[language, corpus['train'][start:start + 33]]
            assert (inputs == ids[:-1]).all() and (targets == ids[1:]).all()

def test_ten_clones_do_not_wrap_uint16(alone):
    two = [bytes([a, b]) for a in range(97, 224) for b in range(97, 224)][:16384 - 257]
    write_bpe(alone / 'big.tiktoken', BYTES + two)
    dataset = prepared(tokenizer='tiktoken:big.tiktoken', schedule=[(0.0, 10 * (0.1,))],
                       languages=[(f'EN{i}', 'en') for i in range(10)])
    assert (dataset.vocab_map == np.arange(16384) + 16384 * np.arange(10)[:, None]).all()
    assert dataset.vocab_size == 163_840 and dataset.corpora[0]['train'].dtype == np.uint16
    highest = 0
    for language, starts in enumerate(dataset.starts):
        ids = np.stack(dataset.windows('train', starts, [language] * len(starts)))
        assert ids.dtype == np.int64 and (ids // 16384 == language).all()
        highest = max(highest, ids.max())
    assert highest > 9 * 16384 > 65535

@pytest.mark.parametrize('name, old, new, says', [
    ('tiny/train_lang.bin', b'\0', b'!', 'data/tiny .*train_lang.bin has changed'),
    ('tiny/meta.json', b'": 32', b'": 31', 'meta.json has changed'),
    ('tiny/meta.json', b'version": 4', b'version": 2', 'its format is 2, not 4.*--overwrite'),
    ('tiny/meta.json', b'}', b'', 'data/tiny cannot be read .JSON.*: rebuild it with data_prep.py'),
    ('en-*/test.bin', b'\0', b'!', 'test.bin has changed .*remove data/en-'),
    ('en-*/counts.npy', b'\0', b'!', 'counts.npy has changed')])
def test_data_that_are_damaged_or_of_an_old_format_are_refused(name, old, new, says, bytewise):
    prepared(**bytewise)
    path, = Path('data').glob(name)
    content, cfg = path.read_bytes(), settings(**bytewise)
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    refused(says, Dataset, cfg)
    shutil.rmtree('data/tiny')
    refused('data/tiny is missing: make it with data_prep.py', Dataset, cfg)
    if path.parent.name != 'tiny':
        refused('has changed .*remove data/en-.*, and it is made again', prepare, cfg)

@pytest.mark.parametrize('key, value', [
    ('block_size', 64), ('vocab_size', 450), ('anchor_frac', 0.1), ('anchor_seed', 1),
    ('schedule', [(0.0, (0.5, 0.5))])])
def test_what_is_there_is_left_alone_or_refused_unless_overwritten(key, value, bytewise, capsys):
    first = CLONES | bytewise
    prepared(**first)
    before = os.stat('data/clones/meta.json').st_mtime_ns
    prepared(**first)
    assert 'data/clones already exists (--overwrite rebuilds it)' in capsys.readouterr().out
    says = f'made with {key} = '.replace('schedule', 'p_language')
    refused(says, prepare, settings(**first | {key: value}))
    assert os.stat('data/clones/meta.json').st_mtime_ns == before
    prepared(**first | {key: value, 'overwrite': True})
