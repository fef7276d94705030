"""extras/lens.py against rotations, permutations, and models whose languages are one or none."""
import json
from pathlib import Path

import numpy as np
import torch
from conftest import CLONES, refused, trained
from pytest import approx

import analyze
from extras import lens

def read(path):
    return json.loads(Path(path).read_text())

def test_a_rotated_copy_is_alike_and_a_shuffled_one_is_not():
    states = torch.from_numpy(np.random.default_rng(0).normal(size=(400, 16)))
    rotation, _ = torch.linalg.qr(states[:16])
    shuffled = states[torch.randperm(400, generator=torch.Generator().manual_seed(0))]
    assert lens.cka(states, 3 * states @ rotation + 5) == approx(1)
    assert lens.rotated_retrieval(states, 3 * states @ rotation + 5) == 1
    assert lens.cka(states, shuffled) < 0.1 and lens.rotated_retrieval(states, shuffled) < 0.03

def test_the_last_layer_is_the_model_and_equal_clones_have_half_of_the_mass_each(in_runs):
    run = analyze.load_run('out/cloned', 'cpu')
    states, base_ids = lens.states_of(run, 0, 240)
    assert states.shape == (3, 240, 32)
    wanted = {'next token': base_ids, 'its twin': base_ids + 400}
    result = lens.logit_lens(run, states, wanted)
    starts = run.dataset.test_starts(0, 10)  # 24 of 32 positions of each
    x, y = map(torch.from_numpy, run.dataset.windows('test', starts, np.zeros(10, int)))
    assert np.array_equal(y[:, 8:].flatten(), base_ids)
    with torch.no_grad():
        p = run.model(x)[:, 8:].softmax(-1).flatten(0, 1)
    for name, ids in wanted.items():
        log2_p = p[range(240), ids].log2().mean().item()
        assert result['log2_p'][name][-1] == approx(log2_p, abs=1e-4)
    for name, mass in ('EN1', p[:, :400]), ('EN2', p[:, 400:]), ('shared', p[:, :0]):
        assert result['mass'][name][-1] == approx(mass.sum(1).mean().item(), abs=1e-5)
    run.model.lm_head.weight.data[400:] = run.model.lm_head.weight.data[:400]
    result = lens.logit_lens(run, states, wanted)
    assert result['mass']['EN1'] == approx([0.5] * 3) == result['mass']['EN2']
    assert result['log2_p']['next token'] == approx(result['log2_p']['its twin'])

def test_a_run_is_measured_and_drawn_also_against_another_of_the_same_text(in_runs, capsys):
    lens.main(lens.parse(['out/cloned', '--tokens=100', '--device=cpu']))
    assert 'mean nothing without --against' in capsys.readouterr().out
    lens.main(lens.parse(['out/cloned', '--tokens=100', '--device=cpu', '--against=out/mono_50']))
    result = read('out/cloned/lens.json')
    assert Path('out/cloned/lens.png').read_bytes().startswith(b'\x89PNG')
    assert set(result['likeness']) == {
        'EN1 and EN2', 'EN1 and EN of out/mono_50', 'EN2 and EN of out/mono_50'}
    for name in 'EN1', 'EN2':
        mass = np.array([*result['lens'][name]['mass'].values()])
        assert mass.shape == (3, 3) and mass.sum(0) == approx([1] * 3)
        assert max(result['lens'][name]['log2_p']['next token']) < 0
    before = Path('out/cloned/lens.json').read_bytes()
    trained(**CLONES | {'dataset': 'other', 'data_seed': 1}, max_iters=2, out_dir='more/other')
    args = lens.parse(['out/cloned', '--device=cpu', '--against=more/other'])
    refused('more/other has another test text or block_size than out/cloned', lens.main, args)
    assert Path('out/cloned/lens.json').read_bytes() == before

def test_pieces_that_languages_share_count_apart(in_runs):
    anchored = CLONES | {'dataset': 'anchored', 'anchor_frac': 0.25}
    trained(**anchored, max_iters=2, out_dir='more/anchored')
    run = analyze.load_run('more/anchored', 'cpu')
    states, _ = lens.states_of(run, 1, 50)
    run.model.lm_head.weight.data[:] = 0  # all ids are equally likely
    mass = lens.logit_lens(run, states, {})['mass']
    assert [mass[name][0] for name in ('EN1', 'EN2', 'shared')] == approx([3 / 7, 3 / 7, 1 / 7])

def test_a_single_token_is_refused():
    refused('--tokens must be at least 2', lens.parse, ['out', '--tokens=1'])
