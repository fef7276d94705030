"""
A run in one of its languages, as a GPT-2 that Hugging Face's transformers loads.

    python -m extras.export out/cloned_90_10 --language EN2    # -> out/cloned_90_10/hf_EN2/

The folder holds the weights, a tokenizer that gives the language's model ids, and a model card. It
is not written unless transformers encodes the test text as the run's own tokenizer does.
"""
import argparse
import sys

import config

def parse(argv=None):
    parser = argparse.ArgumentParser(prog='python -m extras.export', description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out_dir', help='folder of a trained run')
    parser.add_argument('--language', help='default: the first')
    parser.add_argument('--to', help='folder to write; default: OUT_DIR/hf_LANGUAGE')
    return parser.parse_args(argv)

if __name__ == '__main__':  # before torch is imported: --help is instant
    args = parse()

import json
import math
from pathlib import Path

import numpy as np
from torch.nn import functional as F

import analyze
from data_prep import load_tokenizer, new_folder, require

def weights(model, width):
    """The state dict of the equal GPT-2 in transformers, which has n_embd / width heads: missing
    ones are zero."""
    inner, C, tensors = model.config.n_head * width, model.config.n_embd, {}
    for name, w in model.state_dict().items():
        if 'attn.c_attn' in name:  # (3 inner, C), (3 inner,)
            w = F.pad(w.view(3, inner, -1), (0, 0, 0, C - inner)).flatten(0, 1).squeeze(1)
        elif 'attn.c_proj.weight' in name:  # (C, inner)
            w = F.pad(w, (0, C - inner))
        elif name == 'wte.weight':
            w = w * math.sqrt(C)
        if '.c_' in name:  # a Conv1D is (inputs, outputs)
            w = w.t()
        if name != 'lm_head.weight':
            name = f'transformer.{name}'
        tensors[name] = w.contiguous()
    return tensors

def fast_tokenizer(tokenizer, ids, vocab_size, bytewise):
    """tokenizer.json: a language's pieces under its model ids (V,). All pairs of pieces that join
    into a piece are merges, in the order of the ids: as in SentencePiece and tiktoken."""
    pieces, end = tokenizer.pieces, tokenizer.pieces[tokenizer.eod]
    to_mark = {'type': 'Replace', 'pattern': {'String': ' '}, 'content': '▁'}
    to_blank = {'type': 'Replace', 'pattern': {'String': '▁'}, 'content': ' '}
    decoders = [to_blank, {'type': 'ByteFallback'}, {'type': 'Fuse'}]
    steps = {'normalizer': to_mark, 'decoder': {'type': 'Sequence', 'decoders': decoders}}
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

def json_files(c, width, tokenizer, ids, bytewise):
    """The content of every .json file by its name, for a model of GPTConfig c."""
    end = tokenizer.pieces[tokenizer.eod]
    ends = dict.fromkeys(('bos_token_id', 'eos_token_id', 'pad_token_id'), int(ids[tokenizer.eod]))
    others = np.setdiff1d(range(c.vocab_size), ids).tolist() or None  # never generated
    return {
        'config': ends | {
            'model_type': 'gpt2', 'architectures': ['GPT2LMHeadModel'], 'n_layer': c.n_layer,
            'n_embd': c.n_embd, 'n_head': c.n_embd // width, 'n_positions': c.block_size,
            'vocab_size': c.vocab_size, 'activation_function': 'gelu_new', 'attn_pdrop': 0.0,
            'embd_pdrop': 0.0, 'resid_pdrop': 0.0, 'tie_word_embeddings': False},
        'generation_config': ends | {'max_length': c.block_size, 'suppress_tokens': others},
        'tokenizer': fast_tokenizer(tokenizer, ids, c.vocab_size, bytewise),
        'tokenizer_config': {
            'tokenizer_class': 'PreTrainedTokenizerFast', 'eos_token': end, 'pad_token': end,
            'model_input_names': ['input_ids', 'attention_mask'], 'split_special_tokens': True,
            'clean_up_tokenization_spaces': False, 'model_max_length': c.block_size}}

def model_card(run, name):
    """README.md: what the run has read, and its perplexity if it has been measured."""
    with analyze.measured(run.out_dir, 'results') as results:
        scored = results['languages'] if results else {}
        rows = [scored.get(key, {}) | {'language': key, 'tokens': n}
                for key, n in run.tokens_seen.items()]
    cfg = run.cfg
    lines = [
        f'# {run.out_dir.resolve().name}, {name}', '',
        f'A GPT-2 of {cfg.n_layer} x {cfg.n_embd}: step {run.step:,} of {cfg.max_iters:,}, '
        f'(start, p(language)) = `{cfg.schedule}`.', '',
        *analyze.markdown(rows, ['language', 'tokens', 'ppl']), '',
        f'Made by `python -m extras.export {run.out_dir} --language {name}`. '
        'Its licence depends on the texts.']
    return '\n'.join(lines) + '\n'

def main(args):
    transformers = require('transformers', 'export', '.[export]')
    save_file = require('safetensors.torch', 'export', '.[export]').save_file
    names = [args.language] if args.language else None
    run = analyze.load_run(args.out_dir, 'cpu', languages=names)
    language = run.languages[0]
    name = run.dataset.names[language]
    to = Path(args.to or run.out_dir / f'hf_{name}')
    if to.exists():
        sys.exit(f'{to} already exists: remove it, or choose another --to')
    if not run.model:
        sys.exit(f'{args.out_dir} is not a GPT-2: word2vec')
    c, corpus = run.model.config, run.dataset.corpora[language]
    width = c.head_dim or c.n_embd // c.n_head
    if c.n_embd % width or c.n_head * width > c.n_embd:
        sys.exit(f'{args.out_dir} is not a GPT-2: {c.n_head} heads of {width} in {c.n_embd}')

    tokenizer = load_tokenizer(corpus['tokenizer'])
    ids = run.dataset.vocab_map[language, :corpus['vocab_size']]
    text = tokenizer.decode(corpus['test'][:1 << 17].tolist())
    with new_folder(to) as partial:
        files = json_files(c, width, tokenizer, ids, corpus['tokenizer'].suffix == '.tiktoken')
        for file, content in files.items():
            (partial / f'{file}.json').write_text(json.dumps(content) + '\n', 'utf-8')
        (partial / 'README.md').write_text(model_card(run, name), 'utf-8')
        save_file(weights(run.model, width), partial / 'model.safetensors', {'format': 'pt'})
        encoded = transformers.AutoTokenizer.from_pretrained(partial).encode(text, verbose=False)
        if encoded != ids[tokenizer.encode(text)].tolist():
            sys.exit(f'{corpus["tokenizer"]} is not a BPE like those of data_prep.py')
    print(f'written: {to}')

if __name__ == '__main__':
    config.run(lambda: main(args))
