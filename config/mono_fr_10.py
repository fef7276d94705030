# config/mono_fr_10.py - Table 3, row 6: French alone on a tenth of the tokens, a whole run with its own cosine
dataset = 'mono_fr_10'
out_dir = 'out/mono_fr_10'
corpora = {'fr': 'hf:PleIAs/French-PD-Books:complete_text'}
languages = [('FR', 'fr')]
schedule = [(0.0, (1.0,))]
max_iters = 18265 // 10
