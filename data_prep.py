"""
Text in, token ids and languages out: corpora -> data/<dataset>/

    python data_prep.py config/cloned_90_10.py            # the dataset of a config
    python data_prep.py --vocab_size=512 --dataset=small  # the novels in corpora/
    python data_prep.py --corpora="{'en': 'web/*.jsonl.zst:content'}"

train.bin, test.bin  uint16: base token ids, corpus after corpus; eod ends every document
train_lang.bin       uint8: the language of every training sequence
vocab_map.npy        int32 (n_languages, base vocabulary): base id -> model id
meta.json            languages, corpora with their token ranges, settings, counts, checksums
en.model, ...        the tokenizer of each corpus

A clone's ids are offset when a batch is read: ten clones of 16,384 pieces exceed uint16. Tokens
are kept in data/.cache, for all datasets over the same corpus and tokenizer.
"""
import base64
import contextlib
import glob
import gzip
import hashlib
import importlib
import io
import itertools
import json
import lzma
import math
import multiprocessing
import os
import re
import shutil
import sys
import tarfile
import threading
import urllib.request
import zipfile
from collections import Counter, deque
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

import config
from config import UserError, reading

FORMAT_VERSION = 2
ROOT = Path(__file__).resolve().parent
DATA = Path('data')
CACHE, PARTIAL = DATA / '.cache', DATA / '.partial'
TOKENIZER_BYTES = 100_000_000  # of text to train a tokenizer on
HUB_SHARD = 200  # rows of a hub data set per cached file
HUB_TEST_DOCUMENTS = 1000  # the test text is drawn from these, however far training reads

# ---- files: complete or absent, even after a kill or on a full disk ----------

@contextlib.contextmanager
def locked(path, busy, remedy=''):
    """Hold the lock file `path`. If another process does, say what is busy, and by whom; then
    wait, or give up if there is a remedy."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)  # the kernel's: a killed process releases it
    try:
        lock.acquire(blocking=False)
    except Timeout:
        with contextlib.suppress(OSError):
            busy += f' by {path.read_text()[:100] or "another process"}'
        if remedy:
            raise UserError(f'{busy}: {remedy}') from None
        print(f'{busy}: waiting', flush=True)
        lock.acquire()
    try:
        path.write_text(f'process {os.getpid()} on {os.uname().nodename}')
        yield
    finally:
        path.unlink(missing_ok=True)  # while held: filelock notices
        lock.release()

def atomic_write(path, write, previous=None):
    """write(temporary path), rename it to path, and the file before to `previous`."""
    aside = path.with_name(path.name + '.partial')
    with locked(path.with_name(path.name + '.lock'), f'{path} is being written'):
        try:
            write(aside)
            with open(aside, 'rb+') as f:
                os.fsync(f.fileno())
            if previous and path.exists():
                os.replace(path, previous)
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

@contextlib.contextmanager
def building(path, overwrite=False, partial=PARTIAL):
    """Yields a new folder that will be moved to `path`, or None if `path` exists."""
    aside = partial / path.name
    with locked(partial / f'{path.name}.lock', f'{path} is being made'):
        shutil.rmtree(aside, ignore_errors=True)  # of a killed process
        if path.exists() and not overwrite:
            yield None
            return
        aside.mkdir()
        try:
            yield aside
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(path, ignore_errors=True)
            aside.rename(path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

def checksum(path):
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()

def short_hash(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]

def write_meta(folder, meta):
    """Write meta.json, with checksums of all files and of itself."""
    files = {f.name: [f.stat().st_size, checksum(f)] for f in sorted(folder.iterdir())}
    meta = {'format_version': FORMAT_VERSION, **meta, 'files': files}
    meta['checksum'] = short_hash(meta)
    (folder / 'meta.json').write_text(json.dumps(meta, indent=1) + '\n')
    return meta

def read_meta(folder, remedy, verify='*'):
    """meta.json of a folder, if its files are unchanged: all by size, those in `verify` ('*': all)
    by checksum."""
    meta = config.read_json(folder / 'meta.json', remedy) or {}
    with reading(folder, remedy):
        if (version := meta.get('format_version')) != FORMAT_VERSION:
            raise ValueError(f'its format is {version}, not {FORMAT_VERSION}')
        if meta.pop('checksum') != short_hash(meta):
            raise ValueError('meta.json has changed since it was written')
        for name, (size, sha256) in meta['files'].items():
            path, check = folder / name, verify == '*' or name in verify
            if path.stat().st_size != size or check and checksum(path) != sha256:
                raise ValueError(f'{name} has changed since it was written')
    return meta

def require(package, user, install=''):
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f'{user} needs a package: pip install {install or package}') from None

def open_zstd(path, mode):
    package = 'compression.zstd' if sys.version_info >= (3, 14) else 'backports.zstd'
    return require(package, path).open(path, mode)

OPEN = {'': open, '.gz': gzip.open, '.xz': lzma.open, '.zst': open_zstd}

def suffixes(path):
    """The kind of a file and its compression: ('.jsonl', '.gz')."""
    stem, suffix = os.path.splitext(str(path).replace('.tgz', '.tar.gz'))
    return (os.path.splitext(stem)[1], suffix) if suffix in OPEN else (suffix, '')

@contextlib.contextmanager
def opened(path):
    """The bytes of a file, decompressed, as a stream."""
    unpack = OPEN[suffixes(path)[1]]
    with reading(path, 'it must be complete, and text in UTF-8'), unpack(path, 'rb') as stream:
        yield stream

# ---- sources: each is a generator of documents, strings, in a fixed order ----

KINDS = '.txt, .jsonl or .tar (plain, .gz, .xz or .zst) or .parquet'
HUB = 'hf:DATASET[@REVISION][:FIELD[:SUBSET[:SPLIT]]]'

def find_files(source):
    """GLOB[:FIELD] -> files of the working directory, or else the repository; the field."""
    pattern, _, field = source.rpartition(':')
    if not pattern or not field.isidentifier() or os.path.exists(source):
        pattern, field = source, 'text'
    paths = []
    for place in ('', glob.escape(str(ROOT))):
        found = glob.glob(os.path.join(place, os.path.expanduser(pattern)), recursive=True)
        paths = paths or sorted(filter(os.path.isfile, found))
    if not paths:
        raise UserError(f'corpus source {source!r}: no such file; a source is a glob of {KINDS} '
                        f'files, eltec:LANGUAGE ({", ".join(ELTEC)}), or {HUB}')
    for path in paths:
        if suffixes(path)[0] not in ('.txt', '.jsonl', '.tar', '.parquet'):
            raise UserError(f'{path}: must be {KINDS}; narrow the glob {pattern!r}')
    return paths, field

def text_of(record, field, where):
    """A field of a record, without lone surrogates; null is empty."""
    with reading(where, f'it must be an object with text in its field {field!r}'):
        if field not in record:
            raise ValueError(f'its fields are {", ".join(record)}')
        return (record[field] or '').encode('utf-8', 'ignore').decode()

def documents_in(stream, name, field):
    """The documents of a file: a whole .txt, each line of a .jsonl, each row of a .parquet; of a .tar,
    those of its .txt and .jsonl files."""
    kind, _ = suffixes(name)
    if kind == '.txt':
        yield stream.read().decode()
    elif kind == '.jsonl':
        for number, line in enumerate(stream, 1):
            if line.strip():
                where = f'{name}, line {number}'
                with reading(where, 'it must be JSON'):
                    record = json.loads(line)
                yield text_of(record, field, where)
    elif kind == '.parquet':
        require('pyarrow', name)
        from pyarrow.parquet import ParquetFile
        table = ParquetFile(stream)
        columns = [field] if field in table.schema_arrow.names else None  # all: to name them
        for batch in table.iter_batches(64, columns=columns):
            for record in batch.to_pylist():
                yield text_of(record, field, f'a row of {name}')
    else:
        with tarfile.open(fileobj=stream, mode='r|') as tar:  # nothing is unpacked to disk
            for member in tar:
                visible = re.search(r'(^|/)[^./][^/]*\.(txt|jsonl)$', member.name)
                if visible and member.isfile():
                    file = tar.extractfile(member)
                    yield from documents_in(file, f'{name}, {member.name}', field)

def file_documents(paths, field):
    for path in paths:
        with opened(path) as stream:
            yield from documents_in(stream, str(path), field)

# European Literary Text Collection: language -> release, checksum of its novels.
# These are ELTeC 1.1.0 (April 2021) and Italian; the texts have changed since.
ELTEC = {
    'cze': 'v1.0.0 c03fae9e', 'deu': 'v1.0.0 96f9b738', 'eng': 'v1.0.1 72cacd2e',
    'fra': 'v1.0.1 6e6c509b', 'hun': 'v2.0.0 01016c1a', 'ita': 'v0.3.0 0f6fb498',
    'nor': 'v0.5.0 32eb0606', 'pol': 'v1.0.0 ca03d4e4', 'por': 'v2.0.0 07d8f462',
    'rom': 'v0.9.0 31fd03ea', 'slv': 'v2.0.0 7f1dc315', 'spa': 'v0.9.1 c2412d34',
    'srp': 'v0.9.0 c53099cb', 'swe': 'v0.7.1 8f58b31b', 'ukr': 'v0.5.0 620e7dd3'}

def eltec_documents(source):
    """One document per novel of a language's release, downloaded on first use."""
    language = source.removeprefix('eltec:')
    if language not in ELTEC:
        raise UserError(f'corpus source {source!r}: ELTeC has {", ".join(ELTEC)}')
    tag, expected = ELTEC[language].split()
    path = DATA / f'ELTeC-{language}-{tag}.zip'
    if not path.exists():
        url = f'https://github.com/COST-ELTeC/ELTeC-{language}/archive/refs/tags/{tag}.zip'
        print(f'{source}: downloading {url}', flush=True)
        with reading(url, f'download it elsewhere and save it as {path}'):
            atomic_write(path, lambda aside: urllib.request.urlretrieve(url, aside))
    with reading(path, 'remove it to download it again'), zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if re.search(r'/level1/.*\.xml$', name)]
        novels = map(archive.read, sorted(names))
        # their ids in git, as `git ls-tree -r v1.0.1 level1` of the collection lists them
        ids = [hashlib.sha1(b'blob %d\0' % len(novel) + novel).hexdigest() for novel in novels]
        if not short_hash(ids).startswith(expected):
            raise ValueError(f'its novels have checksum {short_hash(ids)}, not {expected}')
        for name in sorted(names):
            yield tei_text(archive.read(name), f'{path}, {name}')

def tei_text(xml, name):
    """A line for every paragraph, heading and verse line of a TEI document."""
    tei = '{http://www.tei-c.org/ns/1.0}'
    with reading(name, 'it must be a TEI document'):
        body, = ElementTree.fromstring(xml).iter(f'{tei}body')
    lines, inside = [], set()
    for element in body.iter():
        if element.tag in (f'{tei}p', f'{tei}head', f'{tei}l') and element not in inside:
            inside.update(element.iter())  # no verse line in a paragraph twice
            lines.append(' '.join(''.join(element.itertext()).split()))
    return '\n'.join(filter(None, lines))

def hub_store(source):
    """Where the rows of a hub data set are cached; its name, field, subset, split, commit."""
    parts = source.removeprefix('hf:').split(':')
    if not parts[0] or len(parts) > 4:
        raise UserError(f'corpus source {source!r}: must be {HUB}')
    dataset, field, subset, split = parts + [''] * (4 - len(parts))
    name, _, revision = dataset.partition('@')
    store = CACHE / f'hub-{short_hash(parts)}'
    if not (path := store / 'commit').exists():
        require('datasets', source)
        from huggingface_hub import dataset_info
        with reading(source, 'try again online'):
            local = os.path.isdir(name)  # a folder has no commits
            commit = '' if local else dataset_info(name, revision=revision or None).sha
        atomic_write(path, lambda aside: aside.write_text(commit))
    commit = path.read_text() or None
    return store, name, field or 'text', subset or None, split or 'train', commit

def hub_documents(source):
    """One document per row. Rows are cached: the next pass resumes after them."""
    store, name, field, subset, split, commit = hub_store(source)
    shards = sorted(store.glob('*.jsonl.gz'))
    yield from file_documents(shards, field)
    if (store / 'complete').exists():
        return
    load_dataset = require('datasets', source).load_dataset
    start = len(shards) * HUB_SHARD
    with reading(source, 'the rows read so far are kept; try again online'):
        rows = load_dataset(name, subset, split=split, revision=commit, streaming=True)
        rows = enumerate(rows.skip(start) if start else rows, start + 1)
        while shard := list(itertools.islice(rows, HUB_SHARD)):
            texts = [text_of(row, field, f'{source}, row {number}') for number, row in shard]
            lines = ''.join(json.dumps({field: text}) + '\n' for text in texts)
            packed = gzip.compress(lines.encode(), mtime=0)
            path = store / f'{start // HUB_SHARD:06}.jsonl.gz'
            atomic_write(path, lambda aside: aside.write_bytes(packed))
            yield from texts
            start += HUB_SHARD
    (store / 'complete').touch()

def documents_of(source, min_chars=1, dropped=None):
    """Documents, cleaned. Lengths of those below min_chars go to `dropped`."""
    if source.startswith('hf:'):
        documents = hub_documents(source)
    elif source.startswith('eltec:'):
        documents = eltec_documents(source)
    else:
        documents = file_documents(*find_files(source))
    for text in map(cleaned, documents):
        if len(text) >= max(1, min_chars):
            yield text
        elif dropped is not None:
            dropped.append(len(text))

def cleaned(text):
    """Normalise whitespace: single spaces, none at line ends, at most one empty line in a row."""
    text = re.sub(r'[^\S\n ][^\S\n]*| [^\S\n]+', ' ', text.removeprefix('\ufeff'))
    text = re.sub(r' ?\n ?', '\n', text)
    return re.sub(r'\n{3,}', '\n\n', text).strip()

# ---- tokenizers: files, .model of SentencePiece or .tiktoken -----------------

def train_tokenizer(documents, path, vocab_size):
    """Train a SentencePiece BPE and write it to path. Decoding restores any text."""
    import sentencepiece
    model = io.BytesIO()
    lines = (line for text in documents for line in text.split('\n') if line.strip())
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, model_type='bpe', vocab_size=vocab_size,
            unk_id=0, eos_id=1, bos_id=-1, pad_id=-1, byte_fallback=True, minloglevel=2,
            character_coverage=0.9995, normalization_rule_name='identity', add_dummy_prefix=False,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            max_sentence_length=1 << 20)
    except RuntimeError as e:
        reason = str(e).split('] ')[-1].strip() or 'too little text'
        raise UserError(f'vocab_size {vocab_size} does not fit the text: {reason}') from None
    path.write_bytes(model.getvalue())

def trained_tokenizer(corpora, cfg):
    """The cached tokenizer, trained on equal amounts of text of each corpus."""
    sources = [cfg.corpora[corpus] for corpus in corpora]
    key = [cfg.vocab_size, cfg.test_frac, cfg.data_seed, cfg.min_chars]
    folder = CACHE / f'tokenizer-{short_hash(key + [fingerprint(source) for source in sources])}'
    with building(folder) as aside:
        if aside:
            print(f'{", ".join(corpora)}: training a BPE of {cfg.vocab_size:,} pieces', flush=True)
            n_bytes = TOKENIZER_BYTES // len(sources)
            texts = [training_text(source, cfg, n_bytes) for source in sources]
            train_tokenizer(itertools.chain(*texts), aside / 'bpe.model', cfg.vocab_size)
    return folder / 'bpe.model'

def tokenizer_file(corpus, cfg):
    """The tokenizer of a corpus: trained, given or tiktoken's (downloaded)."""
    kind, _, name = cfg.tokenizer.partition(':')
    if kind in ('sentencepiece', 'shared'):
        return trained_tokenizer(list(cfg.corpora) if kind == 'shared' else [corpus], cfg)
    if kind.endswith('.model') or kind == 'tiktoken' and os.path.isfile(name):
        return Path(name or kind)
    if kind != 'tiktoken':
        raise UserError(f'tokenizer {cfg.tokenizer!r}: must be sentencepiece, shared, '
                        'FILE.model or tiktoken:NAME_OR_FILE')
    import tiktoken
    with reading(f'tokenizer {cfg.tokenizer}', 'offline, name a ranks file: tiktoken:FILE'):
        ranks = tiktoken.get_encoding(name)._mergeable_ranks.items()
    lines = [f'{base64.b64encode(token).decode()} {rank}\n' for token, rank in ranks]
    path = CACHE / f'{name}.tiktoken'
    atomic_write(path, lambda aside: aside.write_text(''.join(lines)))
    return path

def load_tokenizer(path):
    """A tokenizer file -> encode (text -> ids), decode, vocab_size, eod (the id that ends a
    document), pieces (the string of every id)."""
    if str(path).endswith('.model'):
        import sentencepiece
        with reading(f'tokenizer {path}', 'it must be a SentencePiece model that has </s>'):
            bpe = sentencepiece.SentencePieceProcessor(model_file=str(path))
            pieces, eod = [bpe.id_to_piece(i) for i in range(len(bpe))], bpe.eos_id()
            if eod < 0:
                raise ValueError('no </s>')
        encode = bpe.encode
    else:
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's; others exceed 65,536 ids
        with reading(f'tokenizer {path}', 'it must be lines of base64 token and rank'):
            lines = map(str.split, Path(path).read_text().splitlines())
            ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
            eod, end = len(ranks), '<|endoftext|>'
            tokens, letters = sorted(ranks, key=ranks.get), {bytes([i]) for i in range(256)}
            if [ranks[token] for token in tokens] != list(range(eod)) or letters - set(tokens):
                raise ValueError('ranks must count from 0, and every byte have one')
            pieces = [token.decode('latin-1') for token in tokens] + [end]
            bpe = tiktoken.Encoding('ranks', pat_str=r50k_pat_str, mergeable_ranks=ranks,
                                    special_tokens={end: eod}, explicit_n_vocab=eod + 1)
        encode = bpe.encode_ordinary
    return SimpleNamespace(encode=encode, decode=bpe.decode, vocab_size=len(pieces), eod=eod,
                           pieces=pieces)

# ---- a corpus: text -> tokens in the cache, once per tokenizer ---------------

def fingerprint(source):
    """What identifies the text of a source: commit, release, or files' size and time."""
    if source.startswith('hf:'):
        return [source, hub_store(source)[-1]]
    if source.startswith('eltec:'):
        return [source, ELTEC.get(source.removeprefix('eltec:'))]
    stats = [(str(path), os.stat(path)) for path in find_files(source)[0]]
    return [source, [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats]]

def is_test(document, test_frac, seed):
    """Whether a document is held out: a random one of every 1 / test_frac; the first is one of
    the first two, so that two documents are enough."""
    group = max(2, round(1 / test_frac))
    rng = np.random.default_rng([seed, document // group])
    return document % group == rng.integers(group if document >= group else 2)

def part_of(document, source, cfg):
    """'train' or 'test'."""
    if source.startswith('hf:') and document >= HUB_TEST_DOCUMENTS:
        return 'train'
    return 'test' if is_test(document, cfg.test_frac, cfg.data_seed) else 'train'

def training_text(source, cfg, n_bytes):
    """The training documents of a source, until they have n_bytes."""
    for number, text in enumerate(documents_of(source, cfg.min_chars)):
        if part_of(number, source, cfg) == 'train':
            yield text
            n_bytes -= len(text.encode())
            if n_bytes <= 0:
                return

def start_worker(tokenizer_file):
    """In a worker process: load the tokenizer; end with the parent, even if it is killed."""
    global tokenizer
    tokenizer = load_tokenizer(tokenizer_file)

    def watch():
        multiprocessing.parent_process().join()  # os.getppid() may be the fork server
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()

def encode(text):
    """In a worker process: a document -> its bytes and token ids."""
    return len(text.encode()), np.array([*tokenizer.encode(text), tokenizer.eod], np.uint16)

def encoded(documents, tokenizer_file, workers):
    """encode(text) of all documents, in order, by several processes."""
    pool = ProcessPoolExecutor(workers, initializer=start_worker, initargs=(tokenizer_file,))
    pending = deque()
    try:
        for text in documents:
            pending.append(pool.submit(encode, text))
            if len(pending) == 8 * workers:  # memory does not grow with the corpus
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

def tokenise(corpus, source, tokenizer_file, cfg, enough):
    """The folder in the cache with a corpus's train.bin (`enough` tokens) and test.bin."""
    key = [FORMAT_VERSION, fingerprint(source), checksum(tokenizer_file), cfg.test_frac,
           cfg.data_seed, cfg.min_chars, cfg.max_tokens]
    name = f'{corpus}-{short_hash(key)}'
    if source.startswith('hf:'):  # a cached copy with more tokens will do
        read = [int(path.name.rpartition('-')[2]) for path in CACHE.glob(f'{name}-*')]
        name += f'-{min((n for n in read if n >= enough), default=enough)}'
    with building(CACHE / name) as aside:
        if aside:
            write_tokens(aside, corpus, source, tokenizer_file, cfg, enough)
    return CACHE / name

def write_tokens(folder, corpus, source, tokenizer_file, cfg, enough):
    """Write train.bin, test.bin and meta.json to folder."""
    tokenizer = load_tokenizer(tokenizer_file)
    if tokenizer.vocab_size > 65536:
        raise UserError(f'tokenizer {cfg.tokenizer} has more pieces than 16 bits hold, 65,536')
    least = HUB_TEST_DOCUMENTS if source.startswith('hf:') else 0
    counts, dropped = Counter(), []
    documents = documents_of(source, cfg.min_chars, dropped)
    results = encoded(documents, tokenizer_file, cfg.num_workers or os.cpu_count())
    with (contextlib.closing(results), open(folder / 'train.bin', 'wb') as train,
          open(folder / 'test.bin', 'wb') as test,
          tqdm(desc=f'{corpus}: tokenising', unit='B', unit_scale=True, disable=None) as bar):
        for number, (n_bytes, ids) in enumerate(results):
            if counts['train_tokens'] >= enough and counts['test_tokens'] and number >= least:
                break
            part = part_of(number, source, cfg)
            (train if part == 'train' else test).write(ids.tobytes())
            for what, n in (('tokens', len(ids)), ('documents', 1), ('bytes', n_bytes)):
                counts[f'{part}_{what}'] += n
            bar.update(n_bytes)
            if bar.disable and number % 10_000 == 9999:  # no terminal: a line now and then
                print(f'{corpus}: {number + 1:,} documents tokenised', flush=True)
    if not counts['train_tokens'] or not counts['test_tokens']:
        raise UserError(f'corpus {corpus!r}: {source} has fewer than two documents of text')
    counts['dropped'] = len(dropped)
    print(f'{corpus}:', ', '.join(f'{what} {n:,}' for what, n in sorted(counts.items())))
    write_meta(folder, counts | {'vocab_size': tokenizer.vocab_size, 'eod': tokenizer.eod})

# ---- languages and vocabulary map --------------------------------------------

def check_languages(cfg):
    """Refuse settings that do not make sense together."""
    try:
        names, corpora = zip(*[(str(name), str(corpus)) for name, corpus in cfg.languages])
        stages = [(float(start), [float(p) for p in ps]) for start, ps in cfg.schedule]
    except (TypeError, ValueError, OverflowError):
        raise UserError('languages must be a list of (name, corpus), schedule of (start, '
                        f'(p, p, ...)), not {cfg.languages}, {cfg.schedule}') from None
    starts = [start for start, _ in stages] + [1.0]
    rules = {
        'languages must have different names': len(set(names)) == len(names),
        'languages must number at most 256': len(names) <= 256,  # their IDs are stored in 8 bits
        'languages must cover every corpus and no others': set(corpora) == set(cfg.corpora),
        'corpora must have plain names': all(re.fullmatch(r'[\w-]+', name) for name in corpora),
        'corpora must have strings as sources': {str} == set(map(type, cfg.corpora.values())),
        'schedule must rise from 0.0 to below 1': starts[0] == 0 and np.all(np.diff(starts) > 0),
        f'schedule must have {len(names)} probabilities per stage that sum to 1': all(
            len(ps) == len(names) and min(ps) >= 0 and abs(sum(ps) - 1) < 1e-6 for _, ps in stages),
        'dataset must be a plain name': re.fullmatch(r'[\w-][\w.-]*', cfg.dataset),
        "vocab must be 'disjoint' or 'anchored'": cfg.vocab in ('disjoint', 'anchored'),
        'anchor_frac must be at most 1': cfg.anchor_frac <= 1,
        'test_frac must be above 0 and at most 0.5': 0 < cfg.test_frac <= 0.5,
        'block_size must be at least 1': cfg.block_size >= 1}
    for rule, holds in rules.items():
        if not holds:
            raise UserError(f'{rule}, not {getattr(cfg, rule.split()[0])!r}')

def marginals(schedule):
    """p(language) over the whole of training, (n_languages,)."""
    starts = [start for start, _ in schedule] + [1.0]
    return sum((b - a) * np.array(p, float) for a, b, (_, p) in zip(starts, starts[1:], schedule))

def vocabulary_map(languages, pieces, vocab, anchor_frac, seed):
    """int32 (n_languages, widest base vocabulary): base id -> model id, -1 beyond a corpus's ids.

    pieces: corpus -> the string of every base id. The first language of a corpus has new ids,
    except for pieces of an earlier corpus if vocab is 'anchored' (paper D.2); a clone, except for
    a share anchor_frac of the pieces, drawn by seed (D.1). Model ids have no gaps: a full clone is
    base_id + language * V."""
    vocab_map = np.full((len(languages), max(map(len, pieces.values()))), -1, np.int32)
    first, known, n_ids = {}, {}, 0
    for row, (_, corpus) in zip(vocab_map, languages):
        V = len(pieces[corpus])
        if corpus in first:
            anchors = np.random.default_rng(seed).permutation(V)[:round(anchor_frac * V)]
            row[anchors] = first[corpus][anchors]
        elif vocab == 'anchored':
            row[:V] = [known.get(piece, -1) for piece in pieces[corpus]]
        new = np.flatnonzero(row[:V] < 0)
        row[new] = n_ids + np.arange(len(new))
        n_ids += len(new)
        if corpus not in first:
            first[corpus] = row
            known = dict(zip(pieces[corpus], row.tolist())) | known
    return vocab_map

def language_ids(cfg, sequences):
    """uint8: the language of every training sequence; `sequences`: their number in each corpus.
    Clones split those of their corpus at random, in exact proportion to their marginals."""
    share, arrays = marginals(cfg.schedule), []
    for number, (corpus, n) in enumerate(zip(cfg.corpora, sequences)):
        ids = np.array([i for i, (_, c) in enumerate(cfg.languages) if c == corpus], np.uint8)
        p = share[ids] if share[ids].any() else np.ones(len(ids))
        bounds = np.rint(n * np.cumsum([0, *p]) / p.sum()).astype(int)
        rng = np.random.default_rng([cfg.data_seed, number])
        arrays.append(rng.permutation(np.repeat(ids, np.diff(bounds))))
    return np.concatenate(arrays)

# ---- dataset -----------------------------------------------------------------

def data_settings(cfg):
    """The settings that a dataset depends on, as JSON; of the schedule, its marginals."""
    keys = ('corpora', 'languages', 'tokenizer', 'vocab_size', 'vocab', 'anchor_frac',
            'block_size', 'test_frac', 'min_chars', 'max_tokens', 'data_seed')
    settings = {key: getattr(cfg, key) for key in keys}
    settings['p_language'] = [round(float(p), 9) for p in marginals(cfg.schedule)]
    return json.loads(json.dumps(settings))

def data_checksum(meta):
    """Equal on every machine: tokenizer files, which name SentencePiece's version, are left out."""
    names = ('train.bin', 'test.bin', 'train_lang.bin', 'vocab_map.npy')
    return 'sha256 ' + short_hash([meta['files'][name] for name in names])

def prepare(cfg):
    """Make data/<dataset>/ from the settings cfg."""
    check_languages(cfg)
    path = DATA / cfg.dataset
    with building(path, cfg.overwrite) as aside:
        meta = make_dataset(cfg, aside) if aside else Dataset(cfg).meta
    there = '' if aside else ' already exists (--overwrite rebuilds it)'
    sizes = ', '.join(f'{of["name"]} {of["sequences"]:,} sequences' for of in meta['languages'])
    print(f'{path}{there}: {meta["vocab_size"]:,} model ids; {sizes}; {data_checksum(meta)}')

def make_dataset(cfg, aside):
    """Write a dataset to the folder aside; returns its meta."""
    corpora, pieces, folders, ends, n_sequences = {}, {}, [], {'train': 0, 'test': 0}, 0
    share = marginals(cfg.schedule)
    for corpus, source in cfg.corpora.items():
        enough = cfg.max_tokens or math.inf
        if source.startswith('hf:'):
            p = sum(share[i] for i, (_, of) in enumerate(cfg.languages) if of == corpus)
            # 2% to spare, as languages are drawn at random
            run = 1.02 * p * cfg.max_iters * cfg.batch_size * cfg.block_size
            enough = min(enough, math.ceil(run))
        tokenizer = tokenizer_file(corpus, cfg)
        pieces[corpus] = load_tokenizer(tokenizer).pieces
        folder = tokenise(corpus, source, tokenizer, cfg, enough)
        folders.append(folder)
        corpora[corpus] = of_corpus = read_meta(folder, f'remove {folder} and it is rebuilt')
        del of_corpus['format_version'], of_corpus['files']
        of_corpus['tokenizer'] = corpus + tokenizer.suffix
        shutil.copyfile(tokenizer, aside / of_corpus['tokenizer'])
        for part, start in ends.items():  # its tokens in train.bin and test.bin
            ends[part] = start + of_corpus[f'{part}_tokens']
            of_corpus[part] = [start, ends[part]]
        start, end = of_corpus['train']
        end = min(end, start + enough)  # the cache may have more
        of_corpus |= {'train': [start, end], 'sequences': (end - start - 1) // cfg.block_size}
        # sequence n, over all corpora, starts at token origin + n * block_size
        of_corpus['origin'] = start - n_sequences * cfg.block_size
        n_sequences += of_corpus['sequences']
    for part in ends:
        join_or_link([folder / f'{part}.bin' for folder in folders], aside / f'{part}.bin')

    lang_ids = language_ids(cfg, [of_corpus['sequences'] for of_corpus in corpora.values()])
    lang_ids.tofile(aside / 'train_lang.bin')
    vocab = 'anchored' if cfg.tokenizer == 'shared' else cfg.vocab
    vocab_map = vocabulary_map(cfg.languages, pieces, vocab, cfg.anchor_frac, cfg.data_seed)
    np.save(aside / 'vocab_map.npy', vocab_map)
    sequences = np.bincount(lang_ids, minlength=len(cfg.languages)).tolist()
    languages = [{'name': name, 'corpus': corpus, 'sequences': n, 'tokens': n * cfg.block_size}
                 for (name, corpus), n in zip(cfg.languages, sequences)]
    meta = {'settings': data_settings(cfg), 'vocab_size': int(vocab_map.max()) + 1}
    return write_meta(aside, meta | {'corpora': corpora, 'languages': languages})

def join_or_link(sources, target):
    """Hard-link one file, so that datasets share their tokens; join several."""
    if len(sources) == 1:
        with contextlib.suppress(OSError):  # a file system without links
            os.chmod(sources[0], 0o444)
            return os.link(sources[0], target)
    for source in sources:
        with open(source, 'rb') as f, open(target, 'ab') as out:
            shutil.copyfileobj(f, out)

class Dataset:
    """data/<dataset>/, if it is undamaged and made with the settings cfg; verify: see read_meta.

    meta, tokens (of each part), vocab_map (n_languages, base vocabulary) and, of every language,
    names, corpus_of (its corpus in meta), pools (its sequence numbers)."""

    def __init__(self, cfg, verify='*'):
        self.path, self.block_size = DATA / cfg.dataset, cfg.block_size
        again = 'rebuild it with data_prep.py --overwrite'
        if not self.path.exists():
            raise UserError(f'{self.path} is missing: make it with data_prep.py')
        self.meta = read_meta(self.path, again, verify)
        for key, value in data_settings(cfg).items():
            if (made := self.meta['settings'].get(key)) != value:
                raise UserError(f'{self.path} was made with {key} = {made}, these settings say '
                                f'{value}: choose another --dataset name, or {again}')
        languages, corpora = self.meta['languages'], self.meta['corpora']
        self.names = [language['name'] for language in languages]
        self.corpus_of = [corpora[language['corpus']] for language in languages]
        with reading(self.path, again):
            self.vocab_map = np.load(self.path / 'vocab_map.npy')
            self.tokens = {part: np.memmap(self.path / f'{part}.bin', np.uint16, 'r')
                           for part in ('train', 'test')}
            lang_ids = np.fromfile(self.path / 'train_lang.bin', np.uint8)
        self.pools = [np.flatnonzero(lang_ids == i) for i in range(len(languages))]
        self.origin = np.array([of_corpus['origin'] for of_corpus in self.corpus_of])

    def vocabulary(self):
        """Equal for two datasets if their ids mean the same, language by language."""
        files = [self.path / of_corpus['tokenizer'] for of_corpus in self.corpus_of]
        return short_hash([self.vocab_map.tolist(), [load_tokenizer(file).pieces for file in files]])

    def windows(self, part, starts, languages):
        """Inputs and targets, int64 (B, block_size) each, in model ids: the block_size + 1 tokens
        from each start (B,) of a part, in languages (B,)."""
        base = self.tokens[part][starts[:, None] + np.arange(self.block_size + 1)]
        ids = self.vocab_map[languages[:, None], base].astype(np.int64)
        return ids[:, :-1], ids[:, 1:]

    def batch(self, sequences, languages):
        """Inputs and targets of training sequences (B,) in languages (B,), see windows."""
        starts = self.origin[languages] + sequences * self.block_size
        return self.windows('train', starts, languages)

    def test_windows(self, language, n):
        """Starts in test.bin of up to n windows, spread over the test text of a language."""
        start, end = self.corpus_of[language]['test']
        available = (end - start - 1) // self.block_size
        n = min(n, available)
        return start + np.arange(n) * available // max(1, n) * self.block_size

    def occurrences(self, language):
        """Counts of every base id, (V,), in a language's training text."""
        of_corpus = self.corpus_of[language]
        tokens = self.tokens['train'][slice(*of_corpus['train'])]
        counts = np.zeros(of_corpus['vocab_size'], int)
        for i in range(0, len(tokens), 1 << 20):
            counts += np.bincount(tokens[i:i + (1 << 20)], minlength=len(counts))
        return counts

    def ids_in_text(self, language):
        """How many base ids occur in a language's training text."""
        return int(np.count_nonzero(self.occurrences(language)))

    def frequency(self, p):
        """Share of every model id, (vocab_size,), in text with p(language)."""
        share = np.zeros(self.meta['vocab_size'])
        for language, row in enumerate(self.vocab_map):
            counts = self.occurrences(language)
            share[row[:len(counts)]] += p[language] * counts / counts.sum()
        return share

# ---- sampler -----------------------------------------------------------------

class Sampler:
    """Which sequences a step reads, in which languages.

    A step draws a language for every sequence of the global batch from p(step), then takes that
    language's next sequence in a seeded permutation, one per epoch. The draw depends on (seed,
    step) alone. State: `read`, the sequences read so far in each language."""

    def __init__(self, pools, schedule, batch_size, max_iters, seed):
        self.pools, self.schedule = pools, schedule
        self.batch_size, self.max_iters, self.seed = batch_size, max_iters, seed
        self.read = np.zeros(len(pools), np.int64)
        self.orders = {}  # language -> (epoch, permutation of its pool)

    def p(self, step):
        """p(language) at a step, (n_languages,)."""
        begun = [p for start, p in self.schedule if step >= start * self.max_iters - 1e-6]
        return np.array(begun[-1], float)

    def languages(self, step):
        """The languages (batch_size,) that a step draws."""
        cumulative = np.cumsum(self.p(step))
        draws = np.random.default_rng([self.seed, step]).random(self.batch_size) * cumulative[-1]
        return np.searchsorted(cumulative, draws, 'right')

    def epochs_of_run(self):
        """How often the whole run reads each language's pool, (n_languages,)."""
        drawn = map(self.languages, range(self.max_iters))
        reads = sum(np.bincount(languages, minlength=len(self.pools)) for languages in drawn)
        return reads / np.maximum(1, [len(pool) for pool in self.pools])

    def epochs_begun(self):
        """How many epochs of each language have begun so far, (n_languages,)."""
        return -(-self.read // np.maximum(1, [len(pool) for pool in self.pools]))

    def next(self, step):
        """A step's sequences and languages, (batch_size,) each, counted as read."""
        languages = self.languages(step)
        sequences = np.empty_like(languages)
        for language in np.unique(languages):
            rows = np.flatnonzero(languages == language)
            numbers = self.read[language] + np.arange(len(rows))
            epochs, places = np.divmod(numbers, len(self.pools[language]))
            for epoch in np.unique(epochs):
                now = epochs == epoch
                sequences[rows[now]] = self.order(language, epoch)[places[now]]
            self.read[language] += len(rows)
        return sequences, languages

    def order(self, language, epoch):
        if self.orders.get(language, (None,))[0] != epoch:
            rng = np.random.default_rng([self.seed, language, epoch])
            self.orders[language] = epoch, rng.permutation(self.pools[language])
        return self.orders[language][1]

if __name__ == '__main__':
    config.run(lambda: prepare(config.load(sys.argv[1:], __doc__)))
