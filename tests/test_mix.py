"""extras/mix.py against runs made from known laws: closed forms and brute force."""
import contextlib
import io
import json
import re

import numpy as np
import pytest
from conftest import settings

from extras import mix

PAIR = [[('EN', 'en'), ('FR', 'fr')], [(p, 1 - p) for p in (0.1, 0.3, 0.5, 0.7, 0.9)]]
A, B = {'en': 1.2, 'fr': 2.0, 'de': 0.8}, 0.4  # log PPL = 3 + A * (million tokens)^-B

def law(corpus, own, others, **terms):
    tau, cost = (terms.get(kind, {}).get(corpus, 0) for kind in ('transfer', 'cost'))
    return 3 + A[corpus] * ((own + tau * others) / 1e6) ** -B + cost * others / (own + others)

def write_run(folder, languages, shares, total, rng, noise=0, text='', terms=None, **more):
    cfg = vars(settings(languages=languages, corpora={c: '' for _, c in languages}, out_dir='',
                        warmup_iters=0, schedule=[(0.0, shares)], max_iters=total // 256, **more))
    seen = {name: round(total * p) for (name, _), p in zip(languages, shares)}
    measured = {}
    for (name, corpus), own in zip(languages, seen.values()):
        loss = law(corpus, own, total - own, **terms or {}) + noise * rng.standard_normal()
        measured[name] = {'corpus': corpus, 'test_text': corpus + text, 'ppl': np.exp(loss)}
    folder.mkdir()
    (folder / 'results.json').write_text(json.dumps({
        'config': cfg, 'step': cfg['max_iters'], 'tokens_seen': seen,
        'non_embedding_parameters': 1, 'languages': measured}))
    return folder

def write_runs(folder, languages, mixtures, noise=0.002, **more):
    """Runs of every mixture and total, and of each corpus alone on seven amounts of tokens."""
    rng = np.random.default_rng(1)
    for i, (shares, total) in enumerate((s, n) for s in mixtures for n in (10 ** 6, 4 * 10 ** 6)):
        write_run(folder / f'mix_{i}', languages, shares, total, rng, noise, **more)
    for corpus in dict(map(reversed, languages)):
        for i, n in enumerate(np.geomspace(5e4, 4e6, 7)):
            alone = [(corpus.upper(), corpus)]
            write_run(folder / f'mono_{corpus}_{i}', alone, (1.0,), int(n), rng, noise, **more)
    return sorted(folder.iterdir())

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
    languages = [('EN', 'en'), ('FR', 'fr'), ('DE', 'de')]
    shares = [(0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.8), (0.3, 0.3, 0.4), (0.5, 0.4, 0.1)]
    out, best, ppls, sure = advice(write_runs(tmp_path, languages, shares), '--tokens=4e6')
    assert out.count('law of own, tau 0.000') == 3 and sure
    # the derivatives of A * share^-B are equal
    powers = np.array([A[corpus] ** (1 / (1 + B)) for _, corpus in languages])
    assert list(best.values()) == pytest.approx(powers / powers.sum(), abs=0.03)
    for name, corpus in languages:
        ppl, low, high = ppls[name]
        assert low < np.exp(law(corpus, best[name] * 4e6, 0)) < high < 1.05 * low

@pytest.mark.parametrize('kind, values', [
    ('transfer', {'en': 0.3, 'fr': -0.05}), ('cost', {'en': 0.1, 'fr': 0.5})])
def test_a_known_term_is_fitted_and_the_best_share_is_that_of_brute_force(tmp_path, kind, values):
    terms = {kind: values}
    out, best, _, sure = advice(write_runs(tmp_path, *PAIR, terms=terms), '--tokens=4e6')
    fitted = [float(v) for v in re.findall(rf'law of {kind}, tau (\S+);', out)]
    assert fitted == pytest.approx([*values.values()], abs=0.02)
    en = np.linspace(0.1, 0.9, 8001) * 4e6
    loss = law('en', en, 4e6 - en, **terms) + law('fr', 4e6 - en, en, **terms)
    assert sure and best['EN'] == pytest.approx(en[loss.argmin()] / 4e6, abs=0.03)

def test_one_language_gets_all_that_it_may_read_and_no_more_than_max_epochs(tmp_path):
    folders = write_runs(tmp_path, *PAIR)
    _, best, _, sure = advice(folders, '--target=FR')
    assert sure and best['FR'] == pytest.approx(0.9, abs=0.01)
    out, best, *_ = advice(folders, '--target=FR', '--own', 'FR=2e5')
    assert best['FR'] == pytest.approx(4 * 2e5 / 4e6, abs=0.001) and '4.00 epochs' in out
    _, best, *_ = advice(folders, '--target=FR', '--own', 'FR=2e5', 'EN=1e9', '--max_epochs=6')
    assert best['FR'] == pytest.approx(0.3, abs=0.001)
    out, *_ = advice(folders, '--tokens=1e9')
    assert 'extrapolated: errors are those at 1,000,000 to 4,000,000 tokens' in out

def test_step_matched_runs_are_left_out_and_the_order_of_runs_does_not_matter(tmp_path):
    folders, rng = write_runs(tmp_path, *PAIR), np.random.default_rng(0)
    step = write_run(tmp_path / 'step', [('FR', 'fr')], (1.0,), 10 ** 6, rng, batch_size=1)
    assert advice([step, *folders[::-1], *folders[:3]]) == advice(folders)

def test_a_gain_within_the_error_is_no_recommendation_and_two_runs_are_named(tmp_path):
    out, shares, _, sure = advice(write_runs(tmp_path, *PAIR, noise=0.1))
    assert not sure and 'no recommendation: ' in out
    assert shares['EN'] == pytest.approx(0.5, abs=0.01)
    assert len(re.findall(r'^run next: EN \S+%, FR \S+% of [14],000,000 tokens$', out, re.M)) == 2

def test_clones_share_a_law_and_an_even_split_is_their_best(tmp_path):
    languages, terms = [('EN1', 'en'), ('EN2', 'en')], {'cost': {'en': 0.2}}
    out, shares, ppls, sure = advice(write_runs(tmp_path, languages, PAIR[1], terms=terms))
    assert not sure and shares['EN1'] == pytest.approx(0.5, abs=0.01)
    assert ppls['EN1'][0] == pytest.approx(ppls['EN2'][0], rel=0.001)
    assert set(re.findall(r'(\w+): law of (\w+)', out)) == {('en', 'cost')}

def test_mistakes_end_in_one_line(tmp_path):
    folders, rng = write_runs(tmp_path, *PAIR), np.random.default_rng(0)
    en, fr, de = ('EN', 'en'), ('FR', 'fr'), ('DE', 'de')
    commands = [
        ('three mixtures', folders[-2:]), ('three mixtures', folders[:2]),
        ("no language 'DE'", folders, '--target=DE'), ('NAME=TOKENS', folders, '--own', 'FR'),
        ('max_epochs', folders, '--max_epochs=0'), ('keeps to 4', folders, '--own', 'FR=1e3')]
    for said, *languages, more in (
            ('n_layer', en, fr, {'n_layer': 3}), ('recipe', en, fr, {'learning_rate': 1e-3}),
            ('text', en, fr, {'text': 'x'}), ('vocabulary', en, fr, {'vocab': 'anchored'}),
            ('languages', en, de, {}), ('no text of the mixtures', de, {})):
        shares = (1 / len(languages),) * len(languages)
        run = write_run(tmp_path / f'other_{said}', languages, shares, 10 ** 6, rng, **more)
        commands.append((said, [*folders, run]))
    for said, *command in commands:
        with pytest.raises(SystemExit, match=said) as error:
            advice(*command)
        assert '\n' not in str(error.value)
