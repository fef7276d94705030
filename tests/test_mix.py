"""analyze.py mix against runs made from known laws: closed forms and brute force."""
import contextlib
import io
import json
import re

import numpy as np
import pytest
from conftest import settings

import analyze
from config import UserError

TOTALS = 1_000_000, 4_000_000
PAIR = [[('EN', 'en'), ('FR', 'fr')], [(p, 1 - p) for p in (0.1, 0.3, 0.5, 0.7, 0.9)]]
A = {'en': 1.2, 'fr': 2.0, 'de': 0.8}  # log PPL = 3 + A * (million tokens)^-B
B = 0.4

def law(corpus, own, others, tau=0.0, cost=0.0):
    return 3 + A[corpus] * ((own + tau * others) / 1e6) ** -B + cost * others / (own + others)

def write_run(folder, languages, shares, total, rng, noise, text='', **more):
    taus, costs = more.pop('tau', {}), more.pop('cost', {})
    cfg = vars(settings(languages=languages, corpora={c: '' for _, c in languages}, out_dir='',
                        warmup_iters=0, schedule=[(0.0, shares)], max_iters=total // 256, **more))
    seen = {name: round(total * p) for (name, _), p in zip(languages, shares)}
    measured = {}
    for name, corpus in languages:
        own, tau, cost = seen[name], taus.get(corpus, 0), costs.get(corpus, 0)
        loss = law(corpus, own, total - own, tau, cost)
        ppl = np.exp(loss + noise * rng.standard_normal())
        measured[name] = {'corpus': corpus, 'test_text': corpus + text, 'ppl': ppl}
    folder.mkdir()
    (folder / 'results.json').write_text(json.dumps({
        'config': cfg, 'step': cfg['max_iters'], 'tokens_seen': seen,
        'non_embedding_parameters': 1, 'languages': measured}))
    return folder

def write_runs(folder, languages, mixtures, noise=0.002, **more):
    """Runs of every mixture and total, and of each corpus alone on seven amounts of tokens."""
    rng = np.random.default_rng(1)
    for i, (shares, total) in enumerate((s, n) for s in mixtures for n in TOTALS):
        write_run(folder / f'mix_{i}', languages, shares, total, rng, noise, **more)
    for corpus in dict(map(reversed, languages)):
        for i, n in enumerate(np.geomspace(5e4, 4e6, 7)):
            alone = [(corpus.upper(), corpus)]
            write_run(folder / f'mono_{corpus}_{i}', alone, (1.0,), int(n), rng, noise, **more)
    return sorted(folder.iterdir())

def mix(folders, *options):
    """-> what it says, the shares and PPLs {name: value} at them, whether it recommends."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        analyze.main(['mix', *map(str, folders), *options])
    out = printed.getvalue()
    line = r'^(\w+): ([\d.]+)%, [\d,]+ tokens, (?:\S+ epochs, )?PPL (\S+) \((\S+) to (\S+)\)'
    rows = re.findall(line, out, re.M)
    shares = {name: float(share) / 100 for name, share, *_ in rows}
    ppls = {name: tuple(map(float, values)) for name, _, *values in rows}
    return out, shares, ppls, '\nbest: ' in out

def test_without_transfer_there_is_no_term_and_shares_are_those_of_the_closed_form(tmp_path):
    languages = [('EN', 'en'), ('FR', 'fr'), ('DE', 'de')]
    shares = [(0.8, 0.1, 0.1), (0.1, 0.8, 0.1), (0.1, 0.1, 0.8), (0.3, 0.3, 0.4), (0.5, 0.4, 0.1)]
    out, best, ppls, sure = mix(write_runs(tmp_path, languages, shares), '--tokens=4e6')
    assert out.count('law of own, tau 0.000') == 3 and sure
    # the derivatives of A * share^-B are equal
    powers = np.array([A[corpus] ** (1 / (1 + B)) for _, corpus in languages])
    assert list(best.values()) == pytest.approx(powers / powers.sum(), abs=0.03)
    for name, corpus in languages:
        ppl, low, high = ppls[name]
        assert low < np.exp(law(corpus, best[name] * 4e6, 0)) < high < 1.05 * low

@pytest.mark.parametrize('kind, more', [
    ('transfer', {'tau': {'en': 0.3, 'fr': -0.05}}), ('cost', {'cost': {'en': 0.1, 'fr': 0.5}})])
def test_a_known_term_is_found_and_the_best_share_is_that_of_brute_force(tmp_path, kind, more):
    out, best, _, sure = mix(write_runs(tmp_path, *PAIR, **more), '--tokens=4e6')
    found = [float(v) for v in re.findall(rf'law of {kind}, tau (\S+);', out)]
    assert found == pytest.approx([*more[{'transfer': 'tau'}.get(kind, kind)].values()], abs=0.02)
    (term, values), = more.items()
    en = np.linspace(0.1, 0.9, 8001) * 4e6
    fr = 4e6 - en
    loss = law('en', en, fr, **{term: values['en']}) + law('fr', fr, en, **{term: values['fr']})
    assert sure and best['EN'] == pytest.approx(en[loss.argmin()] / 4e6, abs=0.03)

def test_one_language_gets_all_that_it_may_read_and_no_more_than_max_epochs(tmp_path):
    folders = write_runs(tmp_path, *PAIR)
    _, best, _, sure = mix(folders, '--for=FR')
    assert sure and best['FR'] == pytest.approx(0.9, abs=0.01)
    out, best, *_ = mix(folders, '--for=FR', '--own', 'FR=2e5')
    assert best['FR'] == pytest.approx(4 * 2e5 / 4e6, abs=0.001) and '4.00 epochs' in out
    _, best, *_ = mix(folders, '--for=FR', '--own', 'FR=2e5', 'EN=1e9', '--max_epochs=6')
    assert best['FR'] == pytest.approx(0.3, abs=0.001)
    out, *_ = mix(folders, '--tokens=1e9')
    assert 'extrapolated: errors are those at 1,000,000 to 4,000,000 tokens' in out

def test_step_matched_runs_are_left_out(tmp_path):
    folders, rng = write_runs(tmp_path, *PAIR), np.random.default_rng(0)
    step = write_run(tmp_path / 'step', [('FR', 'fr')], (1.0,), 10 ** 6, rng, 0, batch_size=1)
    assert mix([*folders, step]) == mix(folders)

def test_a_gain_within_the_error_is_no_recommendation_and_two_runs_are_named(tmp_path):
    out, shares, _, sure = mix(write_runs(tmp_path, *PAIR, noise=0.1))
    assert not sure and 'no recommendation: ' in out
    assert shares['EN'] == pytest.approx(0.5, abs=0.01)
    line = r'^run next: EN [\d.]+%, FR [\d.]+% of [14],000,000 tokens$'
    assert len(re.findall(line, out, re.M)) == 2

def test_clones_share_a_law_and_an_even_split_is_their_best(tmp_path):
    runs = write_runs(tmp_path, [('EN1', 'en'), ('EN2', 'en')], PAIR[1], cost={'en': 0.2})
    out, shares, ppls, sure = mix(runs)
    assert not sure and shares['EN1'] == pytest.approx(0.5, abs=0.01)
    assert ppls['EN1'][0] == pytest.approx(ppls['EN2'][0], rel=0.001)
    assert set(re.findall(r'(\w+): law of (\w+)', out)) == {('en', 'cost')}

def test_mistakes_end_in_one_line(tmp_path):
    folders, rng = write_runs(tmp_path, *PAIR), np.random.default_rng(0)
    pair, half = PAIR[0], (0.5, 0.5)
    others = {
        'model': [pair, half, {'n_layer': 3}], 'text': [pair, half, {'text': 'x'}],
        'vocabulary': [pair, half, {'vocab': 'anchored'}],
        'languages': [[('EN', 'en'), ('DE', 'de')], half, {}],
        'recipe': [pair, half, {'learning_rate': 1e-3}]}
    commands = [('three mixtures', few) for few in ([], folders[-2:], folders[:2])]
    for said, (languages, shares, more) in others.items():
        extra = write_run(tmp_path / f'other_{said}', languages, shares, 10 ** 6, rng, 0, **more)
        commands.append((said, [*folders, extra]))
    for said, *options in (("no language 'DE'", '--for=DE'), ('NAME=TOKENS', '--own', 'FR'),
                           ('max_epochs', '--max_epochs=0'), ('keeps to 4', '--own', 'FR=1e3')):
        commands.append((said, [*folders, *options]))
    for said, command in commands:
        with pytest.raises(UserError, match=said) as error:
            mix(command)
        assert '\n' not in str(error.value)
