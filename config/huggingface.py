"""A run in one of its languages as a GPT-2 that Hugging Face's transformers loads: what
analyze.py export writes."""
import json
import math

import numpy as np
from torch.nn import functional as F

from config import UserError
from data_prep import building, require

def packages():
    """transformers, and safetensors' save_file."""
    return (require('transformers', 'export', '.[export]'),
            require('safetensors.torch', 'export', '.[export]').save_file)

def weights(model, width):
    """The state dict of the equal GPT-2 in transformers: n_embd / width heads, missing ones zero."""
    inner, C, found = model.config.n_head * width, model.config.n_embd, {}
    for name, w in model.state_dict().items():
        if 'attn.c_attn' in name:  # (3 inner, C), (3 inner,)
            w = F.pad(w.view(3, inner, -1), (0, 0, 0, C - inner)).flatten(0, 1).squeeze(1)
        elif 'attn.c_proj.weight' in name:  # (C, inner)
            w = F.pad(w, (0, C - inner))
        elif name == 'wte.weight':
            w = w * math.sqrt(C)
        w = w.t() if '.c_' in name else w  # a Conv1D is (inputs, outputs)
        found['transformer.' * (name != 'lm_head.weight') + name] = w.contiguous()
    return found

def fast_tokenizer(tokenizer, ids, vocab_size, bytewise):
    """tokenizer.json: a language's pieces under its model ids (V,). All pairs of pieces that join
    into a piece are merges, in the order of the ids: as in SentencePiece and tiktoken."""
    pieces, end = tokenizer.pieces, tokenizer.pieces[tokenizer.eod]
    blanks = [{'type': 'Replace', 'pattern': {'String': a}, 'content': b} for a, b in (' ▁', '▁ ')]
    decoders = [blanks[1], {'type': 'ByteFallback'}, {'type': 'Fuse'}]
    steps = {'normalizer': blanks[0], 'decoder': {'type': 'Sequence', 'decoders': decoders}}
    if bytewise:  # tiktoken's pieces are bytes: GPT-2 prints unprintable ones as Ā, ā, ...
        unprintable = dict(zip([*range(33), *range(127, 161), 173], range(256, 324)))
        pieces = [piece.translate(unprintable) for piece in pieces]
        level = {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': False}
        steps = {'pre_tokenizer': level, 'decoder': level}
    vocab = dict(zip(pieces, ids.tolist()))
    merges = [(piece[:i], piece[i:]) for piece in pieces for i in range(1, len(piece))
              if piece != end and piece[:i] in vocab and piece[i:] in vocab]
    vocab |= {f'<other {i}>': i for i in sorted({*range(vocab_size)} - {*vocab.values()})}
    bpe = {'type': 'BPE', 'vocab': vocab, 'merges': merges, 'byte_fallback': True,
           'ignore_merges': bytewise}
    return steps | {'added_tokens': [], 'model': bpe}

def json_files(c, width, bpe, ids, bytewise):
    """The content of every .json file by its name, for a model of GPTConfig c."""
    end = bpe.pieces[bpe.eod]
    ends = dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id'), int(ids[bpe.eod]))
    others = np.setdiff1d(range(c.vocab_size), ids).tolist() or None  # never generated
    return {
        'config': ends | {
            'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'], 'n_layer': c.n_layer,
            'n_embd': c.n_embd, 'n_head': c.n_embd // width,
            'n_positions': c.block_size, 'vocab_size': c.vocab_size,
            'activation_function': 'gelu_new', 'attn_pdrop': 0.0, 'embd_pdrop': 0.0,
            'resid_pdrop': 0.0, 'tie_word_embeddings': False},
        'generation_config': ends | {'max_length': c.block_size, 'suppress_tokens': others},
        'tokenizer': fast_tokenizer(bpe, ids, c.vocab_size, bytewise),
        'tokenizer_config': {
            'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': end, 'pad_token': end,
            'model_input_names': ['input_ids', 'attention_mask'], 'split_special_tokens': True,
            'clean_up_tokenization_spaces': False, 'model_max_length': c.block_size}}

def write_gpt2(run, language, bpe, card, to):
    """Write the folder `to`: the run's model, the tokenizer bpe under the ids of a language, and
    the model card. It is refused unless transformers encodes the test text as bpe does."""
    transformers, save_file = packages()
    data, c = run.dataset, run.model.config
    width, of = c.head_dim or c.n_embd // c.n_head, data.corpus_of[language]
    if run.cfg.model == 'word2vec' or c.n_embd % width or c.n_head * width > c.n_embd:
        raise UserError(f'{run.out_dir} is not a GPT-2: {run.cfg.model}, {c.n_head} heads of {width}')
    ids, bytewise = data.vocab_map[language, :bpe.vocab_size], of['tokenizer'].endswith('.tiktoken')
    text = bpe.decode(data.tokens['test'][slice(*of['test'])][:1 << 17].tolist())
    with building(to, partial=to.parent / '.partial') as aside:
        if not aside:
            raise UserError(f'{to} already exists: remove it, or choose another --to')
        for name, content in json_files(c, width, bpe, ids, bytewise).items():
            (aside / f'{name}.json').write_text(json.dumps(content) + '\n', 'utf-8')
        (aside / 'README.md').write_text(card, 'utf-8')
        save_file(weights(run.model, width), aside / 'model.safetensors', {'format': 'pt'})
        found = transformers.AutoTokenizer.from_pretrained(aside).encode(text, verbose=False)
        if found != ids[bpe.encode(text)].tolist():
            raise UserError(f'{of["tokenizer"]} is not a BPE like those of data_prep.py')
    print(f'written: {to}')
