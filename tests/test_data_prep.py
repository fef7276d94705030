"""data_prep.py: sources, tokenizers, the vocabulary map, datasets and what a run reads of them."""
import gzip
import http.server
import json
import lzma
import math
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import CLONES, arguments, family, plain, run, script, settings, write_bpe, write_text
from faults import tar
from hypothesis import given
from hypothesis import strategies as st

import data_prep
from config import UserError
from data_prep import Dataset, Sampler, is_test, load_tokenizer, prepare, tei_text, vocabulary_map

def read(source, *args):
    return list(data_prep.documents_of(str(source), *args))

def prepared(**overrides):
    cfg = settings(**overrides)
    prepare(cfg)
    return Dataset(cfg)

@given(st.text('a. \n\t\r\u00a0\u2003\u3000\x1c', max_size=40))
def test_white_space_is_normalised_as_line_by_line_and_word_by_word(text):
    assert data_prep.cleaned('\ufeff' + text) == plain(text)

ZSTD = 'compression.zstd' if sys.version_info >= (3, 14) else 'backports.zstd'
PACKED = ['', '.gz', '.xz', '.zst']

def pack(kind, content):
    if kind == '.zst':
        return pytest.importorskip(ZSTD).compress(content)
    return {'': bytes, '.gz': gzip.compress, '.xz': lzma.compress}[kind](content)

@pytest.mark.parametrize('kind', PACKED)
def test_files_lines_and_archives_give_the_same_documents_however_packed(kind, alone, documents):
    texts = {'.hidden.txt': b'hidden', 'not_text.py': b'code'}
    texts |= {f'{i}.txt': text.encode() for i, text in enumerate(documents[:5])}
    lines = '\n'.join(json.dumps({'id': 1, 'story': text}) for text in documents[:5])
    files = {f'txt/{name}{kind}': text for name, text in texts.items() if name != 'not_text.py'}
    files[f'all.tar{kind}'] = tar({f'folder/{name}': text for name, text in texts.items()})
    files[f'all.jsonl{kind}'] = lines.encode()
    Path('txt').mkdir()
    for name, content in files.items():
        Path(name).write_bytes(pack(kind, content))
    for source in ('txt/*', f'**/txt/*.txt{kind}', f'all.tar{kind}', f'all.jsonl{kind}:story'):
        assert read(source) == documents[:5], source

@pytest.mark.parametrize('kind', PACKED[1:])
def test_a_packed_file_that_was_cut_off_is_refused(kind, alone, documents):
    packed = pack(kind, documents[0].encode())
    for i in range(1, len(packed), 97):
        Path(f'half.txt{kind}').write_bytes(packed[:i])
        with pytest.raises(UserError, match=f'half.txt{kind} cannot be read .*must be complete'):
            read(f'half.txt{kind}')

def test_rows_of_a_parquet_table_are_documents(alone, documents):
    pyarrow = pytest.importorskip('pyarrow')
    from pyarrow import parquet
    table = pyarrow.table({'n': [1, 2, 3], 'story': [documents[1], None, documents[2]]})
    parquet.write_table(table, 'a.parquet')
    assert read('a.parquet:story') == documents[1:3]
    with pytest.raises(UserError, match="fields are n, story.*text in its field 'text'"):
        read('a.parquet')

def test_documents_that_are_too_short_are_dropped_and_counted(alone):
    write_text(alone / 'short', ['', 'x' * 199, ' \n ', 'y' * 200, '  ' + 'w' * 199 + '\n\n'])
    dropped = []
    assert read('short/*.txt', 200, dropped) == ['y' * 200] and dropped == [0, 199, 0, 199]
    assert prepared(corpora={'en': '*/*.txt'}).meta['corpora']['en']['dropped'] == 4

NOVEL = """<?xml version="1.0"?><TEI xmlns="http://www.tei-c.org/ns/1.0">
<teiHeader><p>not text</p></teiHeader><text><front><p>nor this</p></front><body><div><head>CHAPTER
 I</head><quote><l>A line </l><l> of verse</l><p>by <hi>me</hi>.</p></quote>
<p>Para&amp;graph  <pb n="2"/>one.</p><p><l>inner</l> verse</p><p/></div></body>
<back><p>nor that</p></back></text></TEI>"""

def test_tei_is_its_bodys_paragraphs_headings_and_verse():
    lines = ['CHAPTER I', 'A line', 'of verse', 'by me.', 'Para&graph one.', 'inner verse']
    assert tei_text(NOVEL, 'x').split('\n') == lines
    with pytest.raises(UserError, match='x cannot be read .*must be a TEI document'):
        tei_text('<TEI/>', 'x')

def test_an_eltec_release_is_read_only_if_it_holds_the_novels_that_git_has(alone, monkeypatch):
    Path('data').mkdir()
    novels = {'level1/a.xml': NOVEL.replace('CHAPTER', 'PART'), 'level1/b.xml': NOVEL}
    with zipfile.ZipFile('data/ELTeC-xyz-v1.zip', 'w') as archive:  # laid out as GitHub does
        for name in ('level1/b.xml', 'level1/a.xml', 'README.md'):
            archive.writestr(f'ELTeC-xyz-1/{name}', novels.get(name, 'not a novel'))
    blobs = [run('git', 'hash-object', '--stdin', input=text).out[:-1] for text in novels.values()]
    monkeypatch.setitem(data_prep.ELTEC, 'xyz', f'v1 {data_prep.short_hash(blobs)[:8]}')
    assert [text[:6] for text in read('eltec:xyz')] == ['PART I', 'CHAPTE']
    monkeypatch.setitem(data_prep.ELTEC, 'xyz', 'v1 00000000')
    with pytest.raises(UserError, match='its novels have checksum .*remove it'):
        read('eltec:xyz')

def write_hub(name, texts):
    """A folder that the package datasets reads like a data set of the hub."""
    pytest.importorskip('datasets').disable_progress_bars()
    Path('hub').mkdir(exist_ok=True)
    Path('hub', name).write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))

def test_a_hub_data_set_is_read_as_far_as_training_needs(alone, documents):
    write_hub('train.jsonl', [f'Book {i}. {documents[i % 40][:400]}' for i in range(2000)])
    write_hub('validation.jsonl', documents[:1])
    assert read('hf:hub:text::validation') == documents[:1]
    hub = {'corpora': {'en': 'hf:hub'}}
    more, less = (prepared(**hub, max_iters=n, dataset=f'{n}').meta['corpora']['en']
                  for n in (500, 50))
    assert more['train_documents'] + more['test_documents'] < 2000
    assert more['train'][1] >= 500 * 8 * 32
    assert more['test_documents'] == data_prep.HUB_TEST_DOCUMENTS // 10
    assert less['train'][1] == math.ceil(1.02 * 50 * 8 * 32) and less['test'] == more['test']

class GatedHub(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(403)
        self.send_header('X-Error-Code', 'GatedRepo')
        self.end_headers()

def test_a_gated_hub_data_set_says_so_in_one_line(alone):
    pytest.importorskip('datasets', reason='the optional package datasets is not installed')
    with http.server.HTTPServer(('127.0.0.1', 0), GatedHub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        hub = {'HF_ENDPOINT': f'http://127.0.0.1:{server.server_port}', 'HF_HUB_OFFLINE': '0'}
        result = script('data_prep.py', "--corpora={'en': 'hf:secret/books'}", env=os.environ | hub)
        server.shutdown()
    assert result.status == 1 and result.err.count('\n') == 1, result.err
    assert 'hf:secret/books cannot be read (GatedRepoError' in result.err

def test_the_commit_of_a_hub_data_set_identifies_it(alone):
    for commit in ('a' * 40, 'b' * 40):
        store = Path('data/.cache') / f'hub-{data_prep.short_hash(["x/y@" + commit])}'
        store.mkdir(parents=True)
        (store / 'commit').write_text(commit)
        assert data_prep.fingerprint(f'hf:x/y@{commit}') == [f'hf:x/y@{commit}', commit]

def test_a_hub_data_set_whose_connection_broke_resumes_where_it_ended(alone, documents):
    books = [data_prep.cleaned(f'Book {i}. {documents[i % 40]}') for i in range(1000)]
    write_hub('train-1.jsonl', books[:500])
    Path('hub/train-2.jsonl').write_text('{broken')
    with pytest.raises(UserError, match='hf:hub cannot be read .*the rows read so far are kept'):
        read('hf:hub')
    write_hub('train-1.jsonl', 400 * ['not read again'] + books[400:500])
    write_hub('train-2.jsonl', books[500:])
    assert read('hf:hub') == books
    shutil.rmtree('hub')  # what has been read is kept
    assert read('hf:hub') == books

@pytest.mark.parametrize('source, content, says', [
    ('bad/latin.txt', 'café\n'.encode('latin-1'), 'latin.txt cannot be read .UnicodeDecodeError'),
    ('bad/lines.jsonl', b'{"text": "a"}\n{"text": ', 'lines.jsonl, line 2 cannot be read'),
    ('bad/lines.jsonl', b'{"story": "a", "n": 1}', 'its fields are story, n'),
    ('bad/lines.jsonl:n', b'{"n": 1}', "it must be an object with text in its field 'n'"),
    ('bad/empty.txt', b'', 'fewer than two documents'),
    ('bad/one.txt', b'One document. ' * 3000, 'fewer than two documents'),
    ('bad/page.html', b'<p>', 'page.html: must be .txt'),
    ('nothing/*.txt', b'', 'no such file; a source is a glob'),
    ('hf:', b'', 'must be hf:DATASET'), ('eltec:english', b'', 'ELTeC has cze, deu, eng')])
def test_a_bad_source_is_refused_and_leaves_nothing_half_made(source, content, says, alone):
    Path('bad').mkdir()
    Path('bad', os.path.basename(source).partition(':')[0] or 'unused').write_bytes(content)
    write_bpe(alone / 'bytes.tiktoken', BYTES)
    with pytest.raises(UserError, match=says):
        prepare(settings(corpora={'en': source}, tokenizer='tiktoken:bytes.tiktoken'))
    assert not [path for path in Path('data').rglob('*') if path.is_file()]

TEXT = 'Ünïcödé, 日本語 \U0001f600\nline two\r\n  indented \n\nno-blank-at-all\n\n\ttabs\t'

BYTES = [bytes([i]) for i in range(256)]

def test_sentencepiece_is_lossless_and_one_that_exists_is_taken_as_it_is(alone, documents):
    data_prep.train_tokenizer(documents, alone / 'one.model', 500)
    tokenizer = load_tokenizer(alone / 'one.model')
    for text in (documents[0], TEXT, ' leading, trailing '):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.eod not in tokenizer.encode('</s>' + documents[0])
    assert prepared(tokenizer='one.model').meta['vocab_size'] == len(tokenizer.pieces) == 500
    assert Path('data/tiny/en.model').read_bytes() == Path('one.model').read_bytes()

def test_tiktoken_is_read_from_a_ranks_file(alone):
    write_bpe(alone / 'x.tiktoken', [*BYTES, b'th', b' th', b' the'])
    tokenizer = load_tokenizer(alone / 'x.tiktoken')
    assert tokenizer.encode('the the') == [256, ord('e'), 258]
    assert (tokenizer.vocab_size, tokenizer.eod, tokenizer.pieces[257]) == (260, 259, ' th')
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert prepared(tokenizer='tiktoken:x.tiktoken').meta['vocab_size'] == 260

@pytest.mark.parametrize('changes, says', [
    ({'tokenizer': 'no.model'}, 'must be a SentencePiece model'),
    ({'tokenizer': 'text/00.txt'}, 'must be sentencepiece'),
    ({'tokenizer': 'tiktoken:text/00.txt'}, 'must be lines of base64'),
    ({'tokenizer': 'tiktoken:no_such_encoding'}, 'name a ranks file'),
    ({'vocab_size': 60000}, 'vocab_size 60000 does not fit the text: .*<= ')])
def test_a_bad_tokenizer_is_refused(changes, says, alone):
    with pytest.raises(UserError, match=says):
        prepare(settings(**changes))
    assert not Path('data/tiny').exists()

def test_test_share_is_held_out_by_whole_documents():
    chosen = [is_test(i, 0.05, seed=3) for i in range(10_000)]
    assert sum(chosen) == 500 and chosen != [is_test(i, 0.05, seed=4) for i in range(10_000)]
    assert all(is_test(0, 0.05, n) != is_test(1, 0.05, n) for n in range(20))  # two suffice

def test_dataset_holds_every_document_once_in_its_part(here, documents):
    dataset, tokenizer = prepared(), load_tokenizer('data/tiny/en.model')
    for part, ids in dataset.tokens.items():
        *ends, last = np.flatnonzero(ids == tokenizer.eod)
        assert last == len(ids) - 1
        found = np.split(ids[:-1], np.add(ends, 1))
        texts = [tokenizer.decode(ids.tolist()) for ids in found]
        mine = [i for i in range(40) if is_test(i, 0.1, 0) == (part == 'test')]
        assert texts == [documents[i] for i in mine]
        n_bytes = sum(len(text.encode()) for text in texts)
        assert dataset.meta['corpora']['en'][f'{part}_bytes'] == n_bytes

def test_a_second_dataset_over_a_corpus_shares_its_tokens(here, capsys):
    prepared()
    capsys.readouterr()
    prepared(**CLONES | {'dataset': 'second'})
    assert 'training' not in capsys.readouterr().out
    assert os.path.samefile('data/second/train.bin', 'data/tiny/train.bin')

def test_two_corpora_follow_each_other_and_keep_their_languages(alone, documents):
    write_text(alone / 'fr', map(str.upper, documents[:6]))
    p, of = (0.5, 0.3, 0.2), ('en', 'fr', 'en')
    dataset = prepared(corpora={'en': 'text/*.txt', 'fr': 'fr/*.txt'},
                       schedule=[(0.0, (0.8, 0.1, 0.1)), (0.5, (0.2, 0.5, 0.3))],  # p in all
                       languages=[(f'L{i}', corpus) for i, corpus in enumerate(of)])
    corpora, tokens, vocab_map = dataset.meta['corpora'], dataset.tokens, dataset.vocab_map
    for part in ('train', 'test'):
        (_, end), (start, last) = (corpora[name][part] for name in ('en', 'fr'))
        assert end == start and last == len(tokens[part])
    en, fr = ((corpora[name]['train_tokens'] - 1) // 32 for name in ('en', 'fr'))
    first = round(en * 5 / 7)
    assert [len(pool) for pool in dataset.pools] == [first, fr, en - first]
    assert sorted(np.concatenate(dataset.pools)) == list(range(en + fr))
    assert 0.4 < (dataset.pools[2] < en / 2).mean() < 0.6  # spread over the text
    frequency = Counter()
    for language, corpus in enumerate(of):
        start, end = corpora[corpus]['train']
        text = tokens['train'][start:end].tolist()
        assert dataset.ids_in_text(language) == len(set(text))
        for token in text:
            frequency[vocab_map[language, token]] += p[language] / len(text)
        # the windows of this language are consecutive and end with their target
        sequences = dataset.pools[language][:3]
        x, y = dataset.batch(sequences, np.full(3, language))
        for row, n in enumerate(sequences - (en if corpus == 'fr' else 0)):
            ids = vocab_map[language, text[32 * n:32 * n + 33]]
            assert (x[row] == ids[:-1]).all() and (y[row] == ids[1:]).all()
    expected = [frequency[i] for i in range(1200)]
    np.testing.assert_allclose(dataset.frequency(p), expected)

def test_a_shared_tokenizer_gives_all_corpora_the_same_ids_and_clones_their_own(alone, documents):
    write_text(alone / 'up', map(str.upper, documents[:20]))
    dataset = prepared(corpora={'en': 'text/*.txt', 'up': 'up/*.txt'}, tokenizer='shared',
                       languages=[('EN1', 'en'), ('UP', 'up'), ('EN2', 'en')], vocab_size=500,
                       schedule=[(0.0, (0.5, 0.3, 0.2))])
    assert (dataset.vocab_map == np.arange(500) + [[0], [0], [500]]).all()
    assert Path('data/tiny/en.model').read_bytes() == Path('data/tiny/up.model').read_bytes()
    encode = load_tokenizer('data/tiny/up.model').encode
    assert len(encode(documents[25].upper())) < 1.6 * len(encode(documents[25]))  # knows both

def test_the_box_prepares_to_the_same_data_on_every_machine(alone, monkeypatch):
    monkeypatch.setattr(data_prep, 'TOKENIZER_BYTES', 500_000)
    for workers in (1, 3):
        dataset = prepared(dataset=f'box{workers}', corpora={'en': 'corpora/eltec-eng.tar.xz'},
                           max_tokens=100_000, num_workers=workers)
        assert data_prep.data_checksum(dataset.meta) == 'sha256 7ed25e0d144d5154'
        shutil.rmtree('data/.cache')

START = """import multiprocessing, sys, config, data_prep
multiprocessing.set_start_method({!r})
data_prep.prepare(config.load(sys.argv[1:]))"""

@pytest.mark.parametrize('method', multiprocessing.get_all_start_methods())
def test_preparation_works_with_every_start_method_and_its_workers_end_with_it(method, alone):
    expected = prepared(dataset='expected')
    shutil.rmtree('data/.cache')
    command = [sys.executable, '-c', START.format(method), *arguments()]
    result = run(*command)
    assert result.status == 0 and not result.err, result.err
    for part, tokens in Dataset(settings()).tokens.items():
        assert (tokens == expected.tokens[part]).all()
    command += ['--overwrite', '--tokenizer=en.model', "--corpora={'en': 'corpora/eltec-eng*'}"]
    os.rename('data/tiny/en.model', 'en.model')
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    while len(family(process.pid)) < 3:
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(1)  # they are at work
    process.kill()
    process.communicate(timeout=60)  # ends with the last of its workers, as they hold its output

def test_a_disk_that_fills_up_leaves_nothing_half_made(alone):
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    result = script('data_prep.py', *arguments(), preexec_fn=limit)  # no file beyond 100 kB
    assert result.status == 1 and 'File too large' in result.err
    assert [path.name for path in Path('data').rglob('*.*') if path.is_file()] == ['bpe.model']

def test_ten_clones_do_not_wrap_uint16(alone):
    two = [bytes([a, b]) for a in range(97, 224) for b in range(97, 224)][:16384 - 257]
    write_bpe(alone / 'big.tiktoken', BYTES + two)
    dataset = prepared(tokenizer='tiktoken:big.tiktoken',
                       schedule=[(0.0, 10 * (0.1,))],
                       languages=[(f'EN{i}', 'en') for i in range(10)])
    assert dataset.meta['vocab_size'] == 163_840 and dataset.tokens['train'].dtype == np.uint16
    highest = 0
    for language, pool in enumerate(dataset.pools):
        ids = np.stack(dataset.batch(pool, np.full(len(pool), language)))
        assert ids.dtype == np.int64 and (ids // 16384 == language).all()
        highest = max(highest, ids.max())
    assert highest > 9 * 16384 > 65535

@pytest.mark.parametrize('changes, says', [
    ({'schedule': [0.5]}, 'must be a list'), ({'languages': []}, 'must be a list'),
    ({'languages': 2 * [('EN1', 'en')]}, 'different names'),
    ({'languages': [('EN1', 'en'), ('FR', 'fr')]}, 'every corpus and no others'),
    ({'corpora': {'en': 'x', 'fr': 'x'}}, 'every corpus and no others'),
    ({'corpora': {'../en': 'x'}, 'languages': [('EN', '../en')]}, 'plain names'),
    ({'corpora': {'en': 1}}, 'strings as sources'), ({'vocab': 'merged'}, 'vocab must be'),
    ({'anchor_frac': 1.5}, 'anchor_frac'), ({'test_frac': 0.0}, 'test_frac'),
    ({'dataset': '../outside'}, 'dataset must be'), ({'dataset': '.cache'}, 'dataset must be')])
def test_languages_that_make_no_sense_are_refused(changes, says):
    with pytest.raises(UserError, match=says):
        data_prep.check_languages(settings(**CLONES | changes))

def test_a_run_draws_languages_by_the_schedule_and_another_seed_draws_others():
    schedule = [(0.0, (0.9, 0.1)), (0.5, (0.1, 0.9))]
    run, other = (Sampler([np.arange(900)] * 2, schedule, 16, 1000, seed) for seed in (0, 1))
    drawn = np.array([run.next(step)[1].sum() for step in range(1000)])
    for stage, p in ((drawn[:500], 0.1), (drawn[500:], 0.9)):
        assert abs(stage.sum() - 8000 * p) < 4 * np.sqrt(8000 * p * (1 - p))  # sampling error
    assert (run.languages(0) != other.languages(0)).any()
    assert (run.order(0, 0) != other.order(0, 0)).any()

@st.composite
def schedules(draw):
    """Languages and a valid schedule for them."""
    n = draw(st.integers(1, 5))
    starts = [0.0, *sorted(draw(st.sets(st.integers(1, 99), max_size=3)))]
    weights = st.lists(st.integers(0, 9), min_size=n, max_size=n).filter(any)
    stages = [(start, draw(weights)) for start in starts]
    return ([(f'L{i}', 'en') for i in range(n)],
            [(start / 100, tuple(w / sum(ws) for w in ws)) for start, ws in stages])

@given(schedules())
def test_any_schedule_is_accepted_and_its_marginals_are_the_mean_of_its_steps(drawn):
    languages, schedule = drawn
    data_prep.check_languages(settings(languages=languages, schedule=schedule))
    run = Sampler([np.arange(5)] * len(languages), schedule, 4, 100, 0)
    mean = np.mean([run.p(step) for step in range(100)], 0)
    np.testing.assert_allclose(data_prep.marginals(schedule), mean, atol=1e-9)

@given(schedules(), st.integers(0, 3), st.sampled_from([0.2, -0.2, 1.0, math.nan, math.inf]))
def test_any_schedule_with_a_wrong_number_is_refused(drawn, stage, off):
    languages, schedule = drawn
    stage %= len(schedule)
    start, ps = schedule[stage]
    wrong = [*schedule[:stage], (start, (ps[0] + off, *ps[1:])), *schedule[stage + 1:]]
    not_rising, late = [*schedule, schedule[-1]], [(start + 0.005, ps) for start, ps in schedule]
    for bad in (wrong, not_rising, late, [(start, ps[1:]) for start, ps in schedule]):
        with pytest.raises(UserError, match='^schedule'):
            data_prep.check_languages(settings(languages=languages, schedule=bad))

@given(schedules(), st.data())
def test_any_sampler_reads_each_pool_in_whole_epochs_and_goes_on_from_its_counts(drawn, data):
    languages, schedule = drawn
    pools = [100 * i + np.arange(data.draw(st.integers(1, 30))) for i in range(len(languages))]
    batch_size, seed, split = (data.draw(st.integers(low, high))
                               for low, high in ((1, 12), (0, 99), (0, 20)))
    whole, resumed = (Sampler(pools, schedule, batch_size, 20, seed) for _ in range(2))
    seen = [[] for _ in pools]
    for step in range(20):
        if step == split:
            resumed.read[:] = whole.read
        sequences, of = whole.next(step)
        assert len(sequences) == batch_size and (whole.p(step)[of] > 0).all()
        for sequence, language in zip(sequences, of):
            seen[language].append(sequence)
        if step >= split:
            again = resumed.next(step)
            assert (again[0] == sequences).all() and (again[1] == of).all()
    assert whole.read.tolist() == [len(s) for s in seen] and whole.read.sum() == 20 * batch_size
    epochs = [len(read) / len(pool) for pool, read in zip(pools, seen)]
    assert whole.epochs_of_run().tolist() == epochs
    assert whole.epochs_begun().tolist() == [math.ceil(n) for n in epochs]
    for pool, read in zip(pools, seen):
        for i in range(0, len(read), len(pool)):
            counts = Counter(read[i:i + len(pool)])
            assert set(counts) <= set(pool.tolist()) and set(counts.values()) == {1}

@given(st.data(), st.sampled_from(['disjoint', 'anchored']), st.floats(0, 1), st.integers(0, 9))
def test_any_vocabulary_map_is_compact_and_shares_what_it_should_and_nothing_else(
        data, vocab, anchor_frac, seed):
    words = st.lists(st.sampled_from('abcdefghijklmnop'), min_size=1, unique=True)
    pieces = data.draw(st.dictionaries(st.sampled_from(['en', 'fr', 'de']), words, min_size=1))
    clones = data.draw(st.lists(st.sampled_from(list(pieces)), max_size=3))
    corpora = [*pieces, *clones]
    languages = [(f'L{i}', corpus) for i, corpus in enumerate(corpora)]
    vocab_map = vocabulary_map(languages, pieces, vocab, anchor_frac, seed)
    assert set(vocab_map.flat) - {-1} == set(range(vocab_map.max() + 1))
    for number, (row, corpus) in enumerate(zip(vocab_map, corpora)):
        V, anchors = len(pieces[corpus]), round(anchor_frac * len(pieces[corpus]))
        assert len(set(row[:V].tolist())) == V and (row[:V] >= 0).all() and (row[V:] == -1).all()
        for other, of in zip(vocab_map[:number], corpora):
            places = [(i, j) for i in range(V) for j in range(len(pieces[of]))]
            pairs = {(i, j) for i, j in places if row[i] == other[j]}
            if of == corpus:  # a clone shares its anchors, each with itself
                assert all(i == j for i, j in pairs) and len(pairs) == anchors
            elif number < len(pieces):  # two corpora: equal pieces or none
                equal = {(i, j) for i, j in places if pieces[corpus][i] == pieces[of][j]}
                assert pairs == (equal if vocab == 'anchored' else set())

def replace(path, old, new):
    content = Path(path).read_bytes()
    assert old in content
    Path(path).chmod(0o644)
    Path(path).write_bytes(content.replace(old, new, 1))

@pytest.mark.parametrize('name, old, new, says', [
    ('train_lang.bin', b'\0', b'!', 'train_lang.bin has changed'),
    ('meta.json', b'": 32', b'": 31', 'meta.json has changed'),
    ('meta.json', b'version": 2', b'version": 1', 'its format is 1, not 2'),
    ('meta.json', b'}', b'', 'meta.json cannot be read')])
def test_a_dataset_that_is_damaged_or_of_an_old_format_is_refused(name, old, new, says, alone):
    prepared()
    replace(f'data/tiny/{name}', old, new)
    with pytest.raises(UserError, match=f'data/tiny.*{says}.*data_prep.py'):
        Dataset(settings())

def test_a_dataset_that_is_missing_or_made_from_damaged_tokens_is_refused(alone):
    prepared()
    path, = Path('data/.cache').glob('en-*/test.bin')
    replace(path, path.read_bytes()[:2], b'!!')
    shutil.rmtree('data/tiny')
    with pytest.raises(UserError, match='data/tiny is missing: make it with data_prep.py'):
        Dataset(settings())
    with pytest.raises(UserError, match='test.bin has changed .*remove data/.cache/en-'):
        prepared()

@pytest.mark.parametrize('key, value', [('block_size', 64), ('vocab_size', 450),
                                        ('anchor_frac', 0.1), ('schedule', [(0.0, (0.5, 0.5))])])
def test_what_is_there_is_left_alone_or_refused_unless_overwritten(key, value, alone):
    prepared(**CLONES)
    before = os.stat('data/clones/meta.json').st_mtime_ns
    prepared(**CLONES)
    with pytest.raises(UserError, match=f'made with {key.replace("schedule", "p_language")} = '):
        prepare(settings(**CLONES | {key: value}))
    assert os.stat('data/clones/meta.json').st_mtime_ns == before
    prepared(**CLONES | {key: value, 'overwrite': True})
