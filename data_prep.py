"""
Text in, token ids and languages out: corpora -> data/<dataset>/

    python data_prep.py config/cloned_90_10.py                                     # what a config names
    python data_prep.py --dataset=novels --corpora="{'en': 'novels/*.txt.gz'}"     # own text: one file, one document
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
import functools
import glob
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import shutil
import sys
import tarfile
import time
import warnings
import zlib
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from tqdm import tqdm

import config
from config import UserError

FORMAT_VERSION = 1
DATA = Path('data')
PARTIAL = DATA / '.partial'  # everything is written here, and moved when it is whole
PIECE = 1 << 20  # bytes of text that are read and encoded at a time
TOKENIZER_BYTES = 100_000_000  # a tokenizer is trained on the first so many bytes of the training text
HUB_TEST_DOCUMENTS = 1000  # test documents of a hub's data set lie among its first so many, however much is read for training

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


OPEN = {'.txt': open, '.txt.gz': gzip.open, '.txt.xz': lzma.open}
TAR = ('.tar', '.tar.gz', '.tgz', '.tar.xz')


def file_documents(paths):
    """One document a file; one a member for a tar, in the archive's order. Raises UserError for a damaged archive."""
    document = -1
    for path in paths:
        try:
            if path.endswith(TAR):
                with tarfile.open(path, 'r|*') as tar:  # a stream: nothing is unpacked to disk
                    for member in tar:
                        if member.isfile() and member.name.endswith('.txt') and not os.path.basename(member.name).startswith('.'):
                            document += 1
                            for piece in pieces_of(tar.extractfile(member), f'{path}, {member.name}'):
                                yield document, piece
            else:
                open_file = next(o for suffix, o in OPEN.items() if path.endswith(suffix))
                document += 1
                with open_file(path, 'rb') as f:
                    for piece in pieces_of(f, path):
                        yield document, piece
        except (lzma.LZMAError, zlib.error, tarfile.TarError, EOFError, OSError) as e:
            raise UserError(f'{path}: cannot be read to its end ({e}); a damaged or half-copied file?') from None


def find_files(pattern):
    """The text files and tars that a glob matches, sorted. Raises UserError for none, or one of an unknown kind."""
    paths = sorted(p for p in glob.glob(os.path.expanduser(pattern), recursive=True) if os.path.isfile(p))
    if not paths:
        raise UserError(f"corpus source {pattern!r}: no such file; a source is 'docstrings', 'hf:DATASET[:FIELD]', "
                        f'or a glob of {", ".join([*OPEN, *TAR])} files')
    for path in paths:
        if not path.endswith((*OPEN, *TAR)):
            raise UserError(f'{path}: not a known kind of file ({", ".join([*OPEN, *TAR])}); narrow the glob {pattern!r}')
    return paths


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
    """One document a row of a data set on the Hugging Face hub, streamed; source is hf:DATASET[:FIELD]."""
    name, _, field = source.removeprefix('hf:').partition(':')
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(f'{source} needs a package that is not installed: pip install datasets (or take the built-in text: '
                        f"--corpora=\"{{'en': 'docstrings'}}\")") from None
    try:
        for document, row in enumerate(load_dataset(name, split='train', streaming=True)):
            if (field or 'text') not in row:
                raise UserError(f'{source}: no field {field or "text"!r}; the fields are {", ".join(row)}')
            for piece in pieces_of(io.BytesIO((row[field or 'text'] or '').encode('utf-8', 'ignore')), source):
                yield document, piece
    except UserError:
        raise
    except Exception as e:  # the hub's client has many ways to say that it is not there
        raise UserError(f'{source} cannot be reached ({type(e).__name__}); to run the same config on the built-in text '
                        f"add --corpora=\"{{'en': 'docstrings'}}\"") from None


def documents_of(source, workers):
    if source == 'docstrings':
        return docstring_documents(workers)
    if source.startswith('hf:'):
        return hub_documents(source)
    return file_documents(find_files(source))


def in_parallel(function, items, workers, initializer=None, initargs=()):
    """function(item) for every item, in order, from several processes, with only a few items in flight: memory does not
    grow with the corpus."""
    with ProcessPoolExecutor(workers, initializer=initializer, initargs=initargs) as pool:
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
        except Exception:
            raise UserError(f'tokenizer {path}: not a SentencePiece model') from None
        if sp.eos_id() < 0:
            raise UserError(f'tokenizer {path}: has no </s>, which must end a document')
        return SimpleNamespace(encode=sp.encode, decode=sp.decode, vocab_size=len(sp), eod=sp.eos_id(),
                               pieces=[sp.id_to_piece(i) for i in range(len(sp))])
    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's words; encodings with others exceed 65,536 ids
    try:
        ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, Path(path).read_text().splitlines())}
        eod = len(ranks)
        bpe = tiktoken.Encoding('ranks', pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens={'<|endoftext|>': eod},
                                explicit_n_vocab=eod + 1)
    except (ValueError, AssertionError):
        raise UserError(f'tokenizer {path}: not a ranks file (a line is: token in base64, rank; ranks from 0 on)') from None
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


def start_encoder(path):
    global tokenizer  # of this worker process
    tokenizer = load_tokenizer(path)


def encode(job):
    document, text = job
    return document, len(text.encode()), np.array(tokenizer.encode(text), np.uint16)


def fingerprint(source, tokenizer):
    """What identifies the text of a source and a tokenizer without reading them: files by path, size and time."""
    files = [] if source.startswith('hf:') else installed_modules() if source == 'docstrings' else find_files(source)
    files += [path for path in [tokenizer.removeprefix('tiktoken:')] if os.path.isfile(path)]
    stats = [(path, s.st_size, 0 if source == 'docstrings' else s.st_mtime_ns) for path in files for s in [os.stat(path)]]
    return [source, tokenizer, stats]


def write_aside(path, write):
    """write(temporary path), then rename it to path: there is the old file or the new one, never a half."""
    aside = path.with_name(path.name + '.partial')
    write(aside)
    with open(aside, 'rb+') as f:
        os.fsync(f.fileno())
    os.replace(aside, path)


@contextlib.contextmanager
def folder_aside(path):
    """A folder to write in, which becomes path when it is whole; after an error nothing remains, and what a killed run has
    left is dropped."""
    aside = PARTIAL / path.name
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        shutil.rmtree(path, ignore_errors=True)  # --overwrite
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def tokenise(corpus, source, cfg, tokens_needed):
    """The folder in the cache with the tokens of a corpus (train.bin, test.bin, a tokenizer file, meta.json), made where it
    is not there yet. A source on the hub is read until it has given tokens_needed training tokens; others to their end."""
    key = [FORMAT_VERSION, *fingerprint(source, cfg.tokenizer), cfg.vocab_size, cfg.test_frac, cfg.data_seed]
    name = f'{corpus}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}'
    folder = DATA / '.cache' / name
    if source.startswith('hf:'):  # one that was read further will do
        read = {int(path.name.rpartition('-')[2]) for path in folder.parent.glob(f'{name}-*')}
        folder = folder.with_name(f'{name}-{min([n for n in read if n >= tokens_needed], default=tokens_needed)}')
    if not folder.exists():
        with folder_aside(folder) as aside:
            encode_corpus(aside, corpus, source, cfg, tokens_needed)
    return folder


def encode_corpus(folder, corpus, source, cfg, tokens_needed):
    """Train or fetch the tokenizer of a corpus and write its tokens into folder, as tokenise describes."""
    workers = cfg.num_workers or os.cpu_count()
    from_hub = source.startswith('hf:')

    def part_of(document):
        held_out = is_test(document, cfg.test_frac, cfg.data_seed) and not (from_hub and document >= HUB_TEST_DOCUMENTS)
        return 'test' if held_out else 'train'

    def training_text():
        n = 0
        for document, text in documents_of(source, workers):
            if part_of(document) == 'train':
                n += len(text.encode())
                if n > TOKENIZER_BYTES:
                    return
                yield document, text

    if cfg.tokenizer == 'sentencepiece':
        print(f'{corpus}: training a SentencePiece BPE of {cfg.vocab_size:,} pieces', flush=True)
        tokenizer_file = folder / f'{corpus}.model'
        train_tokenizer(training_text(), tokenizer_file, cfg.vocab_size)
    else:
        tokenizer_file = save_tokenizer(cfg.tokenizer, folder, corpus)
    tokens = load_tokenizer(tokenizer_file)
    if tokens.vocab_size > 65536:
        raise UserError(f'tokenizer {cfg.tokenizer} has {tokens.vocab_size:,} pieces; token ids are stored in 16 bits: 65,536 at most')

    count = {f'{part}_{what}': 0 for part in ('train', 'test') for what in ('tokens', 'documents', 'bytes')}
    end = np.array([tokens.eod], np.uint16)
    current, part, reported = None, None, time.time()
    with (open(folder / 'train.bin', 'wb') as train, open(folder / 'test.bin', 'wb') as test,
          tqdm(desc=f'{corpus}: tokenising', unit='B', unit_scale=True, disable=None) as bar):

        def write(ids):
            count[f'{part}_tokens'] += len(ids)
            (train if part == 'train' else test).write(ids.tobytes())

        encoded = in_parallel(encode, documents_of(source, workers), workers, start_encoder, (tokenizer_file,))
        for document, n_bytes, ids in encoded:
            if document != current:
                if current is not None:
                    write(end)
                    if from_hub and count['train_tokens'] >= tokens_needed and document >= HUB_TEST_DOCUMENTS:
                        break
                current, part = document, part_of(document)
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
    meta = {**count, 'vocab_size': tokens.vocab_size, 'eod': tokens.eod, 'tokenizer': tokenizer_file.name}
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
    except (TypeError, ValueError):
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
    keys = ('corpora', 'languages', 'tokenizer', 'vocab_size', 'vocab', 'anchor_frac', 'block_size', 'test_frac', 'data_seed')
    settings = {k: getattr(cfg, k) for k in keys} | {'p_language': [round(float(p), 9) for p in marginals(cfg.schedule)]}
    return json.loads(json.dumps(settings))


def prepare(cfg):
    """Make data/<dataset>/ from the settings cfg. Raises UserError."""
    check_languages(cfg)
    path = DATA / cfg.dataset
    if path.exists() and not cfg.overwrite:
        Dataset(cfg)
        return print(f'{path} is there already, made with these settings; --overwrite makes it anew')
    share = marginals(cfg.schedule)
    folders, needed = {}, {}
    for corpus, source in cfg.corpora.items():
        part = sum(p for p, (_, c) in zip(share, cfg.languages) if c == corpus)
        # 2% to spare: languages are drawn at random, and none should run out just before the end
        needed[corpus] = math.ceil(1.02 * part * cfg.max_iters * cfg.batch_size * cfg.block_size)
        folders[corpus] = tokenise(corpus, source, cfg, needed[corpus])

    with folder_aside(path) as aside:
        meta = {'format_version': FORMAT_VERSION, 'settings': data_settings(cfg), 'corpora': {}}
        position, pieces = {'train': 0, 'test': 0}, {}
        for corpus, folder in folders.items():
            meta['corpora'][corpus] = of_corpus = json.loads((folder / 'meta.json').read_text())
            for part in ('train', 'test'):  # its tokens in train.bin and test.bin
                of_corpus[part] = [position[part], position[part] + of_corpus[f'{part}_tokens']]
                position[part] += of_corpus[f'{part}_tokens']
            if cfg.corpora[corpus].startswith('hf:'):  # not what the cache has beyond it
                of_corpus['train'][1] = min(of_corpus['train'][1], of_corpus['train'][0] + needed[corpus])
            of_corpus['sequences'] = (of_corpus['train'][1] - of_corpus['train'][0] - 1) // cfg.block_size
            tokenizer_file = shutil.copyfile(folder / of_corpus['tokenizer'], aside / of_corpus['tokenizer'])
            pieces[corpus] = load_tokenizer(tokenizer_file).pieces
        for part in ('train', 'test'):
            join_or_link([folder / f'{part}.bin' for folder in folders.values()], aside / f'{part}.bin')
        lang_ids = language_ids(cfg, [of_corpus['sequences'] for of_corpus in meta['corpora'].values()])
        lang_ids.tofile(aside / 'train_lang.bin')
        vocab_map = vocabulary_map(cfg.languages, pieces, cfg.vocab, cfg.anchor_frac, cfg.data_seed)
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
        try:
            self.meta = json.loads((self.path / 'meta.json').read_text())
            made_with = self.meta['settings']
        except (OSError, ValueError, KeyError):
            raise UserError(f'{self.path} is no dataset (its meta.json cannot be read); {anew}') from None
        if self.meta['format_version'] != FORMAT_VERSION:
            raise UserError(f'{self.path} has format version {self.meta["format_version"]}, not {FORMAT_VERSION}; {anew}')
        for key, wanted in data_settings(cfg).items():
            if made_with.get(key) != wanted:
                raise UserError(f'{self.path} was made with {key} = {made_with.get(key)}, these settings say {wanted}: '
                                f'choose another --dataset name, or {anew}')
        for name, file in self.meta['files'].items():
            size = (self.path / name).stat().st_size if (self.path / name).is_file() else 0
            if size != file['bytes']:
                raise UserError(f'{self.path / name} has {size:,} bytes, not the {file["bytes"]:,} that meta.json says; {anew}')
            if (verify == '*' or name in verify) and checksum(self.path / name) != file['sha256']:
                raise UserError(f'{self.path / name} has changed since it was made (its checksum differs); {anew}')
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
