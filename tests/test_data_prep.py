"""data_prep.py: sources, tokenizers, the vocabulary map, the dataset and what a run reads from it."""
import base64
import gzip
import json
import lzma
import math
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import CLONES, ROOT, arguments, family, plain, script, settings
from hypothesis import given
from hypothesis import strategies as st

import data_prep
from config import UserError
from data_prep import Dataset, Sampler, documents_of, is_test, load_tokenizer, marginals, prepare, tei_text, vocabulary_map

PATH = os.environ | {'PYTHONPATH': str(ROOT)}

def read(source, *args):
    return list(documents_of(str(source), *args))

# ---- sources

@given(st.text('a. \n\t\r\u00a0\u2003\u3000\x1c', max_size=40))
def test_white_space_is_normalised_as_line_by_line_and_word_by_word(text):
    assert data_prep.cleaned('\ufeff' + text) == plain(text)

def pack(kind, content):
    if kind == '.zst':
        return pytest.importorskip(ZSTD, reason='the optional package backports.zstd is not installed').compress(content)
    return {'': bytes, '.gz': gzip.compress, '.xz': lzma.compress}[kind](content)

ZSTD = 'compression.zstd' if sys.version_info >= (3, 14) else 'backports.zstd'
PACKED = ['', '.gz', '.xz', '.zst']

@pytest.mark.parametrize('kind', PACKED)
def test_files_lines_and_archives_give_the_same_documents_however_packed(kind, tmp_path, documents):
    (tmp_path / 'txt').mkdir()
    for i, text in enumerate(documents[:5]):
        (tmp_path / 'txt' / f'{i}.txt{kind}').write_bytes(pack(kind, text.encode()))
        (tmp_path / f'{i}.txt').write_text(text)
    (tmp_path / '.hidden.txt').write_text('hidden')
    lines = '\n'.join(json.dumps({'id': i, 'story': text}) for i, text in enumerate(documents[:5]))
    (tmp_path / f'all.jsonl{kind}').write_bytes(pack(kind, lines.encode()))
    with tarfile.open(tmp_path / 'plain.tar', 'w') as tar:
        for name in ('.hidden.txt', *(f'{i}.txt' for i in range(5))):
            tar.add(tmp_path / name, f'folder/{name}')
        tar.add(__file__, 'not_text.py')
    (tmp_path / f'all.tar{kind}').write_bytes(pack(kind, (tmp_path / 'plain.tar').read_bytes()))
    for pattern in (f'txt/*.txt{kind}', 'txt/*', f'**/txt/*{kind}', f'all.tar{kind}', f'all.jsonl{kind}:story'):
        assert read(tmp_path / pattern) == documents[:5], pattern

@pytest.mark.parametrize('kind', PACKED[1:])
def test_a_packed_file_that_was_cut_off_is_refused(kind, tmp_path, documents):
    packed = pack(kind, documents[0].encode())
    for i in range(1, len(packed), 97):
        (tmp_path / f'half.txt{kind}').write_bytes(packed[:i])
        with pytest.raises(UserError, match=f'half.txt{kind} cannot be read .*must be complete'):
            read(tmp_path / f'half.txt{kind}')

def test_rows_of_a_parquet_table_are_documents(tmp_path, documents):
    pyarrow = pytest.importorskip('pyarrow', reason='the optional package pyarrow is not installed')
    from pyarrow import parquet
    parquet.write_table(pyarrow.table({'n': [1, 2, 3], 'story': [documents[1], None, documents[2]]}), tmp_path / 'a.parquet')
    dropped = []
    assert read(tmp_path / 'a.parquet:story', 200, dropped) == documents[1:3] and dropped == [0]
    for source, says in (('a.parquet', "fields are n, story.*text in its field 'text'"), ('a.parquet:n', 'must be .* text in its field')):
        with pytest.raises(UserError, match=says):
            read(tmp_path / source)
    (tmp_path / 'b.parquet').write_bytes((tmp_path / 'a.parquet').read_bytes()[:-50])
    with pytest.raises(UserError, match='b.parquet cannot be read .*must be complete'):
        read(tmp_path / 'b.parquet:story')

@pytest.mark.parametrize('package, file', [(ZSTD, 'a.txt.zst'), ('pyarrow', 'a.parquet')])
def test_a_file_that_needs_an_optional_package_says_which(package, file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    (tmp_path / file).touch()
    with pytest.raises(UserError, match=f'{file} needs a package: pip install {package}'):
        read(tmp_path / file)

def test_documents_that_are_too_short_are_dropped_and_counted(alone, capsys):
    (alone / 'short').mkdir()
    for i, text in enumerate(['', 'x' * 199, ' \n ', 'y' * 200, '  ' + 'w' * 199 + '\n\n']):
        (alone / 'short' / f'{i}.txt').write_text(text)
    dropped = []
    assert read('short/*.txt', 200, dropped) == ['y' * 200] and dropped == [0, 199, 0, 199]
    cfg = settings(corpora={'en': '*/*.txt'})
    prepare(cfg)
    assert 'dropped 4' in capsys.readouterr().out and Dataset(cfg).meta['corpora']['en']['dropped'] == 4

def test_a_corpus_in_the_repository_is_found_from_everywhere(alone):
    assert data_prep.find_files('corpora/eltec-eng*') == ([str(ROOT / 'corpora' / 'eltec-eng.tar.xz')], 'text')
    Path('corpora').mkdir()
    Path('corpora/eltec-eng.txt').touch()  # what the working directory has comes first
    assert data_prep.find_files('corpora/eltec-eng*') == (['corpora/eltec-eng.txt'], 'text')

NOVEL = """<?xml version="1.0"?>
<TEI xmlns="http://www.tei-c.org/ns/1.0"><teiHeader><p>not text</p></teiHeader><text><front><p>nor this</p></front><body>
<div><head>CHAPTER
 I</head><quote><l>A line </l><l> of verse</l><p>by <hi>me</hi>.</p></quote><p>Para&amp;graph  <pb n="2"/>one.</p><p><l>inner</l> verse</p><p/></div>
</body><back><p>nor that</p></back></text></TEI>"""

def test_tei_is_its_bodys_paragraphs_headings_and_verse():
    assert tei_text(NOVEL, 'x') == 'CHAPTER I\nA line\nof verse\nby me.\nPara&graph one.\ninner verse'
    for broken in (NOVEL[:-20], '<TEI/>', ''):
        with pytest.raises(UserError, match='x cannot be read .*must be a TEI document'):
            tei_text(broken, 'x')

def test_an_eltec_release_is_read_only_if_it_holds_the_novels_that_git_has(alone, monkeypatch):
    Path('data').mkdir()
    with zipfile.ZipFile('data/ELTeC-xyz-v1.zip', 'w') as archive:  # laid out as GitHub does
        for name, text in (('level1/b.xml', NOVEL), ('level1/a.xml', NOVEL.replace('CHAPTER', 'PART')), ('README.md', 'not a novel')):
            archive.writestr(f'ELTeC-xyz-1/{name}', text)
    blobs = []
    for text in (NOVEL.replace('CHAPTER', 'PART'), NOVEL):
        process = subprocess.run(['git', 'hash-object', '--stdin'], input=text, capture_output=True, text=True, check=True)
        blobs.append(process.stdout.strip())
    monkeypatch.setitem(data_prep.ELTEC, 'xyz', f'v1 {data_prep.hash_of(blobs)[:8]}')
    assert [text[:6] for text in read('eltec:xyz')] == ['PART I', 'CHAPTE']
    monkeypatch.setitem(data_prep.ELTEC, 'xyz', 'v1 00000000')
    with pytest.raises(UserError, match='ELTeC-xyz-v1.zip cannot be read .*its novels have checksum .*remove it'):
        read('eltec:xyz')

def test_eltec_without_network_says_what_to_download_and_where_to_put_it(alone, monkeypatch):
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')  # where nothing listens
    with pytest.raises(UserError, match='https://github.com/COST-ELTeC/ELTeC-fra/archive/refs/tags/v1.0.1.zip cannot be read .*'
                                        'put it here as data/ELTeC-fra-v1.0.1.zip'):
        read('eltec:fra')
    assert not any(path.is_file() for path in Path('data').rglob('*'))

def test_a_hub_data_set_without_its_package_says_what_to_install(alone, monkeypatch):
    monkeypatch.setitem(sys.modules, 'datasets', None)
    with pytest.raises(UserError, match='hf:someone/books:text needs a package: pip install datasets'):
        read('hf:someone/books:text')

def test_a_hub_data_set_is_read_as_far_as_training_needs(alone, documents):
    datasets = pytest.importorskip('datasets', reason='the optional package datasets is not installed')
    datasets.disable_progress_bars()
    (alone / 'hub').mkdir()
    with open(alone / 'hub' / 'train.jsonl', 'w') as f:
        for i in range(2000):
            f.write(json.dumps({'story': f'Book {i}. ' + documents[i % 40][:400]}) + '\n')
    (alone / 'hub' / 'validation.jsonl').write_text(json.dumps({'story': documents[0]}) + '\n')
    assert read('hf:hub:story::validation') == documents[:1]
    cfg = settings(corpora={'en': 'hf:hub:story'}, max_iters=500)
    prepare(cfg)
    meta = Dataset(cfg).meta['corpora']['en']
    assert meta['train_documents'] + meta['test_documents'] < 2000
    assert meta['train'][1] >= 500 * 8 * 32 and meta['test_documents'] == data_prep.HUB_TEST_DOCUMENTS // 10
    less = settings(corpora={'en': 'hf:hub:story'}, max_iters=50, dataset='less')
    prepare(less)  # the same cache, less of it, the same test text
    assert Dataset(less).meta['corpora']['en']['train'][1] == np.ceil(1.02 * 50 * 8 * 32)
    assert Dataset(less).meta['corpora']['en']['test'] == meta['test']
    with pytest.raises(UserError, match="its fields are story.* text in its field 'text'"):
        read('hf:hub')
    shutil.rmtree('hub')  # what has been read is kept
    assert len(read('hf:hub:story')) == 2000

def test_a_hub_data_set_whose_connection_broke_resumes_where_it_ended(alone, documents):
    pytest.importorskip('datasets', reason='the optional package datasets is not installed').disable_progress_bars()
    rows = [json.dumps({'text': f'Book {i}. {documents[i % 40]}'}) + '\n' for i in range(1000)]
    (alone / 'hub').mkdir()
    for part, text in (('1', rows[:500]), ('2', ['{broken'])):
        (alone / 'hub' / f'train-{part}.jsonl').write_text(''.join(text))
    with pytest.raises(UserError, match='hf:hub cannot be read .*the rows read so far are kept'):
        read('hf:hub')
    (alone / 'hub' / 'train-1.jsonl').write_text(''.join(['{"text": "not read again"}\n'] * 400 + rows[400:500]))
    (alone / 'hub' / 'train-2.jsonl').write_text(''.join(rows[500:]))
    assert read('hf:hub') == [json.loads(row)['text'] for row in rows]

HUB = """
import http.server, os, threading
class Hub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(403)
        self.send_header('X-Error-Code', 'GatedRepo')
        self.end_headers()
    def log_message(self, *args): pass
server = http.server.HTTPServer(('127.0.0.1', 0), Hub)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ['HF_ENDPOINT'] = f'http://127.0.0.1:{server.server_port}'
import config, data_prep
config.run(lambda: list(data_prep.documents_of('hf:secret/books')))
"""

def test_a_gated_hub_data_set_says_so_in_one_line(alone):
    pytest.importorskip('datasets', reason='the optional package datasets is not installed')
    process = subprocess.run([sys.executable, '-c', HUB], capture_output=True, text=True, env=PATH)
    assert process.returncode == 1 and len(process.stderr.splitlines()) == 1, process.stderr
    assert 'hf:secret/books cannot be read (GatedRepoError' in process.stderr

def test_the_commit_of_a_hub_data_set_is_looked_up_once_and_identifies_it(alone):
    for commit in ('a' * 40, 'b' * 40):
        store = Path('data/.cache') / f'hub-{data_prep.hash_of(["x/y@" + commit])}'
        store.mkdir(parents=True)
        (store / 'commit').write_text(commit)
        assert data_prep.fingerprint(f'hf:x/y@{commit}') == [f'hf:x/y@{commit}', commit]

@pytest.mark.parametrize('source, content, says', [
    ('bad/half.txt.xz', lzma.compress(b'words and words ' * 4000)[:80], 'half.txt.xz cannot be read (EOFError'),
    ('bad/not.txt.gz', b'plain text', 'not.txt.gz cannot be read (BadGzipFile'),
    ('bad/not.tar.xz', b'plain text' * 100, 'not.tar.xz cannot be read (LZMAError'),
    ('bad/not.tar', b'plain text' * 100, 'not.tar cannot be read (ReadError'),
    ('bad/latin.txt', 'café au lait\n'.encode('latin-1'), "latin.txt cannot be read (UnicodeDecodeError: 'utf-8' codec can't decode byte 0xe9 in position 3"),
    ('bad/lines.jsonl', b'{"text": "fine"}\n{"text": ', 'lines.jsonl, line 2 cannot be read (JSONDecodeError'),
    ('bad/lines.jsonl', b'{"story": "a", "n": 1}', 'its fields are story, n'),
    ('bad/lines.jsonl:n', b'{"story": "a", "n": 1}', "it must be an object with text in its field 'n'"),
    ('bad/empty.txt', b'', 'fewer than two documents'), ('bad/one.txt', b'One document. ' * 3000, 'fewer than two documents'),
    ('bad/page.html', b'<p>', 'page.html: must be .txt'), ('nothing/*.txt', b'', 'no such file; a source is a glob'),
    ('hf:', b'', 'must be hf:DATASET[@REVISION]'), ('eltec:english', b'', 'ELTeC has cze, deu, eng')])
def test_a_bad_source_is_one_line_and_leaves_nothing_half_made(source, content, says, alone):
    Path('bad').mkdir()
    Path('bad', os.path.basename(source).partition(':')[0] or 'unused').write_bytes(content)
    tokenizer = byte_ranks(alone / 'bytes.tiktoken')
    result = script('data_prep.py', *arguments(corpora={'en': source}, tokenizer=f'tiktoken:{tokenizer}'))
    assert result.status == 1 and says in result.err and len(result.err.splitlines()) == 1, result.err
    assert not [path for path in Path('data').rglob('*') if path.is_file()]

# ---- tokenizers

TEXT = 'Ünïcödé, 日本語 \U0001f600\nline two\r\n  indented\n\nno-blank-at-all-in-this-one'

def byte_ranks(path, extra=()):
    """A tiktoken ranks file: all bytes, then the given tokens."""
    tokens = [bytes([i]) for i in range(256)] + list(extra)
    path.write_text(''.join(f'{base64.b64encode(t).decode()} {i}\n' for i, t in enumerate(tokens)))
    return path

def test_sentencepiece_is_lossless(here, documents):
    data_prep.train_tokenizer(documents, here / 'one.model', 500)
    tokenizer = load_tokenizer(here / 'one.model')
    assert tokenizer.vocab_size == len(tokenizer.pieces) == 500
    for text in (documents[0], TEXT, ' leading, trailing ', '\n\n\ttabs\t'):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eod not in tokenizer.encode('</s>' + documents[0])

def test_vocabulary_too_large_for_the_text_says_how_large_it_may_be(here):
    with pytest.raises(UserError, match='vocab_size 60000 does not fit the text: .*<= '):
        prepare(settings(dataset='large', vocab_size=60000))
    assert not Path('data/large').exists()

def test_tiktoken_from_a_ranks_file(tmp_path):
    path = byte_ranks(tmp_path / 'x.tiktoken', [b'th', b' th', b' the'])
    tokenizer = load_tokenizer(path)
    assert tokenizer.encode('the the') == [256, ord('e'), 258]
    assert (tokenizer.vocab_size, tokenizer.eod, tokenizer.pieces[257]) == (260, 259, ' th')
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT

@pytest.mark.parametrize('name', ['tiktoken', 'model'])
def test_an_existing_tokenizer_is_taken_as_it_is(name, here, documents):
    path = here / f'own.{name}'
    byte_ranks(path, [b'in']) if name == 'tiktoken' else data_prep.train_tokenizer(documents, path, 450)
    cfg = settings(dataset=f'own_{name}', tokenizer=f'tiktoken:{path}' if name == 'tiktoken' else str(path))
    prepare(cfg)
    assert Path(f'data/own_{name}/en.{name}').read_bytes() == path.read_bytes()
    assert Dataset(cfg).meta['vocab_size'] == (258 if name == 'tiktoken' else 450)

@pytest.mark.parametrize('tokenizer, says', [
    ('no.model', 'must be a SentencePiece model'), ('text/00.txt', 'must be sentencepiece'), ('tiktoken:text/00.txt', 'must be lines of base64'),
    ('broken.model', 'must be a SentencePiece model'), ('tiktoken:no_such_encoding', 'name a ranks file')])
def test_a_bad_tokenizer_is_refused(tokenizer, says, alone):
    (alone / 'broken.model').write_bytes(b'nonsense')
    with pytest.raises(UserError, match=says):
        prepare(settings(tokenizer=tokenizer))

# ---- corpora and datasets

def test_test_share_is_held_out_by_whole_documents():
    chosen = [is_test(i, 0.05, seed=3) for i in range(10_000)]
    assert sum(chosen) == 500 and chosen != [is_test(i, 0.05, seed=4) for i in range(10_000)]
    assert all(sum(is_test(i, 0.05, seed) for i in (0, 1)) == 1 for seed in range(20))  # two documents suffice

def test_dataset_holds_every_document_once_in_its_part(here, documents):
    cfg = settings()
    prepare(cfg)
    dataset = Dataset(cfg)
    tokenizer = load_tokenizer('data/tiny/en.model')
    parts = {'train': [], 'test': []}
    for part, found in parts.items():
        ids = np.array(dataset.tokens[part])
        ends = np.flatnonzero(ids == tokenizer.eod)
        assert ends[-1] == len(ids) - 1
        found.extend(tokenizer.decode(document.tolist()[:-1]) for document in np.split(ids, ends[:-1] + 1))
    for part, found in parts.items():
        assert found == [text for i, text in enumerate(documents) if is_test(i, 0.1, 0) == (part == 'test')]
        assert dataset.meta['corpora']['en'][f'{part}_bytes'] == sum(len(text.encode()) for text in found)
    assert len(parts['test']) == 4

def test_a_second_dataset_over_a_corpus_shares_its_tokens(here, capsys):
    prepare(settings())
    capsys.readouterr()
    prepare(settings(**CLONES | {'dataset': 'second'}))
    assert 'training' not in capsys.readouterr().out
    assert {path.name for path in Path('data/second').iterdir()} == {'train.bin', 'test.bin', 'train_lang.bin', 'vocab_map.npy', 'meta.json', 'en.model'}
    assert Path('data/second/train.bin').stat().st_ino == Path('data/tiny/train.bin').stat().st_ino

def test_clones_share_the_sequences_in_the_schedules_proportion(here):
    cfg = settings(dataset='three', languages=[(f'EN{i}', 'en') for i in range(3)], schedule=[(0.0, (0.8, 0.1, 0.1)), (0.5, (0.2, 0.7, 0.1))])
    prepare(cfg)
    pools = Dataset(cfg).pools
    n = sum(map(len, pools))
    assert sorted(np.concatenate(pools)) == list(range(n))
    np.testing.assert_allclose([len(pool) for pool in pools], np.array([0.5, 0.4, 0.1]) * n, atol=1)
    assert n == (Dataset(cfg).meta['corpora']['en']['train_tokens'] - 1) // 32
    assert all(0.4 < (pool < n / 2).mean() < 0.6 for pool in pools[:2])  # spread over the text

def test_two_corpora_follow_each_other_and_keep_their_languages(alone, documents):
    (alone / 'fr').mkdir()
    for i, text in enumerate(documents[:6]):
        (alone / 'fr' / f'{i}.txt').write_text(text.upper())
    cfg = settings(dataset='two', corpora={'en': 'text/*.txt', 'fr': 'fr/*.txt'}, schedule=[(0.0, (0.5, 0.3, 0.2))],
                   languages=[('EN1', 'en'), ('FR', 'fr'), ('EN2', 'en')])
    prepare(cfg)
    dataset = Dataset(cfg)
    en, fr = dataset.meta['corpora']['en'], dataset.meta['corpora']['fr']
    assert en['train'][1] == fr['train'][0] and fr['train'][1] == len(dataset.tokens['train']) and fr['test'][1] == len(dataset.tokens['test'])
    assert [len(pool) for pool in dataset.pools] == [round(en['sequences'] * 5 / 7), fr['sequences'], en['sequences'] - round(en['sequences'] * 5 / 7)]
    first, = dataset.batch(dataset.pools[1][:1], np.array([1]))[0]
    expected = np.zeros(1200)
    for language, (name, p) in enumerate(zip(('en', 'fr', 'en'), (0.5, 0.3, 0.2))):
        for token in dataset.tokens['train'][slice(*dataset.meta['corpora'][name]['train'])]:
            expected[dataset.vocab_map[language, token]] += p / dataset.meta['corpora'][name]['train_tokens']
    np.testing.assert_allclose(dataset.frequency([0.5, 0.3, 0.2]), expected)
    for language, of_corpus in enumerate((en, fr, en)):
        assert dataset.ids_in_text(language) == len(set(dataset.tokens['train'][slice(*of_corpus['train'])].tolist()))
    text = load_tokenizer('data/two/fr.model').decode((first - dataset.vocab_map[1, 0]).tolist())
    assert len(text) > 10 and documents[[i for i in range(6) if not is_test(i, 0.1, 0)][0]].upper().startswith(text)

def test_a_shared_tokenizer_gives_all_corpora_the_same_ids_and_clones_their_own(alone, documents, capsys):
    (alone / 'up').mkdir()
    for i, text in enumerate(documents[:20]):
        (alone / 'up' / f'{i}.txt').write_text(text.upper())
    cfg = settings(dataset='two', corpora={'en': 'text/*.txt', 'up': 'up/*.txt'}, schedule=[(0.0, (0.5, 0.3, 0.2))], tokenizer='shared',
                   languages=[('EN1', 'en'), ('UP', 'up'), ('EN2', 'en')], vocab_size=500)
    prepare(cfg)
    assert capsys.readouterr().out.count('training') == 1
    dataset = Dataset(cfg)
    assert (dataset.vocab_map == np.arange(500) + 500 * np.array([0, 0, 1])[:, None]).all() and dataset.meta['vocab_size'] == 1000
    assert Path('data/two/en.model').read_bytes() == Path('data/two/up.model').read_bytes()
    tokenizer = load_tokenizer('data/two/up.model')
    counts = [len(tokenizer.encode(text)) / len(text) for text in (documents[25], documents[25].upper())]
    assert counts[1] < 1.6 * counts[0]  # trained on both, as their lengths show
    start, end = dataset.meta['corpora']['up']['test']
    assert tokenizer.decode(dataset.tokens['test'][start:end - 1].tolist()).startswith(tuple(text.upper()[:50] for text in documents[:20]))

def test_max_tokens_ends_a_corpus_early(alone):
    prepare(settings(dataset='all'))
    prepare(settings(dataset='some', max_tokens=40_000))
    every, some = (Dataset(settings(dataset=name, max_tokens=n)) for name, n in (('all', 0), ('some', 40_000)))
    assert some.meta['corpora']['en']['train'] == [0, 40_000] and len(some.tokens['train']) < len(every.tokens['train'])
    assert (some.tokens['train'][:30_000] == every.tokens['train'][:30_000]).all()  # the same text, tokenizer and split
    assert sum(language['tokens'] for language in some.meta['languages']) == (40_000 - 1) // 32 * 32

def test_the_box_prepares_to_the_same_data_on_every_machine(alone, monkeypatch):
    monkeypatch.setattr(data_prep, 'TOKENIZER_BYTES', 500_000)
    for workers in (1, 3):
        cfg = settings(dataset=f'box{workers}', corpora={'en': 'corpora/eltec-eng.tar.xz'}, max_tokens=100_000, num_workers=workers)
        prepare(cfg)
        assert data_prep.data_checksum(Dataset(cfg).meta) == 'sha256 7ed25e0d144d5154'
        shutil.rmtree('data/.cache')

START = 'import multiprocessing as mp, sys, config, data_prep; mp.set_start_method({!r}); data_prep.prepare(config.load(sys.argv[1:]))'

@pytest.mark.parametrize('method', multiprocessing.get_all_start_methods())
def test_preparation_works_with_every_start_method_and_its_workers_end_with_it(method, alone):
    prepare(settings(dataset='expected'))
    shutil.rmtree('data/.cache')
    command = [sys.executable, '-c', START.format(method), *arguments()]
    process = subprocess.run(command, capture_output=True, text=True, env=PATH)
    assert process.returncode == 0 and not process.stderr, process.stderr
    for name in ('train.bin', 'test.bin'):
        assert Path('data/tiny', name).read_bytes() == Path('data/expected', name).read_bytes()
    command += ['--overwrite', f'--tokenizer={Path("data/tiny/en.model").resolve()}', "--corpora={'en': 'corpora/eltec-eng.tar.xz'}"]
    process = subprocess.Popen(command, env=PATH, stdout=subprocess.DEVNULL)
    while len(family(process.pid)) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(1)  # they are at work
    workers = family(process.pid)
    process.kill()
    assert process.wait() == -9
    end = time.time() + 20
    while any(Path(f'/proc/{pid}').exists() for pid in workers):
        assert time.time() < end
        time.sleep(0.1)

def test_a_lock_says_who_holds_it_and_a_killed_process_releases_it(tmp_path, monkeypatch):
    hold = 'import data_prep, pathlib, time\nwith data_prep.locked(pathlib.Path("x.lock"), "x is taken"): print("held", flush=True); time.sleep(600)'
    monkeypatch.chdir(tmp_path)
    process = subprocess.Popen([sys.executable, '-c', hold], stdout=subprocess.PIPE, text=True, env=PATH)
    assert process.stdout.readline() == 'held\n'
    with pytest.raises(UserError, match=f'x is taken by process {process.pid} on .*: go away'):
        with data_prep.locked(Path('x.lock'), 'x is taken', 'go away'):
            pass
    process.kill()
    process.wait()
    with data_prep.locked(Path('x.lock'), 'x is taken', 'go away'):
        assert Path('x.lock').read_text().startswith(f'process {os.getpid()} on ')
    assert not Path('x.lock').exists()

def test_a_disk_that_fills_up_leaves_nothing_half_made(alone):
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # no file beyond 100 kB
    process = subprocess.run([sys.executable, ROOT / 'data_prep.py', *arguments()], preexec_fn=full, capture_output=True, text=True)
    assert process.returncode == 1 and 'File too large' in process.stderr and len(process.stderr.splitlines()) == 1, process.stderr
    assert [path.name for path in Path('data').rglob('*') if path.is_file()] == ['bpe.model']  # whole, and kept

def test_block_windows_are_consecutive_and_end_with_their_target(here):
    cfg = settings(**CLONES)
    prepare(cfg)
    dataset = Dataset(cfg)
    sequences, languages = np.array([5, 0, 17]), np.array([1, 0, 1])
    x, y = dataset.batch(sequences, languages)
    for row, (sequence, language) in enumerate(zip(sequences, languages)):
        base = np.array(dataset.tokens['train'][sequence * 32:sequence * 32 + 33], np.int64) + 400 * language
        assert (x[row] == base[:-1]).all() and (y[row] == base[1:]).all()

def test_ten_clones_do_not_wrap_uint16(alone):
    letters = [bytes([a]) for a in b'abcdefghijklmnopqrstuvwxyz']
    two = [a + b for a in letters for b in letters]
    ranks = byte_ranks(alone / 'big.tiktoken', (two + [a + b for a in letters for b in two])[:16384 - 257])
    cfg = settings(dataset='ten', tokenizer=f'tiktoken:{ranks}', languages=[(f'EN{i}', 'en') for i in range(10)], schedule=[(0.0, (0.1,) * 10)])
    prepare(cfg)
    dataset = Dataset(cfg)
    assert dataset.meta['vocab_size'] == 163_840 and dataset.tokens['train'].dtype == np.uint16
    highest = 0
    for language, pool in enumerate(dataset.pools):
        x, y = dataset.batch(pool, np.full(len(pool), language))
        assert x.dtype == y.dtype == np.int64
        assert ((x // 16384 == language) & (y // 16384 == language)).all()  # the last target included
        assert np.isin(np.concatenate([x, y]), dataset.vocab_map[language]).all()
        highest = max(highest, x.max())
    assert highest > 9 * 16384 > 65535

# ---- the vocabulary map

def test_full_clone_is_an_offset():
    vocab_map = vocabulary_map([(f'EN{i}', 'en') for i in range(3)], {'en': [str(i) for i in range(1000)]}, 'disjoint', 0.0, 0)
    assert (vocab_map == np.arange(1000) + 1000 * np.arange(3)[:, None]).all() and vocab_map.dtype == np.int32

def test_two_vocabularies_disjoint_or_merged_on_equal_pieces():
    pieces = {'en': ['</s>', 'the', 'ion', 'ing'], 'fr': ['</s>', 'le', 'ion']}
    languages = [('EN', 'en'), ('FR', 'fr'), ('FR2', 'fr')]
    assert vocabulary_map(languages, pieces, 'disjoint', 0, 0).tolist() == [[0, 1, 2, 3], [4, 5, 6, -1], [7, 8, 9, -1]]
    assert vocabulary_map(languages, pieces, 'anchored', 0, 0).tolist() == [[0, 1, 2, 3], [0, 4, 2, -1], [5, 6, 7, -1]]

# ---- schedule and sampler

@pytest.mark.parametrize('changes, says', [
    ({'schedule': [(0.0, (0.5, 0.4))]}, 'that sum to 1'), ({'schedule': [(0.0, (1.5, -0.5))]}, '2 probabilities'),
    ({'schedule': [(0.0, (1.0,))]}, '2 probabilities'), ({'schedule': [(0.0, (0.5, 0.5)), (0.0, (0.5, 0.5))]}, 'rise'),
    ({'schedule': [(0.1, (0.5, 0.5))]}, 'rise from 0.0'), ({'schedule': []}, 'rise from 0.0'), ({'schedule': [0.5]}, 'must be a list'),
    ({'schedule': [(0.0, (0.5, float('nan')))]}, 'that sum to 1'), ({'languages': [('EN1', 'en'), ('EN1', 'en')]}, 'different names'),
    ({'languages': [('EN1', 'en'), ('FR', 'fr')]}, 'every corpus and no others'), ({'languages': []}, 'must be a list'),
    ({'corpora': {'en': 'x', 'fr': 'x'}}, 'every corpus and no others'), ({'vocab': 'merged'}, 'vocab must be'),
    ({'corpora': {'../en': 'x'}, 'languages': [('EN1', '../en'), ('EN2', '../en')]}, 'plain names'),
    ({'corpora': {'en': 1}}, 'strings as sources'), ({'anchor_frac': 1.5}, 'anchor_frac'), ({'test_frac': 0.0}, 'test_frac')])
def test_languages_and_schedule_that_make_no_sense_are_refused(changes, says):
    with pytest.raises(UserError, match=says):
        data_prep.check_languages(settings(**CLONES | changes))

def test_marginals_weigh_the_stages_by_their_length():
    np.testing.assert_allclose(marginals([(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))]), [0.5, 0.5])
    np.testing.assert_allclose(marginals([(0.0, (1.0, 0.0)), (0.25, (0.2, 0.8))]), [0.4, 0.6])

def test_a_whole_run_follows_the_schedule_and_reads_no_sequence_twice():
    run = Sampler([np.arange(16_000), np.arange(16_000)], [(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))], 16, 1000, 0)
    seen, counts = [[], []], np.zeros((2, 2), int)
    for step in range(1000):
        sequences, languages = run.next(step)
        for language in (0, 1):
            seen[language].extend(sequences[languages == language])
            counts[step // 500, language] += (languages == language).sum()
    for stage, p in enumerate((0.1, 0.9)):
        assert abs(counts[stage, 1] - 8000 * p) < 4 * np.sqrt(8000 * p * (1 - p))  # sampling error
    assert run.read.tolist() == counts.sum(0).tolist() == [len(set(sequences)) for sequences in seen]

def test_another_seed_draws_other_languages_and_sequences():
    a, b = (Sampler([np.arange(900)] * 2, [(0.0, (0.5, 0.5))], 16, 100, seed).next(0) for seed in (0, 1))
    assert (a[0] != b[0]).any() and (a[1] != b[1]).any()

def test_stages_begin_at_their_fraction_of_the_steps():
    run = Sampler([np.arange(9)] * 2, [(0.0, (1.0, 0.0)), (0.3, (0.0, 1.0))], 4, 10, 0)
    assert [int(run.p(step)[1]) for step in range(10)] == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]

# ---- properties: of any schedule, any pools, any vocabularies

@st.composite
def schedules(draw):
    """(number of languages, a valid schedule for them)"""
    n = draw(st.integers(1, 5))
    starts = [0.0, *sorted(draw(st.sets(st.integers(1, 99), max_size=3)))]
    weights = st.lists(st.integers(0, 9), min_size=n, max_size=n).filter(any)
    return n, [(start / 100, tuple(w / sum(ws) for w in ws)) for start in starts for ws in [draw(weights)]]

@given(schedules())
def test_any_schedule_is_accepted_and_its_marginals_are_the_mean_of_its_steps(drawn):
    n, schedule = drawn
    cfg = settings(languages=[(f'L{i}', 'en') for i in range(n)], schedule=schedule)
    data_prep.check_languages(cfg)
    run = Sampler([np.arange(5)] * n, schedule, 4, 100, 0)
    np.testing.assert_allclose(marginals(schedule), np.mean([run.p(step) for step in range(100)], 0), atol=1e-9)

@given(schedules(), st.integers(0, 3), st.sampled_from([0.2, -0.2, 1.0, math.nan, math.inf]))
def test_any_schedule_with_a_wrong_number_is_refused(drawn, stage, off):
    n, schedule = drawn
    stage %= len(schedule)
    start, ps = schedule[stage]
    wrong = [*schedule[:stage], (start, (ps[0] + off, *ps[1:])), *schedule[stage + 1:]]
    rising = [*schedule, (schedule[-1][0], schedule[-1][1])]  # a stage that begins where the last one did
    for bad in (wrong, rising, [(start, ps[1:]) for start, ps in schedule], [(start + 0.005, ps) for start, ps in schedule]):
        with pytest.raises(UserError, match='^schedule'):
            data_prep.check_languages(settings(languages=[(f'L{i}', 'en') for i in range(n)], schedule=bad))

@given(schedules(), st.data())
def test_any_sampler_reads_each_pool_in_whole_epochs_and_goes_on_from_its_counts(drawn, data):
    n, schedule = drawn
    pools = [100 * i + np.arange(data.draw(st.integers(1, 30))) for i in range(n)]
    batch_size, seed, split = data.draw(st.integers(1, 12)), data.draw(st.integers(0, 99)), data.draw(st.integers(0, 20))
    whole, resumed = (Sampler(pools, schedule, batch_size, 20, seed) for _ in range(2))
    seen = [[] for _ in range(n)]
    for step in range(20):
        if step == split:
            resumed.read[:] = whole.read
        sequences, languages = whole.next(step)
        assert len(sequences) == batch_size and (whole.p(step)[languages] > 0).all()
        for sequence, language in zip(sequences, languages):
            seen[language].append(sequence)
        if step >= split:
            assert all((a == b).all() for a, b in zip(resumed.next(step), (sequences, languages)))
    assert whole.read.tolist() == [len(s) for s in seen] and whole.read.sum() == 20 * batch_size
    epochs = [len(read) / len(pool) for pool, read in zip(pools, seen)]
    assert whole.epochs_of_run().tolist() == epochs and whole.epochs_begun().tolist() == [math.ceil(n) for n in epochs]
    for pool, read in zip(pools, seen):
        for i in range(0, len(read), len(pool)):
            epoch = read[i:i + len(pool)]
            assert len(set(epoch)) == len(epoch) and set(epoch) <= set(pool.tolist())

@given(st.data(), st.sampled_from(['disjoint', 'anchored']), st.floats(0, 1), st.integers(0, 9))
def test_any_vocabulary_map_is_compact_and_shares_what_it_should_and_nothing_else(data, vocab, anchor_frac, seed):
    words = st.lists(st.sampled_from('abcdefghijklmnop'), min_size=1, unique=True)
    pieces = {corpus: data.draw(words) for corpus in ('en', 'fr', 'de')[:data.draw(st.integers(1, 3))]}
    languages = [(corpus.upper(), corpus) for corpus in pieces] + [(f'L{i}', data.draw(st.sampled_from(list(pieces)))) for i in range(data.draw(st.integers(0, 3)))]
    vocab_map = vocabulary_map(languages, pieces, vocab, anchor_frac, seed)
    used = vocab_map[vocab_map >= 0]
    assert set(used.tolist()) == set(range(used.max() + 1))
    first = dict(zip(pieces, vocab_map))
    for number, (row, (_, corpus)) in enumerate(zip(vocab_map, languages)):
        V = len(pieces[corpus])
        assert len(set(row[:V].tolist())) == V and (row[:V] >= 0).all() and (row[V:] == -1).all()
        for other, (_, of) in zip(vocab_map[:number], languages[:number]):
            pairs = {(i, j) for i in range(V) for j in range(len(pieces[of])) if row[i] == other[j]}
            if of == corpus:  # a clone shares its anchors, each with itself
                assert all(i == j for i, j in pairs) and len(pairs) == round(anchor_frac * V)
            elif number < len(pieces):  # two corpora: equal pieces or none
                equal = {(i, j) for i in range(V) for j in range(len(pieces[of])) if pieces[corpus][i] == pieces[of][j]}
                assert pairs == (equal if vocab == 'anchored' else set())
        assert number < len(pieces) or (row[:V] == first[corpus][:V]).sum() == round(anchor_frac * V)

# ---- damaged datasets

def replace(path, old, new):
    path.write_bytes(path.read_bytes().replace(old, new, 1))

@pytest.mark.parametrize('damage, says', [
    (lambda path: (path / 'train_lang.bin').write_bytes(b'\0'), 'train_lang.bin has changed'),
    (lambda path: (path / 'vocab_map.npy').write_bytes((path / 'vocab_map.npy').read_bytes()[:-1] + b'\1'), 'vocab_map.npy has changed'),
    (lambda path: (path / 'test.bin').unlink(), "No such file.*test.bin"),
    (lambda path: replace(path / 'meta.json', b'"block_size": 32', b'"block_size": 31'), 'meta.json has changed'),
    (lambda path: replace(path / 'meta.json', b'"format_version": 2', b'"format_version": 1'), 'its format is 1, not 2'),
    (lambda path: (path / 'meta.json').write_text('{'), 'meta.json cannot be read'), (lambda path: shutil.rmtree(path), 'is missing')])
def test_a_dataset_that_is_damaged_or_of_an_old_format_is_refused_with_what_to_do(damage, says, alone):
    cfg = settings(**CLONES)
    prepare(cfg)
    damage(Path('data/clones'))
    with pytest.raises(UserError, match=f'data/clones.*{says}.*data_prep.py'):
        Dataset(cfg)

def test_damaged_tokens_in_the_cache_are_refused(alone):
    prepare(settings())
    path, = Path('data/.cache').glob('en-*/test.bin')
    path.chmod(0o644)
    replace(path, path.read_bytes()[:2], b'!!')
    with pytest.raises(UserError, match='test.bin has changed since it was written.*remove data/.cache/en-'):
        prepare(settings(dataset='second'))

@pytest.mark.parametrize('changes', [{'block_size': 64}, {'schedule': [(0.0, (0.5, 0.5))]}, {'vocab_size': 300}, {'anchor_frac': 0.1}])
def test_a_dataset_made_with_other_settings_is_refused(changes, here):
    if not Path('data/clones').exists():
        prepare(settings(**CLONES))
    key = 'p_language' if 'schedule' in changes else next(iter(changes))
    with pytest.raises(UserError, match=f'made with {key} = .*these settings say'):
        Dataset(settings(**CLONES | changes))

def test_preparing_what_is_there_does_nothing_and_overwrite_makes_it_anew(alone, capsys):
    prepare(settings())
    prepare(settings())
    assert 'is there already' in capsys.readouterr().out
    with pytest.raises(UserError, match='made with block_size = 32'):
        prepare(settings(block_size=64))
    prepare(settings(block_size=64, overwrite=True))
    assert Dataset(settings(block_size=64)).meta['settings']['block_size'] == 64
