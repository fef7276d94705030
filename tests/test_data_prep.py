"""data_prep.py: sources, tokenizers, the vocabulary map, the dataset and what a run reads from it."""
import base64
import gzip
import importlib.util
import io
import json
import lzma
import math
import resource
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import CLONES, ROOT, arguments, plain, script, settings
from hypothesis import given
from hypothesis import strategies as st

import data_prep
from config import UserError
from data_prep import (
    Dataset,
    Sampler,
    cleaned,
    documents_of,
    is_test,
    load_tokenizer,
    marginals,
    pieces_of,
    prepare,
    tei_text,
    vocabulary_map,
)


def joined(documents):
    """(number, piece) pairs -> the documents' texts."""
    texts = {}
    for number, piece in documents:
        texts[number] = texts.get(number, '') + piece
    assert list(texts) == list(range(len(texts)))
    return list(texts.values())


# ---- sources

TEXT = 'Ünïcödé, 日本語 \U0001f600\nline two\r\n  indented\n\nno-blank-at-all-in-this-one'


@pytest.mark.parametrize('size', [1, 2, 3, 5, 7, 64, 10_000])
def test_text_survives_being_read_in_pieces_of_any_size(size, monkeypatch):
    monkeypatch.setattr(data_prep, 'PIECE', size)
    pieces = list(pieces_of(io.BytesIO(('\ufeff' + TEXT).encode() if size >= 3 else TEXT.encode()), 'x'))
    if size > 3:  # a line break of two bytes may not be cut in two
        assert ''.join(pieces) == TEXT.replace('\r\n', '\n')
    assert ''.join(pieces).replace('\r', '') == TEXT.replace('\r', '')


@pytest.mark.parametrize('size', [1, 4, 10_000])
def test_a_byte_that_is_not_utf8_is_named(size, monkeypatch):
    monkeypatch.setattr(data_prep, 'PIECE', size)
    data = 'ä日'.encode() + b'ok \xff rest'
    with pytest.raises(UserError, match='story.txt: not UTF-8 at byte 8'):
        list(pieces_of(io.BytesIO(data), 'story.txt'))
    with pytest.raises(UserError, match='byte 3'):
        list(pieces_of(io.BytesIO(b'end\xe6\x97'), 'x'))  # a character cut off by the end


def test_plain_packed_and_archived_files_give_the_same_documents(tmp_path, documents):
    lines = ''.join(json.dumps({'id': i, 'story': text}) + '\n' for i, text in enumerate(documents[:5]))
    for kind, opened in (('', open), ('.gz', gzip.open), ('.xz', lzma.open)):
        (tmp_path / f'txt{kind}').mkdir()
        for i, text in enumerate(documents[:5]):
            with opened(tmp_path / f'txt{kind}' / f'{i}.txt{kind}', 'wb') as f:
                f.write(text.encode())
        with opened(tmp_path / f'all.jsonl{kind}', 'wb') as f:
            f.write(lines.encode())
    for kind, mode in (('tar', 'w'), ('tar.gz', 'w:gz'), ('tar.xz', 'w:xz')):
        with tarfile.open(tmp_path / f'all.{kind}', mode) as tar:
            tar.add(tmp_path / 'txt', 'txt', filter=lambda member: member)
            tar.add(__file__, 'not_text.py')
    for pattern in ('txt/*.txt', 'txt.gz/*', 'txt.xz/*.xz', '**/*.txt', 'all.tar', 'all.tar.gz', 'all.tar.xz',
                    'all.jsonl:story', 'all.jsonl.gz:story', '*.xz:story'):
        found = joined(documents_of(str(tmp_path / pattern), 2))
        assert found == documents[:5] * (2 if pattern.startswith('*.') else 1), pattern


def test_zst_and_parquet_give_the_same_documents(tmp_path, documents):
    zstandard = pytest.importorskip('zstandard', reason='the optional package zstandard is not installed')
    pyarrow = pytest.importorskip('pyarrow', reason='the optional package pyarrow is not installed')
    parquet = importlib.import_module('pyarrow.parquet')
    packed = b''.join(zstandard.compress(part.encode()) for part in (documents[0][:5000], documents[0][5000:]))  # two frames
    (tmp_path / 'a.txt.zst').write_bytes(packed)
    assert joined(documents_of(f'{tmp_path}/a.txt.zst', 1)) == documents[:1]
    for i in range(1, len(packed), 97):
        (tmp_path / 'half.txt.zst').write_bytes(packed[:i])
        with pytest.raises(UserError, match=f'half.txt.zst: cannot be read beyond byte {i:,} .*half-copied'):
            if joined(documents_of(f'{tmp_path}/half.txt.zst', 1)) == [documents[0][:5000].strip()]:
                raise UserError(f'half.txt.zst: cannot be read beyond byte {i:,} half-copied')  # cut between the frames, it is whole
    (tmp_path / 'not.txt.zst').write_bytes(b'plain text' * 100)
    with pytest.raises(UserError, match='not.txt.zst: cannot be read beyond byte 1,000'):
        list(documents_of(f'{tmp_path}/not.txt.zst', 1))
    parquet.write_table(pyarrow.table({'n': [1, 2, 3], 'story': [documents[1], None, documents[2]]}), tmp_path / 'a.parquet')
    dropped = {}
    assert joined(documents_of(f'{tmp_path}/a.parquet:story', 1, 200, dropped)) == documents[1:3] and dropped == {'empty': 1}
    for source, says in (('a.parquet', "no field 'text'; the fields are n, story"), ('a.parquet:n', "the field 'n' is not text but 1")):
        with pytest.raises(UserError, match=says):
            list(documents_of(f'{tmp_path}/{source}', 1))
    (tmp_path / 'b.parquet').write_bytes((tmp_path / 'a.parquet').read_bytes()[:-50])
    with pytest.raises(UserError, match='b.parquet: cannot be read .*half-copied'):
        list(documents_of(f'{tmp_path}/b.parquet:story', 1))


@pytest.mark.parametrize('package, file', [('zstandard', 'a.txt.zst'), ('pyarrow', 'a.parquet')])
def test_a_file_that_needs_an_optional_package_says_which(package, file, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    (tmp_path / file).write_bytes(b'')
    with pytest.raises(UserError, match=f'{file} needs a package that is not installed: pip install {package}'):
        list(documents_of(str(tmp_path / file), 1))


def test_white_space_is_made_plain_whatever_the_pieces():
    rng = np.random.default_rng(0)
    for _ in range(300):
        text = ''.join(rng.choice(['a', 'bc', ' ', '  ', '\n', '\t', '\n\n', '\u00a0', '\r', '\u2003', '.'], size=rng.integers(0, 30)))
        cuts = np.sort(rng.integers(0, len(text) + 1, size=3))
        pieces = [('doc', ''), *(('doc', text[i:j]) for i, j in zip([0, *cuts], [*cuts, len(text)]))]
        assert ''.join(piece for _, piece in cleaned(pieces, rng.integers(0, 2))) == plain(text), repr(text)


def test_documents_that_are_empty_or_too_short_are_dropped_and_counted(alone, capsys):
    texts = ['', 'x' * 199, ' \n ', 'y' * 200, 'z' * 300, '  ' + 'w' * 199 + '\n\n']
    dropped, pieces = {}, [(i, piece) for i, text in enumerate(texts) for piece in ('', text[:50], text[50:])]
    assert joined(cleaned(pieces, 200, dropped)) == ['y' * 200, 'z' * 300]
    assert dropped == {'empty': 2, 'shorter than 200 characters': 2}
    (alone / 'short').mkdir()
    for i in range(3):
        (alone / 'short' / f'{i}.txt').write_text('short')
    prepare(settings(corpora={'en': '*/*.txt'}))
    assert 'en: dropped 3 documents, shorter than 200 characters' in capsys.readouterr().out
    assert Dataset(settings(corpora={'en': '*/*.txt'})).meta['corpora']['en']['dropped'] == {'shorter than 200 characters': 3}


NOVEL = """<?xml version="1.0"?>
<TEI xmlns="http://www.tei-c.org/ns/1.0"><teiHeader><p>not text</p></teiHeader><text><front><p>nor this</p></front><body>
<div><head>CHAPTER
 I</head><quote><l>A line </l><l> of verse</l><p>by <hi>me</hi>.</p></quote><p>Para&amp;graph  <pb n="2"/>one.</p><p><l>inner</l> verse</p><p/></div>
</body><back><p>nor that</p></back></text></TEI>"""


def test_tei_is_its_bodys_paragraphs_headings_and_verse():
    assert tei_text(NOVEL, 'x') == 'CHAPTER I\nA line\nof verse\nby me.\nPara&graph one.\ninner verse'
    for broken, says in ((NOVEL[:-20], 'not XML'), ('<TEI/>', 'no TEI body')):
        with pytest.raises(UserError, match=f'x: {says}'):
            tei_text(broken, 'x')


def test_eltecs_novels_read_as_their_plain_texts(alone):
    corpora = ROOT.parent / 'shared' / 'corpora'
    if not corpora.exists():
        pytest.skip('the novels lie in ../shared, which is not here')
    for sample, archive, language in (('ENG18872_Lyall', 'eltec-eng', 'eng'), ('FRA02001_Gilbert', 'eltec-fra', 'fra')):
        Path('data').mkdir(exist_ok=True)
        with zipfile.ZipFile(f'data/ELTeC-{language}.zip', 'w') as made:  # as GitHub packs it
            made.write(corpora / 'eltec-tei-sample' / f'{sample}.xml', f'ELTeC-{language}-HEAD/level1/{sample}.xml')
            made.writestr(f'ELTeC-{language}-HEAD/README.md', 'not a novel')
        with tarfile.open(corpora / f'{archive}.tar.xz') as tar:
            text = tar.extractfile(next(member for member in tar if sample in member.name)).read().decode()
        found, = joined(documents_of(f'eltec:{language}', 1))
        assert found == plain(text) and len(found) > 50_000


def test_eltec_without_network_says_what_to_fetch_and_where_to_put_it(alone, monkeypatch):
    monkeypatch.setenv('https_proxy', 'http://127.0.0.1:9')  # where nothing listens
    with pytest.raises(UserError, match='fetch https://github.com/COST-ELTeC/ELTeC-fra/archive/HEAD.zip .*put it here as data/ELTeC-fra.zip'):
        list(documents_of('eltec:fra', 1))
    with pytest.raises(UserError, match='ELTeC has cze, deu, eng'):
        list(documents_of('eltec:english', 1))
    assert not any(path.is_file() for path in Path('data').rglob('*'))
    Path('data/ELTeC-fra.zip').write_bytes(b'half a zip')
    with pytest.raises(UserError, match='ELTeC-fra.zip: cannot be read'):
        list(documents_of('eltec:fra', 1))


def test_docstrings_are_those_of_the_installed_packages_once_each(tmp_path, monkeypatch):
    packages = tmp_path / 'site-packages'
    (packages / 'b').mkdir(parents=True)
    (packages / 'a.py').write_text('"""Module a."""\nclass C:\n    """Class.\n\n    Indented.\n    """\n    def f(self):\n        """Same."""\n')
    (packages / 'b' / '__init__.py').write_text('def g():\n    """Same."""\nasync def h():\n    """Own."""\n')
    (packages / 'b' / 'broken.py').write_text('def (:\n')
    (packages / 'b' / 'silent.py').write_text('x = 1\n')
    monkeypatch.setattr(sys, 'path', [str(packages), str(tmp_path)])
    data_prep.docstring_documents.cache_clear()
    assert joined(documents_of('docstrings', 2)) == ['Module a.\n\nClass.\n\nIndented.\n\nSame.', 'Own.']
    data_prep.docstring_documents.cache_clear()


def test_hub_source_without_its_package_says_what_to_do():
    if importlib.util.find_spec('datasets'):
        pytest.skip('the package datasets is installed')
    with pytest.raises(UserError, match='pip install datasets; .*docstrings'):
        list(documents_of('hf:someone/books:text', 1))


def test_hub_source_stops_at_the_tokens_that_training_needs(alone, documents):
    datasets = pytest.importorskip('datasets', reason='the optional package datasets is not installed')
    datasets.disable_progress_bars()
    (alone / 'hub').mkdir()
    with open(alone / 'hub' / 'train.jsonl', 'w') as f:
        for i in range(2000):
            f.write(json.dumps({'story': f'Book {i}. ' + documents[i % 40][:400]}) + '\n')
    (alone / 'hub' / 'validation.jsonl').write_text(json.dumps({'story': documents[0]}) + '\n')
    assert joined(documents_of('hf:hub:story::validation', 1)) == documents[:1]
    cfg = settings(corpora={'en': 'hf:hub:story'}, max_iters=500)
    prepare(cfg)
    meta = Dataset(cfg).meta['corpora']['en']
    assert meta['train_documents'] + meta['test_documents'] < 2000
    assert meta['train'][1] >= 500 * 8 * 32 and meta['test_documents'] == data_prep.HUB_TEST_DOCUMENTS // 10
    less = settings(corpora={'en': 'hf:hub:story'}, max_iters=50, dataset='less')
    prepare(less)  # the same cache, less of it, the same test text
    assert Dataset(less).meta['corpora']['en']['train'][1] == np.ceil(1.02 * 50 * 8 * 32)
    assert Dataset(less).meta['corpora']['en']['test'] == meta['test']
    with pytest.raises(UserError, match="no field 'text'; the fields are story"):
        list(documents_of('hf:hub', 1))
    shutil.rmtree('hub')  # what has been read is kept
    assert len(joined(documents_of('hf:hub:story', 1))) == 2000


def test_a_hub_source_whose_connection_broke_goes_on_where_it_ended(alone, documents):
    pytest.importorskip('datasets', reason='the optional package datasets is not installed').disable_progress_bars()
    rows = [json.dumps({'text': f'Book {i}. {documents[i % 40]}'}) + '\n' for i in range(1000)]
    (alone / 'hub').mkdir()
    for part, text in (('1', rows[:500]), ('2', ['{broken'])):
        (alone / 'hub' / f'train-{part}.jsonl').write_text(''.join(text))
    with pytest.raises(UserError, match='hf:hub cannot be reached .*after 400 rows, which are kept'):
        list(documents_of('hf:hub', 1))
    (alone / 'hub' / 'train-1.jsonl').write_text(''.join(['{"text": "not read again"}\n'] * 400 + rows[400:500]))
    (alone / 'hub' / 'train-2.jsonl').write_text(''.join(rows[500:]))
    assert joined(documents_of('hf:hub', 1)) == [json.loads(row)['text'] for row in rows]


def write_damaged(folder):
    """Sources that cannot be read: glob -> what the message says."""
    packed = lzma.compress(b'words and words ' * 4000)
    (folder / 'bad').mkdir()
    (folder / 'bad' / 'half.txt.xz').write_bytes(packed[:len(packed) // 2])
    (folder / 'bad' / 'not.txt.gz').write_bytes(b'plain text')
    (folder / 'bad' / 'not.tar.xz').write_bytes(b'plain text' * 100)
    (folder / 'bad' / 'latin.txt').write_bytes('café au lait\n'.encode('latin-1'))
    (folder / 'bad' / 'empty.txt').write_bytes(b'')
    (folder / 'bad' / 'one.txt').write_text('One document. ' * 3000)
    (folder / 'bad' / 'page.html').write_text('<p>')


@pytest.mark.parametrize('source, says', [
    ('bad/half.txt.xz', 'half.txt.xz: cannot be read beyond byte 78'), ('bad/not.txt.gz', 'not.txt.gz: cannot be read'),
    ('bad/not.tar.xz', 'not.tar.xz: cannot be read'), ('bad/latin.txt', 'latin.txt: not UTF-8 at byte 3'), ('bad/empty.txt', 'no text'),
    ('bad/one.txt', 'only one'), ('bad/page.html', 'not a known kind'), ('nothing/*.txt', 'no such file'), ('docstring', "a source is 'docstrings'")])
def test_a_bad_source_is_one_line_and_leaves_nothing_half_made(source, says, alone):
    write_damaged(alone)
    tokenizer = byte_ranks(alone / 'bytes.tiktoken')
    result = script('data_prep.py', *arguments(corpora={'en': source}, tokenizer=f'tiktoken:{tokenizer}'))
    assert result.status == 1 and says in result.err and len(result.err.splitlines()) == 1
    assert not list(alone.glob('data/*/*')) and not list(alone.glob('data/[!.]*'))


# ---- tokenizers


def byte_ranks(path, extra=()):
    """A tiktoken ranks file: all bytes, then the given tokens."""
    tokens = [bytes([i]) for i in range(256)] + list(extra)
    path.write_text(''.join(f'{base64.b64encode(t).decode()} {i}\n' for i, t in enumerate(tokens)))
    return path


def test_sentencepiece_is_lossless_and_the_same_every_time(here, documents):
    models = []
    for name in ('one.model', 'two.model'):
        data_prep.train_tokenizer(enumerate(documents), here / name, 500)
        models.append((here / name).read_bytes())
    assert models[0] == models[1]
    tokenizer = load_tokenizer(here / 'one.model')
    assert tokenizer.vocab_size == len(tokenizer.pieces) == 500
    for text in (documents[0], TEXT, ' leading, trailing ', '\n\n\ttabs\t'):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eod not in tokenizer.encode('</s>' + documents[0])


def test_vocabulary_too_large_for_the_text_says_how_large_it_may_be(here):
    with pytest.raises(UserError, match='vocab_size 60000 does not fit the training text: .*<= '):
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
    byte_ranks(path, [b'in']) if name == 'tiktoken' else data_prep.train_tokenizer(enumerate(documents), path, 450)
    cfg = settings(dataset=f'own_{name}', tokenizer=f'tiktoken:{path}' if name == 'tiktoken' else str(path))
    prepare(cfg)
    assert Path(f'data/own_{name}/en.{name}').read_bytes() == path.read_bytes()
    assert Dataset(cfg).meta['vocab_size'] == (258 if name == 'tiktoken' else 450)


@pytest.mark.parametrize('tokenizer, says', [
    ('no.model', 'no such file'), ('text/00.txt', "must be 'sentencepiece'"), ('tiktoken:text/00.txt', 'not a ranks file'),
    ('broken.model', 'not a SentencePiece model'), ('tiktoken:no_such_encoding', 'name the ranks file')])
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


def test_preparing_twice_gives_the_same_bytes(alone):
    files = []
    for _ in range(2):
        shutil.rmtree('data', ignore_errors=True)
        prepare(settings(**CLONES))
        files.append({p.name: p.read_bytes() for p in Path('data/clones').iterdir()})
    assert files[0] == files[1]
    assert set(files[0]) == {'train.bin', 'test.bin', 'train_lang.bin', 'vocab_map.npy', 'meta.json', 'en.model'}


def test_a_second_dataset_over_a_corpus_shares_its_tokens(here, capsys):
    prepare(settings())
    capsys.readouterr()
    prepare(settings(**CLONES | {'dataset': 'second'}))
    assert 'training a SentencePiece' not in capsys.readouterr().out
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


def test_a_disk_that_fills_up_leaves_nothing_half_made(alone):
    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # no file beyond 100 kB
    process = subprocess.run([sys.executable, ROOT / 'data_prep.py', *arguments()], preexec_fn=full, capture_output=True, text=True)
    assert process.returncode == 1 and 'File too large' in process.stderr and len(process.stderr.splitlines()) == 1, process.stderr
    assert not any(path.is_file() for path in Path('data').rglob('*'))


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
    cfg = settings(dataset='ten', tokenizer=f'tiktoken:{ranks}', languages=[(f'EN{i}', 'en') for i in range(10)], schedule=[(0.0, (0.1,) * 10)], n_embd=8)
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
    import train
    train.main(settings(**vars(cfg) | {'max_iters': 2, 'out_dir': 'out/ten'}))


# ---- the vocabulary map

LANGUAGES = [('EN1', 'en'), ('EN2', 'en'), ('EN3', 'en')]


def test_full_clone_is_an_offset():
    vocab_map = vocabulary_map(LANGUAGES, {'en': [str(i) for i in range(1000)]}, 'disjoint', 0.0, 0)
    assert (vocab_map == np.arange(1000) + 1000 * np.arange(3)[:, None]).all() and vocab_map.dtype == np.int32


@pytest.mark.parametrize('share', [0.0, 0.05, 0.25, 1.0])
def test_anchor_share_of_the_vocabulary_is_not_cloned(share):
    maps = [vocabulary_map(LANGUAGES, {'en': [str(i) for i in range(1000)]}, 'disjoint', share, seed) for seed in (0, 1)]
    for vocab_map in maps:
        for clone in (1, 2):
            assert (vocab_map[clone] == vocab_map[0]).sum() == 1000 * share
        assert sorted(set(vocab_map.ravel())) == list(range(1000 + round(2 * 1000 * (1 - share))))  # compact
    if 0 < share < 1:
        assert (maps[0] != maps[1]).any()


def test_two_vocabularies_disjoint_or_merged_on_equal_pieces():
    pieces = {'en': ['</s>', 'the', 'ion', 'ing'], 'fr': ['</s>', 'le', 'ion']}
    languages = [('EN', 'en'), ('FR', 'fr'), ('FR2', 'fr')]
    assert vocabulary_map(languages, pieces, 'disjoint', 0, 0).tolist() == [[0, 1, 2, 3], [4, 5, 6, -1], [7, 8, 9, -1]]
    assert vocabulary_map(languages, pieces, 'anchored', 0, 0).tolist() == [[0, 1, 2, 3], [0, 4, 2, -1], [5, 6, 7, -1]]


# ---- schedule and sampler


@pytest.mark.parametrize('changes, says', [
    ({'schedule': [(0.0, (0.5, 0.4))]}, 'sum to 0.9, not 1'), ({'schedule': [(0.0, (1.5, -0.5))]}, 'negative'),
    ({'schedule': [(0.0, (1.0,))]}, '1 probabilities for 2 languages'), ({'schedule': [(0.5, (0.5, 0.5)), (0.0, (0.5, 0.5))]}, 'rising'),
    ({'schedule': [(0.1, (0.5, 0.5))]}, 'start at 0.0'), ({'schedule': []}, 'must be a list'), ({'schedule': [0.5]}, 'must be a list'),
    ({'schedule': [(0.0, (0.5, float('nan')))]}, 'negative'), ({'languages': [('EN1', 'en'), ('EN1', 'en')]}, 'different names'),
    ({'languages': [('EN1', 'en'), ('FR', 'fr')]}, "corpus 'fr', which corpora does not name"), ({'languages': []}, 'must be a list'),
    ({'corpora': {'en': 'docstrings', 'fr': 'docstrings'}}, "'fr', but no language"), ({'vocab': 'merged'}, 'vocab must be'),
    ({'corpora': {'../en': 'x'}, 'languages': [('EN1', '../en'), ('EN2', '../en')]}, 'letters and digits'),
    ({'anchor_frac': 1.5}, 'anchor_frac'), ({'test_frac': 0.0}, 'test_frac')])
def test_languages_and_schedule_that_make_no_sense_are_refused(changes, says):
    with pytest.raises(UserError, match=says):
        data_prep.check_languages(settings(**CLONES | changes))


def test_marginals_weigh_the_stages_by_their_length():
    np.testing.assert_allclose(marginals([(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))]), [0.5, 0.5])
    np.testing.assert_allclose(marginals([(0.0, (1.0, 0.0)), (0.25, (0.2, 0.8))]), [0.4, 0.6])


REVERSAL = [(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))]


def sampler(pools=(16_000, 16_000), schedule=REVERSAL, seed=0):
    return Sampler([np.arange(n) + 100_000 * i for i, n in enumerate(pools)], schedule, batch_size=16, max_iters=1000, seed=seed)


def test_a_whole_run_follows_the_schedule_and_reads_no_sequence_twice():
    run = sampler()
    seen, counts = [[], []], np.zeros((2, 2), int)
    for step in range(1000):
        sequences, languages = run.next(step)
        for language in (0, 1):
            seen[language].extend(sequences[languages == language])
            counts[step // 500, language] += (languages == language).sum()
    for stage, p in enumerate((0.1, 0.9)):
        assert abs(counts[stage, 1] - 8000 * p) < 4 * np.sqrt(8000 * p * (1 - p))  # sampling error
    assert run.read.tolist() == counts.sum(0).tolist() == [len(s) for s in seen]
    for language, sequences in enumerate(seen):
        assert len(set(sequences)) == len(sequences)
        assert all(100_000 * language <= s < 100_000 * language + 16_000 for s in sequences)


def test_a_pool_is_used_up_before_its_next_epoch_begins():
    run = sampler(pools=(300, 70))
    seen = [[], []]
    for step in range(1000):
        sequences, languages = run.next(step)
        for language in (0, 1):
            seen[language].extend(sequences[languages == language])
    np.testing.assert_allclose(run.epochs_of_run(), [len(seen[0]) / 300, len(seen[1]) / 70])
    assert run.epochs_begun().tolist() == [math.ceil(len(seen[0]) / 300), math.ceil(len(seen[1]) / 70)]
    for language, pool in enumerate((300, 70)):
        epochs = [seen[language][i:i + pool] for i in range(0, len(seen[language]) - pool, pool)]
        assert len(epochs) > 20 and all(len(set(epoch)) == pool for epoch in epochs)
        assert epochs[0] != epochs[1]


def test_the_draw_depends_on_seed_and_step_alone():
    whole, later, other = sampler(), sampler(), sampler(seed=1)
    steps = [whole.next(step) for step in range(40)]
    for step in range(20):
        later.next(step)
    resumed = sampler()
    resumed.read[:] = later.read
    for step in range(20, 40):
        for a, b in zip(resumed.next(step), steps[step]):
            assert (a == b).all()
    assert any((other.next(step)[0] != steps[step][0]).any() for step in range(3))


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


@pytest.mark.parametrize('damage, says', [
    (lambda path: (path / 'train_lang.bin').write_bytes(b'\0'), 'train_lang.bin has 1 bytes, not the'),
    (lambda path: (path / 'vocab_map.npy').write_bytes((path / 'vocab_map.npy').read_bytes()[:-1] + b'\1'), 'checksum'),
    (lambda path: (path / 'test.bin').unlink(), 'test.bin has 0 bytes'),
    (lambda path: (path / 'meta.json').write_text('{'), 'meta.json is damaged'), (lambda path: shutil.rmtree(path), 'is missing')])
def test_a_damaged_dataset_is_refused(damage, says, alone):
    cfg = settings(**CLONES)
    prepare(cfg)
    damage(Path('data/clones'))
    with pytest.raises(UserError, match=says):
        Dataset(cfg)


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
