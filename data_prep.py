"""
Text in, token ids and languages out: corpora -> data/<dataset>/

    python data_prep.py config/cloned_90_10.py                                     # what a config names
    python data_prep.py --dataset=novels --corpora="{'en': 'novels/*.txt.gz'}"     # own text: one file, one document
    python data_prep.py --dataset=web --corpora="{'en': 'web/*.jsonl.zst:content'}" # a line (or a row of .parquet), one document
    python data_prep.py --vocab_size=512 --dataset=small                           # the built-in text, no download

train.bin, test.bin  uint16: base token ids; documents joined by the end-of-document token, corpora one after the other
train_lang.bin       uint8: the language of every training sequence (the language-ID array)
vocab_map.npy        int32 (n_languages, base vocabulary): base id -> model id
meta.json            languages, corpora with their token ranges, settings, counts, checksums
en.model, ...        the tokenizer of each corpus

A clone is the same text with other ids. The offset is not stored but added on reading (Dataset.batch), in int64:
ten clones of 16,384 pieces do not fit 16 bits. Tokens are kept in data/.cache, so that a second dataset over the same
corpus and tokenizer neither tokenises nor stores them again.
"""
import ast
import base64
import codecs
import contextlib
import errno
import functools
import glob
import gzip
import hashlib
import importlib
import io
import itertools
import json
import lzma
import math
import os
import re
import shutil
import socket
import sys
import tarfile
import threading
import time
import urllib.request
import warnings
import zipfile
import zlib
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
from tqdm import tqdm

import config
from config import UserError

try:
    import fcntl
except ImportError:  # not on Windows: nothing is locked there
    fcntl = None

FORMAT_VERSION = 1
DATA = Path('data')
PARTIAL = DATA / '.partial'  # everything is written here, and moved when it is whole
PIECE = 1 << 20  # bytes of text that are read and encoded at a time
TOKENIZER_BYTES = 100_000_000  # a tokenizer is trained on the first so many bytes of the training text
HUB_SHARD = 200  # rows of a hub's data set that are kept in a file
HUB_TEST_DOCUMENTS = 1000  # test documents of a hub's data set lie among its first so many, however much is read for training

LINE = 1 << 28  # bytes of a line of JSON, at most
BOMB = 1 << 27, 100  # a file that gives more bytes than this, and so many times its size, is none of text

BLANKS = [c for c in map(chr, range(0x3001)) if c.isspace() and c not in ' \n']  # tabs, no-break spaces, ...

# -----------------------------------------------------------------------------
# Files: whole or not at all, also if the process is killed, the disk is full, or two write the same


def lock(path, wait=True):
    """Open a file, made where there is none, that is locked until it is closed or the process dies. Raises BlockingIOError
    where another process has it, unless it is waited for. A file system without locks gives every process its way."""
    while fcntl:
        f = open(path, 'a+')
        try:
            fcntl.flock(f, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            f.close()
            raise
        except OSError:
            return f
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.stat(path), os.fstat(f.fileno())):
                return f
        f.close()  # who had it has removed or renamed it
    return open(os.devnull, 'a+')


@contextlib.contextmanager
def locked(path, taken, refused=''):
    """Hold a lock file while the body runs. Where another process has it, say what is taken, and by whom; then wait, or raise
    UserError if refused says what else to do."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        f = lock(path, wait=False)
    except BlockingIOError:
        holder = 'another process'
        with contextlib.suppress(FileNotFoundError):
            holder = path.read_text()[:100] or holder
        if refused:
            raise UserError(f'{taken} by {holder}: {refused}') from None
        print(f'{taken} by {holder}: waiting', flush=True)
        f = lock(path)
    with f:
        f.truncate(0)
        print(f'process {os.getpid()} on {socket.gethostname()}', end='', file=f, flush=True)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def write_aside(path, write, previous=None):
    """write(temporary path), then rename it to path: there is the old file or the new one, never a half. The old one is kept
    as previous. Of two who write at once the second waits, so that each is whole and the last one stays."""
    aside = path.with_name(path.name + '.partial')
    with lock(aside):
        try:
            write(aside)
            with open(aside, 'rb+') as f:
                os.fsync(f.fileno())
            if previous and path.exists():
                os.replace(path, previous)
            os.replace(aside, path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def making(path):
    """While the body runs, no other process makes this folder, or file, of data/: it waits."""
    old = PARTIAL / f'{path.name}.old'
    with locked(PARTIAL / f'{path.name}.lock', f'{path} is being made'):
        if old.exists() and path.exists():
            shutil.rmtree(old)
        elif old.exists():  # killed between the two renames of folder_aside
            old.rename(path)
        yield


@contextlib.contextmanager
def folder_aside(path):
    """Within making(path): a folder to write in, which becomes path when it is whole; after an error nothing remains, and
    what a killed run has left is dropped."""
    aside, old = PARTIAL / path.name, PARTIAL / f'{path.name}.old'
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():  # --overwrite
            path.rename(old)
        aside.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


# -----------------------------------------------------------------------------
# Sources: each gives (document number, piece of its text), in a fixed order


def pieces_of(stream, name):
    """The text of a binary UTF-8 stream in pieces of about PIECE bytes, cut behind a line (or before a blank) so that
    they can be encoded one by one. Raises UserError at the first byte that is not UTF-8."""
    decoder, rest, position = codecs.getincrementaldecoder('utf-8')(), '', 0
    while True:
        block = stream.read(PIECE)
        pending = len(decoder.getstate()[0])  # bytes of a character that the last block cut in two
        try:
            text = rest + decoder.decode(block, final=not block)
        except UnicodeDecodeError as e:
            raise UserError(f'{name}: not UTF-8 at byte {position - pending + e.start}; convert the file first') from None
        if position == 0:
            text = text.removeprefix('\ufeff')
        position += len(block)
        cut = (text.rfind('\n') + 1 or max(text.rfind(' '), 0) or len(text)) if block else len(text)
        if text[:cut]:
            yield text[:cut].replace('\r\n', '\n')
        rest = text[cut:]
        if not block:
            return


class ZstdFile(io.RawIOBase):
    """A .zst file, opened for reading. Unlike the package's own reader it does not take a file that was cut off for a whole one."""

    def __init__(self, raw):
        import zstandard
        self.raw, self.frame, self.damaged = raw, zstandard.ZstdDecompressor, zstandard.ZstdError
        self.inner, self.ready, self.packed = self.frame().decompressobj(), b'', b''

    def readable(self):
        return True

    def readinto(self, buffer):
        while not self.ready:
            self.packed = self.packed or self.raw.read(1 << 17)
            if not self.packed and self.inner:
                raise EOFError('it ends within a frame')
            if not self.packed:
                return 0
            self.inner = self.inner or self.frame().decompressobj()  # frames may follow one another
            try:
                self.ready, self.packed = self.inner.decompress(self.packed), b''
            except self.damaged as e:
                raise EOFError(e) from None  # as of one that was cut off
            if self.inner.eof:
                self.packed, self.inner = self.inner.unused_data, None
        n = min(len(buffer), len(self.ready))
        buffer[:n], self.ready = self.ready[:n], self.ready[n:]
        return n


BUILT_IN = """to run the same config on the built-in text add --corpora="{'en': 'docstrings'}\""""


def needed(package, source, otherwise=''):
    """An optional package, imported. Raises UserError that names the pip command where it is absent."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise UserError(f'{source} needs a package that is not installed: pip install {package}{otherwise}') from None


def refuse_bomb(name, given, packed):
    """Raises UserError where so many bytes come out of so few that they can be no text."""
    least, times = BOMB
    if given > least and given > times * packed:
        raise UserError(f'{name}: unpacks to more than {times} times its size, which no text does; unpack it first if it is one')


class Unpacked(io.RawIOBase):
    """What a packed file holds. Raises UserError once that is so much more than the file that it can be no text."""

    def __init__(self, path, raw):
        self.path, self.raw, self.given = path, raw, 0
        self.stream = UNPACK[os.path.splitext(path)[1]](raw)

    def readable(self):
        return True

    def readinto(self, buffer):
        n = self.stream.readinto(buffer)
        self.given += n
        refuse_bomb(self.path, self.given, self.raw.tell())
        return n


@contextlib.contextmanager
def opened(path):
    """A file's bytes, unpacked if its name ends in .gz, .xz, .zst or .tgz. Raises UserError for one that is damaged, with the
    byte where reading it stopped, or a bomb."""
    if path.endswith('.zst'):
        needed('zstandard', path)
    try:
        with open(path, 'rb') as raw:
            try:
                yield io.BufferedReader(Unpacked(path, raw), PIECE) if path.endswith(tuple(UNPACK)) else raw
            except DAMAGED as e:
                raise UserError(f'{path}: cannot be read beyond byte {raw.tell():,} ({e}); a damaged or half-copied file?') from None
    except OSError as e:
        raise UserError(f'{path}: cannot be read ({e.strerror or e})') from None


DAMAGED = (lzma.LZMAError, zlib.error, gzip.BadGzipFile, tarfile.TarError, EOFError)
TEI = '{http://www.tei-c.org/ns/1.0}'
UNPACK = {'.gz': lambda raw: gzip.GzipFile(fileobj=raw), '.xz': lzma.LZMAFile, '.zst': ZstdFile}
UNPACK['.tgz'] = UNPACK['.gz']
KINDS = '.txt, .jsonl (both plain, .gz, .xz or .zst), .parquet, .tar (plain, .gz or .xz, of .txt and .jsonl)'
TAR = ('.tar', '.tar.gz', '.tgz', '.tar.xz')


def kind_of(path):
    """'.txt', '.jsonl', '.parquet' or '.tar' by a file's name; None for others."""
    if path.endswith(TAR):
        return '.tar'
    plain = path.removesuffix(next((end for end in UNPACK if path.endswith(end)), ''))
    kind = next((kind for kind in ('.txt', '.jsonl', '.parquet') if plain.endswith(kind)), None)
    return None if kind == '.parquet' and plain != path else kind


# Every source is a generator of (key, piece of text): a new key begins a new document, with an empty piece.


def stream_documents(stream, name, field):
    """The documents of a binary stream: all of a .txt is one, every line of a .jsonl."""
    if kind_of(name) == '.txt':
        yield name, ''
        for piece in pieces_of(stream, name):
            yield name, piece
        return
    for number, line in enumerate(iter(lambda: stream.readline(LINE), b''), 1):
        where = f'{name}, line {number}'
        try:
            record = json.loads(line) if line.strip() else None
        except (ValueError, RecursionError) as e:  # UnicodeDecodeError too
            raise UserError(f'{where}: not JSON ({e})') from None
        if record is not None:
            yield from record_document(record, field, where)


def record_document(record, field, where):
    """One document: a field of a record."""
    if not isinstance(record, dict) or field not in record:
        has = ', '.join(record) if isinstance(record, dict) else repr(record)
        raise UserError(f'{where}: no field {field!r}; the fields are {has:.200}')
    text = record[field]
    if text is not None and not isinstance(text, str):
        raise UserError(f'{where}: the field {field!r} is not text but {text!r:.40}')
    yield where, ''
    for piece in pieces_of(io.BytesIO((text or '').encode('utf-8', 'ignore')), where):
        yield where, piece


def parquet_documents(path, field):
    """One document a row."""
    pyarrow, parquet = needed('pyarrow', path), importlib.import_module('pyarrow.parquet')
    try:
        file = parquet.ParquetFile(path)
        names = file.schema_arrow.names
        if field not in names:
            raise UserError(f'{path}: no field {field!r}; the fields are {", ".join(names)}')
        row = 0
        for batch in file.iter_batches(64, columns=[field]):
            for record in batch.to_pylist():
                row += 1
                yield from record_document(record, field, f'{path}, row {row}')
    except (pyarrow.ArrowException, OSError, ValueError) as e:
        raise UserError(f'{path}: cannot be read ({str(e).splitlines()[0]}); a damaged or half-copied file?') from None


def file_documents(paths, field='text'):
    """The documents of text files, in order. Raises UserError for a damaged file, with the byte where reading it stopped."""
    for path in paths:
        kind = kind_of(path)
        if kind == '.parquet':
            yield from parquet_documents(path, field)
            continue
        with opened(path) as stream:
            if kind == '.tar':
                with tarfile.open(fileobj=stream, mode='r|') as tar:  # a stream: nothing is unpacked to disk, wherever a name points
                    for member in tar:
                        hidden = os.path.basename(member.name).startswith('.')
                        if member.isfile() and member.name.endswith(('.txt', '.jsonl')) and not hidden:
                            yield from stream_documents(tar.extractfile(member), f'{path}, {member.name}', field)
            else:
                yield from stream_documents(stream, path, field)


def find_files(pattern):
    """The text files and tars that a glob matches, sorted. Raises UserError for none, or one of an unknown kind."""
    paths = sorted(p for p in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(p))
    if not paths:
        raise UserError(f"corpus source {pattern!r}: no such file; a source is 'docstrings', 'eltec:LANGUAGE' ({', '.join(ELTEC)}), "
                        f"'hf:DATASET[:FIELD[:SUBSET[:SPLIT]]]', or a glob of {KINDS} files")
    for path in paths:
        if not kind_of(path):
            raise UserError(f'{path}: not a known kind of file ({KINDS}); narrow the glob {pattern!r}')
    return paths


ELTEC = 'cze deu eng fra gle gre gsw hrv hun ita lav lit nor pol por rom rus slv spa srp swe ukr'.split()


def eltec_archive(source):
    """The published archive of a language of the European Literary Text Collection, fetched where it is not here yet."""
    language = source.removeprefix('eltec:')
    if language not in ELTEC:
        raise UserError(f'corpus source {source!r}: ELTeC has {", ".join(ELTEC)}')
    path = DATA / f'ELTeC-{language}.zip'
    url = f'https://github.com/COST-ELTeC/ELTeC-{language}/archive/HEAD.zip'
    if not path.exists():
        print(f'{source}: fetching {url}', flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)

        def fetch(aside):
            with urllib.request.urlopen(url, timeout=60) as response, open(aside, 'wb') as out:
                shutil.copyfileobj(response, out, PIECE)
        try:
            write_aside(path, fetch)
        except OSError as e:  # URLError is one
            raise UserError(f'{source} cannot be reached ({getattr(e, "reason", e)}): fetch {url} on a machine with network, '
                            f'and put it here as {path}') from None
    return path


def eltec_documents(source):
    """One document a novel: the paragraphs, headings and verse lines of its body, a line each (TEI, encoding level 1)."""
    path = eltec_archive(source)
    try:
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if '/level1/' in name and name.endswith('.xml'))
            if not names:
                raise UserError(f'{path} holds no level1/*.xml: it is not an archive of ELTeC')
            for name in names:
                refuse_bomb(f'{path}, {name}', archive.getinfo(name).file_size, archive.getinfo(name).compress_size)
                yield name, ''
                yield name, tei_text(archive.read(name), f'{path}, {name}')
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError) as e:  # unknown packing, a password
        raise UserError(f'{path}: cannot be read ({e}); remove it, and it is fetched again') from None


def tei_text(xml, name):
    """The text of a TEI document's body, a line for every paragraph, heading and verse line."""
    try:
        body = ElementTree.fromstring(xml).find(f'.//{TEI}body')
    except ElementTree.ParseError as e:
        raise UserError(f'{name}: not XML ({e})') from None
    if body is None:
        raise UserError(f'{name}: no TEI body')
    lines, inside = [], set()
    for element in body.iter():
        if element.tag in (TEI + 'p', TEI + 'head', TEI + 'l') and element not in inside:
            inside.update(element.iter())  # a verse line within a paragraph is not a line twice
            lines.append(' '.join(''.join(element.itertext()).split()))
    return '\n'.join(line for line in lines if line)


def installed_modules():
    """The .py files of the installed packages, sorted by their path within the package folder."""
    roots = {p for p in sys.path if os.path.basename(p) in ('site-packages', 'dist-packages')}
    files = {Path(p).relative_to(root).as_posix(): p for root in sorted(roots)
             for p in glob.glob(os.path.join(glob.escape(root), '**', '*.py'), recursive=True)}
    return [files[name] for name in sorted(files)]


def docstrings_of(path):
    """The documentation strings of one module, in the order of its syntax tree."""
    warnings.simplefilter('ignore')  # other people's invalid escapes
    try:
        tree = ast.parse(Path(path).read_text('utf-8'))
    except (SyntaxError, ValueError, RecursionError, OSError):
        return []  # templates, fixtures of other Pythons
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [doc for node in ast.walk(tree) if isinstance(node, documented) and (doc := ast.get_docstring(node))]


@functools.cache  # a pass for the tokenizer, a pass for the tokens: parse once
def docstring_documents(workers):
    """One document a module: those of its documentation strings that no module before it had."""
    seen, documents = set(), []
    modules = installed_modules()
    found = in_parallel(docstrings_of, modules, workers)
    for docs in tqdm(found, 'reading docstrings', len(modules), unit=' modules', disable=None):
        fresh = [doc for doc in docs if doc not in seen and not seen.add(doc)]
        if fresh:
            text = '\n\n'.join(fresh).encode('utf-8', 'ignore').decode()  # a lone surrogate cannot be stored
            documents.append((len(documents), text))
    return documents


def hub_documents(source):
    """One document a row of a data set on the Hugging Face hub, streamed; source is hf:DATASET[:FIELD[:SUBSET[:SPLIT]]].

    What has been read is kept in data/.cache, HUB_SHARD rows a file: the second pass, a longer run or one that goes on after
    a broken connection begin where it ends."""
    parts = source.removeprefix('hf:').split(':')
    if not parts[0] or len(parts) > 4:
        raise UserError(f'corpus source {source!r}: it is hf:DATASET[:FIELD[:SUBSET[:SPLIT]]]')
    name, field, subset, split = parts + [''] * (4 - len(parts))
    field, split = field or 'text', split or 'train'
    store = DATA / '.cache' / f'hub-{hashlib.sha256(repr((name, field, subset, split)).encode()).hexdigest()[:16]}'
    kept = sorted(store.glob('*.jsonl.gz'))
    for path in kept:
        with opened(str(path)) as f:
            yield from stream_documents(f, f'{source}, {path.name}', field)
    if (store / 'whole').exists():
        return
    load_dataset = needed('datasets', source, f'; {BUILT_IN}').load_dataset
    store.mkdir(parents=True, exist_ok=True)
    rows, n = [], len(kept)

    def keep():
        text = ''.join(json.dumps({field: row[field]}) + '\n' for row in rows)
        write_aside(store / f'{n:06}.jsonl.gz', lambda aside: aside.write_bytes(gzip.compress(text.encode(), 6, mtime=0)))
    try:
        data = load_dataset(name, subset or None, split=split, streaming=True)
        for row in data.skip(n * HUB_SHARD) if n else data:
            where = f'{source}, row {n * HUB_SHARD + len(rows) + 1}'
            yield from record_document(row, field, where)
            rows.append(row)
            if len(rows) == HUB_SHARD:
                keep()
                rows, n = [], n + 1
        if rows:
            keep()
        (store / 'whole').touch()
    except UserError:
        raise
    except Exception as e:  # the hub's client has many ways to say that it is not there
        if getattr(e, 'errno', None) in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise  # no space here
        raise UserError(f'{source} cannot be reached ({type(e).__name__}), after {n * HUB_SHARD:,} rows, which are kept; '
                        f'{BUILT_IN}') from None


def field_of(source):
    """A glob with an optional field behind a colon -> glob, field."""
    pattern, _, field = source.rpartition(':')
    return (pattern, field) if pattern and field.isidentifier() and not os.path.exists(source) else (source, 'text')


def documents_of(source, workers, min_chars=0, dropped=None):
    """The documents of a source, numbered: (number, piece of text). Their white space is made plain and those shorter than
    min_chars are dropped, and counted in the dictionary dropped; not of the docstrings, which are clean."""
    if source == 'docstrings':
        return docstring_documents(workers)
    if source.startswith('hf:'):
        documents = hub_documents(source)
    elif source.startswith('eltec:'):
        documents = eltec_documents(source)
    else:
        pattern, field = field_of(source)
        documents = file_documents(find_files(pattern), field)
    return cleaned(documents, min_chars, dropped)


def plain_space(text):
    """Runs of blanks become one blank, none stay at the ends of lines, and more than one empty line becomes one. (Regular
    expressions would take as long as a seventh of the tokenising.)"""
    for blank in BLANKS:
        if blank in text:
            text = text.replace(blank, ' ')
    while '  ' in text:
        text = text.replace('  ', ' ')
    text = text.replace(' \n', '\n').replace('\n ', '\n')
    while '\n\n\n' in text:
        text = text.replace('\n\n\n', '\n\n')
    return text


def cleaned(documents, min_chars, dropped=None):
    """(key, piece) -> (number, piece): white space is made plain, also between pieces and at both ends of a document, and
    documents of fewer than min_chars characters, or of none, are dropped."""
    number = 0
    for _, pieces in itertools.groupby(documents, key=lambda document: document[0]):
        text, held, whole = '', '', False  # held: white space at the end, which may go on in the next piece
        for _, piece in pieces:
            new = plain_space(held + piece)
            new = new if text or whole else new.lstrip()
            body = new.rstrip()
            text, held = text + body, new[len(body):]
            if text and (whole or len(text) >= min_chars):
                yield number, text
                text, whole = '', True
        if whole:
            number += 1
        elif dropped is not None:
            reason = f'shorter than {min_chars} characters' if text else 'empty'
            dropped[reason] = dropped.get(reason, 0) + 1


def start_worker(parent, tokenizer_file=None):
    """A worker process ends with its parent, also if that is killed, and has the tokenizer at hand."""
    global tokenizer
    tokenizer = tokenizer_file and load_tokenizer(tokenizer_file)

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)
    threading.Thread(target=watch, daemon=True).start()


def in_parallel(function, items, workers, tokenizer_file=None):
    """function(item) for every item, in order, from several processes, with only a few items in flight: memory does not
    grow with the corpus."""
    with ProcessPoolExecutor(workers, initializer=start_worker, initargs=(os.getpid(), tokenizer_file)) as pool:
        pending = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) == 8 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # an error above must not wait for the rest
            pool.shutdown(cancel_futures=True)


# -----------------------------------------------------------------------------
# Tokenizers


def train_tokenizer(documents, path, vocab_size):
    """Train a SentencePiece BPE on documents' text and write it to path. Lossless: white space stays as it is, and a
    character without a piece becomes bytes. Raises UserError where the text is too small for vocab_size."""
    import sentencepiece
    model = io.BytesIO()
    lines = (line for _, piece in documents for line in piece.split('\n') if line.strip())
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines, model_writer=model, model_type='bpe', vocab_size=vocab_size, unk_id=0, eos_id=1, bos_id=-1,
            pad_id=-1, byte_fallback=True, character_coverage=0.9995, normalization_rule_name='identity', add_dummy_prefix=False,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, max_sentence_length=PIECE, minloglevel=2)
    except RuntimeError as e:
        reason = str(e).split('] ')[-1].strip()
        raise UserError(f'vocab_size {vocab_size} does not fit the training text: {reason or "too little text"}') from None
    path.write_bytes(model.getvalue())


def save_tokenizer(tokenizer, folder, corpus):
    """Bring an existing tokenizer into folder, as CORPUS.model or CORPUS.tiktoken, and return its path."""
    if tokenizer.endswith('.model'):
        if not os.path.isfile(tokenizer):
            raise UserError(f'tokenizer {tokenizer}: no such file')
        return Path(shutil.copyfile(tokenizer, folder / f'{corpus}.model'))
    path, name = folder / f'{corpus}.tiktoken', tokenizer.removeprefix('tiktoken:')
    if not tokenizer.startswith('tiktoken:'):
        raise UserError(f"tokenizer {tokenizer!r}: must be 'sentencepiece', FILE.model, 'tiktoken:NAME' or 'tiktoken:RANKS_FILE'")
    if os.path.isfile(name):
        return Path(shutil.copyfile(name, path))
    import tiktoken
    try:
        ranks = tiktoken.get_encoding(name)._mergeable_ranks
    except Exception as e:  # unknown, or its ranks cannot be downloaded
        raise UserError(f'tokenizer {tokenizer}: neither a ranks file nor an encoding that can be had ({type(e).__name__}); '
                        'offline, name the ranks file: tiktoken:FILE') from None
    path.write_text(''.join(f'{base64.b64encode(token).decode()} {rank}\n' for token, rank in ranks.items()))
    return path


def load_tokenizer(path):
    """A tokenizer file -> its encode (text -> ids), decode (ids -> text), vocab_size, eod (the end-of-document id) and
    pieces (the string of every id, to find those that two vocabularies share)."""
    path = str(path)
    if path.endswith('.model'):
        import sentencepiece
        try:
            sp = sentencepiece.SentencePieceProcessor(model_file=path)
            pieces = [sp.id_to_piece(i) for i in range(len(sp))]
        except Exception:
            raise UserError(f'tokenizer {path}: not a SentencePiece model') from None
        if sp.eos_id() < 0:
            raise UserError(f'tokenizer {path}: has no </s>, which must end a document')
        return SimpleNamespace(encode=sp.encode, decode=sp.decode, vocab_size=len(sp), eod=sp.eos_id(), pieces=pieces)
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's words; encodings with others exceed 65,536 ids
    try:
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, Path(path).read_text().splitlines())}
        eod = len(ranks)
        if set(ranks.values()) != set(range(eod)) or not ranks.keys() >= {bytes([i]) for i in range(256)}:
            raise ValueError
        bpe = tiktoken.Encoding('ranks', pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={'<|endoftext|>': eod},
                                explicit_n_vocab=eod + 1)
    except (ValueError, AssertionError):
        raise UserError(f'tokenizer {path}: not a ranks file (a line: token in base64, rank; from 0 on, every byte among them)') from None
    pieces = [None] * eod + ['<|endoftext|>']
    for token, rank in ranks.items():
        pieces[rank] = token.decode('latin-1')
    return SimpleNamespace(encode=bpe.encode_ordinary, decode=bpe.decode, vocab_size=eod + 1, eod=eod, pieces=pieces)


# -----------------------------------------------------------------------------
# A corpus: text -> train.bin and test.bin in the cache, once for every (corpus, tokenizer)


def is_test(document, test_frac, seed):
    """Whether a document is held out: one, by lot, of every 1 / test_frac in a row. (Of the first lot it is one of the
    first two, so that two documents suffice.)"""
    lot = max(2, round(1 / test_frac))
    chosen = np.random.default_rng([seed, document // lot]).integers(lot if document >= lot else 2)
    return document % lot == chosen


def encode(job):
    document, text = job
    return document, len(text.encode()), np.array(tokenizer.encode(text), np.uint16)


def fingerprint(source, tokenizer):
    """What identifies the text of a source and a tokenizer without reading them: files by path, size and time."""
    if source.startswith('hf:'):
        files = []
    elif source.startswith('eltec:'):
        files = [str(eltec_archive(source))]
    else:
        files = installed_modules() if source == 'docstrings' else find_files(field_of(source)[0])
    files += [path for path in [tokenizer.removeprefix('tiktoken:')] if os.path.isfile(path)]
    stats = [(path, s.st_size, 0 if source == 'docstrings' else s.st_mtime_ns) for path in files for s in [os.stat(path)]]
    return [source, tokenizer, stats]


def tokenise(corpus, source, cfg, tokens_needed):
    """The folder in the cache with the tokens of a corpus (train.bin, test.bin, a tokenizer file, meta.json), made where it
    is not there yet. The source is read until it has given tokens_needed training tokens, which may be infinite."""
    key = [FORMAT_VERSION, *fingerprint(source, cfg.tokenizer), cfg.vocab_size, cfg.test_frac, cfg.data_seed, cfg.min_chars, cfg.max_tokens]
    name = f'{corpus}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}'
    folder = DATA / '.cache' / name
    if source.startswith('hf:'):  # one that was read further will do
        read = {int(path.name.rpartition('-')[2]) for path in folder.parent.glob(f'{name}-*')}
        folder = folder.with_name(f'{name}-{min([n for n in read if n >= tokens_needed], default=tokens_needed)}')
    with making(folder):
        if not folder.exists():
            with folder_aside(folder) as aside:
                encode_corpus(aside, corpus, source, cfg, tokens_needed)
    return folder


CORPUS = {'tokenizer': str, 'vocab_size': int, 'eod': int}
CORPUS |= {f'{part}_{what}': int for part in ('train', 'test') for what in ('tokens', 'documents', 'bytes')}  # its meta.json in the cache


def cached(folder):
    """meta.json of a corpus in the cache. Raises UserError where its files are not as long as it says."""
    anew = f'remove {folder}, and it is made anew'
    of_corpus = config.read_json(folder / 'meta.json', anew, CORPUS)
    for part in ('train', 'test'):
        path = folder / f'{part}.bin'
        if not of_corpus or not path.is_file() or path.stat().st_size != 2 * of_corpus[f'{part}_tokens']:
            raise UserError(f'{path} is not as long as meta.json says: {anew}')
    return of_corpus


def part_of(document, source, cfg):
    """'train' or 'test': where a document of a source goes."""
    beyond = source.startswith('hf:') and document >= HUB_TEST_DOCUMENTS
    return 'test' if is_test(document, cfg.test_frac, cfg.data_seed) and not beyond else 'train'


def training_text(source, cfg, n_bytes):
    """The first n_bytes of a source's training text, (document number, piece)."""
    for document, text in documents_of(source, cfg.num_workers or os.cpu_count(), cfg.min_chars):
        if part_of(document, source, cfg) == 'train':
            n_bytes -= len(text.encode())
            if n_bytes < 0:
                return
            yield document, text


def shared_tokenizer(cfg):
    """One tokenizer for all corpora, trained on as much text of each; its file in the cache."""
    sources = list(cfg.corpora.values())
    key = [*(fingerprint(source, 'shared') for source in sources), cfg.vocab_size, cfg.test_frac, cfg.data_seed, cfg.min_chars]
    path = DATA / '.cache' / f'shared-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.model'
    with making(path):
        if not path.exists():
            print(f'{", ".join(cfg.corpora)}: training one SentencePiece BPE of {cfg.vocab_size:,} pieces', flush=True)
            path.parent.mkdir(parents=True, exist_ok=True)
            texts = itertools.chain.from_iterable(training_text(source, cfg, TOKENIZER_BYTES // len(sources)) for source in sources)
            write_aside(path, lambda aside: train_tokenizer(texts, aside, cfg.vocab_size))
    return path


def encode_corpus(folder, corpus, source, cfg, tokens_needed):
    """Train or fetch the tokenizer of a corpus and write its tokens into folder, as tokenise describes."""
    workers = cfg.num_workers or os.cpu_count()
    from_hub = source.startswith('hf:')

    if cfg.tokenizer == 'sentencepiece':
        print(f'{corpus}: training a SentencePiece BPE of {cfg.vocab_size:,} pieces', flush=True)
        tokenizer_file = folder / f'{corpus}.model'
        train_tokenizer(training_text(source, cfg, TOKENIZER_BYTES), tokenizer_file, cfg.vocab_size)
    else:
        tokenizer_file = save_tokenizer(cfg.tokenizer, folder, corpus)
    tokens = load_tokenizer(tokenizer_file)
    if tokens.vocab_size > 65536:
        raise UserError(f'tokenizer {cfg.tokenizer} has {tokens.vocab_size:,} pieces; token ids are stored in 16 bits: 65,536 at most')

    dropped = {}
    count = {f'{part}_{what}': 0 for part in ('train', 'test') for what in ('tokens', 'documents', 'bytes')}
    end = np.array([tokens.eod], np.uint16)
    current, part, reported = None, None, time.time()
    with (open(folder / 'train.bin', 'wb') as train, open(folder / 'test.bin', 'wb') as test,
          tqdm(desc=f'{corpus}: tokenising', unit='B', unit_scale=True, disable=None) as bar):

        def write(ids):
            count[f'{part}_tokens'] += len(ids)
            (train if part == 'train' else test).write(ids.tobytes())

        documents = documents_of(source, workers, cfg.min_chars, dropped)
        encoded = in_parallel(encode, documents, workers, tokenizer_file)
        for document, n_bytes, ids in encoded:
            if document != current:
                if current is not None:
                    write(end)
                    if count['train_tokens'] >= tokens_needed and (document >= HUB_TEST_DOCUMENTS or not from_hub):
                        break
                current, part = document, part_of(document, source, cfg)
                count[f'{part}_documents'] += 1
            write(ids)
            count[f'{part}_bytes'] += n_bytes
            bar.update(n_bytes)
            if bar.disable and time.time() - reported > 30:  # no terminal: a line now and then
                reported = time.time()
                print(f'{corpus}: {count["train_bytes"] + count["test_bytes"]:,} bytes tokenised', flush=True)
        else:
            if current is not None:
                write(end)
        encoded.close()
    if not count['train_tokens'] + count['test_tokens']:
        raise UserError(f'corpus {corpus!r}: no text in {source}')
    if not count['train_tokens'] or not count['test_tokens']:
        raise UserError(f'corpus {corpus!r}: the test text is whole documents, and {source} has only one; split it into several files')
    for reason, n in dropped.items():
        print(f'{corpus}: dropped {n:,} documents, {reason}')
    meta = {**count, 'dropped': dropped, 'vocab_size': tokens.vocab_size, 'eod': tokens.eod, 'tokenizer': tokenizer_file.name}
    (folder / 'meta.json').write_text(json.dumps(meta, indent=1))
    print(f'{corpus}: ' + '; '.join(f'{part} {count[f"{part}_documents"]:,} documents, {count[f"{part}_bytes"] / 1e6:.1f} MB, '
                                    f'{count[f"{part}_tokens"]:,} tokens' for part in ('train', 'test')))


# -----------------------------------------------------------------------------
# Languages


def check_languages(cfg):
    """Raises UserError where languages, corpora and schedule do not make sense together."""
    names = [language[0] for language in cfg.languages if isinstance(language, (tuple, list)) and len(language) == 2]
    if not names or len(names) < len(cfg.languages) or len(set(names)) < len(names):
        raise UserError("languages must be a list of (name, corpus) with different names, like [('EN1', 'en'), ('EN2', 'en')]: "
                        f'{cfg.languages}')
    if len(names) > 256:
        raise UserError(f'{len(names)} languages: language IDs are stored in 8 bits, so 256 at most')
    for name, corpus in cfg.languages:
        if corpus not in cfg.corpora:
            raise UserError(f'language {name!r} is of corpus {corpus!r}, which corpora does not name; '
                            f'it has {", ".join(map(repr, cfg.corpora))}')
    if unused := set(cfg.corpora) - {corpus for _, corpus in cfg.languages}:
        raise UserError(f'corpora names {unused.pop()!r}, but no language is of it')
    for corpus, source in cfg.corpora.items():
        if not isinstance(source, str) or not corpus or not str(corpus).replace('_', '').replace('-', '').isalnum():
            raise UserError(f"corpora must be {{name: source}}, names of letters and digits, like {{'en': 'docstrings'}}: {cfg.corpora}")
    try:
        stages = [(float(start), [float(p) for p in ps]) for start, ps in cfg.schedule]
    except (TypeError, ValueError, OverflowError):
        stages = []
    if not stages:
        raise UserError(f'schedule must be a list of (start, (p, p, ...)), like [(0.0, (0.9, 0.1))]: {cfg.schedule}')
    for start, ps in stages:
        if len(ps) != len(names):
            raise UserError(f'schedule: the stage at {start:g} has {len(ps)} probabilities for {len(names)} languages')
        if not all(p >= 0 for p in ps):
            raise UserError(f'schedule: the stage at {start:g} has a negative probability: {ps}')
        if abs(sum(ps) - 1) > 1e-6:
            raise UserError(f'schedule: the probabilities of the stage at {start:g} sum to {sum(ps):g}, not 1: {ps}')
    starts = [start for start, _ in stages]
    if starts[0] != 0 or starts[-1] >= 1 or any(a >= b for a, b in zip(starts, starts[1:])):
        raise UserError(f'schedule: stages must start at 0.0 and then at rising fractions below 1, not at {starts}')
    if not re.fullmatch(r'[\w-][\w.-]*', cfg.dataset):
        raise UserError(f'dataset must be a plain name, of letters, digits, hyphens, dots and underscores, not {cfg.dataset!r}')
    if cfg.vocab not in ('disjoint', 'anchored'):
        raise UserError(f"vocab must be 'disjoint' or 'anchored', not {cfg.vocab!r}")
    if cfg.anchor_frac > 1 or not 0 < cfg.test_frac <= 0.5 or cfg.block_size < 1:
        raise UserError('anchor_frac must lie in [0, 1], test_frac in (0, 0.5], block_size from 1 on, not '
                        f'{cfg.anchor_frac:g}, {cfg.test_frac:g}, {cfg.block_size}')


def marginals(schedule):
    """p(language) over the whole of training, (n_languages,)."""
    starts = [start for start, _ in schedule] + [1.0]
    return sum((b - a) * np.array(p, float) for a, b, (_, p) in zip(starts, starts[1:], schedule))


def vocabulary_map(languages, pieces, vocab, anchor_frac, seed):
    """The vocabulary map: int32 (n_languages, widest base vocabulary), base id -> model id, -1 beyond a corpus's own ids.

    languages: (name, corpus) each; pieces: corpus -> the string of every base id. The first language of a corpus has ids of
    its own, but for the pieces that an earlier corpus has too if vocab is 'anchored' (paper D.2); a further one, a clone, has
    new ids but for a share anchor_frac of the pieces, drawn by seed, where it keeps the first one's (D.1). Model ids are
    numbered without gaps, so that a full clone is base_id + language * V."""
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


# -----------------------------------------------------------------------------
# A dataset


def data_settings(cfg):
    """The settings that a dataset depends on, as JSON has them. Of the schedule, clones need the marginals only."""
    keys = ('corpora', 'languages', 'tokenizer', 'vocab_size', 'vocab', 'anchor_frac', 'block_size', 'test_frac', 'min_chars', 'max_tokens',
            'data_seed')
    settings = {k: getattr(cfg, k) for k in keys} | {'p_language': [round(float(p), 9) for p in marginals(cfg.schedule)]}
    return json.loads(json.dumps(settings))


def prepare(cfg):
    """Make data/<dataset>/ from the settings cfg. Raises UserError."""
    check_languages(cfg)
    with making(DATA / cfg.dataset):
        if (DATA / cfg.dataset).exists() and not cfg.overwrite:
            Dataset(cfg)
            print(f'{DATA / cfg.dataset} is there already, made with these settings; --overwrite makes it anew')
        else:
            make_dataset(cfg, DATA / cfg.dataset)


def make_dataset(cfg, path):
    """Make the folder of a dataset, or replace it."""
    shared = cfg.tokenizer == 'shared'
    tokens_cfg = SimpleNamespace(**vars(cfg) | {'tokenizer': str(shared_tokenizer(cfg))}) if shared else cfg
    share = marginals(cfg.schedule)
    folders, needed = {}, {}
    for corpus, source in cfg.corpora.items():
        part = sum(p for p, (_, c) in zip(share, cfg.languages) if c == corpus)
        # 2% to spare: languages are drawn at random, and none should run out just before the end
        needed[corpus] = math.ceil(1.02 * part * cfg.max_iters * cfg.batch_size * cfg.block_size) if source.startswith('hf:') else math.inf
        needed[corpus] = min(needed[corpus], cfg.max_tokens or math.inf)
        folders[corpus] = tokenise(corpus, source, tokens_cfg, needed[corpus])

    with folder_aside(path) as aside:
        meta = {'format_version': FORMAT_VERSION, 'settings': data_settings(cfg), 'corpora': {}}
        position, pieces = {'train': 0, 'test': 0}, {}
        for corpus, folder in folders.items():
            meta['corpora'][corpus] = of_corpus = cached(folder)
            for part in ('train', 'test'):  # its tokens in train.bin and test.bin
                of_corpus[part] = [position[part], position[part] + of_corpus[f'{part}_tokens']]
                position[part] += of_corpus[f'{part}_tokens']
            of_corpus['train'][1] = min(of_corpus['train'][1], of_corpus['train'][0] + needed[corpus])  # not what the cache has beyond
            of_corpus['sequences'] = (of_corpus['train'][1] - of_corpus['train'][0] - 1) // cfg.block_size
            tokenizer_file = shutil.copyfile(folder / of_corpus['tokenizer'], aside / of_corpus['tokenizer'])
            pieces[corpus] = load_tokenizer(tokenizer_file).pieces
        for part in ('train', 'test'):
            join_or_link([folder / f'{part}.bin' for folder in folders.values()], aside / f'{part}.bin')
        lang_ids = language_ids(cfg, [of_corpus['sequences'] for of_corpus in meta['corpora'].values()])
        lang_ids.tofile(aside / 'train_lang.bin')
        vocab = 'anchored' if shared else cfg.vocab  # equal pieces, here all, share one id
        vocab_map = vocabulary_map(cfg.languages, pieces, vocab, cfg.anchor_frac, cfg.data_seed)
        np.save(aside / 'vocab_map.npy', vocab_map)
        meta['vocab_size'] = int(vocab_map.max()) + 1
        sequences = np.bincount(lang_ids, minlength=len(cfg.languages)).tolist()
        meta['languages'] = [{'name': name, 'corpus': corpus, 'sequences': n, 'tokens': n * cfg.block_size}
                             for (name, corpus), n in zip(cfg.languages, sequences)]
        meta['files'] = {f.name: {'bytes': f.stat().st_size, 'sha256': checksum(f)} for f in sorted(aside.iterdir())}
        (aside / 'meta.json').write_text(json.dumps(meta, indent=1) + '\n')
    print(f'{path}: {meta["vocab_size"]:,} model ids; sequences of {cfg.block_size} tokens: '
          + ', '.join(f'{language["name"]} {language["sequences"]:,}' for language in meta['languages']))


def language_ids(cfg, sequences):
    """The language-ID array, uint8: the language of every training sequence, sequences being their number in each corpus.
    The languages of one corpus, its clones, share them at random in exact proportion to their marginal probabilities."""
    share, arrays = marginals(cfg.schedule), []
    for number, (corpus, n) in enumerate(zip(cfg.corpora, sequences)):
        ids = np.array([i for i, (_, c) in enumerate(cfg.languages) if c == corpus], np.uint8)
        p = share[ids] if share[ids].any() else np.ones(len(ids))
        bounds = np.rint(n * np.cumsum([0, *p]) / p.sum()).astype(int)
        arrays.append(np.random.default_rng([cfg.data_seed, number]).permutation(np.repeat(ids, np.diff(bounds))))
    return np.concatenate(arrays)


def join_or_link(sources, target):
    """One source is hard-linked, read-only, so that datasets share their tokens; several are copied one behind the other."""
    if len(sources) == 1:
        try:
            os.chmod(sources[0], 0o444)
            return os.link(sources[0], target)
        except OSError:
            pass  # a file system without links
    with open(target, 'wb') as out:
        for source in sources:
            with open(source, 'rb') as f:
                shutil.copyfileobj(f, out, PIECE)


def checksum(path):
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()


META = {'format_version': int, 'settings': dict, 'vocab_size': int, 'files': {str: {'bytes': int, 'sha256': str}},
        'corpora': {str: CORPUS | {'train': [int], 'test': [int], 'sequences': int}},
        'languages': [{'name': str, 'corpus': str, 'sequences': int, 'tokens': int}]}  # meta.json of a dataset


class Dataset:
    """data/<dataset>/, opened for reading.

    meta, vocab_map (n_languages, base vocabulary), names (of the languages), pools (the sequence numbers of each language).
    Raises UserError where it is missing, was made with other settings than cfg's, or is damaged. Sizes are always compared
    with meta.json, checksums of the files that verify names ('*': all)."""

    def __init__(self, cfg, verify='*'):
        self.path = DATA / cfg.dataset
        self.block_size = cfg.block_size
        anew = 'make it anew with data_prep.py --overwrite'
        if not self.path.exists():
            raise UserError(f'{self.path} is missing: data_prep.py with the same settings makes it')
        self.meta = config.read_json(self.path / 'meta.json', anew, META)
        if not self.meta:
            raise UserError(f'{self.path} is no dataset (it has no meta.json): {anew}')
        if self.meta['format_version'] != FORMAT_VERSION:
            raise UserError(f'{self.path} has format version {self.meta["format_version"]}, not {FORMAT_VERSION}; {anew}')
        try:
            self.check_settings(data_settings(cfg), anew)
            self.check_files(verify, anew)
            self.open_files()
            self.check_ids(verify)
        except UserError:
            raise
        except Exception as e:  # numpy has as many ways to fail as there are broken files
            raise UserError(f'{self.path} is damaged ({type(e).__name__}: {e}): {anew}') from None

    def check_settings(self, wanted, anew):
        for key, value in wanted.items():
            if self.meta['settings'].get(key) != value:
                raise UserError(f'{self.path} was made with {key} = {self.meta["settings"].get(key)}, these settings say {value}: '
                                f'choose another --dataset name, or {anew}')

    def check_files(self, verify, anew):
        for name, file in self.meta['files'].items():
            path = self.path / os.path.basename(name)  # nothing outside the folder
            size = path.stat().st_size if path.is_file() else 0
            if size != file['bytes']:
                raise UserError(f'{path} has {size:,} bytes, not the {file["bytes"]:,} that meta.json says; {anew}')
            if (verify == '*' or name in verify) and checksum(path) != file['sha256']:
                raise UserError(f'{path} has changed since it was made (its checksum differs); {anew}')

    def open_files(self):
        self.names = [language['name'] for language in self.meta['languages']]
        self.corpus_of = [self.meta['corpora'][language['corpus']] for language in self.meta['languages']]
        self.vocab_map = np.load(self.path / 'vocab_map.npy', allow_pickle=False)
        self.tokens = {part: np.memmap(self.path / f'{part}.bin', np.uint16, 'r') for part in ('train', 'test')}
        lang_ids = np.fromfile(self.path / 'train_lang.bin', np.uint8)
        self.pools = [np.flatnonzero(lang_ids == i) for i in range(len(self.names))]
        # sequences are numbered corpus after corpus: number n of a corpus starts at token origin + n * block_size
        firsts = dict(zip(self.meta['corpora'], np.cumsum([0] + [c['sequences'] for c in self.meta['corpora'].values()])))
        self.origin = np.array([c['train'][0] - firsts[language['corpus']] * self.block_size
                                for c, language in zip(self.corpus_of, self.meta['languages'])])

    def check_ids(self, verify):
        """That token ids, languages and model ids lie within their ranges; tokens of the files that verify names. Raises ValueError."""
        first = 0
        for name, of_corpus in self.meta['corpora'].items():
            V, sequences = of_corpus['vocab_size'], of_corpus['sequences']
            for part, tokens in self.tokens.items():
                start, end = of_corpus[part]
                if not 0 <= start < end <= len(tokens) or part == 'train' and sequences != (end - start - 1) // self.block_size:
                    raise ValueError(f'{part}.bin has no tokens {start} to {end}')
                if (verify == '*' or f'{part}.bin' in verify) and tokens[start:end].max() >= V:
                    raise ValueError(f'{part}.bin has a token id beyond the {V:,} of {name}')
            mine = [i for i, language in enumerate(self.meta['languages']) if language['corpus'] == name]
            if sum(((first <= self.pools[i]) & (self.pools[i] < first + sequences)).sum() for i in mine) != sequences:
                raise ValueError(f'train_lang.bin has other languages than those of {name} for its sequences')
            model_ids = self.vocab_map[mine, :V]
            if model_ids.dtype != np.int32 or model_ids.shape[1] != V or model_ids.min() < 0 or model_ids.max() >= self.meta['vocab_size']:
                raise ValueError(f'vocab_map.npy has an id beyond the {self.meta["vocab_size"]:,} of the model')
            first += sequences

    def windows(self, part, starts, languages):
        """Inputs and targets, int64 (B, block_size) each: model ids of the block_size + 1 tokens from each start on, in
        train.bin or test.bin, last target included all in the language of that row."""
        base = self.tokens[part][starts[:, None] + np.arange(self.block_size + 1)]
        ids = self.vocab_map[languages[:, None], base].astype(np.int64)
        return ids[:, :-1], ids[:, 1:]

    def batch(self, sequences, languages):
        """Training sequences (B,) in their languages (B,) -> inputs and targets, int64 (B, block_size) each."""
        return self.windows('train', self.origin[languages] + sequences * self.block_size, languages)

    def frequency(self, p):
        """Expected share of every model id in training text whose languages have the proportions p, (vocab_size,)."""
        share, counts = np.zeros(self.meta['vocab_size']), {}
        for row, language, of_corpus, part in zip(self.vocab_map, self.meta['languages'], self.corpus_of, p):
            corpus, (start, end), V = language['corpus'], of_corpus['train'], of_corpus['vocab_size']
            if corpus not in counts:
                pieces = (self.tokens['train'][i:min(i + PIECE, end)] for i in range(start, end, PIECE))
                counts[corpus] = sum(np.bincount(piece, minlength=V) for piece in pieces)
            np.add.at(share, row[:V], part * counts[corpus] / (end - start))
        return share

    def test_windows(self, language, n):
        """Starts in test.bin of up to n windows, evenly spread over the test text of a language."""
        start, end = self.corpus_of[language]['test']
        available = (end - start - 1) // self.block_size
        return start + np.arange(min(n, available)) * available // max(1, min(n, available)) * self.block_size


class Sampler:
    """Which sequences a step reads, in which languages (DESIGN section 4).

    A step draws a language for every sequence of the global batch from the schedule's p(step), then takes that language's
    next unread sequence in a seeded permutation; behind the last one begins the language's next epoch. The draw depends on
    (seed, step) alone. State: `read`, the sequences read so far in each language."""

    def __init__(self, pools, schedule, batch_size, max_iters, seed):
        self.pools, self.schedule = pools, schedule
        self.batch_size, self.max_iters, self.seed = batch_size, max_iters, seed
        self.read = np.zeros(len(pools), np.int64)
        self.orders = {}  # language -> (epoch, permutation of its pool)

    def p(self, step):
        """p(language) at a step, (n_languages,)."""
        return np.array([p for start, p in self.schedule if step >= start * self.max_iters - 1e-6][-1], float)

    def languages(self, step):
        """The languages (batch_size,) that a step draws."""
        cumulative = np.cumsum(self.p(step))
        draws = np.random.default_rng([self.seed, step]).random(self.batch_size) * cumulative[-1]
        return np.searchsorted(cumulative, draws, 'right')

    def epochs_of_run(self):
        """How often the whole run reads each language's pool, (n_languages,)."""
        reads = sum(np.bincount(self.languages(step), minlength=len(self.pools)) for step in range(self.max_iters))
        return reads / np.maximum(1, [len(pool) for pool in self.pools])

    def epochs_begun(self):
        """How many epochs of each language have begun so far, (n_languages,)."""
        return -(-self.read // np.maximum(1, [len(pool) for pool in self.pools]))

    def next(self, step):
        """The sequences and languages, (batch_size,) each, of a step; counts them as read."""
        languages = self.languages(step)
        sequences = np.empty_like(languages)
        for language in np.unique(languages):
            rows = np.flatnonzero(languages == language)
            epochs, places = np.divmod(self.read[language] + np.arange(len(rows)), len(self.pools[language]))
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
