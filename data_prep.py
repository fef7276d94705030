"""
Text in, token ids and languages out. A corpus is tokenised once, for all languages made of it.

    python data_prep.py config/cloned_90_10.py             # the dataset of a config
    python data_prep.py --vocab_size=512 --dataset=small   # of the novels in corpora/

    data/en-<hash>/train.bin, test.bin    uint16: base ids, every document ended by eod
    data/en-<hash>/tokenizer.model        SentencePiece, or a .tiktoken file of ranks
    data/en-<hash>/counts.npy             how often every base id occurs in train.bin
    data/<dataset>/train_lang.bin         uint8: the language of every training sequence
    data/<dataset>/vocab_map.npy          int32 (n_languages, V): base id -> model id
    data/*/meta.json                      settings, counts, checksums
"""
import base64
import contextlib
import glob
import gzip
import hashlib
import importlib
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
FORMAT_VERSION = 4
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

def short_hash(value, digits=16):
    """The first digits of the SHA-256 of a file (a Path), or of another value as JSON."""
    if isinstance(value, Path):
        with open(value, 'rb') as f:
            return hashlib.file_digest(f, 'sha256').hexdigest()[:digits]
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:digits]

@contextlib.contextmanager
def new_folder(path, meta=None, overwrite=False):
    """Yield a temporary folder that becomes `path`, with meta (the caller may still fill it), sizes
    and checksums in meta.json. Of two processes that do so at once, the first to end wins."""
    prefix = f'.{path.name}.{os.uname().nodename}.'
    for leftover in path.parent.glob(f'{glob.escape(prefix)}*'):
        try:
            os.getpgid(int(leftover.name.removeprefix(prefix)))  # does its process still run?
        except ProcessLookupError:
            shutil.rmtree(leftover, ignore_errors=True)
    partial = path.with_name(f'{prefix}{os.getpid()}')
    shutil.rmtree(partial, ignore_errors=True)  # of an earlier process with our number
    partial.mkdir(parents=True)
    try:
        yield partial
        if meta is not None:
            files = {file.name: [file.stat().st_size, short_hash(file, 64)]
                     for file in sorted(partial.iterdir())}
            meta = {'format_version': FORMAT_VERSION, **meta, 'files': files}
            meta['checksum'] = short_hash(meta)
            (partial / 'meta.json').write_text(json.dumps(meta, indent=1) + '\n')
        if overwrite:
            shutil.rmtree(path, ignore_errors=True)
        if not path.exists():
            partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)

def read_meta(folder, remedy, verify=True):
    """meta.json of a folder whose files are unchanged: in size and, with verify, by checksum."""
    with reading(folder, remedy):
        meta = json.loads((folder / 'meta.json').read_text())
        if (version := meta.get('format_version')) != FORMAT_VERSION:
            raise ValueError(f'its format is {version}, not {FORMAT_VERSION}')
        if meta.pop('checksum') != short_hash(meta):
            raise ValueError('meta.json has changed since it was written')
        for name, (size, sha256) in meta['files'].items():
            path = folder / name
            if path.stat().st_size != size or verify and short_hash(path, 64) != sha256:
                raise ValueError(f'{name} has changed since it was written')
    return meta

# ---- sources -> documents (strings, always in the same order) ----------------

KINDS = '.txt, .jsonl, .tar (plain, .gz, .xz, .zst) or .parquet'
HUB = 'hf:DATASET[@REVISION][:FIELD[:SUBSET[:SPLIT]]]'
ZSTD = 'compression.zstd' if sys.version_info >= (3, 14) else 'backports.zstd'
DECOMPRESS = {'.gz': gzip.open, '.xz': lzma.open, '.zst': lambda f: require(ZSTD, '.zst').open(f)}

def require(package, user, install=''):
    """An optional package, or a line that says how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError:
        sys.exit(f'{user} needs a package: pip install {install or package}')

def kind_of(name):
    """'a/b.jsonl.gz' -> ('.jsonl', '.gz'): what a file holds, and its compression."""
    stem, suffix = os.path.splitext(str(name).lower().replace('.tgz', '.tar.gz'))
    return (os.path.splitext(stem)[1], suffix) if suffix in DECOMPRESS else (suffix, '')

def find_files(source):
    """GLOB[:FIELD] -> what identifies its text, [source, [[path, size, time], ...]]. Files are of
    the working directory or else of the repository; a hub data set is [source]."""
    if source.startswith('hf:'):
        return [source]
    pattern = os.path.expanduser(source.partition(':')[0])
    for folder in '', glob.escape(os.path.dirname(os.path.abspath(__file__))):
        paths, files = glob.glob(os.path.join(folder, pattern), recursive=True), []
        for path in sorted(filter(os.path.isfile, paths)):
            if kind_of(path)[0] not in ('.txt', '.jsonl', '.tar', '.parquet'):
                sys.exit(f'{path}: must be {KINDS}; narrow the glob {pattern!r}')
            files.append([path, os.path.getsize(path), os.stat(path).st_mtime_ns])
        if files:
            return [source, files]
    sys.exit(f'corpus source {source!r}: no such file; must be a glob of {KINDS} files, or {HUB}')

def texts_of(rows, field, name):
    """The text in a field of every row, a dictionary or its JSON; a dot leads into a nested one."""
    for number, row in enumerate(rows, 1):
        if row == b'':
            continue
        with reading(f'{name} {number}', f'it must be an object with text in its field {field!r}'):
            value = json.loads(row) if isinstance(row, bytes) else row
            for key in [field] if field in value else field.split('.'):
                if key not in value:
                    raise ValueError(f'its fields are {", ".join(value)}')
                value = value[key]
            text = '' if value is None else value
            yield text.encode('utf-8', 'ignore').decode()  # without lone surrogates

def documents_in(file, name, field):
    """The documents of an open file: a whole .txt, the lines of a .jsonl, the rows of a .parquet;
    of a .tar, those of its .txt and .jsonl files."""
    kind, compression = kind_of(name)
    file = DECOMPRESS[compression](file) if compression else file
    if kind == '.txt':
        yield file.read().decode('utf-8-sig')
    elif kind == '.jsonl':
        yield from texts_of(map(bytes.strip, file), field, f'{name}, line')
    elif kind == '.parquet':
        batches = require('pyarrow.parquet', name, 'pyarrow').ParquetFile(file).iter_batches(64)
        rows = (row for batch in batches for row in batch.to_pylist())
        yield from texts_of(rows, field, f'{name}, row')
    else:
        tar, skipped = tarfile.open(fileobj=file, mode='r|'), 0  # nothing is unpacked to disk
        for member in tar:
            visible = member.isfile() and not os.path.basename(member.name).startswith('.')
            if visible and kind_of(member.name)[0] in ('.txt', '.jsonl'):
                yield from documents_in(tar.extractfile(member), f'{name}, {member.name}', field)
            elif visible:
                skipped += 1
        if skipped:
            print(f'note: {name} has {skipped:,} files that are neither .txt nor .jsonl: not read')

def documents(source):
    """The documents of a source as they are: of files, or the rows of a data set of the hub."""
    if source.startswith('hf:'):
        dataset, field, subset, split = (source.removeprefix('hf:').split(':') + [''] * 3)[:4]
        name, _, revision = dataset.partition('@')
        hub = require('datasets', source)
        with reading(source, f'is it {HUB}, and are you online?'):
            rows = hub.load_dataset(name, subset or None, revision=revision or None,
                                    split=split or 'train', streaming=True)
            yield from texts_of(rows, field or 'text', f'{source}, row')
        return
    _, files = find_files(source)
    for path, *_ in files:
        with reading(path, 'it must be complete, and text in UTF-8'), open(path, 'rb') as file:
            yield from documents_in(file, path, source.partition(':')[2] or 'text')

def split_documents(source, cfg):
    """('train', 'test' or 'dropped', document) for every document. Cleaned text has single spaces,
    none at either end of a line, at most one empty line in a row. A random one of every
    1 / test_frac documents is held out, one of the first two included."""
    group = max(2, round(1 / cfg.test_frac))
    number, test_bytes = 0, HUB_TEST_BYTES if source.startswith('hf:') else math.inf  # to hold out
    for text in documents(source):
        text = text.replace('\r\n', '\n').replace('\r', '\n')
        # [^\S\n]+ would do the same, but stop at every single blank
        text = re.sub(r'[^\S\n ][^\S\n]*| [^\S\n]+', ' ', text.removeprefix('\ufeff'))
        text = re.sub(r'\n{3,}', '\n\n', re.sub(r' ?\n ?', '\n', text)).strip()
        if '\0' in text:
            sys.exit(f'{source}: a document has NUL characters, so it is not text in UTF-8')
        part = 'dropped'
        if len(text) >= max(1, cfg.min_chars):
            rng, part = np.random.default_rng([cfg.data_seed, number // group]), 'train'
            if test_bytes > 0 and number % group == rng.integers(group if number >= group else 2):
                test_bytes -= len(text.encode())
                part = 'test'
            number += 1
        yield part, text

# ---- tokenizers: files, .model of SentencePiece or .tiktoken -----------------

def tokenizer_file(corpus, cfg):
    """The tokenizer of a corpus: a given file, tiktoken's, or a SentencePiece BPE of equal amounts
    of the training text of the corpora that use it, trained if it is missing. Bytes spell what has
    no piece; decoding restores all text but U+2581, its sign for a blank."""
    kind, _, name = cfg.tokenizer.partition(':')
    if kind.endswith('.model') or os.path.isfile(name):
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
    key = [cfg.vocab_size, cfg.test_frac, cfg.data_seed, cfg.min_chars]
    folder = DATA / f'tokenizer-{short_hash(key + [*map(find_files, sources)])}'
    if folder.exists():
        return folder / 'bpe.model'
    import sentencepiece
    print(f'{", ".join(corpora)}: training a BPE of {cfg.vocab_size:,} pieces', flush=True)
    lines = []
    for source in sources:
        n_bytes = TOKENIZER_BYTES // len(sources)
        for part, text in split_documents(source, cfg):
            if part == 'train':
                n_bytes -= len(text.encode())
                lines += [line[i:i + 200_000] for line in text.split('\n') if line.strip()
                          for i in range(0, len(line), 200_000)]  # it skips lines of a megabyte
            if n_bytes <= 0:
                break
    with new_folder(folder) as partial, open(partial / 'bpe.model', 'wb') as model:
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines), model_writer=model, model_type='bpe',
                vocab_size=cfg.vocab_size, unk_id=0, eos_id=1, bos_id=-1, pad_id=-1,
                byte_fallback=True, character_coverage=0.9995, normalization_rule_name='identity',
                add_dummy_prefix=False, remove_extra_whitespaces=False,
                allow_whitespace_only_pieces=True, max_sentence_length=1 << 20, minloglevel=2)
        except (RuntimeError, ValueError) as e:
            reason = str(e).split('] ')[-1].strip() or 'too little text'
            sys.exit(f'vocab_size {cfg.vocab_size} does not fit the text: {reason}')
    return folder / 'bpe.model'

def load_tokenizer(path):
    """A tokenizer file -> its path, encode (text -> ids), encode_batch (texts, num_threads=n ->
    their ids), decode, pieces (the string of every id), eod (the id that ends a document), unk."""
    if str(path).endswith('.model'):
        import sentencepiece
        with reading(f'tokenizer {path}', 'it must be a SentencePiece model that has </s>'):
            bpe = sentencepiece.SentencePieceProcessor(model_file=str(path))
            pieces = [bpe.id_to_piece(i) for i in range(len(bpe))]
            eod, unk, encode, batch = pieces.index('</s>'), bpe.unk_id(), bpe.encode, bpe.encode
    else:
        import tiktoken
        from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's; others exceed 65,536 ids
        with reading(f'tokenizer {path}', 'it must be lines of base64 token and rank'):
            lines = map(str.split, Path(path).read_text().splitlines())
            ranks = {base64.b64decode(token): int(rank) for token, rank in lines}
            eod, unk, single = len(ranks), None, {bytes([i]) for i in range(256)}
            if sorted(ranks.values()) != [*range(eod)] or single - ranks.keys():
                raise ValueError('ranks must count from 0, and every byte have one')
            pieces = [t.decode('latin-1') for t in sorted(ranks, key=ranks.get)] + ['<|endoftext|>']
            bpe = tiktoken.Encoding('ranks', pat_str=r50k_pat_str, mergeable_ranks=ranks,
                                    special_tokens={pieces[-1]: eod})
        encode, batch = bpe.encode_ordinary, bpe.encode_ordinary_batch
    return SimpleNamespace(path=path, encode=encode, encode_batch=batch, decode=bpe.decode,
                           pieces=pieces, eod=eod, unk=unk)

# ---- languages ---------------------------------------------------------------

def check_languages(cfg):
    """Refuse languages, corpora and schedules that do not fit together."""
    with reading('languages or schedule', 'it must be a list of (name, corpus), (start, (p, ...))'):
        names, corpora = zip(*[(str(name), str(corpus)) for name, corpus in cfg.languages])
        starts, ps = zip(*[(float(start), np.array(p, float)) for start, p in cfg.schedule])
    rules = {  # the first word is the setting that the refusal shows
        'languages must have different names, at most 256': len(set(names)) == len(names) <= 256,
        'languages must cover every corpus and no others': set(corpora) == set(cfg.corpora),
        'corpora must have plain names': all(re.fullmatch(r'[\w-]+', name) for name in corpora),
        'corpora must have strings as sources': {str} == set(map(type, cfg.corpora.values())),
        'schedule must rise from 0.0 to below 1': starts[0] == 0 and all(np.diff([*starts, 1]) > 0),
        f'schedule must have {len(names)} probabilities per stage that sum to 1': all(
            p.shape == (len(names),) and min(p) >= 0 and abs(sum(p) - 1) < 1e-6 for p in ps),
        'dataset must be a plain name': re.fullmatch(r'[\w-][\w.-]*', cfg.dataset),
        "tokenizer must be 'sentencepiece', 'shared', FILE.model or 'tiktoken:NAME_OR_FILE'":
            re.fullmatch(r'sentencepiece|shared|.*\.model|tiktoken:.+', cfg.tokenizer),
        "vocab must be 'disjoint', 'anchored' or a file of pieces, one a line":
            cfg.vocab in ('disjoint', 'anchored') or os.path.isfile(cfg.vocab),
        'own_tokens must give languages a number of tokens, block_size at least': all(
            name in names and isinstance(n, (int, float)) and n >= cfg.block_size
            for name, n in cfg.own_tokens.items()),
        'anchor_frac must be at most 1': cfg.anchor_frac <= 1,
        'anchor_frac must be 0 without clones, or where vocab is a file': not cfg.anchor_frac or (
            len(names) > len(cfg.corpora) and not os.path.isfile(cfg.vocab)),
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
    pieces: corpus -> the string of every base id. Languages share no model ids, but a clone has
    those of anchor_frac of its pieces (paper D.1), and equal pieces share one if vocab is
    'anchored' (D.2) or the tokenizer 'shared'; a file lists the pieces that all share instead."""
    vocab_map = np.full((len(languages), max(map(len, pieces.values()))), -1, np.int32)
    original, id_of, listed = {}, {}, None  # a corpus's first row; a piece's first model id
    if cfg.vocab not in ('disjoint', 'anchored'):
        with reading(cfg.vocab, 'it must be UTF-8, one piece a line'):
            listed = set(Path(cfg.vocab).read_text('utf-8').splitlines())
    for row, (_, corpus) in zip(vocab_map, languages):
        V = len(pieces[corpus])
        if listed is not None:
            row[:V] = [id_of.get(p, -1) if p in listed else -1 for p in pieces[corpus]]
        elif corpus in original:
            rng = np.random.default_rng([cfg.data_seed, cfg.anchor_seed])
            anchors = rng.permutation(V)[:round(cfg.anchor_frac * V)]
            row[anchors] = original[corpus][anchors]
        elif cfg.vocab == 'anchored' or cfg.tokenizer == 'shared':
            row[:V] = [id_of.get(piece, -1) for piece in pieces[corpus]]
        new = np.flatnonzero(row[:V] < 0)
        row[new] = vocab_map.max() + 1 + np.arange(len(new))
        original.setdefault(corpus, row)
        id_of = dict(zip(pieces[corpus], row.tolist())) | id_of
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

def tokenise(corpus, cfg, tokenizer, enough, folder):
    """Write train.bin, test.bin, counts.npy and the tokenizer to a folder -> meta of the corpus."""
    source, V = cfg.corpora[corpus], len(tokenizer.pieces)
    if V > 2 ** 16:
        sys.exit(f'tokenizer {cfg.tokenizer} has {V:,} pieces, 16 bits hold 65,536')
    n, counts = Counter(dropped_documents=0, test_altered=0, test_unknown=0), np.zeros(V, int)
    least_test_bytes = HUB_TEST_BYTES if source.startswith('hf:') else math.inf  # all of a file's
    documents = iter(tqdm(split_documents(source, cfg), corpus, disable=None))
    batch = [None]  # so that the loop begins
    with open(folder / 'train.bin', 'wb') as train, open(folder / 'test.bin', 'wb') as test:
        while batch:
            batch, size = [], 0
            while size < 4_000_000 and (document := next(documents, None)):  # for several threads
                batch.append(document)
                size += len(document[1])
            all_ids = tokenizer.encode_batch([text for _, text in batch],
                                             num_threads=cfg.num_workers or os.cpu_count())
            for (part, text), ids in zip(batch, all_ids):
                if part == 'train' and n['train_tokens'] >= enough:
                    continue  # a hub data set is read on for its test text
                n[f'{part}_documents'] += 1
                if part == 'dropped':
                    continue
                ids = np.array([*ids, tokenizer.eod], np.uint16)
                n[f'{part}_tokens'] += len(ids)
                n[f'{part}_bytes'] += len(text.encode())
                if part == 'train':
                    train.write(ids)
                    counts += np.bincount(ids, minlength=V)
                else:
                    test.write(ids)
                    n['test_unknown'] += int(np.count_nonzero(ids == tokenizer.unk))
                    n['test_altered'] += tokenizer.decode(ids[:-1].tolist()) != text
                if n['train_tokens'] >= enough and n['test_bytes'] >= least_test_bytes:
                    documents.close()  # so the next batch is empty
                    break
    print(f'{corpus}:', ', '.join(f'{key} {value:,}' for key, value in sorted(n.items())))
    kept, dropped = n['train_documents'] + n['test_documents'], n['dropped_documents']
    if not n['train_tokens'] or not n['test_tokens']:
        sys.exit(f'{source} has {kept} documents of at least min_chars = {cfg.min_chars} characters'
                 f' ({dropped:,} are shorter), two are needed: a .txt is one, a .jsonl one a line')
    if dropped > 0.1 * (kept + dropped):
        print(f'note: {dropped:,} documents of {corpus} have fewer than min_chars = '
              f'{cfg.min_chars} characters: dropped, {kept:,} kept')
    if n['test_unknown'] or n['test_altered']:
        print(f'note: the tokenizer of {corpus} has no piece for {n["test_unknown"]:,} of the test '
              f'tokens, and decoding alters {n["test_altered"]:,} of the test documents')
    np.save(folder / 'counts.npy', counts)
    copy = shutil.copyfile(tokenizer.path, folder / f'tokenizer{tokenizer.path.suffix}')
    return {**n, 'vocab_size': V, 'eod': tokenizer.eod, 'tokenizer': copy.name}

def data_settings(cfg):
    """The settings that a dataset depends on, as JSON has them; of the schedule, its marginals."""
    keys = ('corpora', 'languages', 'tokenizer', 'vocab_size', 'vocab', 'anchor_frac',
            'anchor_seed', 'block_size', 'test_frac', 'min_chars', 'max_tokens', 'data_seed')
    settings = {key: getattr(cfg, key) for key in keys}
    if os.path.isfile(cfg.vocab):
        settings['vocab'] = [cfg.vocab, short_hash(Path(cfg.vocab))]
    settings['p_language'] = [round(float(p), 9) for p in marginals(cfg.schedule)]
    return json.loads(json.dumps(settings))

def prepare(cfg, overwrite=False):
    """Make data/<dataset>/ and the corpora that it lacks. One that exists is only checked."""
    check_languages(cfg)
    path, share, corpora, pieces = DATA / cfg.dataset, marginals(cfg.schedule), {}, {}
    if path.exists() and not overwrite:
        Dataset(cfg)
        return print(f'{path} already exists (--overwrite rebuilds it)')
    for corpus, source in cfg.corpora.items():
        tokenizer = load_tokenizer(tokenizer_file(corpus, cfg))
        fingerprint = find_files(source)
        key = [FORMAT_VERSION, fingerprint, short_hash(tokenizer.path, 64), cfg.test_frac,
               cfg.data_seed, cfg.min_chars, cfg.max_tokens]
        folder, enough = DATA / f'{corpus}-{short_hash(key)}', cfg.max_tokens or math.inf
        if source.startswith('hf:'):  # what a run reads, and 2%, as it draws languages at random
            p = sum(q for q, (_, name) in zip(share, cfg.languages) if name == corpus)
            run = 1.02 * p * cfg.max_iters * cfg.batch_size * cfg.block_size
            enough = min(enough, math.ceil(run))
            sizes = [int(made.name.rpartition('-')[2]) for made in DATA.glob(f'{folder.name}-*')]
            size = min((n for n in sizes if n >= enough), default=enough)  # more tokens will do
            folder = DATA / f'{folder.name}-{size}'
        if not folder.exists():
            meta = {'fingerprint': fingerprint}
            with new_folder(folder, meta) as partial:
                meta.update(tokenise(corpus, cfg, tokenizer, enough, partial))  # then it is written
        meta = read_meta(folder, f'remove {folder}, and it is made again')
        corpora[corpus] = {'folder': folder.name, 'tokens': int(min(meta['train_tokens'], enough))}
        pieces[corpus] = tokenizer.pieces
    n_sequences = [(corpus['tokens'] - 1) // cfg.block_size for corpus in corpora.values()]
    meta = {'settings': data_settings(cfg), 'corpora': corpora}
    with new_folder(path, meta, overwrite) as partial:
        language_ids(cfg, n_sequences).tofile(partial / 'train_lang.bin')
        np.save(partial / 'vocab_map.npy', vocabulary_map(cfg.languages, pieces, cfg))
    data = Dataset(cfg, verify=False)
    print(f'{path}: {data.vocab_size:,} model ids, {sum(n_sequences):,} training sequences')
    for name, row, corpus in zip(data.names[1:], data.vocab_map[1:], data.corpora[1:]):
        shared, counts = np.isin(row[:corpus['vocab_size']], data.vocab_map[0]), corpus['counts']
        if shared.any():
            print(f'{name} shares {shared.sum():,} of {len(shared):,} pieces with {data.names[0]}: '
                  f'{counts[shared].sum() / counts.sum():.2%} of its training tokens')

def note_changes(source, fingerprint, path):
    """Say so if the files of a corpus are not those that it was made of, as their sizes tell."""
    with contextlib.suppress(SystemExit):  # the text may be gone: its tokens are in the dataset
        now = find_files(source)
        if [size for _, size, _ in sum(now[1:], [])] != [n for _, n, _ in sum(fingerprint[1:], [])]:
            print(f'note: {source} has changed since {path} was made: data_prep.py --overwrite '
                  'reads it again')

class Dataset:
    """data/<dataset>/, if it is undamaged and made with the settings cfg. vocab_map: (n_languages,
    V). Lists with an entry for each language: names; starts, where its sequences begin in train,
    (n,); corpora, its corpus (clones have the same dictionary): what is in meta.json, train and
    test (base ids, (N,) each), counts (V,) in train.bin, tokenizer (a path)."""

    def __init__(self, cfg, verify=True):
        path, again = DATA / cfg.dataset, 'rebuild it with data_prep.py --overwrite'
        if not path.exists():
            sys.exit(f'{path} is missing: make it with data_prep.py')
        meta = read_meta(path, again, verify)
        for key, value in data_settings(cfg).items():
            if (made := meta['settings'].get(key)) != value:
                sys.exit(f'{path} was made with {key} = {made}, these settings say {value}: choose '
                         f'another --dataset name, or {again}')
        with reading(path, again):
            self.block_size, self.vocab_map = cfg.block_size, np.load(path / 'vocab_map.npy')
            self.vocab_size = int(self.vocab_map.max()) + 1  # of model ids
            lang_ids, corpora = np.fromfile(path / 'train_lang.bin', np.uint8), {}
            for name, made in meta['corpora'].items():
                folder, n = DATA / made['folder'], (made['tokens'] - 1) // cfg.block_size
                corpora[name] = corpus = read_meta(folder, f'remove {folder}, and {again}', verify)
                if verify:
                    note_changes(cfg.corpora[name], corpus['fingerprint'], path)
                corpus['train'] = np.memmap(folder / 'train.bin', np.uint16, 'r')[:made['tokens']]
                corpus['test'] = np.memmap(folder / 'test.bin', np.uint16, 'r')
                corpus['counts'] = np.load(folder / 'counts.npy')
                corpus['tokenizer'] = folder / corpus['tokenizer']
                corpus['lang_ids'], lang_ids = lang_ids[:n], lang_ids[n:]
        self.names = [name for name, _ in cfg.languages]
        self.corpora = [corpora[corpus] for _, corpus in cfg.languages]
        self.starts = [np.flatnonzero(corpus['lang_ids'] == language) * cfg.block_size
                       for language, corpus in enumerate(self.corpora)]
        for name, tokens in cfg.own_tokens.items():
            language = self.names.index(name)
            self.starts[language] = self.starts[language][:int(tokens) // cfg.block_size]
        # without the tokenizer, whose file names its library's version: equal on every machine
        files = [meta['files'][name] for name in ('train_lang.bin', 'vocab_map.npy')]
        self.checksum = short_hash(files + [corpus['files'][name] for corpus in self.corpora
                                            for name in ('train.bin', 'test.bin')])

    def windows(self, part, starts, languages, inputs=None):
        """Inputs and targets, int64 (B, block_size), in model ids, from (B,) starts in the train or
        test text of (B,) languages. inputs: the language of each input token, if it is another."""
        base = np.stack([self.corpora[language][part][start:start + self.block_size + 1]
                         for start, language in zip(starts, languages)])  # (B, block_size + 1)
        languages = np.asarray(languages)[:, None]  # a clone is a row of vocab_map
        x = self.vocab_map[languages if inputs is None else inputs, base[:, :-1]]
        return x.astype(np.int64), self.vocab_map[languages, base[:, 1:]].astype(np.int64)

    def test_starts(self, language, n):
        """Where up to n windows start, spread evenly over the test text of a language."""
        available = (len(self.corpora[language]['test']) - 1) // self.block_size
        n = min(n, available)
        return (np.arange(n) * available // max(1, n)) * self.block_size

if __name__ == '__main__':
    cfg = config.load(sys.argv[1:], __doc__)
    config.run(lambda: prepare(cfg, cfg.overwrite))
