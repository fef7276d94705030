"""analyze.py export: transformers makes of the folder what the run and its tokenizer make."""
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CLONES, ROOT, script, settings, write_bpe, write_text
from tiktoken._educational import bpe_train
from tiktoken_ext.openai_public import r50k_pat_str

import analyze
import data_prep
import train
from config import UserError

os.environ['HF_HUB_OFFLINE'] = '1'
transformers = pytest.importorskip('transformers')
pytest.importorskip('safetensors')

HARD = ['', ' ', '  two  blanks ', '\ttabs\t', 'a\r\nb\n\n\nc',
        '\U0001f600 日本語 Ünï', 'x' * 40,
        '</s><unk><0x41><|endoftext|>', '.' * 33 + '-' * 17, "it's we'LL 1234 \u00a0 \u3000"]

def lines_of(corpus):
    """Several hundred lines as they are in the repository: sentences, and paragraphs of novels."""
    novel = next(data_prep.documents_of(f'corpora/eltec-{dict(en="eng", fr="fra")[corpus]}.tar.xz'))
    lines = analyze.read_lines(str(ROOT / f'corpora/parallel.{corpus}'))
    return lines + novel.split('\n')[:200] + [novel[:20_000]]

def exported(out_dir, language='EN2'):
    """A run, and its tokenizer and model in transformers."""
    folder = Path('hf', out_dir, language)
    if not folder.exists():
        analyze.main(['export', out_dir, '--language', language, '--to', str(folder)])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    return analyze.load_run(out_dir, 'cpu'), tokenizer, model

def same_ids_and_logits(out_dir, language, corpus='en'):
    run, tokenizer, model = exported(out_dir, language)
    i = run.dataset.names.index(language)
    ours, row = analyze.tokenizer_of(run, i), run.dataset.vocab_map[i]
    for text in HARD + lines_of(corpus):
        ids = ours.encode(text)
        assert tokenizer(text).input_ids == row[ids].tolist(), text
        assert tokenizer.decode(row[ids]) == ours.decode(ids) == text
    assert tokenizer.eos_token_id == model.config.eos_token_id == row[ours.eod]
    starts = run.dataset.test_windows(i, 16)
    x = torch.from_numpy(run.dataset.windows('test', starts, np.full(len(starts), i))[0])
    with torch.no_grad():
        found, logits = model(x).logits, run.model(x)
    assert found.shape == logits.shape == (*x.shape, run.dataset.meta['vocab_size'])
    torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
    return run, tokenizer, model

def test_a_clone_has_the_runs_logits_and_its_own_ids(in_runs):
    for language, lowest in ('EN1', 0), ('EN2', 400):
        _, tokenizer, _ = same_ids_and_logits('out/cloned', language)
        assert len(tokenizer) == 800 and min(tokenizer('Any text').input_ids) >= lowest

def test_perplexity_is_that_of_analyze_ppl(in_runs):
    run, _, model = exported('out/cloned')
    analyze.main(['ppl', 'out/cloned', '--stride', '8', '--device', 'cpu'])
    expected = json.loads(Path('out/cloned/results.json').read_text())['languages']['EN2']
    base = run.dataset.tokens['test'][slice(*run.dataset.corpus_of[1]['test'])]
    ids = torch.from_numpy(run.dataset.vocab_map[1, base].astype(np.int64))
    n = len(ids) - 25  # windows of 32 tokens, the last 8 scored
    x = torch.nn.functional.pad(ids, (0, -n % 8)).unfold(0, 33, 8)
    with torch.no_grad():
        scores = model(x[:, :-1]).logits[:, 24:].log_softmax(-1).double()
    nats = -scores.gather(2, x[:, 25:, None]).flatten()[:n]
    assert n == expected['scored_tokens']
    assert math.exp(nats.mean()) == pytest.approx(expected['ppl'], rel=1e-5)

def test_generated_text_is_in_the_language(in_runs):
    run, tokenizer, model = exported('out/cloned')
    inputs = tokenizer('The ', return_tensors='pt')
    ids = model.generate(**inputs, do_sample=True, temperature=9.0)[0]
    assert set(ids.tolist()) <= set(run.dataset.vocab_map[1].tolist())  # hot, yet no other id
    assert tokenizer.decode(ids).startswith('The ')
    assert inputs.keys() == {'input_ids', 'attention_mask'}

@pytest.mark.parametrize('case', ['narrow heads', 'anchored', 'tiktoken'])
def test_other_shapes_vocabularies_and_tokenizers(case, alone, documents):
    own, language = CLONES, 'EN2'
    if case == 'narrow heads':
        own = own | {'n_head': 3, 'head_dim': 8}
    elif case == 'tiktoken':
        ranks = bpe_train(documents[-1][:20_000], 400, r50k_pat_str, visualise=None)
        write_bpe(alone / 'pairs.tiktoken', ranks)
        own = own | {'tokenizer': 'tiktoken:pairs.tiktoken'}
    else:
        language, french = 'FR', analyze.read_lines(str(ROOT / 'corpora/parallel.fr'))
        write_text(alone / 'fr', ['\n'.join(french[i:i + 40]) for i in range(0, 400, 40)])
        own = {'corpora': {'en': 'text/*.txt', 'fr': 'fr/*.txt'}, 'vocab': 'anchored',
               'languages': [('EN', 'en'), ('FR', 'fr')], 'schedule': CLONES['schedule']}
    train.main(settings(**own, out_dir='out/a'))
    run, _, model = same_ids_and_logits('out/a', language, 'fr' if language == 'FR' else 'en')
    assert model.config.n_head == (4 if case == 'narrow heads' else 2)
    assert bool(len(np.intersect1d(*run.dataset.vocab_map))) == (case == 'anchored')

def test_the_folder_is_whole_and_says_what_it_is(in_runs):
    result = script('analyze.py', 'export', 'out/mono_20', '--to', 'hf/whole')
    assert result.out == 'written: hf/whole\n', result.err
    whole = 'config generation_config tokenizer tokenizer_config README model'.split()
    assert sorted(path.stem for path in Path('hf/whole').iterdir()) == sorted(whole)
    card = Path('hf/whole/README.md').read_text()
    assert '# mono_20, EN\n' in card and 'export out/mono_20 --language EN`' in card
    assert '10,240' in card and 'step 40 of 40' in card
    with pytest.raises(UserError, match='hf/whole already exists'):
        analyze.main(['export', 'out/mono_20', '--to', 'hf/whole'])

def test_what_cannot_be_exported_is_refused(alone, documents, monkeypatch):
    import sentencepiece
    sentencepiece.SentencePieceTrainer.train(  # begins a text with a blank
        sentence_iterator=iter(documents[-1].split('\n')), model_prefix='blank', vocab_size=400,
        model_type='bpe', byte_fallback=True, eos_id=1, bos_id=-1, minloglevel=2)
    for name, says, own in (
            ('words', 'is not a GPT-2: word2vec', {'model': 'word2vec'}),
            ('wide', '2 heads of 32', {'head_dim': 32}),
            ('blank', 'en.model is not a BPE like', {'tokenizer': 'blank.model'})):
        train.main(settings(**own, dataset=name, max_iters=1, out_dir=name))
        with pytest.raises(UserError, match=says):
            analyze.main(['export', name])
        assert not list(Path(name).glob('hf*')) and not list(Path(name).glob('.partial/*'))
    for package in 'transformers', 'safetensors.torch':
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(UserError, match=r'export needs a package: pip install \.\[export\]'):
            analyze.main(['export', 'wide'])
