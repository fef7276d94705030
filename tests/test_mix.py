"""extras/mix.py against runs made from known laws: closed forms and brute force."""
import contextlib
import io
import json
import re

import numpy as np
import pytest
from conftest import refused, settings

from extras import mix

EN, FR, DE = ('EN', 'en'), ('FR', 'fr'), ('DE', 'de')
SHARES = [(p, 1 - p) for p in (0.1, 0.3, 0.5, 0.7, 0.9)]
A, B = {'en': 1.2, 'fr': 2.0, 'de': 0.8}, 0.4  # log PPL = 3 + A * (million tokens)^-B

def law(corpus, own, others, **terms):
    tau, cost = (terms.get(kind, {}).get(corpus, 0) for kind in ('transfer', 'cost'))
    return 3 + A[corpus] * ((own + tau * others) / 1e6) ** -B + cost * others / (own + others)

def write_run(folder, languages, shares, total, noise=0, text='', terms=None, **more):
    cfg = vars(settings(languages=languages, corpora={c: '' for _, c in languages}, out_dir='',
                        warmup_iters=0, schedule=[(0.0, shares)], max_iters=total // 256, **more))
    rng = np.random.default_rng([total, *folder.name.encode()])
    seen, measured = {}, {}
    for (name, corpus), share in zip(languages, shares):
        seen[name] = round(total * share)
        loss = law(corpus, seen[name], total - seen[name], **terms or {})
        ppl = np.exp(loss + noise * rng.standard_normal())
        measured[name] = {'corpus': corpus, 'test_text': corpus + text, 'ppl': ppl}
    folder.mkdir()
    (folder / 'results.json').write_text(json.dumps({
        'config': cfg, 'step': cfg['max_iters'], 'tokens_seen': seen,
        'non_embedding_parameters': 1, 'languages': measured}))
    return folder

def write_runs(folder, languages, mixtures=SHARES, noise=0.002, **more):
    """Runs of every mixture and total, and of each corpus alone on seven amounts of tokens."""
    for total in 10 ** 6, 4 * 10 ** 6:
        for i, shares in enumerate(mixtures):
            write_run(folder / f'mix_{i}_{total}', languages, shares, total, noise, **more)
    for corpus in {corpus for _, corpus in languages}:
        for n in np.geomspace(5e4, 4e6, 7).astype(int).tolist():
            alone = [(corpus.upper(), corpus)]
            write_run(folder / f'mono_{corpus}_{n}', alone, (1.0,), n, noise, **more)
    return sorted(folder.iterdir())

@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    return write_runs(tmp_path_factory.mktemp('pair'), [EN, FR])

def advice(folders, *options):
    """-> what mix says, the shares and PPLs {name: value} in it, whether it recommends."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        mix.main(mix.parse([*map(str, folders), *options]))
    out = printed.getvalue()
    line = r'^(\w+): ([\d.]+)%, [\d,]+ tokens, (?:\S+ epochs, )?PPL (\S+) \((\S+) to (\S+)\)'
    rows = re.findall(line, out, re.M)
    shares = {name: float(share) / 100 for name, share, *_ in rows}
    ppls = {name: tuple(map(float, values)) for name, _, *values in rows}
    return out, shares, ppls, '\nbest: ' in out

def test_without_transfer_there_is_no_term_and_shares_are_those_of_the_closed_form(tmp_path):
    shares = [(0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.8), (0.3, 0.3, 0.4), (0.5, 0.4, 0.1)]
    out, best, ppls, sure = advice(write_runs(tmp_path, [EN, FR, DE], shares), '--tokens=4e6')
    assert out.count('law of own, tau 0.000') == 3 and sure
    # the derivatives of A * share^-B are equal
    powers = np.array([A[corpus] ** (1 / (1 + B)) for corpus in ('en', 'fr', 'de')])
    assert list(best.values()) == pytest.approx(powers / powers.sum(), abs=0.03)
    for name, (_, low, high) in ppls.items():
        assert low < np.exp(law(name.lower(), best[name] * 4e6, 0)) < high < 1.05 * low

@pytest.mark.parametrize('languages, kind, values', [
    ([EN, FR], 'transfer', {'en': 0.3, 'fr': -0.05}), ([EN, FR], 'cost', {'en': 0.1, 'fr': 0.5}),
    ([('EN1', 'en'), ('EN2', 'en')], 'cost', {'en': 0.2})])
def test_a_known_term_is_fitted_to_a_corpus_and_the_best_share_is_that_of_brute_force(
        languages, kind, values, tmp_path):
    terms = {kind: values}
    out, best, _, sure = advice(write_runs(tmp_path, languages, terms=terms), '--tokens=4e6')
    fitted = [float(tau) for tau in re.findall(rf'law of {kind}, tau (\S+);', out)]
    assert fitted == pytest.approx([*values.values()], abs=0.02)
    (first, one), (_, two) = languages
    tokens = np.linspace(0.1, 0.9, 8001) * 4e6
    loss = law(one, tokens, 4e6 - tokens, **terms) + law(two, 4e6 - tokens, tokens, **terms)
    assert best[first] == pytest.approx(tokens[loss.argmin()] / 4e6, abs=0.03)
    assert sure == (one != two)  # an even split is best for clones

def test_one_language_gets_all_that_it_may_read_and_no_more_than_max_epochs(pair):
    _, best, _, sure = advice(pair, '--target=FR')
    assert sure and best['FR'] == pytest.approx(0.9, abs=0.01)
    out, best, *_ = advice(pair, '--target=FR', '--own', 'FR=2e5')
    assert '4.00 epochs' in out and best['FR'] == pytest.approx(4 * 2e5 / 4e6, abs=0.001)
    _, best, *_ = advice(pair, '--target=FR', '--own', 'FR=2e5', 'EN=1e9', '--max_epochs=6')
    assert best['FR'] == pytest.approx(6 * 2e5 / 4e6, abs=0.001)
    out, *_ = advice(pair, '--tokens=1e9')
    assert 'extrapolated: errors are those at 1,000,000 to 4,000,000 tokens' in out

def test_step_matched_runs_are_left_out_and_the_order_of_runs_does_not_matter(tmp_path, pair):
    step = write_run(tmp_path / 'step', [FR], (1.0,), 10 ** 6, batch_size=1)
    assert advice([step, *pair[::-1], *pair[:3]]) == advice(pair)

def test_a_gain_within_the_error_is_no_recommendation_and_two_runs_are_named(tmp_path):
    out, shares, _, sure = advice(write_runs(tmp_path, [EN, FR], noise=0.1))
    assert not sure and 'no recommendation: ' in out
    assert shares['EN'] == pytest.approx(0.5, abs=0.01)
    assert len(re.findall(r'^run next: EN \S+%, FR \S+% of [14],000,000 tokens$', out, re.M)) == 2

@pytest.mark.parametrize('options, says', [
    ('--target=DE', "no language 'DE'"), ('--own FR', 'NAME=TOKENS'),
    ('--max_epochs=0', 'max_epochs'), ('--own FR=1e3', 'keeps to 4')])
def test_mistaken_options_are_refused_in_one_line(options, says, pair):
    refused(says, advice, pair, *options.split())

@pytest.mark.parametrize('languages, changed, says', [
    ([EN, FR], {'n_layer': 3}, 'n_layer'), ([EN, FR], {'learning_rate': 1e-3}, 'recipe'),
    ([EN, FR], {'text': 'x'}, 'text'), ([EN, FR], {'vocab': 'anchored'}, 'vocabulary'),
    ([EN, DE], {}, 'languages'), ([DE], {}, 'no text of the mixtures')])
def test_runs_that_do_not_fit_the_others_are_refused(languages, changed, says, tmp_path, pair):
    shares = [1 / len(languages)] * len(languages)
    other = write_run(tmp_path / 'other', languages, shares, 10 ** 6, **changed)
    refused(says, advice, [*pair, other])
    for few in pair[:2], pair[-2:]:
        refused('three mixtures', advice, few)
