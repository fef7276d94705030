"""data_prep.py: sources, tokenizers, a corpus, languages, the vocabulary map, the dataset."""
import gzip
import http.server
import json
import lzma
import math
import os
import resource
import shutil
import signal
import sys
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from conftest import (
    CLONES,
    arguments,
    begin,
    kill,
    plain,
    script,
    settings,
    tar,
    write_bpe,
    write_text,
)
from hypothesis import given
from hypothesis import strategies as st

import data_prep
from data_prep import Dataset, load_tokenizer, prepare

BYTES = [bytes([i]) for i in range(256)]

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

# ---- sources -----------------------------------------------------------------

@given(st.text('a. \n\t\r\u00a0\u2003\u3000\x1c', max_size=40))
def test_white_space_is_normalised_as_line_by_line_and_word_by_word(here, text):
    Path('space.txt').write_bytes(('\ufeff' + text).encode())
    assert read('space.txt') == [plain(text)]

ZSTD = 'compression.zstd' if sys.version_info >= (3, 14) else 'backports.zstd'
PACKED = ['', '.gz', '.xz', '.zst']

def pack(kind, content):
    if kind == '.zst':
        return pytest.importorskip(ZSTD).compress(content)
    return {'': bytes, '.gz': gzip.compress, '.xz': lzma.compress}[kind](content)

@pytest.mark.parametrize('kind', PACKED)
def test_files_lines_and_archives_give_the_same_documents_however_packed(
        kind, alone, documents, capsys):
    texts = [text.encode() for text in documents[:5]]
    records = [{'id': 1, 'raw-content': text, 'meta': {'text': text}} for text in documents[:5]]
    lines = [json.dumps(record).encode() + b'\n' for record in records]
    archive = {'a/0.TXT': texts[0], 'a/1.txt.gz': gzip.compress(texts[1]), '.hidden.txt': b'hidden',
               'not_text.py': b'code', 'b/2.jsonl': b''.join(lines[2:]), 'b/page.html': b'<p>'}
    files = {f'txt/{i}.txt{kind}': text for i, text in enumerate(texts)}
    files |= {f'all.jsonl{kind}': b'\n'.join(lines), f'all.tar{kind}': tar(archive)}
    Path('txt').mkdir()
    for name, content in files.items():
        Path(name).write_bytes(pack(kind, content))
    for source in ('txt/*', f'**/txt/*.txt{kind}', f'all.jsonl{kind}:raw-content',
                   f'all.jsonl{kind}:meta.text', f'all.tar{kind}:raw-content'):
        assert read(source) == documents[:5], source
    assert f'all.tar{kind} has 2 files that are neither .txt nor .jsonl: not read' in (
        capsys.readouterr().out)

@pytest.mark.parametrize('kind', PACKED[1:])
def test_a_packed_file_that_was_cut_off_is_refused(kind, alone, documents):
    packed = pack(kind, documents[0].encode())
    for i in range(1, len(packed), 97):
        Path(f'half.txt{kind}').write_bytes(packed[:i])
        with pytest.raises(SystemExit, match=f'half.txt{kind} cannot be read .*must be complete'):
            read(f'half.txt{kind}')

def test_rows_of_a_parquet_table_are_documents(alone, documents):
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet
    table = pyarrow.table({'n': [1, 2, 3], 'story': [documents[1], None, documents[2]]})
    parquet.write_table(table, 'a.parquet')
    assert read('a.parquet:story') == [documents[1], '', documents[2]]
    with pytest.raises(SystemExit, match="fields are n, story.*text in its field 'text'"):
        read('a.parquet')

def test_short_documents_are_dropped_and_a_user_who_loses_many_is_told(alone, bytewise, capsys):
    write_text(alone / 'short', ['', 'x' * 199, ' \n ', 'y' * 200, '  ' + 'w' * 199 + '\n\n'])
    parts = Counter(part for part, _ in split('short/*.txt', min_chars=200))
    assert parts == {'dropped': 4, **dict.fromkeys(parts.keys() - {'dropped'}, 1)}
    note = 'note: 4 documents of en have fewer than min_chars = 200 characters'
    for source, told in ('*/*.txt', False), ('*t/0?.txt', True):  # of 45 documents, of 15
        prepared(**bytewise, corpora={'en': source}, dataset=f'told_{told}')
        assert (note in capsys.readouterr().out) == told
    with pytest.raises(SystemExit, match='0 documents of at least min_chars = 99999 characters'):
        prepare(settings(**bytewise, min_chars=99999))

def write_hub(name, texts):
    """A folder that the package datasets reads like a data set of the hub."""
    pytest.importorskip('datasets').disable_progress_bars()
    Path('hub').mkdir(exist_ok=True)
    Path('hub', name).write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))

def test_a_hub_data_set_is_read_as_far_as_training_needs(alone, documents, monkeypatch):
    monkeypatch.setattr(data_prep, 'HUB_TEST_BYTES', 20_000)
    write_hub('train.jsonl', [f'Book {i}. {documents[i % 40][:400]}' for i in range(2000)])
    write_hub('validation.jsonl', documents[:1])
    assert read('hf:hub:text::validation') == documents[:1]
    less, more, again = (prepared(corpora={'en': 'hf:hub'}, max_iters=n, dataset=f'{n}').corpora[0]
                         for n in (50, 500, 60))
    assert more['train_documents'] + more['test_documents'] < 2000
    for corpus, steps in (less, 50), (more, 500), (again, 60):
        n = len(corpus['train'])
        assert n == math.ceil(1.02 * steps * 8 * 32)
        assert (corpus['train'] == more['train'][:n]).all() and 20_000 <= corpus['test_bytes'] < 21_000
        assert corpus['test'].tolist() == more['test'].tolist()
    assert again['tokenizer'] == more['tokenizer'] != less['tokenizer']  # what is there is enough

class GatedHub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(403)
        self.send_header('X-Error-Code', 'GatedRepo')
        self.end_headers()

def test_a_gated_hub_data_set_says_so_in_one_line(alone):
    pytest.importorskip('datasets')
    with http.server.HTTPServer(('127.0.0.1', 0), GatedHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub = {'HF_ENDPOINT': f'http://127.0.0.1:{server.server_port}', 'HF_HUB_OFFLINE': '0'}
        result = script('data_prep.py', "--corpora={'en': 'hf:secret/books'}", env=os.environ | hub)
        server.shutdown()
    assert result.status == 1 and result.err.count('\n') == 1, result.err
    assert 'hf:secret/books cannot be read (' in result.err and 'gated' in result.err

@pytest.mark.parametrize('source, content, says', [
    ('bad/latin.txt', 'café\n'.encode('latin-1'), 'latin.txt cannot be read .UnicodeDecodeError'),
    ('bad/wide.txt', 'wide'.encode('utf-16-le'), 'a document has NUL characters'),
    ('bad/lines.jsonl', b'{"text": "a"}\n{"text": ', 'lines.jsonl, line 2 cannot be read'),
    ('bad/lines.jsonl', b'{"story": "a", "n": 1}', 'its fields are story, n'),
    ('bad/lines.jsonl:n', b'{"n": 1}', "it must be an object with text in its field 'n'"),
    ('bad/lines.jsonl:meta.text', b'{"meta": {"url": ""}}', 'its fields are url'),
    ('bad/empty.txt', b'', r'0 documents of at least .* \(1 are shorter\), two are needed'),
    ('bad/one.txt', b'One document. ' * 3000, '1 documents of at least'),
    ('bad/page.html', b'<p>', 'page.html: must be .txt'),
    ('nothing/*.txt', b'', 'no such file; must be a glob'),
    ('hf:', b'', 'hf:DATASET|pip install datasets')])
def test_a_bad_source_is_refused_and_leaves_nothing_half_made(source, content, says, bytewise):
    Path('bad').mkdir()
    Path('bad', os.path.basename(source).partition(':')[0] or 'unused').write_bytes(content)
    with pytest.raises(SystemExit, match=says):
        prepare(settings(**bytewise, corpora={'en': source}))
    assert not list(Path('data').glob('*'))

# ---- tokenizers --------------------------------------------------------------

TEXT = 'Ünïcödé, 日本語 \U0001f600\nline two\r\n  indented \n\nno-blank-at-all\n\n\ttabs\t'

def test_sentencepiece_is_lossless_and_one_that_exists_is_taken_as_it_is(alone, documents):
    model = data_prep.train_tokenizer(['text/*.txt'], settings(vocab_size=500))
    Path('one.model').write_bytes(model)
    tokenizer = load_tokenizer('one.model')
    for text in (documents[0], TEXT, ' leading, trailing '):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.encode_batch(documents[:3], 2) == [*map(tokenizer.encode, documents[:3])]
    assert tokenizer.eod not in tokenizer.encode('</s>' + documents[0])
    dataset = prepared(tokenizer='one.model')
    assert dataset.vocab_size == len(tokenizer.pieces) == 500
    assert dataset.corpora[0]['tokenizer'].read_bytes() == model

def test_tiktoken_is_read_from_a_file_of_ranks(alone, documents):
    write_bpe(alone / 'x.tiktoken', [*BYTES, b'th', b' th', b' the'])
    tokenizer = load_tokenizer('x.tiktoken')
    assert tokenizer.encode('the the') == [256, ord('e'), 258]
    assert (len(tokenizer.pieces), tokenizer.eod, tokenizer.pieces[257]) == (260, 259, ' th')
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert tokenizer.encode_batch(documents[:3], 2) == [*map(tokenizer.encode, documents[:3])]
    assert prepared(tokenizer='tiktoken:x.tiktoken').vocab_size == 260

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

@pytest.mark.parametrize('changes, says', [
    ({'tokenizer': 'no.model'}, 'must be a SentencePiece model'),
    ({'tokenizer': 'tiktoken:text/00.txt'}, 'must be lines of base64'),
    ({'tokenizer': 'tiktoken:no_such_encoding'}, 'name a file of ranks'),
    ({'vocab_size': 60000}, 'vocab_size 60000 does not fit the text: .*<= ')])
def test_a_bad_tokenizer_is_refused(changes, says, alone):
    with pytest.raises(SystemExit, match=says):
        prepare(settings(**changes))
    assert not list(Path('data').glob('*'))

# ---- a corpus ----------------------------------------------------------------

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
    tokenizer = load_tokenizer(corpus['tokenizer'])
    assert [text for _, text in parts] == documents
    for name in ('train', 'test'):
        *ends, last = np.flatnonzero(corpus[name] == tokenizer.eod)
        assert last == len(corpus[name]) - 1
        ids = np.split(corpus[name][:-1], np.add(ends, 1))
        texts = [tokenizer.decode(document.tolist()) for document in ids]
        assert texts == [text for part, text in parts if part == name]
        assert corpus[f'{name}_bytes'] == sum(len(text.encode()) for text in texts)
    assert (corpus['counts'] == np.bincount(corpus['train'], minlength=400)).all()

def test_a_second_dataset_over_a_corpus_reads_the_same_tokens(here, capsys):
    clones = CLONES | {'anchor_frac': 0.1}
    first = prepared(**clones | {'dataset': 'first'})
    capsys.readouterr()
    second = prepared(**clones | {'dataset': 'second', 'anchor_seed': 1})
    assert 'training a BPE' not in (out := capsys.readouterr().out) and 'train_tokens' not in out
    assert second.corpora[0]['tokenizer'] == first.corpora[0]['tokenizer']
    assert all((a == b).all() for a, b in zip(first.starts, second.starts))
    anchors = first.corpora[0]['counts'][second.vocab_map[0] == second.vocab_map[1]]
    share = anchors.sum() / first.corpora[0]['counts'].sum()
    assert f'EN2 shares 40 of 400 pieces with EN1: {share:.2%} of its training tokens' in out

def test_the_box_prepares_to_the_same_data_on_every_machine(alone, monkeypatch):
    monkeypatch.setattr(data_prep, 'TOKENIZER_BYTES', 500_000)
    for threads in (1, 3):
        dataset = prepared(corpora={'en': 'corpora/eltec-eng.tar.xz'}, max_tokens=100_000,
                           num_workers=threads)
        assert dataset.checksum == 'd809128481a9a615' and len(dataset.corpora[0]['train']) == 100_000
        shutil.rmtree('data')

def test_a_disk_that_fills_up_leaves_nothing_half_made(alone):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    result = script('data_prep.py', *arguments(), preexec_fn=limit)  # no file beyond 100 kB
    assert result.status == 1 and 'File too large' in result.err
    assert [path.name for path in Path('data').rglob('*.*')] == ['bpe.model']

def test_two_preparations_at_once_end_with_one_good_copy(alone):
    first = begin(*arguments(), name='data_prep.py', until='data/.*')
    first.send_signal(signal.SIGSTOP)
    second = script('data_prep.py', *arguments())
    before = os.stat('data/tiny/meta.json')
    first.send_signal(signal.SIGCONT)
    out, err = first.communicate(timeout=60)
    assert first.returncode == second.status == 0, err + second.err
    assert os.path.samestat(os.stat('data/tiny/meta.json'), before)
    assert len(list(Path('data').iterdir())) == 3  # tokenizer, corpus, dataset
    assert len(Dataset(settings()).starts[0]) > 1000

def test_what_a_killed_preparation_has_left_is_removed_whoever_has_its_process_id_now(alone):
    kill(begin(*arguments(), name='data_prep.py', until='data/.*'))
    assert list(Path('data').glob('.*'))
    Path(f'data/.tiny.{os.uname().nodename}.{os.getpid()}').mkdir()  # in a container it is often 1
    prepared()
    assert not list(Path('data').glob('.*'))

# ---- languages ---------------------------------------------------------------

@pytest.mark.parametrize('changes, says', [
    ({'schedule': [0.5]}, 'must be a list'), ({'languages': []}, 'must be a list'),
    ({'languages': 2 * [('EN1', 'en')]}, 'different names'),
    ({'languages': [(f'EN{i}', 'en') for i in range(257)]}, 'languages must number at most 256'),
    ({'languages': [('EN1', 'en'), ('FR', 'fr')]}, 'every corpus and no others'),
    ({'corpora': {'en': 'x', 'fr': 'x'}}, 'every corpus and no others'),
    ({'corpora': {'../en': 'x'}, 'languages': [('EN', '../en')]}, 'plain names'),
    ({'corpora': {'en': 1}}, 'strings as sources'), ({'vocab': 'merged'}, 'vocab must be'),
    ({'tokenizer': 'text/00.txt'}, "tokenizer must be 'sentencepiece', 'shared'"),
    ({'anchor_frac': 1.5}, 'anchor_frac'), ({'test_frac': 0.0}, 'test_frac'),
    ({'block_size': 0}, 'block_size must be at least 1'),
    ({'dataset': '../outside'}, 'dataset must be'), ({'dataset': '.cache'}, 'dataset must be')])
def test_languages_that_make_no_sense_are_refused(changes, says):
    with pytest.raises(SystemExit, match=says):
        data_prep.check_languages(settings(**CLONES | changes))

def test_clones_have_ids_of_their_own_except_for_the_anchors_that_anchor_seed_draws():
    def vocab_map(**changes):
        cfg = settings(languages=[(f'EN{i}', 'en') for i in range(3)], data_seed=5, **changes)
        return data_prep.vocabulary_map(cfg.languages, {'en': [*map(str, range(100))]}, cfg)
    full = np.arange(100) + 100 * np.arange(3)[:, None]
    assert (vocab_map() == full).all()
    draws = []
    for seed in (0, 1):
        rows = vocab_map(anchor_frac=0.1, anchor_seed=seed)
        own = rows[1] != rows[0]
        expected = np.where(own, 100 + np.cumsum(own) - 1 + 90 * np.arange(2)[:, None], full[0])
        assert (rows == [full[0], *expected]).all()
        draws.append(set(np.flatnonzero(~own)))
    assert draws[0] == {*np.random.default_rng(5).permutation(100)[:10]}  # of runs before the setting
    assert len(draws[1]) == 10 and draws[1] != draws[0]

@given(st.data(), st.sampled_from(['disjoint', 'anchored']), st.floats(0, 1), st.integers(0, 9))
def test_any_vocabulary_map_is_compact_and_shares_what_it_should_and_nothing_else(
        data, vocab, anchor_frac, seed):
    words = st.lists(st.sampled_from('abcdefghijklmnop'), min_size=1, unique=True)
    pieces = data.draw(st.dictionaries(st.sampled_from(['en', 'fr', 'de']), words, min_size=1))
    corpora = [*pieces, *data.draw(st.lists(st.sampled_from(list(pieces)), max_size=3))]  # clones
    languages = [(f'L{i}', corpus) for i, corpus in enumerate(corpora)]
    cfg = settings(vocab=vocab, anchor_frac=anchor_frac, anchor_seed=seed)
    vocab_map = data_prep.vocabulary_map(languages, pieces, cfg)
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

# ---- the dataset -------------------------------------------------------------

def test_languages_over_two_corpora_share_and_read_the_text_of_their_own(alone, documents):
    write_text(alone / 'fr', map(str.upper, documents[:6]))
    dataset = prepared(corpora={'en': 'text/*.txt', 'fr': 'fr/*.txt'},
                       schedule=[(0.0, (0.8, 0.1, 0.1)), (0.5, (0.2, 0.5, 0.3))],  # 0.5, 0.3, 0.2
                       languages=[('L0', 'en'), ('L1', 'fr'), ('L2', 'en')])
    en, fr = ((len(corpus['train']) - 1) // 32 for corpus in dataset.corpora[:2])
    first = round(en * 5 / 7)
    assert [len(starts) for starts in dataset.starts] == [first, fr, en - first]
    assert sorted([*dataset.starts[0], *dataset.starts[2]]) == [*range(0, 32 * en, 32)]
    assert 0.4 < (dataset.starts[2] < 32 * en / 2).mean() < 0.6  # spread over the text
    for language, (starts, corpus) in enumerate(zip(dataset.starts, dataset.corpora)):
        x, y = dataset.windows('train', starts[:3], [language] * 3)
        for start, inputs, targets in zip(starts, x, y):
            ids = dataset.vocab_map[language, corpus['train'][start:start + 33]]
            assert (inputs == ids[:-1]).all() and (targets == ids[1:]).all()

def test_a_shared_tokenizer_gives_all_corpora_the_same_ids_and_clones_their_own(alone, documents):
    write_text(alone / 'up', map(str.upper, documents[:20]))
    dataset = prepared(corpora={'en': 'text/*.txt', 'up': 'up/*.txt'}, tokenizer='shared',
                       languages=[('EN1', 'en'), ('UP', 'up'), ('EN2', 'en')], vocab_size=500,
                       schedule=[(0.0, (0.5, 0.3, 0.2))])
    assert (dataset.vocab_map == np.arange(500) + [[0], [0], [500]]).all()
    en, up, _ = (corpus['tokenizer'] for corpus in dataset.corpora)
    assert en.read_bytes() == up.read_bytes()
    encode = load_tokenizer(up).encode
    assert len(encode(documents[25].upper())) < 1.6 * len(encode(documents[25]))  # knows both

def test_ten_clones_do_not_wrap_uint16(alone):
    two = [bytes([a, b]) for a in range(97, 224) for b in range(97, 224)][:16384 - 257]
    write_bpe(alone / 'big.tiktoken', BYTES + two)
    dataset = prepared(tokenizer='tiktoken:big.tiktoken', schedule=[(0.0, 10 * (0.1,))],
                       languages=[(f'EN{i}', 'en') for i in range(10)])
    assert dataset.vocab_size == 163_840 and dataset.corpora[0]['train'].dtype == np.uint16
    highest = 0
    for language, starts in enumerate(dataset.starts):
        ids = np.stack(dataset.windows('train', starts, [language] * len(starts)))
        assert ids.dtype == np.int64 and (ids // 16384 == language).all()
        highest = max(highest, ids.max())
    assert highest > 9 * 16384 > 65535

def replace(path, old, new):
    content = Path(path).read_bytes()
    assert old in content
    Path(path).write_bytes(content.replace(old, new, 1))

@pytest.mark.parametrize('name, old, new, says', [
    ('tiny/train_lang.bin', b'\0', b'!', 'data/tiny .*train_lang.bin has changed'),
    ('tiny/meta.json', b'": 32', b'": 31', 'meta.json has changed'),
    ('tiny/meta.json', b'version": 3', b'version": 2', 'its format is 2, not 3.*--overwrite'),
    ('tiny/meta.json', b'}', b'', 'tiny/meta.json cannot be read .*: rebuild it with data_prep.py'),
    ('en-*/test.bin', b'\0', b'!', 'test.bin has changed .*remove data/en-'),
    ('en-*/counts.npy', b'\0', b'!', 'counts.npy has changed')])
def test_data_that_are_damaged_or_of_an_old_format_are_refused(name, old, new, says, bytewise):
    prepared(**bytewise)
    path, = Path('data').glob(name)
    replace(path, old, new)
    with pytest.raises(SystemExit, match=says):
        Dataset(settings(**bytewise))
    shutil.rmtree('data/tiny')
    with pytest.raises(SystemExit, match='data/tiny is missing: make it with data_prep.py'):
        Dataset(settings(**bytewise))
    if path.parent.name != 'tiny':
        with pytest.raises(SystemExit, match='has changed .*remove data/en-.*, and it is made again'):
            prepare(settings(**bytewise))

@pytest.mark.parametrize('key, value', [
    ('block_size', 64), ('vocab_size', 450), ('anchor_frac', 0.1), ('anchor_seed', 1),
    ('schedule', [(0.0, (0.5, 0.5))])])
def test_what_is_there_is_left_alone_or_refused_unless_overwritten(key, value, bytewise, capsys):
    first = CLONES | bytewise
    prepared(**first)
    before = os.stat('data/clones/meta.json').st_mtime_ns
    prepared(**first)
    assert 'data/clones already exists (--overwrite rebuilds it)' in capsys.readouterr().out
    with pytest.raises(SystemExit, match=f'made with {key.replace("schedule", "p_language")} = '):
        prepare(settings(**first | {key: value}))
    assert os.stat('data/clones/meta.json').st_mtime_ns == before
    prepared(**first | {key: value, 'overwrite': True})
