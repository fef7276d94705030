"""
Text in, token ids and languages out.

    python data_prep.py config/cloned_90_10.py             # the dataset of a config
    python data_prep.py --vocab_size=512 --dataset=small   # of the novels in corpora/

A corpus is tokenised once, whatever the languages that are made of it; a dataset names its corpora:

    data/en-<hash>/train.bin, test.bin    uint16: base ids, every document ended by eod
    data/en-<hash>/tokenizer.model        SentencePiece, or a .tiktoken file of ranks
    data/en-<hash>/counts.npy             how often every base id occurs in train.bin
    data/<dataset>/train_lang.bin         uint8: the language of every training sequence
    data/<dataset>/vocab_map.npy          int32 (n_languages, V): base id -> model id

A clone is a row of vocab_map, applied when a batch is read: ten clones of 16,384 pieces have more
ids than uint16 holds. Beside the files, meta.json has settings, counts and checksums.
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
import os
import re
import shutil
import sys
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

import config
from config import reading

DATA = Path('data')
FORMAT_VERSION = 3
TOKENIZER_BYTES = 100_000_000  # of text to train a tokenizer on
HUB_TEST_BYTES = 4_000_000     # of test text of a hub data set, however far training reads

# ---- files: complete or absent, even after a kill or on a full disk ----------

def atomic_write(path, write, previous=None):
    """write(temporary path), then rename it to path, and the file before to `previous`."""
    partial = path.with_name(f'{path.name}.partial')
    try:
        write(partial)
        with open(partial, 'rb+') as f:
            os.fsync(f.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)

@contextlib.contextmanager
def new_folder(path):
    """Yield a temporary folder that is renamed to path. Of two processes that make the same folder
    at once, the first to end has made it."""
    prefix = f'.{path.name}.{os.uname().nodename}.'
    for leftover in path.parent.glob(f'{glob.escape(prefix)}*'):
        try:
            os.kill(int(leftover.name.removeprefix(prefix)), 0)  # does the process still run?
        except ProcessLookupError:
            shutil.rmtree(leftover, ignore_errors=True)
    partial = path.with_name(f'{prefix}{os.getpid()}')
    shutil.rmtree(partial, ignore_errors=True)  # of an earlier process with our number
    partial.mkdir(parents=True)
    try:
        yield partial
        if not path.exists():
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

def checksum(path):
    with open(path, 'rb') as f:
        return hashlib.file_digest(f, 'sha256').hexdigest()

def short_hash(value):
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]

def write_meta(folder, meta):
    """Write meta.json, with the checksums of all files and of itself."""
    files = {path.name: [path.stat().st_size, checksum(path)] for path in sorted(folder.iterdir())}
    meta = {'format_version': FORMAT_VERSION, **meta, 'files': files}
    meta['checksum'] = short_hash(meta)
    (folder / 'meta.json').write_text(json.dumps(meta, indent=1) + '\n')

def read_meta(folder, remedy, verify=True):
    """meta.json of a folder whose files are unchanged: in size and, with verify, by checksum."""
    meta = config.read_json(folder / 'meta.json', remedy) or {}
    with reading(folder, remedy):
        if (version := meta.get('format_version')) != FORMAT_VERSION:
            raise ValueError(f'its format is {version}, not {FORMAT_VERSION}')
        if meta['checksum'] != short_hash({k: v for k, v in meta.items() if k != 'checksum'}):
            raise ValueError('meta.json has changed since it was written')
        for name, (size, sha256) in meta['files'].items():
            path = folder / name
            if path.stat().st_size != size or verify and checksum(path) != sha256:
                raise ValueError(f'{name} has changed since it was written')
    return meta

# ---- sources -> documents (strings, always in the same order) ----------------

KINDS = '.txt, .jsonl, .tar (plain, .gz, .xz, .zst) or .parquet'
HUB = 'hf:DATASET[@REVISION][:FIELD[:SUBSET[:SPLIT]]]'

def require(package, user, install=''):
    """An optional package, or a line that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        sys.exit(f'{user} needs a package: pip install {install or package}')

def open_zstd(file):
    package = 'compression.zstd' if sys.version_info >= (3, 14) else 'backports.zstd'
    return require(package, '.zst').open(file)

DECOMPRESS = {'.gz': gzip.open, '.xz': lzma.open, '.zst': open_zstd}

def kind_of(name):
    """'a/b.jsonl.gz' -> ('.jsonl', '.gz'): what a file holds, and its compression."""
    stem, suffix = os.path.splitext(str(name).lower().replace('.tgz', '.tar.gz'))
    return (os.path.splitext(stem)[1], suffix) if suffix in DECOMPRESS else (suffix, '')

def find_files(source):
    """GLOB[:FIELD] -> files, of the working directory or else of the repository, and the field."""
    before, _, after = source.rpartition(':')
    root = glob.escape(os.path.dirname(os.path.abspath(__file__)))
    for pattern, field in (source, 'text'), (before, after):
        for folder in '', root:
            path = os.path.join(folder, os.path.expanduser(pattern))
            paths = sorted(filter(os.path.isfile, glob.glob(path, recursive=True)))
            for path in paths:
                if kind_of(path)[0] not in ('.txt', '.jsonl', '.tar', '.parquet'):
                    sys.exit(f'{path}: must be {KINDS}; narrow the glob {pattern!r}')
            if paths:
                return paths, field
    sys.exit(f'corpus source {source!r}: no such file; must be a glob of {KINDS} files, or {HUB}')

def field_of(record, field, where):
    """The text in a field of a record; a dot leads into a nested record, null is empty."""
    with reading(where, f'it must be an object with text in its field {field!r}'):
        for key in [field] if field in record else field.split('.'):
            if key not in record:
                raise ValueError(f'its fields are {", ".join(record)}')
            record = record[key]
        return (record or '').encode('utf-8', 'ignore').decode()  # without lone surrogates

def documents_in(file, name, field):
    """The documents of an open file: a whole .txt, the lines of a .jsonl, the rows of a .parquet;
    of a .tar, those of its .txt and .jsonl files."""
    kind, compression = kind_of(name)
    if compression:
        file = DECOMPRESS[compression](file)
    if kind == '.txt':
        yield file.read().decode('utf-8-sig')
    elif kind == '.jsonl':
        for number, line in enumerate(file, 1):
            if line.strip():
                where = f'{name}, line {number}'
                with reading(where, 'it must be JSON'):
                    record = json.loads(line)
                yield field_of(record, field, where)
    elif kind == '.parquet':
        parquet = require('pyarrow.parquet', name, 'pyarrow')
        for batch in parquet.ParquetFile(file).iter_batches(64):
            for record in batch.to_pylist():
                yield field_of(record, field, f'a row of {name}')
    else:
        skipped = 0
        with tarfile.open(fileobj=file, mode='r|') as tar:  # nothing is unpacked to disk
            for member in tar:
                hidden = os.path.basename(member.name).startswith('.')
                if member.isfile() and not hidden and kind_of(member.name)[0] in ('.txt', '.jsonl'):
                    where = f'{name}, {member.name}'
                    yield from documents_in(tar.extractfile(member), where, field)
                else:
                    skipped += member.isfile() and not hidden
        if skipped:
            print(f'note: {name} has {skipped:,} files that are neither .txt nor .jsonl: not read')

def documents(source):
    """The documents of a source as they are: of files, or the rows of a data set of the hub."""
    if source.startswith('hf:'):
        dataset, field, subset, split = (source.removeprefix('hf:').split(':') + [''] * 3)[:4]
        name, _, revision = dataset.partition('@')
        load_dataset = require('datasets', source).load_dataset
        with reading(source, f'is it {HUB}, and are you online?'):
            rows = load_dataset(name, subset or None, split=split or 'train', streaming=True,
                                revision=revision or None)
            for number, row in enumerate(rows, 1):
                yield field_of(row, field or 'text', f'{source}, row {number}')
        return
    paths, field = find_files(source)
    for path in paths:
        with reading(path, 'it must be complete, and text in UTF-8'), open(path, 'rb') as file:
            yield from documents_in(file, path, field)

def split_documents(source, cfg):
    """(part, document) for every document, cleaned: part is 'train', 'test' or 'dropped'.

    Cleaned text has single spaces, none at the ends of lines, at most one empty line in a row.
    A random one of every 1 / test_frac documents is held out, one of the first two included."""
    group = max(2, round(1 / cfg.test_frac))
    number = test_bytes = 0
    for text in documents(source):
        text = re.sub(r'[^\S\n ][^\S\n]*| [^\S\n]+', ' ', text.removeprefix('\ufeff'))
        text = re.sub(r' ?\n ?', '\n', text)
        text = re.sub(r'\n{3,}', '\n\n', text).strip()
        if '\0' in text:
            sys.exit(f'{source}: a document has NUL characters, so it is not text in UTF-8')
        if len(text) < max(1, cfg.min_chars):
            yield 'dropped', text
            continue
        rng = np.random.default_rng([cfg.data_seed, number // group])
        held_out = number % group == rng.integers(group if number >= group else 2)
        number += 1
        if held_out and not (source.startswith('hf:') and test_bytes >= HUB_TEST_BYTES):
            test_bytes += len(text.encode())
            yield 'test', text
        else:
            yield 'train', text

# ---- tokenizers: files, .model of SentencePiece or .tiktoken -----------------

def train_tokenizer(sources, cfg):
    """A SentencePiece BPE, trained on equal amounts of the sources' training text -> the content of
    its file. Bytes spell what it has no piece for. Decoding restores text without U+2581, which
    stands for a blank."""
    import sentencepiece

    def lines():
        for source in sources:
            n_bytes = TOKENIZER_BYTES // len(sources)
            for part, text in split_documents(source, cfg):
                if part == 'train':
                    n_bytes -= len(text.encode())
                    yield from (line for line in text.split('\n') if line.strip())
                if n_bytes <= 0:
                    break
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=lines(), model_writer=model, model_type='bpe',
            vocab_size=cfg.vocab_size, unk_id=0, eos_id=1, bos_id=-1, pad_id=-1, byte_fallback=True,
            character_coverage=0.9995, normalization_rule_name='identity', add_dummy_prefix=False,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True,
            max_sentence_length=1 << 20, minloglevel=2)
    except RuntimeError as e:
        reason = str(e).split('] ')[-1].strip() or 'too little text'
        sys.exit(f'vocab_size {cfg.vocab_size} does not fit the text: {reason}')
    return model.getvalue()

def fingerprint(source):
    """What identifies the text of a source: the files' sizes and times; of the hub, its name."""
    if source.startswith('hf:'):
        return [source]
    stats = [(path, os.stat(path)) for path in find_files(source)[0]]
    return [source, [[path, stat.st_size, stat.st_mtime_ns] for path, stat in stats]]

def tokenizer_file(corpus, cfg):
    """The tokenizer of a corpus: given, tiktoken's, or trained, unless that has been done."""
    kind, _, name = cfg.tokenizer.partition(':')
    if kind.endswith('.model') or os.path.isfile(name):
        load_tokenizer(name or kind)  # refuse another file before anything is read
        return Path(name or kind)
    if kind == 'tiktoken':
        import tiktoken
        with reading(f'tokenizer {cfg.tokenizer}', 'offline, name a file of ranks: tiktoken:FILE'):
            ranks = tiktoken.get_encoding(name)._mergeable_ranks.items()
        lines = ''.join(f'{base64.b64encode(token).decode()} {rank}\n' for token, rank in ranks)
        DATA.mkdir(exist_ok=True)
        atomic_write(DATA / f'{name}.tiktoken', lambda partial: partial.write_text(lines))
        return DATA / f'{name}.tiktoken'
    corpora = list(cfg.corpora) if kind == 'shared' else [corpus]
    sources = [cfg.corpora[name] for name in corpora]
    key = [cfg.vocab_size, cfg.test_frac, cfg.data_seed, cfg.min_chars, *map(fingerprint, sources)]
    folder = DATA / f'tokenizer-{short_hash(key)}'
    if not folder.exists():
        print(f'{", ".join(corpora)}: training a BPE of {cfg.vocab_size:,} pieces', flush=True)
        with new_folder(folder) as partial:
            (partial / 'bpe.model').write_bytes(train_tokenizer(sources, cfg))
    return folder / 'bpe.model'

def load_tokenizer(path):
    """A tokenizer file -> encode (text -> ids), encode_batch (texts, threads -> lists of ids),
    decode, pieces (the string of every id), eod (the id that ends a document), unk (or None)."""
    if str(path).endswith('.model'):
        import sentencepiece
        with reading(f'tokenizer {path}', 'it must be a SentencePiece model that has </s>'):
            bpe = sentencepiece.SentencePieceProcessor(model_file=str(path))
            pieces = [bpe.id_to_piece(i) for i in range(len(bpe))]
            eod, unk = pieces.index('</s>'), bpe.unk_id()
        encode, batch = bpe.encode, lambda texts, threads: bpe.encode(texts, num_threads=threads)
    else:
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's; others exceed 65,536 ids
        with reading(f'tokenizer {path}', 'it must be lines of base64 token and rank'):
            lines = map(str.split, Path(path).read_text().splitlines())
            ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
            tokens, eod, unk = sorted(ranks, key=ranks.get), len(ranks), None
            counted = [ranks[token] for token in tokens] == list(range(eod))
            if not counted or {bytes([i]) for i in range(256)} - ranks.keys():
                raise ValueError('ranks must count from 0, and every byte have one')
            pieces = [token.decode('latin-1') for token in tokens] + ['<|endoftext|>']
            bpe = tiktoken.Encoding('ranks', pat_str=r50k_pat_str, mergeable_ranks=ranks,
                                    special_tokens={pieces[-1]: eod})
        encode = bpe.encode_ordinary
        batch = lambda texts, threads: bpe.encode_ordinary_batch(texts, num_threads=threads)
    return SimpleNamespace(encode=encode, encode_batch=batch, decode=bpe.decode, pieces=pieces,
                           eod=eod, unk=unk)

# ---- a corpus: text -> train.bin, test.bin -----------------------------------

def prepare_corpus(corpus, cfg, enough):
    """The folder of a corpus with at least `enough` training tokens, or all; made if missing."""
    source, tokenizer = cfg.corpora[corpus], tokenizer_file(corpus, cfg)
    key = [FORMAT_VERSION, fingerprint(source), checksum(tokenizer), cfg.test_frac, cfg.data_seed,
           cfg.min_chars, cfg.max_tokens]
    name = f'{corpus}-{short_hash(key)}'
    if source.startswith('hf:'):  # a folder with more tokens will do
        sizes = [int(path.name.rpartition('-')[2]) for path in DATA.glob(f'{name}-*')]
        name += f'-{min((n for n in sizes if n >= enough), default=enough)}'
    if not (DATA / name).exists():
        with new_folder(DATA / name) as partial:
            file = f'tokenizer{tokenizer.suffix}'
            shutil.copyfile(tokenizer, partial / file)
            counts = tokenise(corpus, cfg, load_tokenizer(tokenizer), enough, partial)
            write_meta(partial, {**counts, 'tokenizer': file, 'fingerprint': fingerprint(source)})
    return DATA / name

def encoded(documents, tokenizer, threads):
    """(part, text, ids) of all documents: a few MB at a time, by several threads."""
    batch, size = [], 0
    for document in itertools.chain(documents, [None]):
        if document:
            batch.append(document)
            size += len(document[1])
        if size >= 4_000_000 or not document:
            all_ids = tokenizer.encode_batch([text for _, text in batch], threads)
            for (part, text), ids in zip(batch, all_ids):
                yield part, text, ids
            batch, size = [], 0

def tokenise(corpus, cfg, tokenizer, enough, folder):
    """Write train.bin, test.bin and counts.npy to a folder -> counts for its meta."""
    source, V = cfg.corpora[corpus], len(tokenizer.pieces)
    if V > 2 ** 16:
        sys.exit(f'tokenizer {cfg.tokenizer} has {V:,} pieces, 16 bits hold 65,536')
    n, occurrences = Counter(dropped_documents=0, test_altered=0, test_unknown=0), np.zeros(V, int)
    least_test_bytes = HUB_TEST_BYTES if source.startswith('hf:') else 1
    documents = encoded(split_documents(source, cfg), tokenizer, cfg.num_workers or os.cpu_count())
    with (open(folder / 'train.bin', 'wb') as train, open(folder / 'test.bin', 'wb') as test,
          tqdm(desc=f'{corpus}: tokenising', unit='B', unit_scale=True, disable=None) as bar):
        for part, text, ids in documents:
            bar.update(n_bytes := len(text.encode()))
            n[f'{part}_documents'] += 1
            if part == 'dropped' or part == 'train' and n['train_tokens'] >= enough:
                continue
            ids = np.array([*ids, tokenizer.eod], np.uint16)
            n[f'{part}_tokens'] += len(ids)
            n[f'{part}_bytes'] += n_bytes
            if part == 'train':
                train.write(ids)
                occurrences += np.bincount(ids, minlength=V)
            else:
                test.write(ids)
                n['test_unknown'] += int(np.count_nonzero(ids == tokenizer.unk))
                n['test_altered'] += tokenizer.decode(ids[:-1].tolist()) != text
            if n['train_tokens'] >= enough and n['test_bytes'] >= least_test_bytes:
                break
    print(f'{corpus}:', ', '.join(f'{key} {value:,}' for key, value in sorted(n.items())))
    kept, dropped = n['train_documents'] + n['test_documents'], n['dropped_documents']
    if not n['train_tokens'] or not n['test_tokens']:
        sys.exit(f'corpus {corpus!r}: {source} has {kept} documents of at least min_chars = '
                 f'{cfg.min_chars} characters ({dropped:,} are shorter), two are needed. A .txt is '
                 'one document, a .jsonl one a line')
    if dropped > 0.1 * (kept + dropped):
        print(f'note: {dropped:,} documents of {corpus} have fewer than min_chars = '
              f'{cfg.min_chars} characters and were dropped, {kept:,} were kept')
    if n['test_unknown'] or n['test_altered']:
        print(f'note: the tokenizer of {corpus} has no piece for {n["test_unknown"]:,} of the test '
              f'tokens, and decoding alters {n["test_altered"]:,} of the test documents')
    np.save(folder / 'counts.npy', occurrences)
    return {**n, 'vocab_size': V, 'eod': tokenizer.eod}

# ---- languages ---------------------------------------------------------------

def check_languages(cfg):
    """Refuse languages, corpora and schedules that do not fit together."""
    try:
        names, corpora = zip(*[(str(name), str(corpus)) for name, corpus in cfg.languages])
        stages = [(float(start), [float(p) for p in ps]) for start, ps in cfg.schedule]
    except (TypeError, ValueError, OverflowError):
        sys.exit('languages must be a list of (name, corpus), schedule of (start, (p, p, ...)), '
                 f'not {cfg.languages}, {cfg.schedule}')
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
        "tokenizer must be 'sentencepiece', 'shared', FILE.model or 'tiktoken:NAME_OR_FILE'":
            re.fullmatch(r'sentencepiece|shared|.*\.model|tiktoken:.+', cfg.tokenizer),
        "vocab must be 'disjoint' or 'anchored'": cfg.vocab in ('disjoint', 'anchored'),
        'anchor_frac must be at most 1': cfg.anchor_frac <= 1,
        'test_frac must be above 0 and at most 0.5': 0 < cfg.test_frac <= 0.5,
        'block_size must be at least 1': cfg.block_size >= 1}
    for rule, holds in rules.items():
        if not holds:
            sys.exit(f'{rule}, not {getattr(cfg, rule.split()[0])!r}')

def marginals(schedule):
    """p(language) over the whole of training, (n_languages,)."""
    starts = [start for start, _ in schedule] + [1.0]
    return sum((b - a) * np.array(p, float) for a, b, (_, p) in zip(starts, starts[1:], schedule))

def vocabulary_map(languages, pieces, cfg):
    """int32 (n_languages, widest base vocabulary): base id -> model id, -1 beyond a corpus's ids.

    pieces: corpus -> the string of every base id. Every language has model ids of its own, without
    gaps, so that a full clone is base_id + language * V, except that
    - a clone shares a share anchor_frac of the pieces with its original (paper D.1)
    - equal pieces of two corpora share one id if vocab is 'anchored' (paper D.2)"""
    vocab_map = np.full((len(languages), max(map(len, pieces.values()))), -1, np.int32)
    original, id_of, n_ids = {}, {}, 0  # a corpus's first row; a piece's first model id
    for row, (_, corpus) in zip(vocab_map, languages):
        V = len(pieces[corpus])
        if corpus in original:
            draw = np.random.default_rng([cfg.data_seed, cfg.anchor_seed]).permutation(V)
            anchors = draw[:round(cfg.anchor_frac * V)]
            row[anchors] = original[corpus][anchors]
        elif cfg.vocab == 'anchored' or cfg.tokenizer == 'shared':
            row[:V] = [id_of.get(piece, -1) for piece in pieces[corpus]]
        new = np.flatnonzero(row[:V] < 0)
        row[new] = n_ids + np.arange(len(new))
        n_ids += len(new)
        original.setdefault(corpus, row)
        for piece, i in zip(pieces[corpus], row.tolist()):
            id_of.setdefault(piece, i)
    return vocab_map

def language_ids(cfg, n_sequences):
    """uint8: the language of every training sequence, corpus after corpus (n_sequences of each).
    Clones split those of their corpus at random, in exact proportion to their marginals."""
    share, arrays = marginals(cfg.schedule), []
    for number, (corpus, n) in enumerate(zip(cfg.corpora, n_sequences)):
        ids = np.array([i for i, (_, c) in enumerate(cfg.languages) if c == corpus], np.uint8)
        p = share[ids] if share[ids].any() else np.ones(len(ids))
        bounds = np.rint(n * np.cumsum([0, *p]) / p.sum()).astype(int)
        rng = np.random.default_rng([cfg.data_seed, number])
        arrays.append(rng.permutation(np.repeat(ids, np.diff(bounds))))
    return np.concatenate(arrays)

# ---- dataset: written here, read by train.py and analyze.py ------------------

def data_settings(cfg):
    """The settings that a dataset depends on, as JSON has them; of the schedule, its marginals."""
    keys = ('corpora', 'languages', 'tokenizer', 'vocab_size', 'vocab', 'anchor_frac',
            'anchor_seed', 'block_size', 'test_frac', 'min_chars', 'max_tokens', 'data_seed')
    settings = {key: getattr(cfg, key) for key in keys}
    settings['p_language'] = [round(float(p), 9) for p in marginals(cfg.schedule)]
    return json.loads(json.dumps(settings))

def prepare(cfg, overwrite=False):
    """Make data/<dataset>/ and the corpora that it lacks. One that exists is only checked."""
    check_languages(cfg)
    path = DATA / cfg.dataset
    if path.exists() and not overwrite:
        Dataset(cfg)
        return print(f'{path} already exists (--overwrite rebuilds it)')
    share, corpora, pieces, counts = marginals(cfg.schedule), {}, {}, {}
    for corpus, source in cfg.corpora.items():
        enough = cfg.max_tokens or math.inf
        if source.startswith('hf:'):  # what a run reads, and 2%, as it draws languages at random
            p = sum(share[i] for i, (_, name) in enumerate(cfg.languages) if name == corpus)
            run = 1.02 * p * cfg.max_iters * cfg.batch_size * cfg.block_size
            enough = min(enough, math.ceil(run))
        folder = prepare_corpus(corpus, cfg, enough)
        meta = read_meta(folder, f'remove {folder}, and it is made again')
        corpora[corpus] = {'folder': folder.name, 'tokens': int(min(meta['train_tokens'], enough))}
        pieces[corpus] = load_tokenizer(folder / meta['tokenizer']).pieces
        counts[corpus] = np.load(folder / 'counts.npy')
    n_sequences = [(corpus['tokens'] - 1) // cfg.block_size for corpus in corpora.values()]
    vocab_map = vocabulary_map(cfg.languages, pieces, cfg)
    with new_folder(path) as partial:
        language_ids(cfg, n_sequences).tofile(partial / 'train_lang.bin')
        np.save(partial / 'vocab_map.npy', vocab_map)
        write_meta(partial, {'settings': data_settings(cfg), 'corpora': corpora})
        if overwrite:
            shutil.rmtree(path, ignore_errors=True)
    print(f'{path}: {vocab_map.max() + 1:,} model ids, {sum(n_sequences):,} training sequences of '
          f'{cfg.block_size} tokens')
    for (name, corpus), row in zip(cfg.languages[1:], vocab_map[1:]):
        shared = np.isin(row[:len(counts[corpus])], vocab_map[0])
        if shared.any():
            covered = counts[corpus][shared].sum() / counts[corpus].sum()
            print(f'{name} shares {shared.sum():,} of {len(shared):,} pieces with '
                  f'{cfg.languages[0][0]}: {covered:.2%} of its training tokens')

class Dataset:
    """data/<dataset>/, if it is undamaged (see read_meta) and made with the settings cfg.

    vocab_map: int32 (n_languages, V). Of every language, in the order of the IDs: names; starts,
    where its training sequences start; corpora, the meta of its corpus with its tokens train and
    test, and counts, how often every base id occurs in train."""

    def __init__(self, cfg, verify=True):
        path, self.block_size = DATA / cfg.dataset, cfg.block_size
        again = 'rebuild it with data_prep.py --overwrite'
        if not path.exists():
            sys.exit(f'{path} is missing: make it with data_prep.py')
        meta = read_meta(path, again, verify)
        for key, value in data_settings(cfg).items():
            if (made := meta['settings'].get(key)) != value:
                sys.exit(f'{path} was made with {key} = {made}, these settings say {value}: choose '
                         f'another --dataset name, or {again}')
        with reading(path, again):
            self.vocab_map = np.load(path / 'vocab_map.npy')
            self.vocab_size = int(self.vocab_map.max()) + 1
            lang_ids, corpora = np.fromfile(path / 'train_lang.bin', np.uint8), {}
            for name, made in meta['corpora'].items():
                folder, n = DATA / made['folder'], (made['tokens'] - 1) // cfg.block_size
                corpora[name] = corpus = read_meta(folder, f'remove {folder}, and {again}', verify)
                corpus['train'] = np.memmap(folder / 'train.bin', np.uint16, 'r')[:made['tokens']]
                corpus['test'] = np.memmap(folder / 'test.bin', np.uint16, 'r')
                corpus['counts'] = np.load(folder / 'counts.npy')
                corpus['tokenizer'] = folder / corpus['tokenizer']
                corpus['lang_ids'], lang_ids = lang_ids[:n], lang_ids[n:]
        self.names = [name for name, _ in cfg.languages]
        self.corpora = [corpora[corpus] for _, corpus in cfg.languages]
        self.starts = [np.flatnonzero(corpus['lang_ids'] == language) * cfg.block_size
                       for language, corpus in enumerate(self.corpora)]
        # equal on every machine: a tokenizer's file names the version of its library
        files = [meta['files'][name] for name in ('train_lang.bin', 'vocab_map.npy')]
        files += [corpus['files'][name] for corpus in self.corpora
                  for name in ('train.bin', 'test.bin')]
        self.checksum = short_hash(files)

    def vocabulary(self):
        """Equal for two datasets whose model ids mean the same, language by language."""
        pieces = [load_tokenizer(corpus['tokenizer']).pieces for corpus in self.corpora]
        return short_hash([self.vocab_map.tolist(), pieces])

    def windows(self, part, starts, languages):
        """Inputs and targets, int64 (B, block_size) each, in model ids: the block_size + 1 tokens
        from (B,) starts in the train or test text of (B,) languages."""
        ids = np.empty((len(starts), self.block_size + 1), np.int64)
        for row, start, language in zip(ids, starts, languages):
            base = self.corpora[language][part][start:start + self.block_size + 1]
            row[:] = self.vocab_map[language, base]  # a clone becomes a language of its own
        return ids[:, :-1], ids[:, 1:]

    def test_starts(self, language, n):
        """Where up to n windows start, spread evenly over the test text of a language."""
        available = (len(self.corpora[language]['test']) - 1) // self.block_size
        n = min(n, available)
        return np.arange(n) * available // max(1, n) * self.block_size

if __name__ == '__main__':
    cfg = config.load(sys.argv[1:], __doc__)
    config.run(lambda: prepare(cfg, cfg.overwrite))
